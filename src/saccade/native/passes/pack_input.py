"""A convolution that reads a graph input as it lies, or a copy of it with channels last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from saccade.native.ops import Conv, Copy, Step
from saccade.native.plan import Draft
from saccade.native.tensors import DType, pixels
from saccade.native.views import image

__all__ = ["pack_inputs"]


def pack_inputs(draft: Draft, half: DType, can_run: Callable[[Step], bool]) -> None:
    """Put a copy before each convolution that cannot read what it is given.

    Args:
        draft: Types are set.
        half: Element type of the copy.
        can_run: Whether there is a kernel for a step.
    """
    packed: dict[int, int] = {}
    steps: list[Step] = []
    for step in draft.steps:
        if isinstance(step, Conv) and not step.x.is_pixels and not can_run(step):
            x = image(step.x)
            if x.buffer not in packed:
                size = x.num_elements
                number = draft.buffer(f"{step.label}:packed", half, size)
                packed[x.buffer] = number
                steps.append(Copy(f"{step.label}:packed", x, pixels(number, half, _shape(x.shape))))
            step = replace(step, x=pixels(packed[x.buffer], half, _shape(x.shape)))
        steps.append(step)
    draft.steps = steps


def _shape(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    n, h, w, c = shape
    return n, h, w, c
