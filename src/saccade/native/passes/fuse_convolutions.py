"""What follows a convolution, done by the convolution before it stores.

Activations, a residual before or after the activation, a factor, and whatever is affine per
channel, which goes into weights and bias.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from saccade.native.ops import (
    IDENTITY,
    Activation,
    Apply,
    Const,
    Conv,
    Expr,
    Operand,
    Pointwise,
    Step,
)
from saccade.native.passes.expressions import operands_of, uses
from saccade.native.plan import Draft
from saccade.native.tensors import View
from saccade.native.views import image, inside

__all__ = ["fuse_convolutions"]


OWN = -1


@dataclass(frozen=True, slots=True)
class _Tail:
    """An expression of a convolution's result, in the form that a convolution has.

    gain and shift are per channel or single numbers, and come first. residual is the number of an
    operand, or OWN for the one that the convolution has already.
    """

    gain: np.ndarray
    shift: np.ndarray
    activation: Activation = IDENTITY
    scale: float = 1.0
    residual: int | None = None
    residual_after: bool = False
    after: Activation = IDENTITY

    @property
    def is_affine(self) -> bool:
        return self.activation == IDENTITY and self.residual is None and self.scale == 1.0


def fuse_convolutions(draft: Draft) -> None:
    """Fuse until nothing changes; of two summed convolutions the later one takes the sum."""
    while _fuse_one(draft):
        pass


def _fuse_one(draft: Draft) -> bool:
    readers, writers = draft.readers(), draft.writers()
    outputs = draft.output_buffers()
    for index in reversed(range(len(draft.steps))):
        conv = draft.steps[index]
        if not isinstance(conv, Conv) or conv.y.buffer in outputs:
            continue
        at = readers.get(conv.y.buffer, [])
        if len(at) != 1 or len(writers[conv.y.buffer]) != 1:
            continue
        reader = draft.steps[at[0]]
        if not isinstance(reader, Pointwise) or len(reader.results) != 1:
            continue
        if reader.compute != "float32" or reader.results[0].dtype == "bool":
            continue
        fused = _fused(draft, conv, reader)
        if fused is not None:
            draft.steps[at[0] : at[0] + 1] = fused
            del draft.steps[index]
            return True
    return False


def _fused(draft: Draft, conv: Conv, reader: Pointwise) -> list[Step] | None:
    """The convolution with as much of the reader as it can take, and what is left."""
    numbers = [i for i, view in enumerate(reader.operands) if view.buffer == conv.y.buffer]
    if len(numbers) != 1 or uses(reader.exprs[0], numbers[0]) != 1:
        return None
    (own,) = numbers
    whole = reader.operands[own]
    if whole.num_elements != conv.y.num_elements or whole.is_repeated:
        return None
    seen = [
        None if view is None else image(view)
        for view in (inside(conv.y, whole, operand) for operand in reader.operands)
    ]
    start = _Tail(
        np.ones(()),
        np.zeros(()),
        conv.activation,
        conv.scale,
        None if conv.residual is None else OWN,
        conv.residual_after,
        conv.after,
    )
    for expr in _path(reader.exprs[0], own):
        tail = _Parser(draft, own, seen, start).parse(expr)
        if tail is None:
            continue
        residual = conv.residual
        if tail.residual is not None and tail.residual != OWN:
            residual = seen[tail.residual]
            if residual is None or not residual.is_pixels or residual.dtype == "bool":
                continue
        if expr == reader.exprs[0]:
            place = inside(conv.y, whole, reader.results[0])
            place = None if place is None else image(place)
            if place is None or not place.is_pixels:
                continue
            return [_with_tail(draft, conv, tail, residual, place, reader.label)]
        if isinstance(expr, Operand):
            return None
        made = _with_tail(draft, conv, tail, residual, conv.y, reader.label)
        return [made, _without(reader, expr, own)]
    return None


def _path(expr: Expr, index: int) -> list[Expr]:
    """Expressions that contain an operand, the largest first."""
    found = [expr]
    while isinstance(found[-1], Apply):
        found.append(next(arg for arg in found[-1].args if uses(arg, index)))
    return found


def _without(reader: Pointwise, done: Expr, own: int) -> Pointwise:
    """The reader with an expression already computed by its operand."""

    def put(expr: Expr) -> Expr:
        if expr == done:
            return Operand(own)
        if isinstance(expr, Apply):
            return replace(expr, args=tuple(put(arg) for arg in expr.args))
        return expr

    expr = put(reader.exprs[0])
    used = sorted(set(operands_of(expr)))

    def renumber(expr: Expr) -> Expr:
        if isinstance(expr, Operand):
            return Operand(used.index(expr.index))
        if isinstance(expr, Apply):
            return replace(expr, args=tuple(renumber(arg) for arg in expr.args))
        return expr

    return replace(
        reader, operands=tuple(reader.operands[i] for i in used), exprs=(renumber(expr),)
    )


@dataclass(frozen=True, slots=True)
class _Parser:
    """Reads an expression of one operand as what a convolution does after its sums.

    Attributes:
        own: The operand that is the convolution's result.
        seen: Operands as the convolution's result is indexed.
        start: What the convolution does already.
    """

    draft: Draft
    own: int
    seen: list[View | None]
    start: _Tail

    def parse(self, expr: Expr) -> _Tail | None:
        if isinstance(expr, Operand):
            return self.start if expr.index == self.own else None
        if not isinstance(expr, Apply):
            return None
        if expr.op == "act":
            inner = self.parse(expr.args[0])
            return None if inner is None else _activated(inner, expr.activation)
        if expr.op not in ("add", "sub", "mul", "div"):
            return None
        x, other = expr.args
        if not uses(x, self.own):
            if expr.op in ("sub", "div"):
                return None
            x, other = other, x
        inner = self.parse(x)
        if inner is None:
            return None
        number = _per_channel(self.draft, other, self.seen)
        if number is not None:
            return _affine(inner, expr.op, number)
        if expr.op == "add" and isinstance(other, Operand) and inner.residual is None:
            return replace(inner, residual=other.index, residual_after=not inner.is_affine)
        return None


def _activated(inner: _Tail, act: Activation) -> _Tail | None:
    if inner.residual is not None and inner.residual_after:
        return replace(inner, after=act) if inner.after == IDENTITY else None
    if inner.activation != IDENTITY or inner.scale != 1.0:
        return None
    return replace(inner, activation=act)


def _affine(inner: _Tail, op: str, number: np.ndarray) -> _Tail | None:
    if inner.is_affine:
        if op in ("add", "sub"):
            return replace(inner, shift=inner.shift + (number if op == "add" else -number))
        factor = number if op == "mul" else 1.0 / number
        return replace(inner, gain=inner.gain * factor, shift=inner.shift * factor)
    if op in ("mul", "div") and number.size == 1 and inner.residual is None:
        one = float(number.reshape(()))
        return replace(inner, scale=inner.scale * (one if op == "mul" else 1.0 / one))
    return None


def _per_channel(draft: Draft, expr: Expr, seen: list[View | None]) -> np.ndarray | None:
    """A constant as one number, or one per channel."""
    if isinstance(expr, Const):
        return np.array(expr.value, np.float64)
    if not isinstance(expr, Operand):
        return None
    view = seen[expr.index]
    if view is None or view.buffer not in draft.constants:
        return None
    n, h, w, k = view.shape
    if any(size > 1 and stride for size, stride in zip((n, h, w), view.strides, strict=False)):
        return None
    stored = draft.constants[view.buffer]
    return np.asarray(stored[view.offset :: view.strides[3] or 1][:k], np.float64)


def _with_tail(
    draft: Draft, conv: Conv, tail: _Tail, residual: View | None, place: View, label: str
) -> Conv:
    weight, bias, units = conv.weight, conv.bias, conv.weight_scale
    k = conv.y.c
    if (tail.gain != 1).any():
        gain = np.broadcast_to(tail.gain, (k,))
        old = draft.weights[weight].astype(np.float64)
        new = (old * gain.reshape(-1, 1, 1, 1)).astype(np.float32)
        weight = draft.weight(f"{weight}:scaled", new)
        if units is not None:
            units = draft.weight(units, (draft.weights[units] * abs(gain)).astype(np.float32))
    if (tail.gain != 1).any() or (tail.shift != 0).any():
        old = np.zeros(k) if bias is None else draft.weights[bias].astype(np.float64)
        new = (old * tail.gain + tail.shift).astype(np.float32)
        bias = draft.weight(f"{conv.label}:bias", np.ascontiguousarray(new))
    return replace(
        conv,
        label=f"{conv.label} + {label}",
        y=replace(place, dtype=conv.y.dtype),
        weight=weight,
        bias=bias,
        weight_scale=units,
        activation=tail.activation,
        scale=tail.scale,
        residual=residual,
        residual_after=tail.residual_after,
        after=tail.after,
    )
