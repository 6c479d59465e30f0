"""Convolutions that read the same picture in the same way, as one with more channels.

The branches of a detection head begin so: the picture is read once, and one launch is saved. What
each branch made is a slice of the channels of what the one makes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from saccade.native.ops import Conv, Step
from saccade.native.passes.place import changed_buffer
from saccade.native.plan import Draft
from saccade.native.tensors import View

__all__ = ["merge_siblings"]

# Slices begin where eight halves do, so that kernels can load them at once.
ALIGNED_CHANNELS = 8
# Wider ones fill the matrix units by themselves.
MAX_CHANNELS = 256


def merge_siblings(draft: Draft) -> None:
    """Merge until nothing changes."""
    while _merge_one(draft):
        pass


def _merge_one(draft: Draft) -> bool:
    convs = [step for step in draft.steps if isinstance(step, Conv)]
    seen: dict[object, Conv] = {}
    for conv in convs:
        first = seen.setdefault(_likeness(conv), conv)
        if first is conv or not (_is_free(draft, first) and _is_free(draft, conv)):
            continue
        if first.y.c % ALIGNED_CHANNELS or first.y.c + conv.y.c > MAX_CHANNELS:
            continue
        merged = _merged(draft, first, conv)
        if merged is not None:
            draft.steps = merged
            return True
    return False


def _likeness(conv: Conv) -> object:
    """Equal for convolutions that differ in weights and results alone."""
    if conv.groups != 1 or conv.residual is not None or conv.second is not None:
        return conv
    has_units = None if conv.weight_scale is None else "units"
    y = replace(conv.x, buffer=-1)
    return replace(conv, label="", y=y, weight="", bias=None, weight_scale=has_units)


def _is_free(draft: Draft, conv: Conv) -> bool:
    """Whether a convolution's result is a buffer of its own."""
    made = draft.buffers[conv.y.buffer]
    return (
        made.kind == "arena"
        and conv.y.num_elements == made.num_elements
        and len(draft.writers()[conv.y.buffer]) == 1
    )


def _merged(draft: Draft, one: Conv, two: Conv) -> list[Step] | None:
    n, h, w, _ = one.y.shape
    both = draft.new(one.label, (n, h, w, one.y.c + two.y.c), one.y.dtype)
    made = replace(
        one,
        label=f"{one.label} | {two.label}",
        y=both,
        weight=_joined(draft, one.weight, two.weight),
        bias=_joined_bias(draft, one, two),
        weight_scale=(
            _joined(draft, one.weight_scale, two.weight_scale)
            if one.weight_scale is not None and two.weight_scale is not None
            else None
        ),
    )
    steps: list[Step] | None = [
        made if step is one else step for step in draft.steps if step is not two
    ]
    for conv, place in (
        (one, both.channels(0, one.y.c)),
        (two, both.channels(one.y.c, one.y.c + two.y.c)),
    ):
        steps = None if steps is None else _moved(steps, conv.y, place)
    return steps


def _moved(steps: list[Step], whole: View, place: View) -> list[Step] | None:
    moved = []
    for step in steps:
        changed = changed_buffer(step, whole, place)
        if changed is None:
            return None
        moved.append(changed)
    return moved


def _joined(draft: Draft, one: str, two: str) -> str:
    array = np.concatenate((draft.weights[one], draft.weights[two]))
    return draft.weight(f"{one} | {two}", array)


def _joined_bias(draft: Draft, one: Conv, two: Conv) -> str | None:
    if one.bias is None and two.bias is None:
        return None
    parts = [
        np.zeros(conv.y.c, np.float32) if conv.bias is None else draft.weights[conv.bias]
        for conv in (one, two)
    ]
    return draft.weight(f"{one.bias} | {two.bias}", np.concatenate(parts))
