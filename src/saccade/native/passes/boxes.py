"""A box head's tail (softmax over bins, expectation, corners or centres) as one step.

The tail is spelled in many ways, so its spelling is not looked at: from the softmax on, everything
that depends on nothing else is taken, and replaced by a `Boxes` step if both give the same numbers
for random logits, in double precision.

Source: Li et al., Generalized Focal Loss, 2020 (the expectation over bins).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from saccade.native.ops import Boxes, Conv, Level, Softmax, Step, reads, writes
from saccade.native.plan import Draft
from saccade.native.reference import interpret
from saccade.native.tensors import View
from saccade.native.views import footprint

__all__ = ["fuse_boxes"]

FORMS = ("cxcywh", "xyxy")
# Of coordinates in pixels, in double precision; the tail's own constants are FP32.
TOLERANCE = 1e-3


def fuse_boxes(draft: Draft, can_run: Callable[[Step], bool]) -> None:
    """Replace each box tail that this step can say, where there is a kernel for it."""
    for softmax in [step for step in draft.steps if isinstance(step, Softmax)]:
        tail = _tail(draft, softmax)
        for boxes in _candidates(draft, softmax, tail):
            if can_run(boxes) and _same(draft, softmax, tail, boxes):
                at = draft.steps.index(tail[-1])
                draft.steps[at] = boxes
                draft.steps = [step for step in draft.steps if step not in tail]
                break


def _tail(draft: Draft, softmax: Softmax) -> list[Step]:
    """The softmax and all that depends on it and on constants alone."""
    known = {softmax.y.buffer}
    tail: list[Step] = [softmax]
    shared = draft.writers()
    for step in draft.steps[draft.steps.index(softmax) + 1 :]:
        views = reads(step)
        is_inside = bool(views) and all(
            view.buffer in known or view.buffer in draft.constants for view in views
        )
        if is_inside and any(view.buffer in known for view in views):
            tail.append(step)
            for view in writes(step):
                inner = all(draft.steps[i] in tail for i in shared[view.buffer])
                if inner and draft.buffers[view.buffer].kind == "arena":
                    known.add(view.buffer)
    return tail


def _candidates(draft: Draft, softmax: Softmax, tail: list[Step]) -> Iterator[Boxes]:
    y = _result(draft, tail)
    levels = _levels(draft, softmax)
    if y is None or levels is None or sum(lv.x.h * lv.x.w for lv in levels) != y.shape[2]:
        return
    bins = softmax.x.shape[softmax.axis]
    for form in FORMS:
        yield Boxes(" + ".join(step.label for step in tail), levels, y, bins, form)  # type: ignore[arg-type]


def _result(draft: Draft, tail: list[Step]) -> View | None:
    """What the tail leaves to others, as (n, 4, cells)."""
    outside = {v.buffer for step in draft.steps if step not in tail for v in reads(step)}
    outside |= draft.output_buffers()
    left = [v for step in tail for v in writes(step) if v.buffer in outside]
    left.sort(key=lambda view: view.offset)
    parts = [_as_rows(view) for view in left]
    if not parts or any(part is None for part in parts):
        return None
    first = parts[0]
    assert first is not None
    rows = first.shape[1]
    for part in parts[1:]:
        assert part is not None
        is_next = part.offset == first.offset + rows * first.strides[1]
        if part.buffer != first.buffer or part.strides != first.strides or not is_next:
            return None
        rows += part.shape[1]
    if rows != 4:
        return None
    return replace(first, shape=(first.shape[0], 4, first.shape[2]))


def _as_rows(view: View) -> View | None:
    """(n, rows, cells), whatever the order of the axes; cells are the longest."""
    axes = [a for a in range(1, len(view.shape)) if view.shape[a] > 1]
    axes.sort(key=lambda axis: view.shape[axis])
    if len(axes) != 2 or view.shape[axes[0]] > 4:
        return None
    return view.permuted(0, *axes) if len(view.shape) == 3 else None


def _levels(draft: Draft, softmax: Softmax) -> tuple[Level, ...] | None:
    """The pictures that were written into what the softmax reads."""
    x, axis = softmax.x, softmax.axis
    others = [a for a in range(1, len(x.shape)) if a != axis and x.shape[a] > 1]
    sides = [a for a in others if x.shape[a] == 4]
    cells = [a for a in others if x.shape[a] != 4]
    fed = [view for view in draft.inputs.values() if len(view.shape) == 4]
    if len(sides) != 1 or len(cells) != 1 or len(fed) != 1 or x.strides[axis] != 1:
        return None
    bins, pitch = x.shape[axis], x.strides[cells[0]]
    if x.strides[sides[0]] != bins:
        return None
    levels = []
    low, high = footprint(x)
    for step in draft.steps:
        for y in writes(step):
            if y.buffer != x.buffer or len(y.shape) != 4 or not isinstance(step, Conv):
                continue
            is_ours = y.pitch == pitch and low <= y.offset < high and y.c >= 4 * bins
            if is_ours and (y.offset - x.offset) % pitch == 0:
                wide = replace(y, shape=(*y.shape[:3], 4 * bins))
                levels.append(Level(wide, fed[0].shape[2] / y.h))
    return tuple(sorted(levels, key=lambda level: level.x.offset)) or None


def _same(draft: Draft, softmax: Softmax, tail: list[Step], boxes: Boxes) -> bool:
    """Whether both ways give the same boxes for random logits."""
    made = draft.buffers[softmax.x.buffer]
    found = []
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, made.num_elements)
    for steps in (tail, [boxes]):
        small = Draft()
        small.buffers = [replace(buffer, dtype=_double(buffer.dtype)) for buffer in draft.buffers]
        small.weights, small.constants = draft.weights, draft.constants
        small.inputs = {"logits": _flat(softmax.x.buffer, made.num_elements)}
        small.outputs = {"boxes": boxes.y}
        small.steps = list(steps)
        small.retyped()
        found.append(interpret(small, {"logits": logits}, compute=np.float64)["boxes"])
    return bool(np.abs(found[0] - found[1]).max() <= TOLERANCE)


def _double(dtype: str) -> str:
    return "float64" if dtype in ("float32", "float16", "bfloat16") else dtype


def _flat(number: int, count: int) -> View:
    return View(number, "float32", (count,), (1,))
