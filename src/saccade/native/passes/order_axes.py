"""Axes of elementwise steps in the order in which the result lies in memory.

Such a step means the same whatever the order of its axes; kernels walk the last axis side by side.
"""

from __future__ import annotations

from dataclasses import replace

from saccade.native.ops import Copy, Fill, Pointwise, Step
from saccade.native.plan import Draft, with_views
from saccade.native.tensors import View
from saccade.native.views import order_of

__all__ = ["order_axes"]


def order_axes(draft: Draft) -> None:
    """Put the widest stride of each result first, and leave out axes of size 1."""
    draft.steps = [_ordered(step) for step in draft.steps]


def _ordered(step: Step) -> Step:
    if isinstance(step, Copy | Fill):
        result = step.y
    elif isinstance(step, Pointwise):
        result = step.results[0]
    else:
        return step
    order = [axis for axis in order_of(result) if result.shape[axis] > 1] or [0]

    def change(view: View) -> View:
        return replace(
            view,
            shape=tuple(view.shape[axis] for axis in order),
            strides=tuple(view.strides[axis] for axis in order),
        )

    return with_views(step, change) if result.shape else step
