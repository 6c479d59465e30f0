"""Element types: half where the work is, FP32 where boxes are decoded.

A float buffer is half if a heavy step (one that sums many products, or moves pictures) writes it or
reads pictures from it. All else stays FP32: what lies between the last heavy steps and the outputs,
what exponentials, quotients and sums make, grids and picked values. Steps convert as they load and
store, so a change of type costs no step.
"""

from __future__ import annotations

import numpy as np

from saccade.native.ops import (
    Attention,
    Conv,
    Copy,
    Gather,
    GridSample,
    MatMul,
    Norm,
    Pool,
    PoolChain,
    Resize,
    RoiAlign,
    Step,
    writes,
)
from saccade.native.plan import Draft
from saccade.native.tensors import DType, View

__all__ = ["set_precision"]

_HEAVY = (Conv, MatMul, Pool, PoolChain, Resize, GridSample, RoiAlign, Attention)


def set_precision(draft: Draft, half: DType, *, half_inputs: bool = False) -> None:
    """Give buffers their types.

    Args:
        draft: Changed in place.
        half: "float16" or "bfloat16".
        half_inputs: Whether pictures are fed as halves too.
    """
    is_half = {
        view.buffer
        for step in draft.steps
        if isinstance(step, _HEAVY)
        for view in (*writes(step), *_heavy_reads(step))
    }
    changed = True
    while changed:
        before = len(is_half)
        for step in draft.steps:
            # Copies keep the type of what they copy, so that copies can be dropped; rows that are
            # normalised between halves are halves; what is picked is of its source's type.
            if isinstance(step, Copy | Norm | Gather) and step.x.buffer in is_half:
                is_half.add(step.y.buffer)
            if isinstance(step, Gather) and step.y.buffer in is_half:
                is_half |= {step.x.buffer} & draft.constants.keys()
        changed = len(is_half) > before
    for number, made in enumerate(draft.buffers):
        if number in is_half and made.kind in ("arena", "constant") and made.dtype == "float32":
            made.dtype = half
            if made.kind == "constant" and half == "float16":
                draft.constants[number] = draft.constants[number].astype(np.float16)
    if half_inputs:
        for view in draft.inputs.values():
            made = draft.buffers[view.buffer]
            if len(view.shape) == 4 and made.dtype == "float32":
                made.dtype = half
    draft.retyped()


def _heavy_reads(step: Step) -> list[View]:
    """Operands that a heavy step streams."""
    if isinstance(step, Conv):
        return [v for v in (step.x, step.second, step.residual) if v is not None]
    if isinstance(step, MatMul):
        return [step.a, step.b]
    if isinstance(step, Attention):
        return [step.q, step.k, step.v]
    if isinstance(step, Pool | PoolChain | Resize | GridSample | RoiAlign):
        return [step.x]
    return []
