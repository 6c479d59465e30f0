"""Matrix products, reductions, normalisations and sorting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from saccade.backends._torch_ops.lowering import Lowering, rank_of, sizes_of
from saccade.backends._torch_ops.values import Lacking, Op, Value, int_list, rule


@rule("MatMul", inputs=2, kind="heavy")
def _matmul(low: Lowering, op: Op) -> Value:
    return low.emit(torch.matmul, op.get(0), op.get(1))


@rule("Gemm", "alpha beta transA transB broadcast", inputs=3, kind="heavy")
def _gemm(low: Lowering, op: Op) -> Value:
    a, b, c = op.get(0), op.get(1), op.get(2)
    alpha, beta = op.number("alpha", 1.0), op.number("beta", 1.0)
    if op.integer("transA", 0):
        a = low.emit(torch.t, a)
    if not op.integer("transB", 0):
        b = low.emit(torch.t, b)
    if alpha == beta == 1.0 and (c is None or rank_of(c) == 1):
        return low.emit(F.linear, a, b, c)
    product = low.emit(F.linear, a, b)
    if alpha != 1.0:
        product = low.emit(torch.mul, product, alpha)
    if c is None:
        return product
    return low.emit(torch.add, product, low.emit(torch.mul, c, beta))


@rule("Einsum", "equation", inputs=10**6, kind="heavy")
def _einsum(low: Lowering, op: Op) -> Value:
    return low.emit(torch.einsum, op.text("equation", ""), *op.inputs)


@rule("Softmax LogSoftmax", "axis", kind="exact")
def _softmax(low: Lowering, op: Op) -> Value:
    x = op.symbol_or_tensor(0)
    function = F.softmax if op.kind == "Softmax" else F.log_softmax
    if op.opset >= 13:
        return low.emit(function, x, op.integer("axis", -1))
    # Before opset 13 all axes from `axis` on are one.
    sizes = sizes_of(x)
    axis = op.integer("axis", 1) % len(sizes)
    if axis == len(sizes) - 1:
        return low.emit(function, x, axis)
    flat = low.emit(torch.reshape, x, [*sizes[:axis], -1])
    return low.emit(torch.reshape, low.emit(function, flat, axis), sizes)


def _root_of_squares(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    return torch.sqrt(torch.sum(torch.square(x), axes, keep))


def _sum_of_squares(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    return torch.sum(torch.square(x), axes, keep)


def _sum_of_sizes(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    return torch.sum(torch.abs(x), axes, keep)


def _product(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keep)
    return x


def _reduction(name: str, function: Callable[..., Any], kind: Any) -> None:
    @rule(name, "axes keepdims noop_with_empty_axes", inputs=2, kind=kind, fixed=(1,))
    def lower(low: Lowering, op: Op) -> Value:
        x = op.symbol_or_tensor(0)
        axes = int_list(op, 1, "axes")
        if not axes and op.integer("noop_with_empty_axes", 0):
            return x
        every = list(range(rank_of(x)))
        axes = [axis % len(every) for axis in axes] if axes else every
        if not axes:
            return x
        return low.emit(function, x, axes, bool(op.integer("keepdims", 1)))


for _name, _function in {
    "ReduceSum": torch.sum, "ReduceMean": torch.mean, "ReduceProd": _product,
    "ReduceL1": _sum_of_sizes, "ReduceL2": _root_of_squares, "ReduceSumSquare": _sum_of_squares,
    "ReduceLogSumExp": torch.logsumexp,
}.items():  # fmt: skip
    _reduction(_name, _function, "exact")
_reduction("ReduceMax", torch.amax, "plain")
_reduction("ReduceMin", torch.amin, "plain")


def _check_last_index(op: Op) -> str:
    return "select_last_index" if op.integer("select_last_index", 0) else ""


@rule("ArgMax ArgMin", "axis keepdims select_last_index", check=_check_last_index)
def _arg_max(low: Lowering, op: Op) -> Value:
    function = torch.argmax if op.kind == "ArgMax" else torch.argmin
    return low.emit(function, op.get(0), op.integer("axis", 0), bool(op.integer("keepdims", 1)))


@rule("TopK", "axis k largest sorted", inputs=2, outputs=2, fixed=(1,))
def _top_k(low: Lowering, op: Op) -> Value:
    x, k = op.symbol_or_tensor(0), int_list(op, 1, "")
    num = k[0] if k else op.integer("k", 1)
    axis = op.integer("axis", -1)
    # A stable sort: of equal values the one at the lower index comes first, as ONNX says.
    ordered = low.emit(
        torch.sort, x, dim=axis, descending=bool(op.integer("largest", 1)), stable=True
    )
    return [low.emit(torch.narrow, part, axis, 0, num) for part in ordered]


@rule("CumSum", "exclusive reverse", inputs=2, kind="exact", fixed=(1,),
      check=lambda op: "exclusive" if op.integer("exclusive", 0) else "")  # fmt: skip
def _cumulative_sum(low: Lowering, op: Op) -> Value:
    (axis,) = int_list(op, 1, "") or [0]
    if not op.integer("reverse", 0):
        return low.emit(torch.cumsum, op.get(0), axis)
    turned = low.emit(torch.flip, op.get(0), [axis])
    return low.emit(torch.flip, low.emit(torch.cumsum, turned, axis), [axis])


def _check_batch_norm(op: Op) -> str:
    if op.integer("training_mode", 0):
        return "training_mode=1"
    if op.opset < 7 and not op.integer("is_test", 0):
        return "is_test=0"
    return "" if op.integer("spatial", 1) else "spatial=0"


@rule("BatchNormalization", "epsilon momentum training_mode spatial is_test consumed_inputs",
      inputs=5, fixed=(1, 2, 3, 4), check=_check_batch_norm)  # fmt: skip
def _batch_norm(low: Lowering, op: Op) -> Value:
    scale, shift, mean, variance = (op.fixed(index) for index in range(1, 5))
    epsilon = op.number("epsilon", 1e-5)
    return low.emit(F.batch_norm, op.get(0), mean, variance, scale, shift, False, 0.0, epsilon)


@rule("InstanceNormalization", "epsilon consumed_inputs", inputs=3, kind="exact")
def _instance_norm(low: Lowering, op: Op) -> Value:
    return low.emit(
        F.instance_norm, op.get(0), None, None, op.get(1), op.get(2), True, 0.0,
        op.number("epsilon", 1e-5),
    )  # fmt: skip


@rule("LayerNormalization", "axis epsilon stash_type", inputs=3, kind="exact")
def _layer_norm(low: Lowering, op: Op) -> Value:
    x = op.symbol_or_tensor(0)
    axis = op.integer("axis", -1) % rank_of(x)
    return low.emit(
        F.layer_norm, x, sizes_of(x)[axis:], op.get(1), op.get(2), op.number("epsilon", 1e-5)
    )


@rule("GroupNormalization", "epsilon num_groups stash_type", inputs=3, kind="exact",
      check=lambda op: "version 18" if op.opset < 21 else "")  # fmt: skip
def _group_norm(low: Lowering, op: Op) -> Value:
    return low.emit(
        F.group_norm, op.get(0), op.integer("num_groups", 1), op.get(1), op.get(2),
        op.number("epsilon", 1e-5),
    )  # fmt: skip


@rule("LpNormalization", "axis p", kind="exact")
def _lp_norm(low: Lowering, op: Op) -> Value:
    if op.integer("p", 2) not in (1, 2):
        raise Lacking(f"p must be 1 or 2, it is {op.integer('p', 2)}")
    return low.emit(F.normalize, op.get(0), op.number("p", 2.0), op.integer("axis", -1))
