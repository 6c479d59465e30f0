"""Boxes 3 px off."""

from saccade.backends._wrapping import Wrapped


def spoil(outputs, inputs, num):
    outputs["output0"][:, 0] += 3


BACKEND = Wrapped("wrong_shifted", spoil)
