"""Explicit Q/DQ pairs: the grid of whole numbers, kept in floats.

A quantised tensor holds whole numbers, which floats hold exactly (halves too, up to 2048), so that
it moves, pools and joins like any other; what was rounded stays rounded. Products are taken of the
dequantised values.
"""

from __future__ import annotations

import numpy as np

from saccade.native.lowering.elements import pointwise
from saccade.native.lowering.rules import Lowering, Node, Refused, Value, rule
from saccade.native.ops import Apply, Const, Operand
from saccade.native.tensors import View

__all__: list[str] = []

_RANGES = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535)}


def _grid(node: Node, rank: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Scale and zero point, shaped to be broadcast over the tensor, and the type of the grid."""
    scale = np.asarray(node.array(1, "the scale"), np.float32)
    zero = node.array(2, "the zero point") if node.has(2) else np.zeros(scale.shape, np.uint8)
    if node.get("block_size", 0):
        raise Refused("it has a scale per block")
    if scale.size > 1:
        axis = int(node.get("axis", 1)) % rank
        shape = [-1 if a == axis else 1 for a in range(rank)]
        return scale.reshape(shape), zero.astype(np.float32).reshape(shape), str(zero.dtype)
    return scale.reshape(()), zero.astype(np.float32).reshape(()), str(zero.dtype)


@rule("QuantizeLinear")
def _quantize(low: Lowering, node: Node) -> Value:
    """min(max(round(x / scale) + zero, low), high), halves to even."""
    x = low.operand(node, 0)
    scale, zero, kind = _grid(node, len(x.shape))
    if kind not in _RANGES:
        raise Refused(f"its whole numbers are {kind}; 8 and 16 bits are covered")
    lowest, highest = _RANGES[kind]
    rounded = Apply("round", (Apply("div", (Operand(0), Operand(1))),))
    placed = Apply("max", (Apply("add", (rounded, Operand(2))), Const(float(lowest))))
    return pointwise(
        low, node.name, [x, scale, zero], Apply("min", (placed, Const(float(highest))))
    )


@rule("DequantizeLinear")
def _dequantize(low: Lowering, node: Node) -> Value:
    """(x - zero) scale."""
    x = node.value(0)
    scale, zero, _ = _grid(node, len(x.shape))
    if not isinstance(x, View):
        return np.asarray((x.astype(np.float32) - zero) * scale)
    expr = Apply("mul", (Apply("sub", (Operand(0), Operand(2))), Operand(1)))
    return pointwise(low, node.name, [x, scale, zero], expr)
