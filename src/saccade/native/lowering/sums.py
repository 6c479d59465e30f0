"""Products, reductions, softmax, norms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from saccade.native.lowering.elements import pointwise
from saccade.native.lowering.rules import Lowering, Node, Refused, Value, rule
from saccade.native.ops import Apply, Const, Conv, MatMul, Norm, Operand, Reduce, Softmax
from saccade.native.tensors import View
from saccade.native.views import broadcast, image, reshaped, sliding_order

__all__: list[str] = []


def _times_weights(
    low: Lowering, node: Node, a: View, weight: np.ndarray, bias: np.ndarray | None
) -> View:
    """Rows times stored (k, n): a convolution of one pixel, so that the same epilogues fuse."""
    k, n = weight.shape
    rows = a.num_elements // k
    flat = reshaped(a, (1, 1, rows, k))
    if flat is None or not image(flat).is_pixels:
        flat = low.reshape(low.dense(a, node.name), (1, 1, rows, k), node.name)
    made = low.draft.new(node.name, (1, 1, rows, n), "float32")
    name = low.draft.weight(
        f"{node.name}:weight",
        np.ascontiguousarray(weight.T.astype(np.float32)).reshape(n, 1, 1, k),
    )
    stored = None
    if bias is not None:
        stored = low.draft.weight(f"{node.name}:bias", np.asarray(bias, np.float32).reshape(n))
    low.draft.steps.append(Conv(node.name, image(flat), made, name, (1, 1), bias=stored))
    return low.reshape(made, (*a.shape[:-1], n), node.name)


@rule("MatMul")
def _matmul(low: Lowering, node: Node) -> Value:
    a, b = node.value(0), node.value(1)
    if isinstance(a, View) and isinstance(b, np.ndarray) and b.ndim == 2:
        return _times_weights(low, node, a, b, None)
    left, right = low.view(a, node.name), low.view(b, node.name)
    if isinstance(a, View) and isinstance(b, np.ndarray) and b.ndim == 1:
        column = _times_weights(low, node, a, b.reshape(-1, 1), None)
        return low.reshape(column, a.shape[:-1], node.name)
    if min(len(left.shape), len(right.shape)) < 2:
        raise Refused("one operand has a single axis")
    batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    m, k = left.shape[-2:]
    n = right.shape[-1]
    y = low.draft.new(node.name, (*batch, m, n), "float32")
    low.draft.steps.append(
        MatMul(node.name, broadcast(left, (*batch, m, k)), broadcast(right, (*batch, k, n)), y)
    )
    return y


@rule("Gemm")
def _gemm(low: Lowering, node: Node) -> Value:
    a = low.operand(node, 0)
    if node.get("transA", 0):
        a = a.permuted(1, 0)
    weight = np.asarray(node.array(1, "the second factor"), np.float64)
    weight = weight.T if node.get("transB", 0) else weight
    weight = (weight * float(node.get("alpha", 1.0))).astype(np.float32)
    bias = None
    if node.has(2):
        third = np.asarray(node.array(2, "the summand"), np.float64) * float(node.get("beta", 1.0))
        if third.ndim == 2 and third.shape[0] != 1:
            raise Refused("its summand differs between rows")
        bias = np.broadcast_to(third.reshape(-1), (weight.shape[1],)).astype(np.float32)
    return _times_weights(low, node, a, weight, bias)


@rule("Softmax", "LogSoftmax")
def _softmax(low: Lowering, node: Node) -> Value:
    x = low.operand(node, 0)
    y = low.new_like(node.name, x.shape, "float32", x)
    rank = len(x.shape)
    if node.opset < 13:
        axis = int(node.get("axis", 1)) % rank
        if any(size != 1 for size in x.shape[axis + 1 :]):
            raise Refused("it joins several axes (opset below 13)")
    else:
        axis = int(node.get("axis", -1)) % rank
    low.draft.steps.append(Softmax(node.name, x, y, axis, node.op == "LogSoftmax"))
    return y


_REDUCTIONS = {
    "ReduceSum": "sum", "ReduceMean": "mean", "ReduceMax": "max", "ReduceMin": "min",
    "ReduceProd": "prod", "ReduceL2": "l2", "ArgMax": "argmax", "ArgMin": "argmin",
}  # fmt: skip


@rule(*_REDUCTIONS)
def _reduce(low: Lowering, node: Node) -> Value:
    x = low.operand(node, 0)
    rank = len(x.shape)
    kind = _REDUCTIONS[node.op]
    if kind.startswith("arg"):
        axes: Sequence[int] | None = [int(node.get("axis", 0))]
        if node.get("select_last_index", 0):
            raise Refused("of equal values it picks the last")
    else:
        axes = node.ints(1, "axes")
    if not axes:
        if node.get("noop_with_empty_axes", 0):
            return x
        axes = range(rank)
    over = tuple(sorted(a % rank for a in axes))
    shape = [1 if a in over else size for a, size in enumerate(x.shape)]
    dtype = "int64" if kind.startswith("arg") else x.dtype
    y = low.draft.new(node.name, shape, dtype, sliding_order(x))
    low.draft.steps.append(Reduce(node.name, kind, x, y, over))  # type: ignore[arg-type]
    if node.get("keepdims", 1):
        return y
    return low.reshape(y, [s for a, s in enumerate(shape) if a not in over], node.name)


@rule("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def _norm(low: Lowering, node: Node) -> Value:
    if any(node.wanted[1:]):
        raise Refused("it gives its statistics")
    x = low.operand(node, 0)
    if int(node.get("axis", -1)) % len(x.shape) != len(x.shape) - 1:
        raise Refused("it normalises over several axes")
    is_rms = node.op != "LayerNormalization"
    names = []
    for index, what in ((1, "gain"), (2, "shift")):
        array = np.asarray(node.array(index, what), np.float32) if node.has(index) else None
        names.append(
            None
            if array is None
            else low.draft.weight(
                f"{node.name}:{what}", np.broadcast_to(array.reshape(-1), x.shape[-1:]).copy()
            )
        )
    y = low.new_like(node.name, x.shape, "float32", x)
    epsilon = float(node.get("epsilon", 1e-5))
    low.draft.steps.append(
        Norm(node.name, x, y, epsilon, gain=names[0], shift=names[1], is_rms=is_rms)
    )
    return y


@rule("InstanceNormalization")
def _instance_norm(low: Lowering, node: Node) -> Value:
    x = low.operand(node, 0)
    axes = tuple(range(2, len(x.shape)))
    shape = (*x.shape[:2], *(1 for _ in axes))
    mean = low.new_like(f"{node.name}:mean", shape, "float32", x)
    low.draft.steps.append(Reduce(node.name, "mean", x, mean, axes))
    centred = pointwise(
        low, f"{node.name}:centred", [x, mean], Apply("sub", (Operand(0), Operand(1)))
    )
    square = pointwise(
        low, f"{node.name}:square", [centred], Apply("mul", (Operand(0), Operand(0)))
    )
    variance = low.new_like(f"{node.name}:variance", shape, "float32", x)
    low.draft.steps.append(Reduce(node.name, "mean", square, variance, axes))
    tail = (1,) * len(axes)
    gain = np.asarray(node.array(1, "gain"), np.float32).reshape(-1, *tail)
    shift = np.asarray(node.array(2, "shift"), np.float32).reshape(-1, *tail)
    root = Apply("rsqrt", (Apply("add", (Operand(1), Const(float(node.get("epsilon", 1e-5))))),))
    expr = Apply("mul", (Apply("mul", (Operand(0), root)), Operand(2)))
    return pointwise(
        low, node.name, [centred, variance, gain, shift], Apply("add", (expr, Operand(3)))
    )
