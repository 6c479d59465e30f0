"""8-bit tensors as the kernels see them: two codes at a time, as halves of half as many channels.

A product of the matrix units takes 32 bytes of depth, 16 halves or 32 codes, from the same places
and in the same order; so all that moves or places halves serves codes too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from saccade.native.ops import Conv
from saccade.native.tensors import View

__all__ = [
    "EIGHT",
    "can_pair",
    "is_even",
    "is_small",
    "paired",
    "sums_as_values",
    "units",
    "uses_e4m3",
]

EIGHT = ("int8", "float8_e4m3")
# Sums below this keep a float that begins at 1.5 * 2^23 in its binade.
_SMALL = 2**22
_WHOLE = 1.5 * 2**23


def is_even(view: View) -> bool:
    """Whether channels lie in pairs that begin at even addresses."""
    *outer, last = view.strides
    return view.c % 2 == 0 and last == 1 and not any(s % 2 for s in (*outer, view.offset))


def paired(view: View) -> View:
    """A view of codes, two at a time."""
    *outer, last = view.strides
    return replace(
        view,
        dtype="float16",
        shape=(*view.shape[:-1], view.c // 2),
        strides=(*(s // 2 for s in outer), last),
        offset=view.offset // 2,
    )


def can_pair(step: Conv) -> bool:
    """Whether the operands of an 8-bit convolution can be taken two codes at a time."""
    operands = [step.x] + ([step.second] if step.second is not None else [])
    return all(is_even(view) for view in operands)


def units(step: Conv) -> Conv:
    """An 8-bit convolution with operands in pairs; any other as it is."""
    if step.x.dtype not in EIGHT:
        return step
    second = None if step.second is None else paired(step.second)
    return replace(step, x=paired(step.x), second=second)


def uses_e4m3(step: Conv) -> bool:
    """Whether a step needs a card that knows e4m3: capability 8.9 and up."""
    views = (step.x, step.y, step.residual)
    return any(view is not None and view.dtype == "float8_e4m3" for view in views)


def sums_as_values(
    step: Conv, weights: Mapping[str, np.ndarray], *, is_exact: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Gain and bias that make a value of a kernel's sum of codes, (k,) float32.

    Args:
        step: 8-bit.
        weights: The plan's.
        is_exact: Whether sums carry 1.5 * 2^23 with them.
    """
    scale = np.float32(1.0) if step.weight_scale is None else weights[step.weight_scale]
    gain = np.broadcast_to(np.float32(step.x_scale) * scale, (step.y.c,)).astype(np.float32)
    bias = np.zeros(step.y.c) if step.bias is None else weights[step.bias].astype(np.float64)
    if halves_arguments(step):
        gain, bias = gain * np.float32(0.5), bias * 0.5
    if is_exact:
        bias = bias - _WHOLE * gain.astype(np.float64)
    return gain, bias.astype(np.float32)


def halves_arguments(step: Conv) -> bool:
    """Whether the kernel computes SiLU from half of its argument (HALVED in conv.cu)."""
    return (
        step.activation.kind == "silu"
        and step.y.dtype in EIGHT
        and (step.residual is None or step.residual_after)
    )


def is_small(step: Conv, kernel: np.ndarray) -> bool:
    """Whether no sum of a convolution of INT8 codes can leave the binade it begins in."""
    if step.x.dtype != "int8":
        return False
    most = 128 * np.abs(kernel.astype(np.int64)).reshape(len(kernel), -1).sum(1).max(initial=0)
    return bool(most < _SMALL)
