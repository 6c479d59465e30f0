"""Wrong only when four pictures are asked about at once."""

from saccade.backends._wrapping import Wrapped


def spoil(outputs, inputs, num):
    if num == 4:
        outputs["output0"][:, 0] += 3


BACKEND = Wrapped("wrong_batch_4", spoil)
