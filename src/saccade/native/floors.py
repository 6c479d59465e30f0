"""The least time that a step could take: operations and bytes at the card's rates."""

from __future__ import annotations

from saccade.native.ops import Attention, Conv, MatMul, Step, reads, writes

__all__ = ["floor_us", "num_operations"]

# One H200, as measured: dense FP16 products (codes at twice the rate), memory read and written.
FLOPS, BANDWIDTH = 780e12, 4.0e12


def num_operations(step: Step) -> int:
    """Multiplications and additions of a step's products; 0 where there are few."""
    if isinstance(step, Conv):
        per_value = step.kernel[0] * step.kernel[1] * _depth(step)
        return 2 * step.y.num_elements * per_value
    if isinstance(step, MatMul):
        return 2 * step.y.num_elements * step.a.shape[-1]
    if isinstance(step, Attention):
        m, n = step.q.shape[-2], step.k.shape[-2]
        pairs = step.q.shape[0] * step.q.shape[1] * m * n
        return 2 * pairs * (step.q.shape[-1] + step.v.shape[-1])
    return 0


def _depth(step: Conv) -> int:
    second = 0 if step.second is None else step.second.c
    return (step.x.c + second) // step.groups


def floor_us(step: Step) -> float:
    """Microseconds: the larger of operations and bytes, each element once, weights left out."""
    moved = sum(view.num_bytes for view in (*reads(step), *writes(step)))
    is_coded = isinstance(step, Conv) and step.x.dtype in ("int8", "float8_e4m3")
    rate = FLOPS * 2 if is_coded else FLOPS
    return max(num_operations(step) / rate, moved / BANDWIDTH) * 1e6
