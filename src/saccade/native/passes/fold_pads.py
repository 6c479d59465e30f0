"""Borders of zeros written out before a convolution or a mean: the step pads by itself."""

from __future__ import annotations

from dataclasses import replace

from saccade.native.ops import Conv, Copy, Fill, Pool, Step, reads, writes
from saccade.native.plan import Draft
from saccade.native.tensors import View
from saccade.native.views import image, same_places

__all__ = ["fold_pads", "sink_fills"]


def fold_pads(draft: Draft) -> None:
    """Let convolutions and means read what was copied into the middle of zeros."""
    for fill in [step for step in draft.steps if isinstance(step, Fill) and step.value == 0]:
        inner = _inner(draft, fill)
        if inner is None:
            continue
        changed = [_padding(step, fill, inner) for step in draft.steps]
        if not any(view.buffer == fill.y.buffer for step in changed for view in reads(step)):
            draft.steps = changed
    draft.drop_dead()


def sink_fills(draft: Draft) -> None:
    """Put each fill just before what writes inside it, so that its buffer lives no longer."""
    fills = [step for step in draft.steps if isinstance(step, Fill)]
    for fill in fills:
        draft.steps.remove(fill)
    for fill in fills:
        at = next(
            index
            for index, step in enumerate(draft.steps)
            if any(view.buffer == fill.y.buffer for view in (*reads(step), *writes(step)))
        )
        draft.steps.insert(at, fill)


def _inner(draft: Draft, fill: Fill) -> Copy | None:
    """The one copy into a filled buffer, if nothing else writes there."""
    writers = [draft.steps[i] for i in draft.writers()[fill.y.buffer]]
    copies = [step for step in writers if isinstance(step, Copy)]
    whole = draft.buffers[fill.y.buffer].num_elements == fill.y.num_elements
    return copies[0] if len(copies) == 1 and len(writers) == 2 and whole else None


def _padding(step: Step, fill: Fill, inner: Copy) -> Step:
    if not isinstance(step, Conv | Pool) or step.x.buffer != fill.y.buffer:
        return step
    if len([view for view in reads(step) if view.buffer == fill.y.buffer]) != 1:
        return step
    if isinstance(step, Pool) and (step.kind != "mean" or not _counts(step)):
        return step
    border = _border(step.x, fill.y, inner)
    if border is None:
        return step
    (a, b, c, d), (top, left, bottom, right) = step.pads, border
    pads = (a + top, b + left, c + bottom, d + right)
    changed = replace(step, x=image(inner.x.permuted(0, 2, 3, 1)), pads=pads)
    if not changed.x.is_pixels:
        return step
    return replace(changed, counts_padding=True) if isinstance(changed, Pool) else changed


def _counts(step: Pool) -> bool:
    """Whether a mean divides by its whole window everywhere: then zeros may be its own padding."""
    reach_h = (step.y.h - 1) * step.stride[0] + (step.kernel[0] - 1) * step.dilation[0] + 1
    reach_w = (step.y.w - 1) * step.stride[1] + (step.kernel[1] - 1) * step.dilation[1] + 1
    is_inside = reach_h <= step.x.h and reach_w <= step.x.w
    return step.pads == (0, 0, 0, 0) and is_inside


def _border(x: View, whole: View, inner: Copy) -> tuple[int, int, int, int] | None:
    """Zeros above, left, below and right; None if the copy is not a picture in the middle."""
    if len(whole.shape) != 4 or not same_places(image(whole.permuted(0, 2, 3, 1)), image(x)):
        return None
    n, c, h, w = inner.y.shape
    if (n, c) != whole.shape[:2] or inner.y.strides[2:] != whole.strides[2:]:
        return None
    at = inner.y.offset - whole.offset
    top, rest = divmod(at, whole.strides[2]) if whole.strides[2] > 0 else (-1, 0)
    left, rest = divmod(rest, whole.strides[3])
    bottom, right = whole.shape[2] - top - h, whole.shape[3] - left - w
    is_inside = rest == 0 and min(top, left, bottom, right) >= 0
    return (top, left, bottom, right) if is_inside else None
