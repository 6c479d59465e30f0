"""Operators that work on each element."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from saccade.backends._torch_ops.lowering import Lowering, meta_of, rank_of, sizes_of
from saccade.backends._torch_ops.values import Lacking, Op, Symbol, Value, rule

LEGACY = "broadcast axis consumed_inputs"  # attributes of operator sets below 7


def _unary(names: str, function: Callable[..., Any], kind: Any = "plain") -> None:
    @rule(names, "consumed_inputs", kind=kind)
    def lower(low: Lowering, op: Op) -> Value:
        return low.emit(function, op.get(0))


for _name, _function in {
    "Abs": torch.abs, "Neg": torch.neg, "Floor": torch.floor, "Ceil": torch.ceil,
    "Round": torch.round, "Sign": torch.sign, "Sin": torch.sin, "Cos": torch.cos,
    "Tanh": torch.tanh, "Sigmoid": torch.sigmoid, "Erf": torch.erf, "Relu": F.relu,
    "Softsign": F.softsign, "Mish": F.mish, "Not": torch.logical_not, "HardSwish": F.hardswish,
    "IsNaN": torch.isnan, "Atan": torch.atan,
}.items():  # fmt: skip
    _unary(_name, _function)
# What grows or shrinks beyond the range of FP16.
for _name, _function in {
    "Exp": torch.exp, "Log": torch.log, "Sqrt": torch.sqrt, "Reciprocal": torch.reciprocal,
    "Softplus": F.softplus,
}.items():  # fmt: skip
    _unary(_name, _function, "exact")


@rule("Identity")
def _identity(low: Lowering, op: Op) -> Value:
    return op.get(0)


def _check_dropout(op: Op) -> str:
    return "" if op.integer("is_test", 0) or op.opset >= 7 else "is_test=0"


@rule("Dropout", "ratio is_test seed consumed_inputs", inputs=3, fixed=(1, 2), check=_check_dropout)
def _dropout(low: Lowering, op: Op) -> Value:
    training = op.fixed(2)
    if training is not None and bool(training.any()):
        raise Lacking("training_mode must be false, it is true")
    return op.get(0)


@rule("LeakyRelu", "alpha consumed_inputs")
def _leaky_relu(low: Lowering, op: Op) -> Value:
    return low.emit(F.leaky_relu, op.get(0), op.number("alpha", 0.01))


@rule("Elu", "alpha consumed_inputs")
def _elu(low: Lowering, op: Op) -> Value:
    return low.emit(F.elu, op.get(0), op.number("alpha", 1.0))


@rule("HardSigmoid", "alpha beta consumed_inputs")
def _hard_sigmoid(low: Lowering, op: Op) -> Value:
    alpha, beta = op.number("alpha", 0.2), op.number("beta", 0.5)
    steep = low.emit(torch.add, low.emit(torch.mul, op.get(0), alpha), beta)
    return low.emit(torch.clamp, steep, 0.0, 1.0)


@rule("Gelu", "approximate")
def _gelu(low: Lowering, op: Op) -> Value:
    return low.emit(F.gelu, op.get(0), approximate=op.text("approximate", "none"))


@rule("PRelu", "consumed_inputs", inputs=2)
def _prelu(low: Lowering, op: Op) -> Value:
    x, slope = op.symbol_or_tensor(0), op.symbol_or_tensor(1)
    if op.opset < 7 and rank_of(slope) == 1 and rank_of(x) > 2:
        slope = low.emit(torch.reshape, slope, [-1] + [1] * (rank_of(x) - 2))
    falling = low.emit(torch.mul, low.emit(torch.clamp, x, max=0.0), slope)
    return low.emit(torch.add, low.emit(torch.clamp, x, min=0.0), falling)


@rule("Clip", "min max consumed_inputs", inputs=3)
def _clip(low: Lowering, op: Op) -> Value:
    if op.opset < 11:
        bounds: list[Any] = [op.attributes.get("min"), op.attributes.get("max")]
    else:
        bounds = [_operand(value) for value in (op.get(1), op.get(2))]
    value: Value = op.get(0)
    # One at a time: where min is above max the answer is max, and the bounds may be tensors.
    for function, bound in zip((torch.maximum, torch.minimum), bounds, strict=True):
        if isinstance(bound, (int, float)):
            name = "min" if function is torch.maximum else "max"
            value = low.emit(torch.clamp, value, **{name: bound})
        elif bound is not None:
            value = low.emit(function, value, bound)
    return value


def _operand(value: Value) -> Any:
    """A stored tensor of no axes as a plain number, which torch computes with in FP32."""
    if isinstance(value, torch.Tensor) and value.ndim == 0 and value.dtype != torch.bool:
        return value.item()
    return value


def _operands(low: Lowering, op: Op) -> tuple[Any, Any]:
    """Two operands; a stored single number beside a symbol becomes a plain number."""
    a, b = op.symbol_or_tensor(0), op.symbol_or_tensor(1)
    if op.opset < 7 and op.integer("broadcast", 0) and "axis" in op.attributes:
        # Before opset 7 the second operand was laid over the axes from `axis` on.
        axis = op.integer("axis", 0) % max(rank_of(a), 1)
        b = low.emit(torch.reshape, b, sizes_of(b) + [1] * (rank_of(a) - axis - rank_of(b)))
    return _plain(a, b), _plain(b, a)


def _plain(value: Symbol | torch.Tensor, other: Symbol | torch.Tensor) -> Any:
    if not (isinstance(value, torch.Tensor) and isinstance(other, Symbol)):
        return value
    is_single = value.numel() == 1 and value.ndim <= rank_of(other)
    return value.item() if is_single and value.dtype != torch.bool else value


def _binary(names: str, function: Callable[..., Any], *, kind: Any = "plain") -> None:
    @rule(names, LEGACY, inputs=2, kind=kind)
    def lower(low: Lowering, op: Op) -> Value:
        a, b = _operands(low, op)
        if not isinstance(a, (Symbol, torch.Tensor)):
            a = op.get(0)  # only the second operand of a torch function may be a number
        return low.emit(function, a, b)


for _name, _function in {
    "Equal": torch.eq, "Less": torch.lt, "Greater": torch.gt, "LessOrEqual": torch.le,
    "GreaterOrEqual": torch.ge, "And": torch.logical_and, "Or": torch.logical_or,
    "Xor": torch.logical_xor, "Sub": torch.sub,
}.items():  # fmt: skip
    _binary(_name, _function)


@rule("Add", LEGACY, inputs=2)
def _add(low: Lowering, op: Op) -> Value:
    a, b = _operands(low, op)
    return low.emit(torch.add, b, a) if isinstance(a, (int, float)) else low.emit(torch.add, a, b)


@rule("Mul", LEGACY, inputs=2)
def _mul(low: Lowering, op: Op) -> Value:
    a, b = _operands(low, op)
    if isinstance(a, (int, float)):
        a, b = b, a
    for gate, x in ((a, b), (b, a)):
        # x * sigmoid(x) is one pass over memory as torch's silu.
        if _is_sigmoid_of(gate, x):
            return low.emit(F.silu, x)
    return low.emit(torch.mul, a, b)


def _is_sigmoid_of(gate: Any, x: Any) -> bool:
    return (
        isinstance(gate, Symbol)
        and isinstance(x, Symbol)
        and gate.node.target is torch.sigmoid
        and gate.node.args == (x.node,)
    )


@rule("Div", LEGACY, inputs=2)
def _div(low: Lowering, op: Op) -> Value:
    a, b = _operands(low, op)
    if not isinstance(a, (Symbol, torch.Tensor)):
        a = op.get(0)
    is_float = meta_of(op.get(0)).is_floating_point()
    # Integers are divided towards zero, as in C.
    return low.emit(torch.div, a, b, rounding_mode=None if is_float else "trunc")


@rule("Pow", LEGACY, inputs=2, kind="exact")
def _pow(low: Lowering, op: Op) -> Value:
    base, exponent = op.symbol_or_tensor(0), op.symbol_or_tensor(1)
    power = low.emit(torch.pow, base, _plain(exponent, base))
    return low.cast(power, meta_of(base).dtype)


@rule("Mod", "fmod", inputs=2)
def _mod(low: Lowering, op: Op) -> Value:
    function = torch.fmod if op.integer("fmod", 0) else torch.remainder
    return low.emit(function, op.get(0), op.get(1))


def _variadic(name: str, function: Callable[..., Any]) -> None:
    @rule(name, "consumed_inputs", inputs=10**6)
    def lower(low: Lowering, op: Op) -> Value:
        return functools.reduce(lambda a, b: low.emit(function, a, b), op.inputs)


_variadic("Max", torch.maximum)
_variadic("Min", torch.minimum)
_variadic("Sum", torch.add)


@rule("Mean", "consumed_inputs", inputs=10**6)
def _mean(low: Lowering, op: Op) -> Value:
    total = functools.reduce(lambda a, b: low.emit(torch.add, a, b), op.inputs)
    return low.emit(torch.div, total, float(len(op.inputs)))


@rule("Where", inputs=3)
def _where(low: Lowering, op: Op) -> Value:
    return low.emit(torch.where, op.get(0), op.get(1), op.get(2))


ELEMENT_TYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32,
    7: torch.int64, 9: torch.bool, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip


def _check_cast(op: Op) -> str:
    to = op.attributes.get("to")
    if isinstance(to, bytes):
        return f"to={to.decode()!r} as text"
    return "" if to in ELEMENT_TYPES else f"to={to}"


@rule("Cast", "to saturate round_mode", check=_check_cast)
def _cast(low: Lowering, op: Op) -> Value:
    value, to = op.symbol_or_tensor(0), ELEMENT_TYPES[op.integer("to", 1)]
    if low.half is not None and isinstance(value, Symbol) and _both_short(value.meta.dtype, to):
        return value  # between floats the plan's precision decides
    return low.cast(value, to)


def _both_short(a: torch.dtype, b: torch.dtype) -> bool:
    short = (torch.float32, torch.float16, torch.bfloat16)
    return a in short and b in short


@rule("CastLike", "saturate", inputs=2)
def _cast_like(low: Lowering, op: Op) -> Value:
    return low.cast(op.symbol_or_tensor(0), meta_of(op.get(1)).dtype)


def _integer_range(dtype: torch.dtype) -> tuple[int, int]:
    limits = torch.iinfo(dtype)
    return limits.min, limits.max


def _axis_shape(value: Symbol | torch.Tensor, rank: int, axis: int) -> list[int]:
    sizes = sizes_of(value)
    if math.prod(sizes) == 1:
        return [1] * rank
    return [-1 if index == axis % rank else 1 for index in range(rank)]


def _check_blocks(op: Op) -> str:
    return "block_size" if op.integer("block_size", 0) else ""


@rule(
    "QuantizeLinear",
    "axis saturate block_size output_dtype precision",
    inputs=3,
    kind="exact",
    fixed=(1, 2),
    check=_check_blocks,
)
def _quantize(low: Lowering, op: Op) -> Value:
    x, scale, zero = op.symbol_or_tensor(0), op.fixed(1), op.fixed(2)
    assert scale is not None
    target = ELEMENT_TYPES[op.integer("output_dtype", 0) or 2] if zero is None else zero.dtype
    shape = _axis_shape(scale, rank_of(x), op.integer("axis", 1))
    steps = low.emit(torch.round, low.emit(torch.div, x, scale.float().reshape(shape)))
    if zero is not None:
        steps = low.emit(torch.add, steps, zero.float().reshape(shape))
    least, most = _integer_range(target)
    return low.emit(torch.Tensor.to, low.emit(torch.clamp, steps, least, most), target)


@rule(
    "DequantizeLinear",
    "axis block_size output_dtype",
    inputs=3,
    kind="exact",
    fixed=(1, 2),
    check=_check_blocks,
)
def _dequantize(low: Lowering, op: Op) -> Value:
    x, scale, zero = op.symbol_or_tensor(0), op.fixed(1), op.fixed(2)
    assert scale is not None
    shape = _axis_shape(scale, rank_of(x), op.integer("axis", 1))
    steps = low.emit(torch.Tensor.to, x, torch.float32)
    if zero is not None:
        steps = low.emit(torch.sub, steps, zero.float().reshape(shape))
    return low.cast(low.emit(torch.mul, steps, scale.float().reshape(shape)), scale.dtype)
