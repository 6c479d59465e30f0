"""Concatenations and outputs written in place: no copies.

A copy from a whole buffer into a slice of another is dropped, and all that wrote or read the first
buffer works on the slice instead. Neighbouring copies are joined first, so that a split followed by
a concatenation costs nothing either.
"""

from __future__ import annotations

from dataclasses import replace

from saccade.native.ops import (
    Boxes,
    Conv,
    Copy,
    GridSample,
    Pool,
    PoolChain,
    Resize,
    RoiAlign,
    Step,
    reads,
    writes,
)
from saccade.native.plan import Draft, with_views
from saccade.native.tensors import View
from saccade.native.views import image, inside

__all__ = ["changed_buffer", "forward_copies", "join_copies", "place_copies"]

# Steps whose four-axis operands must be pixels.
_PICTURES = (Conv, Pool, PoolChain, Resize, GridSample, RoiAlign, Boxes)


def join_copies(draft: Draft) -> None:
    """One copy for two that go on from each other on both sides."""
    steps: list[Step] = []
    for step in draft.steps:
        while steps and isinstance(step, Copy) and isinstance(steps[-1], Copy):
            joined = _joined(steps[-1], step)
            if joined is None:
                break
            steps.pop()
            step = joined
        steps.append(step)
    draft.steps = steps


def _joined(one: Copy, two: Copy) -> Copy | None:
    if one.x.dtype != two.x.dtype or len(one.x.shape) != len(two.x.shape):
        return None
    for axis in range(len(one.x.shape)):
        x, y = _union(one.x, two.x, axis), _union(one.y, two.y, axis)
        if x is not None and y is not None:
            return replace(one, x=x, y=y)
    return None


def _union(one: View, two: View, axis: int) -> View | None:
    shape = list(one.shape)
    shape[axis] = two.shape[axis]
    is_next = two.offset == one.offset + one.shape[axis] * one.strides[axis]
    if one.buffer != two.buffer or tuple(shape) != two.shape or not is_next:
        return None
    if one.strides != two.strides:
        return None
    shape[axis] += one.shape[axis]
    return replace(one, shape=tuple(shape))


def place_copies(draft: Draft) -> None:
    """Drop every copy that can be dropped, until none is left that can."""
    while _place_one(draft):
        pass


def _place_one(draft: Draft) -> bool:
    for index, step in enumerate(draft.steps):
        if isinstance(step, Copy) and _is_whole(draft, step):
            moved = _moved(draft, index, step)
            if moved is not None:
                draft.steps = moved
                return True
    return False


def _is_whole(draft: Draft, copy: Copy) -> bool:
    """Whether all of an inner buffer is copied, once each element, without a change of type."""
    made = draft.buffers[copy.x.buffer]
    return (
        made.kind == "arena"
        and copy.x.buffer != copy.y.buffer
        and copy.x.num_elements == made.num_elements
        and not copy.x.is_repeated
        and (copy.x.dtype == copy.y.dtype or _is_float_output(draft, copy))
    )  # fmt: skip


def _is_float_output(draft: Draft, copy: Copy) -> bool:
    """An output of another float type is stored as such by whoever computes it, in FP32."""
    floats = ("float32", "float16")
    return (
        draft.buffers[copy.y.buffer].kind == "output"
        and copy.x.dtype in floats
        and copy.y.dtype in floats
        and not draft.readers().get(copy.y.buffer)
        and draft.readers().get(copy.x.buffer, []) == [draft.steps.index(copy)]
    )


def _moved(draft: Draft, index: int, copy: Copy) -> list[Step] | None:
    steps = []
    for at, step in enumerate(draft.steps):
        if at != index:
            changed = changed_buffer(step, copy.x, copy.y)
            if changed is None:
                return None
            steps.append(changed)
    return steps


def changed_buffer(step: Step, whole: View, place: View) -> Step | None:
    """A step that works on `place` wherever it worked on the buffer of `whole`.

    Returns:
        The step itself if it did not; None if its views of the buffer cannot be said there, or
        are not what the step needs.
    """
    misfits = False

    def move(view: View) -> View:
        nonlocal misfits
        if view.buffer != whole.buffer:
            return view
        found = inside(view, whole, place)
        if found is None:
            misfits = True
            return view
        return replace(found, dtype=place.dtype)

    if all(view.buffer != whole.buffer for view in (*reads(step), *writes(step))):
        return step
    changed = _as_pictures(with_views(step, move))
    return None if misfits or not _fits(changed, place.buffer) else changed


def _as_pictures(step: Step) -> Step:
    if not isinstance(step, _PICTURES):
        return step
    return with_views(step, lambda view: image(view) if len(view.shape) == 4 else view)


def _fits(step: Step, number: int) -> bool:
    """Whether what a step needs as pixels are pixels, in one buffer."""
    if not isinstance(step, _PICTURES) or isinstance(step, Boxes):
        return True
    views = [view for view in (*reads(step), *writes(step)) if view.buffer == number]
    if isinstance(step, GridSample):
        views = [view for view in views if view != step.grid]
    return all(view.is_pixels for view in views if len(view.shape) == 4)


def forward_copies(draft: Draft) -> None:
    """Read the source of a copy instead of the copy, where all of it lies in one copy."""
    for index, copy in enumerate(draft.steps):
        if not isinstance(copy, Copy) or copy.x.dtype != copy.y.dtype:
            continue
        for at in range(index + 1, len(draft.steps)):
            step = draft.steps[at]
            if any(view.buffer == copy.y.buffer for view in reads(step)):
                draft.steps[at] = _reading(step, copy)
    draft.drop_dead()


def _reading(step: Step, copy: Copy) -> Step:
    written = set(writes(step))

    def move(view: View) -> View:
        if view.buffer != copy.y.buffer or view in written:
            return view
        found = inside(view, copy.y, copy.x)
        return view if found is None else replace(found, dtype=copy.x.dtype)

    moved = _as_pictures(with_views(step, move))
    return moved if _fits(moved, copy.x.buffer) else step
