"""Class 1 is never found."""

from saccade.backends._wrapping import Wrapped


def spoil(outputs, inputs, num):
    outputs["output0"][:, 5] = 0


BACKEND = Wrapped("wrong_lost_class", spoil)
