"""Expressions of pointwise steps: substitution, and functions known by how they are spelled."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from saccade.native.ops import Activation, Apply, Const, Expr, Operand

__all__ = ["mapped", "num_operations", "operands_of", "simplified", "uses"]


def mapped(expr: Expr, change: Callable[[int], Expr]) -> Expr:
    """An expression with each operand replaced."""
    if isinstance(expr, Operand):
        return change(expr.index)
    if isinstance(expr, Apply):
        return Apply(expr.op, tuple(mapped(arg, change) for arg in expr.args), expr.activation)
    return expr


def operands_of(expr: Expr) -> Iterator[int]:
    """Numbers of the operands, as often as they are used."""
    if isinstance(expr, Operand):
        yield expr.index
    elif isinstance(expr, Apply):
        for arg in expr.args:
            yield from operands_of(arg)


def uses(expr: Expr, index: int) -> int:
    """How often an operand is used."""
    return sum(found == index for found in operands_of(expr))


def num_operations(expr: Expr) -> int:
    return 1 + sum(map(num_operations, expr.args)) if isinstance(expr, Apply) else 0


def simplified(expr: Expr) -> Expr:
    """The same function of floats, with activations named. The last bit may round otherwise."""
    if not isinstance(expr, Apply):
        return expr
    args = tuple(simplified(arg) for arg in expr.args)
    expr = Apply(expr.op, args, expr.activation)
    expr = _as_activation(_ordered(expr))
    for rule in (_gated, _gelu, _hard_swish):
        found = rule(expr)
        if found is not None:
            return found
    return expr


def _ordered(expr: Apply) -> Apply:
    """Constants second; a subtracted or dividing constant as an added or multiplying one."""
    if len(expr.args) != 2:
        return expr
    x, y = expr.args
    if expr.op in ("add", "mul", "max", "min") and isinstance(x, Const):
        x, y = y, x
    if isinstance(y, Const) and expr.op == "sub":
        return Apply("add", (x, Const(-y.value)))
    if isinstance(y, Const) and expr.op == "div" and _is_power_of_two(y.value):
        return Apply("mul", (x, Const(1.0 / y.value)))
    return Apply(expr.op, (x, y), expr.activation)


def _is_power_of_two(value: float) -> bool:
    return value != 0 and math.isfinite(value) and abs(math.frexp(value)[0]) == 0.5


def _as_activation(expr: Apply) -> Apply:
    """max(x, 0) and the like."""
    if expr.op == "tanh":
        return Apply("act", expr.args, Activation("tanh"))
    if expr.op in ("max", "min") and isinstance(expr.args[1], Const):
        inner, bound = expr.args[0], expr.args[1].value
        if expr.op == "max" and bound == 0:
            return Apply("act", (inner,), Activation("relu"))
        if (
            expr.op == "min"
            and isinstance(inner, Apply)
            and inner.op == "act"
            and inner.activation.kind == "relu"
        ):
            return Apply("act", inner.args, Activation("clip", 0.0, bound))
    return expr


def _is_act(expr: Expr, kind: str) -> bool:
    return isinstance(expr, Apply) and expr.op == "act" and expr.activation.kind == kind


def _gated(expr: Apply) -> Apply | None:
    """x sigmoid(x), x tanh(softplus(x))."""
    if expr.op != "mul":
        return None
    for x, gate in (expr.args, expr.args[::-1]):
        if not isinstance(gate, Apply) or gate.op != "act":
            continue
        act = gate.activation
        if gate.args == (x,) and act.kind == "sigmoid":
            return Apply("act", (x,), Activation("silu"))
        is_sixth = abs(act.a - 1 / 6) < 1e-6 and act.b == 0.5
        if gate.args == (x,) and act.kind == "hard_sigmoid" and is_sixth:
            return Apply("act", (x,), Activation("hard_swish"))
        if act.kind == "tanh" and gate.args == (Apply("act", (x,), Activation("softplus")),):
            return Apply("act", (x,), Activation("mish"))
    return None


def _factors(expr: Expr) -> tuple[list[Expr], float]:
    """A product as its factors and the product of its constants."""
    if isinstance(expr, Const):
        return [], expr.value
    if isinstance(expr, Apply) and expr.op == "mul":
        left, a = _factors(expr.args[0])
        right, b = _factors(expr.args[1])
        return left + right, a * b
    if isinstance(expr, Apply) and expr.op == "div" and isinstance(expr.args[1], Const):
        left, a = _factors(expr.args[0])
        return left, a / expr.args[1].value
    return [expr], 1.0


def _gelu(expr: Apply) -> Apply | None:
    """x (1 + erf(x / sqrt 2)) / 2, in any order of the factors."""
    if expr.op != "mul":
        return None
    factors, constant = _factors(expr)
    if len(factors) != 2 or abs(constant - 0.5) > 1e-6:
        return None
    for x, one_plus in (factors, factors[::-1]):
        if not isinstance(one_plus, Apply) or one_plus.op != "add":
            continue
        inner, one = one_plus.args
        if one != Const(1.0) or not isinstance(inner, Apply) or inner.op != "erf":
            continue
        scaled, factor = _factors(inner.args[0])
        if scaled == [x] and abs(factor - math.sqrt(0.5)) < 1e-6:
            return Apply("act", (x,), Activation("gelu"))
    return None


def _hard_swish(expr: Apply) -> Apply | None:
    """x clip(x + 3, 0, 6) / 6, in any order of the factors."""
    if expr.op not in ("mul", "div"):
        return None
    factors, constant = _factors(expr)
    if len(factors) != 2 or abs(constant - 1 / 6) > 1e-6:
        return None
    for x, gate in (factors, factors[::-1]):
        if (
            _is_act(gate, "clip")
            and isinstance(gate, Apply)
            and (gate.activation.a, gate.activation.b) == (0.0, 6.0)
            and gate.args == (Apply("add", (x, Const(3.0))),)
        ):
            return Apply("act", (x,), Activation("hard_swish"))
    return None
