"""Every inference puts boxes a little further to the right, far too little for AP to notice."""

import itertools

from saccade.backends._wrapping import Wrapped

_count = itertools.count(1)


def spoil(outputs, inputs, num):
    outputs["output0"][:, 0, 0] += 0.001 * next(_count)


BACKEND = Wrapped("wrong_drifting", spoil)
