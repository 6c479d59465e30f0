"""Two products with a softmax between as one attention step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from saccade.native.ops import IDENTITY, Attention, MatMul, Softmax, Step
from saccade.native.plan import Draft
from saccade.native.tensors import View
from saccade.native.views import reshaped, same_places

__all__ = ["fuse_attention"]


def fuse_attention(draft: Draft, can_run: Callable[[Step], bool]) -> None:
    """Join each scores-softmax-values chain whose parts nothing else reads."""
    for softmax in [step for step in draft.steps if isinstance(step, Softmax)]:
        joined = _joined(draft, softmax)
        if joined is None:
            continue
        scores, values, attention = joined
        if can_run(attention):
            draft.steps[draft.steps.index(values)] = attention
            draft.steps = [step for step in draft.steps if step not in (softmax, scores)]


def _joined(draft: Draft, softmax: Softmax) -> tuple[MatMul, MatMul, Attention] | None:
    readers, writers = draft.readers(), draft.writers()
    before, after = writers.get(softmax.x.buffer, []), readers.get(softmax.y.buffer, [])
    if len(before) != 1 or len(after) != 1 or len(readers[softmax.x.buffer]) != 1:
        return None
    scores, values = draft.steps[before[0]], draft.steps[after[0]]
    if not isinstance(scores, MatMul) or not isinstance(values, MatMul) or softmax.is_log:
        return None
    if scores.bias or values.bias or {scores.activation, values.activation} != {IDENTITY}:
        return None
    rank = len(softmax.x.shape)
    is_whole = (
        softmax.axis == rank - 1
        and same_places(scores.y, softmax.x)
        and same_places(softmax.y, values.a)
        and values.alpha == 1.0
    )
    if not is_whole:
        return None
    keys = replace(
        scores.b,
        shape=(*scores.b.shape[:-2], scores.b.shape[-1], scores.b.shape[-2]),
        strides=(*scores.b.strides[:-2], scores.b.strides[-1], scores.b.strides[-2]),
    )
    views = [_headed(view) for view in (scores.a, keys, values.b, values.y)]
    if any(view is None for view in views):
        return None
    q, k, v, y = (view for view in views if view is not None)
    label = f"{scores.label} + {softmax.label} + {values.label}"
    return scores, values, Attention(label, q, k, v, y, scores.alpha)


def _headed(view: View) -> View | None:
    """Leading axes as two: pictures and heads."""
    lead, rest = view.shape[:-2], view.shape[-2:]
    if len(lead) == 2:
        return view
    if len(lead) < 2:
        return reshaped(view, (1, *(lead or (1,)), *rest))
    return None
