"""Channels rounded up to eight, where nobody but convolutions sees them.

Pictures of 58 channels begin at no multiple of 16 bytes, so every kernel reads and writes them two
bytes at a time. With six more channels of nothing all of them move 16 bytes. The convolution that
writes such a picture gets rows of zeros in its weights, those that read it columns of zeros; what
lies in the new channels is a number, so that 0 times it is 0.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from saccade.native.ops import Conv, Gather, Step, reads, writes
from saccade.native.plan import Draft
from saccade.native.tensors import View

__all__ = ["pad_channels", "padded"]

_MULTIPLE = 8
# New channels cost bytes and products: at most a quarter more.
_MOST_MORE = 1.25


def pad_channels(draft: Draft) -> None:
    """Pad all that can be padded, views and weights."""
    wide = {view: _widened(draft, view) for view in sorted(_candidates(draft), key=repr)}
    for index, step in enumerate(draft.steps):
        if isinstance(step, Gather) and step.y in wide:
            draft.steps[index] = _gathered(draft, step, wide[step.y])
        elif isinstance(step, Conv):
            if step.y in wide:
                step = _writing(draft, step, wide[step.y])
            if step.x in wide:
                step = _reading(draft, step, wide[step.x])
            draft.steps[index] = step


def _candidates(draft: Draft) -> set[View]:
    """Whole pictures that one convolution (or gather) makes, and only convolutions read."""
    users: dict[int, list[Step]] = {}
    for step in draft.steps:
        for number in {view.buffer for view in (*reads(step), *writes(step))}:
            users.setdefault(number, []).append(step)
    outputs = draft.output_buffers()
    found = {
        view
        for step in draft.steps
        for view in writes(step)
        if isinstance(step, Conv | Gather)
        and view.buffer not in outputs
        and _is_whole(draft, view)
        and all(_can(draft, user, view) for user in users[view.buffer])
    }
    while True:
        # A depthwise convolution has as many channels before as after.
        apart = {
            view
            for step in draft.steps
            if isinstance(step, Conv) and step.groups > 1 and (step.x in found) != (step.y in found)
            for view in (step.x, step.y)
        }
        if not found & apart:
            return found
        found -= apart


def _is_whole(draft: Draft, view: View) -> bool:
    made = draft.buffers[view.buffer]
    if len(view.shape) != 4 or made.kind != "arena" or not view.is_packed:
        return False
    rest = -view.c % _MULTIPLE
    return (
        rest > 0
        and view.c + rest <= view.c * _MOST_MORE
        and view.pitch == view.c
        and view.num_elements == made.num_elements
    )


def _can(draft: Draft, step: Step, view: View) -> bool:
    """Whether a step that reads or writes the picture could do so with more channels."""
    if isinstance(step, Gather):
        return (
            step.y == view
            and step.kind == "take"
            and step.axis == 3
            and len(step.indices.shape) == 1
            and step.indices.buffer in draft.constants
        )
    if not isinstance(step, Conv) or step.weight_scale is not None or step.second is not None:
        return False
    if step.groups not in (1, step.x.c) or (step.groups > 1 and step.y.c != step.x.c):
        return False
    is_written, is_read = step.y == view, step.x == view
    others = [v for v in (step.x, step.y, step.residual) if v is not None and v != view]
    return (
        (is_written or is_read)
        and not (is_written and step.residual is not None)
        and all(v.buffer != view.buffer for v in others)
    )


def _widened(draft: Draft, view: View) -> View:
    c = -(-view.c // _MULTIPLE) * _MULTIPLE
    return draft.new(f"{draft.buffers[view.buffer].name}:padded", (*view.shape[:3], c), view.dtype)


def _writing(draft: Draft, conv: Conv, y: View) -> Conv:
    more = y.c - conv.y.c
    weight = draft.weight(f"{conv.weight}:rows", padded(draft.weights[conv.weight], 0, more))
    bias = conv.bias
    if bias is not None:
        bias = draft.weight(f"{bias}:rows", padded(draft.weights[bias], 0, more))
    return replace(conv, y=y, weight=weight, bias=bias)


def _reading(draft: Draft, conv: Conv, x: View) -> Conv:
    if conv.groups > 1:
        return replace(conv, x=x, groups=x.c)  # its weights are one per result
    columns = padded(draft.weights[conv.weight], 3, x.c - conv.x.c)
    return replace(conv, x=x, weight=draft.weight(f"{conv.weight}:columns", columns))


def _gathered(draft: Draft, step: Gather, y: View) -> Gather:
    stored = draft.constants[step.indices.buffer]
    places = np.concatenate([stored, np.repeat(stored[:1], y.c - step.y.c)])
    return replace(step, y=y, indices=draft.constant(places, f"{step.label}:places"))


def padded(array: np.ndarray, axis: int, count: int) -> np.ndarray:
    """An array with so many zeros more along an axis."""
    shape = list(array.shape)
    shape[axis] = count
    return np.concatenate([array, np.zeros(shape, array.dtype)], axis)
