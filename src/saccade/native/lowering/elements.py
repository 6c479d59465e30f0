"""What happens to each element by itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from saccade.native.lowering.rules import Lowering, Node, Refused, Value, narrowed, rule
from saccade.native.ops import (
    Activation,
    ActivationKind,
    Apply,
    Const,
    Copy,
    Expr,
    Operand,
    Pointwise,
)
from saccade.native.tensors import View
from saccade.native.views import broadcast, order_of, sliding_order

__all__ = ["pointwise"]

_UNARY = {
    "Neg": "neg", "Abs": "abs", "Exp": "exp", "Log": "log", "Sqrt": "sqrt", "Floor": "floor",
    "Reciprocal": "reciprocal", "Ceil": "ceil", "Round": "round", "Sign": "sign", "Sin": "sin",
    "Cos": "cos", "Erf": "erf", "Not": "not",
}  # fmt: skip
_BINARY = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Pow": "pow", "Min": "min",
    "Max": "max", "Sum": "add", "Mod": "mod", "Less": "less", "LessOrEqual": "less_equal",
    "Greater": "greater", "GreaterOrEqual": "greater_equal", "Equal": "equal", "And": "and",
    "Or": "or",
}  # fmt: skip
_TRUTH = {"less", "less_equal", "greater", "greater_equal", "equal", "and", "or", "not"}
_ACTIVATIONS: dict[str, ActivationKind] = {
    "Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh", "HardSwish": "hard_swish",
    "Softplus": "softplus", "Mish": "mish",
}  # fmt: skip


def pointwise(
    low: Lowering, name: str, values: Sequence[Value], expr: Expr, dtype: str | None = None
) -> View:
    """A step that computes one expression of broadcast operands.

    Args:
        low: Where it goes.
        name: Of the result.
        values: What Operand(0), Operand(1), ... are.
        expr: What is computed.
        dtype: Of the result; by default what the operands are.
    """
    shape = np.broadcast_shapes(*(value.shape for value in values))
    views = [v for v in values if isinstance(v, View)]
    first = max(views, key=lambda view: (view.num_elements, len(view.shape)))
    kinds = {str(narrowed(v).dtype) if isinstance(v, np.ndarray) else v.dtype for v in values}
    kinds.discard("bool")
    if len(kinds) > 1:
        raise Refused(f"its operands have different types: {', '.join(sorted(kinds))}")
    found = dtype or (kinds.pop() if kinds else "bool")
    order = sliding_order(first) if first.shape == shape else None
    made = low.draft.new(name, shape, found, order)
    order = order_of(made) if order is None else order
    operands: list[View] = []
    places: dict[int, Expr] = {}
    for index, value in enumerate(values):
        if isinstance(value, np.ndarray) and value.size == 1:
            places[index] = Const(float(value.reshape(-1)[0]))
            continue
        view = broadcast(low.view(value, f"{name}:{index}"), shape).permuted(*order)
        if view not in operands:
            operands.append(view)
        places[index] = Operand(operands.index(view))
    is_whole = all(view.dtype in ("int64", "bool") for view in operands)
    low.draft.steps.append(
        Pointwise(
            name,
            tuple(operands),
            (made.permuted(*order),),
            (substituted(expr, places),),
            "int64" if is_whole and found != "float32" else "float32",
        )
    )
    return made


def substituted(expr: Expr, places: dict[int, Expr]) -> Expr:
    """An expression with its operands replaced."""
    if isinstance(expr, Operand):
        return places[expr.index]
    if isinstance(expr, Apply):
        return Apply(expr.op, tuple(substituted(a, places) for a in expr.args), expr.activation)
    return expr


def _values(node: Node) -> list[Value]:
    return [node.value(index) for index in range(len(node.inputs))]


@rule(*_UNARY)
def _unary(low: Lowering, node: Node) -> Value:
    op = _UNARY[node.op]
    dtype = "bool" if op in _TRUTH else None
    return pointwise(low, node.name, _values(node), Apply(op, (Operand(0),)), dtype)


@rule(*_BINARY)
def _binary(low: Lowering, node: Node) -> Value:
    op = _BINARY[node.op]
    values = _values(node)
    if node.op == "Mod" and not node.get("fmod", 0) and not _is_whole(values):
        raise Refused("it takes a remainder of floats with fmod=0")
    if node.op == "Pow" and not isinstance(values[1], View) and not _is_float(values[1]):
        values[1] = values[1].astype(np.float32)
    expr: Expr = Operand(0)
    for index in range(1, len(values)):
        expr = Apply(op, (expr, Operand(index)))
    return pointwise(low, node.name, values, expr, "bool" if op in _TRUTH else None)


def _is_whole(values: Sequence[Value]) -> bool:
    return not any(_is_float(value) for value in values)


def _is_float(value: Value) -> bool:
    return value.dtype == "float32" if isinstance(value, View) else value.dtype.kind not in "iub"


@rule("Where")
def _where(low: Lowering, node: Node) -> Value:
    values = _values(node)
    dtype = "float32" if _is_float(values[1]) else "int64"
    return pointwise(
        low, node.name, values, Apply("where", (Operand(0), Operand(1), Operand(2))), dtype
    )


@rule("Relu", "Sigmoid", "Tanh", "HardSwish", "Softplus", "Mish", "LeakyRelu", "Elu",
      "HardSigmoid", "Gelu", "Clip", "PRelu")  # fmt: skip
def _activation(low: Lowering, node: Node) -> Value:
    values = [node.value(0)]
    if node.op == "Clip":
        return _clip(low, node)
    if node.op == "PRelu":
        slope = Apply("mul", (Operand(1), Apply("min", (Operand(0), Const(0.0)))))
        positive = Apply("max", (Operand(0), Const(0.0)))
        return pointwise(low, node.name, _values(node), Apply("add", (positive, slope)))
    if node.op == "LeakyRelu":
        act = Activation("leaky_relu", float(node.get("alpha", 0.01)))
    elif node.op == "Elu":
        act = Activation("elu", float(node.get("alpha", 1.0)))
    elif node.op == "HardSigmoid":
        act = Activation(
            "hard_sigmoid", float(node.get("alpha", 0.2)), float(node.get("beta", 0.5))
        )
    elif node.op == "Gelu":
        is_tanh = node.get("approximate", "none") == "tanh"
        act = Activation("gelu_tanh" if is_tanh else "gelu")
    else:
        act = Activation(_ACTIVATIONS[node.op])
    return pointwise(low, node.name, values, Apply("act", (Operand(0),), act))


def _clip(low: Lowering, node: Node) -> Value:
    if any(node.has(i) and isinstance(node.value(i), View) for i in (1, 2)):
        expr: Expr = Operand(0)
        values = [node.value(0)]
        for index, op in ((1, "max"), (2, "min")):
            if node.has(index):
                expr = Apply(op, (expr, Operand(len(values))))
                values.append(node.value(index))
        return pointwise(low, node.name, values, expr)
    bounds = []
    for index, (name, default) in enumerate((("min", -np.inf), ("max", np.inf)), start=1):
        bound = node.array(index, name) if node.has(index) else node.get(name, default)
        bounds.append(float(np.asarray(bound).reshape(-1)[0]))
    if not _is_float(node.value(0)):
        expr = Operand(0)
        if np.isfinite(bounds[0]):
            expr = Apply("max", (expr, Const(bounds[0])))
        if np.isfinite(bounds[1]):
            expr = Apply("min", (expr, Const(bounds[1])))
        return pointwise(low, node.name, [node.value(0)], expr)
    act = Activation("clip", *bounds)
    return pointwise(low, node.name, [node.value(0)], Apply("act", (Operand(0),), act))


@rule("Cast", "CastLike")
def _cast(low: Lowering, node: Node) -> Value:
    import onnx

    if node.op == "CastLike":
        raise Refused("its type is that of another operand")
    view = low.operand(node, 0)
    wanted = onnx.helper.tensor_dtype_to_np_dtype(int(node.attributes["to"]))
    dtype = str(narrowed(np.empty(0, wanted)).dtype)
    if dtype == view.dtype:
        return view
    made = low.draft.new(node.name, view.shape, dtype, sliding_order(view))
    low.draft.steps.append(Copy(node.name, view, made))
    return made


@rule("BatchNormalization")
def _batch_norm(low: Lowering, node: Node) -> Value:
    scale, shift, mean, variance = (
        np.asarray(node.array(i, "statistics"), np.float64) for i in range(1, 5)
    )
    gain = scale / np.sqrt(variance + float(node.get("epsilon", 1e-5)))
    view = low.operand(node, 0)
    tail = (1,) * (len(view.shape) - 2)
    arrays = [a.astype(np.float32).reshape(-1, *tail) for a in (gain, shift - mean * gain)]
    expr = Apply("add", (Apply("mul", (Operand(0), Operand(1))), Operand(2)))
    return pointwise(low, node.name, [view, *arrays], expr)
