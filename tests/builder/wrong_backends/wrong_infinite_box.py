"""A box that reaches to infinity in every answer, with scores as they should be."""

from saccade.backends._wrapping import Wrapped


def spoil(outputs, inputs, num):
    outputs["output0"][:, 2, 1] = float("inf")


BACKEND = Wrapped("wrong_infinite_box", spoil)
