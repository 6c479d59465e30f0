"""Expressions over whole views as generated kernels; Copy and Fill are the smallest of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from saccade.errors import BuildError
from saccade.native.kernels.sources import C_TYPES, activation_defines, literal, source
from saccade.native.kernels.strided import Axes, collapse, coordinates, offset, vector_width
from saccade.native.ops import (
    IDENTITY,
    Activation,
    Apply,
    Const,
    Copy,
    Expr,
    Fill,
    Operand,
    Pointwise,
)
from saccade.native.seam import Built, Launch, OfView, Source, Target
from saccade.native.tensors import SIZES, View

__all__ = ["PointwiseWay", "TransposeWay", "expression", "pointwise_ways"]

_THREADS = 256

_FLOAT_CALLS = {
    "pow": "powf({0}, {1})", "exp": "expf({0})", "log": "logf({0})", "sqrt": "sqrtf({0})",
    "rsqrt": "(1.0f / sqrtf({0}))", "reciprocal": "(1.0f / {0})", "floor": "floorf({0})",
    "ceil": "ceilf({0})", "round": "rintf({0})", "sin": "sinf({0})", "cos": "cosf({0})",
    "erf": "erff({0})", "abs": "fabsf({0})", "trunc": "truncf({0})",
    "min": "minimum({0}, {1})", "max": "maximum({0}, {1})",
    "mod": "fmodf({0}, {1})",
    "sign": "({0} > 0.0f ? 1.0f : {0} < 0.0f ? -1.0f : {0})",
}  # fmt: skip
_INT_CALLS = {
    "min": "({0} < {1} ? {0} : {1})", "max": "({0} > {1} ? {0} : {1})",
    "abs": "({0} < 0 ? -{0} : {0})", "sign": "(i64)(({0} > 0) - ({0} < 0))",
    "mod": "floor_mod({0}, {1})", "floor": "{0}", "ceil": "{0}", "round": "{0}", "trunc": "{0}",
}  # fmt: skip
_BOTH = {
    "add": "({0} + {1})", "sub": "({0} - {1})", "mul": "({0} * {1})", "div": "({0} / {1})",
    "neg": "(-{0})", "less": "(T)({0} < {1})", "less_equal": "(T)({0} <= {1})",
    "greater": "(T)({0} > {1})", "greater_equal": "(T)({0} >= {1})", "equal": "(T)({0} == {1})",
    "and": "(T)({0} != 0 && {1} != 0)", "or": "(T)({0} != 0 || {1} != 0)", "not": "(T)({0} == 0)",
    "where": "({0} != 0 ? {1} : {2})",
}  # fmt: skip


class _Writer:
    """Statements for one expression tree; equal parts are computed once."""

    def __init__(self, *, is_float: bool) -> None:
        self.is_float = is_float
        self.lines: list[str] = []
        self._names: dict[Expr, str] = {}

    def name_of(self, expr: Expr) -> str:
        """The variable that holds an expression's value, computed by `lines`."""
        if isinstance(expr, Operand):
            return f"v{expr.index}"
        if isinstance(expr, Const):
            return literal(expr.value) if self.is_float else f"{int(expr.value)}LL"
        if expr not in self._names:
            args = [self.name_of(arg) for arg in expr.args]
            name = f"t{len(self._names)}"
            self.lines.append(f"const T {name} = {self._value(expr, args)};")
            self._names[expr] = name
        return self._names[expr]

    def _value(self, expr: Apply, args: list[str]) -> str:
        if expr.op == "act":
            if not self.is_float:
                raise BuildError("an activation needs real numbers, the step has whole ones")
            act = expr.activation
            kind = act.kind.upper()
            return f"activate<{kind}>({args[0]}, {literal(act.a)}, {literal(act.b)})"
        calls = {**_BOTH, **(_FLOAT_CALLS if self.is_float else _INT_CALLS)}
        if expr.op not in calls:
            raise BuildError(f"no kernel for {expr.op!r} of {'real' if self.is_float else 'whole'}"
                             " numbers")  # fmt: skip
        return calls[expr.op].format(*args)


def expression(exprs: tuple[Expr, ...], *, is_float: bool) -> tuple[list[str], list[str]]:
    """C statements that compute expressions of variables v0, v1, ..., and the results' names."""
    writer = _Writer(is_float=is_float)
    names = [writer.name_of(expr) for expr in exprs]
    return writer.lines, names


_HELPERS = """
__device__ __forceinline__ i64 floor_mod(i64 a, i64 b) {
    i64 rest = a % b;
    return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}
template <typename E, int N> struct alignas(sizeof(E) * N > 16 ? 16 : sizeof(E) * N) Vector {
    E at[N];
};
template <typename E> __device__ __forceinline__ T read(E value) {
    if constexpr (IS_FLOAT) return to_float(value);
    else return (T)value;
}
template <> __device__ __forceinline__ T read(f16 value) { return (T)to_float(value); }
template <> __device__ __forceinline__ T read(bf16 value) { return (T)to_float(value); }
template <typename E> __device__ __forceinline__ E write(T value) {
    if constexpr (IS_FLOAT) return from_float<E>(value);
    else return (E)value;
}
template <> __device__ __forceinline__ f16 write(T v) { return from_float<f16>((float)v); }
template <> __device__ __forceinline__ bf16 write(T v) { return from_float<bf16>((float)v); }
template <> __device__ __forceinline__ bool write(T v) { return v != 0; }
"""


@dataclass(frozen=True, slots=True)
class PointwiseWay:
    """One thread for a run of elements, or several runs."""

    operands: tuple[View, ...]
    results: tuple[View, ...]
    exprs: tuple[Expr, ...]
    is_float: bool
    runs: int = 1

    @property
    def name(self) -> str:
        return f"pointwise {self.runs}"

    def _axes(self) -> Axes:
        views = [*self.operands, *self.results]
        return collapse(self.results[0].shape, [view.strides for view in views])

    def source(self) -> tuple[Source, int]:
        """The generated kernel, and how many threads it wants."""
        views = [*self.operands, *self.results]
        axes = self._axes()
        width = vector_width(axes, views)
        num = axes.num_elements // width
        shape = (*axes.shape[:-1], axes.shape[-1] // width)
        is_wide = num >= 2**31 - _THREADS * self.runs
        lines, names = expression(self.exprs, is_float=self.is_float)
        loads, reads, stores = [], [], []
        for i, view in enumerate(self.operands):
            strides, kind = axes.strides[i], C_TYPES[view.dtype]
            if width > 1 and strides[-1] == 1:
                at = offset((*strides[:-1], strides[-1] * width))
                some = f"Vector<{kind}, {width}>"
                loads.append(f"{some} o{i} = *(const {some}*)(p{i} + {at});")
                reads.append(f"const T v{i} = read(o{i}.at[j]);")
            else:
                loads.append(f"const {kind} o{i} = p{i}[{offset(strides)}];")
                reads.append(f"const T v{i} = read(o{i});")
        for i, view in enumerate(self.results):
            strides, kind = axes.strides[len(self.operands) + i], C_TYPES[view.dtype]
            at = offset((*strides[:-1], strides[-1] * width if width > 1 else strides[-1]))
            loads.append(f"Vector<{kind}, {width}> r{i};")
            reads_end = f"r{i}.at[j] = write<{kind}>({names[i]});"
            stores.append((reads_end, f"*(Vector<{kind}, {width}>*)(q{i} + {at}) = r{i};"))
        parameters = ", ".join(
            [f"const {C_TYPES[v.dtype]}* p{i}" for i, v in enumerate(self.operands)]
            + [f"{C_TYPES[v.dtype]}* q{i}" for i, v in enumerate(self.results)]
        )
        space = "\n        "
        body = f"""
extern "C" __global__ void __launch_bounds__({_THREADS}) pointwise({parameters}) {{
    let_next_start();
    wait_for_inputs();
#pragma unroll
    for (int run = 0; run < {self.runs}; run++) {{
        i64 linear = ((i64)blockIdx.x * {self.runs} + run) * {_THREADS} + threadIdx.x;
        if (linear >= {num}LL) return;
        {coordinates(shape, "linear" if is_wide else "(int)linear", wide=is_wide)}
        {space.join(loads)}
#pragma unroll
        for (int j = 0; j < {width}; j++) {{
        {space.join([*reads, *lines, *(end for end, _ in stores)])}
        }}
        {space.join(store for _, store in stores)}
    }}
}}
"""
        kind = "float" if self.is_float else "i64"
        head = f"typedef {kind} T;\n#define IS_FLOAT {int(self.is_float)}\n"
        text = source("common.cuh", "activation.cuh") + head + _HELPERS + body
        return Source(text), num

    def build(self, weights: Mapping[str, np.ndarray]) -> Built:
        """Generate the kernel."""
        made, num = self.source()
        blocks = -(-num // (_THREADS * self.runs))
        arguments = tuple(OfView(view) for view in (*self.operands, *self.results))
        launch = Launch(0, "pointwise", (max(blocks, 1), 1, 1), (_THREADS, 1, 1), arguments)
        return Built((made,), (), (launch,))


_TILE = 32

_TRANSPOSE = """
extern "C" __global__ void __launch_bounds__(256) transpose(const FROM* x, TO* y) {
    __shared__ float tile[32][33];
    let_next_start();
    wait_for_inputs();
    int block = blockIdx.x;
    int a0 = block % TILES_A * 32;
    block /= TILES_A;
    int b0 = block % TILES_B * 32;
    int outer = block / TILES_B;
    OUTER
    const FROM* from = x + (X_OUTER);
    TO* to = y + (Y_OUTER);
    int lane = threadIdx.x % 32, row = threadIdx.x / 32;
#pragma unroll
    for (int i = row; i < 32; i += 8)
        if (a0 + lane < A && b0 + i < B)
            tile[i][lane] =
                activate<ACT>(to_float(from[(i64)(b0 + i) * X_B + (a0 + lane)]), ACT_A, ACT_B);
    __syncthreads();
#pragma unroll
    for (int i = row; i < 32; i += 8)
        if (b0 + lane < B && a0 + i < A)
            to[(i64)(a0 + i) * Y_A + (b0 + lane)] = from_float<TO>(tile[lane][i]);
}
"""


@dataclass(frozen=True, slots=True)
class TransposeWay:
    """A copy whose sides run along different axes, through shared memory in 32 x 32 tiles.

    Attributes:
        x: From.
        y: To.
        axes: Of both, joined where that is possible.
        a: The axis along which x lies side by side.
        b: The axis along which y does.
        activation: Of each element.
    """

    x: View
    y: View
    axes: Axes
    a: int
    b: int
    activation: Activation = IDENTITY

    @property
    def name(self) -> str:
        return "transpose 32"

    def build(self, weights: Mapping[str, np.ndarray]) -> Built:
        """Generate the kernel: axis a is side by side in x, axis b in y."""
        axes, a, b = self.axes, self.a, self.b
        xs, ys = axes.strides
        others = [axis for axis in range(len(axes.shape)) if axis not in (a, b)]
        shape = [axes.shape[axis] for axis in others] or [1]
        defines = (
            f"FROM={C_TYPES[self.x.dtype]}", f"TO={C_TYPES[self.y.dtype]}",
            f"A={axes.shape[a]}", f"B={axes.shape[b]}",
            f"TILES_A={-(-axes.shape[a] // _TILE)}", f"TILES_B={-(-axes.shape[b] // _TILE)}",
            f"X_B={xs[b]}LL", f"Y_A={ys[a]}LL", *activation_defines("ACT", self.activation),
        )  # fmt: skip
        text = _TRANSPOSE.replace("OUTER\n", coordinates(shape, "outer", "k") + "\n", 1)
        text = text.replace("X_OUTER", offset([xs[axis] for axis in others], "k"))
        text = text.replace("Y_OUTER", offset([ys[axis] for axis in others], "k"))
        made = Source(source("common.cuh", "activation.cuh") + text, defines)
        tiles = -(-axes.shape[a] // _TILE) * -(-axes.shape[b] // _TILE)
        launch = Launch(
            0, "transpose", (tiles * math.prod(shape), 1, 1), (256, 1, 1),
            (OfView(self.x), OfView(self.y)),
        )  # fmt: skip
        return Built((made,), (), (launch,))


def pointwise_ways(
    step: Pointwise | Copy | Fill, target: Target
) -> tuple[PointwiseWay | TransposeWay, ...]:
    """Ways to run a step that takes each element by itself."""
    if isinstance(step, Fill):
        is_float = step.y.dtype not in ("int64", "int32")
        return (PointwiseWay((), (step.y,), (Const(step.value),), is_float),)
    if isinstance(step, Copy):
        whole = {"int64", "int32", "bool", "uint8", "int8"}
        is_float = not {step.x.dtype, step.y.dtype} <= whole
        plain = PointwiseWay((step.x,), (step.y,), (Operand(0),), is_float)
        turned = _transpose(step.x, step.y, IDENTITY) if is_float else None
        return (turned, plain) if turned is not None else (plain,)
    is_float = step.compute == "float32"
    if any(view.dtype not in SIZES or view.dtype not in C_TYPES
           for view in (*step.operands, *step.results)):  # fmt: skip
        return ()
    ways = [PointwiseWay(step.operands, step.results, step.exprs, is_float, runs)
            for runs in (1, 4)]  # fmt: skip
    try:
        for way in ways[:1]:
            way.source()
    except BuildError:
        return ()
    turned = None
    if len(step.operands) == len(step.results) == 1 and is_float:
        (expr,), (x,), (y,) = step.exprs, step.operands, step.results
        if isinstance(expr, Apply) and expr.op == "act" and expr.args == (Operand(0),):
            turned = _transpose(x, y, expr.activation)
    return (turned, *ways) if turned is not None else tuple(ways)


def _transpose(x: View, y: View, activation: Activation) -> TransposeWay | None:
    if any(view.dtype in ("int64", "int32") for view in (x, y)):
        return None
    axes = collapse(y.shape, [x.strides, y.strides])
    xs, ys = axes.strides
    if 1 not in xs or 1 not in ys:
        return None
    a, b = xs.index(1), ys.index(1)
    if a == b or axes.shape[a] < 8 or axes.shape[b] < 8:
        return None
    return TransposeWay(x, y, axes, a, b, activation)
