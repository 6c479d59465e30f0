"""Sums, maxima and orders along axes: softmax, normalisation, reduction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from saccade.native.kernels.sources import C_TYPES, literal, source
from saccade.native.kernels.strided import collapse, coordinates, cut_view, offset
from saccade.native.ops import Norm, Reduce, Softmax
from saccade.native.seam import Argument, Built, Launch, OfView, OfWeight, Source, Target

__all__ = ["NormWay", "ReduceWay", "SoftmaxWay",
           "norm_ways", "reduce_ways", "softmax_ways"]  # fmt: skip

_FLOATS = ("float16", "bfloat16", "float32")
_THREADS = 256


def _group(length: int, num_rows: int) -> int:
    """Threads per row: few for short rows, so that neighbouring rows share a warp."""
    if length <= 16 and num_rows >= 4096:
        return 1
    if length <= 64:
        return 8 if num_rows > 64 else 32
    if length <= 2048 and num_rows > 64:
        return 32
    return _THREADS


_COMMON = """
#define THREADS 256
// Sums and maxima over the GROUP threads of one row, always in the same order.
__device__ __forceinline__ float combine(float v, float other, int is_max) {
    return is_max ? maximum(v, other) : v + other;
}
__device__ __forceinline__ float over_row(float v, int is_max) {
#pragma unroll
    for (int d = (GROUP < 32 ? GROUP : 32) / 2; d > 0; d /= 2)
        v = combine(v, __shfl_xor_sync(0xffffffffu, v, d), is_max);
    if constexpr (GROUP > 32) {
        __shared__ float parts[32];
        __syncthreads();
        if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
        __syncthreads();
        v = parts[0];
#pragma unroll
        for (int i = 1; i < GROUP / 32; i++) v = combine(v, parts[i], is_max);
    }
    return v;
}
"""


def _row_kernel(group: int, body: str, kept: Sequence[int], num_rows: int, parameters: str,
                name: str) -> str:  # fmt: skip
    return (
        f"#define GROUP {group}\n{_COMMON}"
        f'extern "C" __global__ void __launch_bounds__(THREADS) {name}({parameters}) {{\n'
        "    let_next_start();\n    wait_for_inputs();\n"
        f"    i64 linear = ((i64)blockIdx.x * THREADS + threadIdx.x) / {group};\n"
        f"    const int lane = threadIdx.x % {group};\n"
        f"    const bool is_there = linear < {num_rows}LL;\n"
        f"    if (!is_there) linear = {num_rows - 1}LL;\n"
        f"    {coordinates(kept or [1], 'linear', 'k', wide=True)}\n{body}}}\n"
    )


def _blocks(num_rows: int, group: int) -> tuple[int, int, int]:
    return (-(-num_rows * group // _THREADS), 1, 1)


@dataclass(frozen=True, slots=True)
class SoftmaxWay:
    """A row per group of threads: maximum, sum, quotient; three readings."""

    step: Softmax
    group: int

    @property
    def name(self) -> str:
        return f"softmax g{self.group}"

    def build(self, weights: Mapping[str, np.ndarray]) -> Built:
        """Generate the kernel."""
        step = self.step
        axis = step.axis % len(step.x.shape)
        kept, xs, (length,), (x_step,) = cut_view(step.x, [axis])
        _, ys, _, (y_step,) = cut_view(step.y, [axis])
        y_type = C_TYPES[step.y.dtype]
        value = "v - top - log_total" if step.is_log else "expf(v - top) * share"
        body = f"""
    const {C_TYPES[step.x.dtype]}* from = x + ({offset(xs, "k")});
    {y_type}* to = y + ({offset(ys, "k")});
    float top = __int_as_float(0xff800000);
    for (int i = lane; i < {length}; i += GROUP)
        top = maximum(top, to_float(from[(i64)i * {x_step}]));
    top = over_row(top, 1);
    float total = 0.0f;
    for (int i = lane; i < {length}; i += GROUP)
        total += expf(to_float(from[(i64)i * {x_step}]) - top);
    total = over_row(total, 0);
    const float share = 1.0f / total, log_total = logf(total);
    if (!is_there) return;
    for (int i = lane; i < {length}; i += GROUP) {{
        const float v = to_float(from[(i64)i * {x_step}]);
        to[(i64)i * {y_step}] = from_float<{y_type}>({value});
    }}
"""
        num_rows = math.prod(kept)
        parameters = f"const {C_TYPES[step.x.dtype]}* x, {y_type}* y"
        text = source("common.cuh", "activation.cuh")
        text += _row_kernel(self.group, body, kept, num_rows, parameters, "softmax")
        launch = Launch(0, "softmax", _blocks(num_rows, self.group), (_THREADS, 1, 1),
                        (OfView(step.x), OfView(step.y)))  # fmt: skip
        return Built((Source(text),), (), (launch,))


def softmax_ways(step: Softmax, target: Target) -> tuple[SoftmaxWay, ...]:
    """Group sizes to try."""
    if step.x.dtype not in _FLOATS or step.y.dtype not in _FLOATS:
        return ()
    length = step.x.shape[step.axis]
    first = _group(length, step.x.num_elements // max(length, 1))
    groups = [first, *(g for g in (1, 32) if g != first)]
    return tuple(SoftmaxWay(step, group) for group in groups)


@dataclass(frozen=True, slots=True)
class NormWay:
    """A row per group of threads; mean and variance in two readings."""

    step: Norm
    group: int

    @property
    def name(self) -> str:
        return f"norm g{self.group}"

    def build(self, weights: Mapping[str, np.ndarray]) -> Built:
        """Generate the kernel."""
        step = self.step
        last = len(step.x.shape) - 1
        kept, xs, (length,), (x_step,) = cut_view(step.x, [last])
        _, ys, _, (y_step,) = cut_view(step.y, [last])
        x_type, y_type = C_TYPES[step.x.dtype], C_TYPES[step.y.dtype]
        arrays = [weights[name].astype(np.float32)
                  for name in (step.gain, step.shift) if name is not None]  # fmt: skip
        value = f"to_float(from[(i64)i * {x_step}])"
        parameters = f"const {x_type}* x, const float* gain, const float* shift, {y_type}* y"
        arguments: list[Argument] = [
            OfView(step.x),
            OfWeight(0) if step.gain is not None else OfView(step.x),
            OfWeight(len(arrays) - 1) if step.shift is not None else OfView(step.x),
            OfView(step.y),
        ]
        add = ""
        if step.residual is not None:
            _, rs, _, (r_step,) = cut_view(step.residual, [last])
            parameters += f", const {C_TYPES[step.residual.dtype]}* residual"
            arguments.append(OfView(step.residual))
            add = f"const auto* more = residual + ({offset(rs, 'k')});"
            value += f" + to_float(more[(i64)i * {r_step}])"
        result = "(v - mean) * scale"
        result += " * gain[i]" if step.gain is not None else ""
        result += " + shift[i]" if step.shift is not None else ""
        mean = "0.0f" if step.is_rms else f"over_row(sum, 0) / {length}.0f"
        body = f"""
    const {x_type}* from = x + ({offset(xs, "k")});
    {y_type}* to = y + ({offset(ys, "k")});
    {add}
    float sum = 0.0f;
    for (int i = lane; i < {length}; i += GROUP) sum += {value};
    const float mean = {mean};
    float square = 0.0f;
    for (int i = lane; i < {length}; i += GROUP) {{
        const float v = {value} - mean;
        square = fmaf(v, v, square);
    }}
    const float scale = 1.0f / sqrtf(over_row(square, 0) / {length}.0f + {literal(step.epsilon)});
    if (!is_there) return;
    for (int i = lane; i < {length}; i += GROUP) {{
        const float v = {value};
        to[(i64)i * {y_step}] = from_float<{y_type}>({result});
    }}
"""
        num_rows = math.prod(kept)
        text = source("common.cuh", "activation.cuh")
        text += _row_kernel(self.group, body, kept, num_rows, parameters, "normalise")
        launch = Launch(0, "normalise", _blocks(num_rows, self.group), (_THREADS, 1, 1),
                        tuple(arguments))  # fmt: skip
        return Built((Source(text),), tuple(arrays), (launch,))


def norm_ways(step: Norm, target: Target) -> tuple[NormWay, ...]:
    """Group sizes to try."""
    views = [step.x, step.y, *([] if step.residual is None else [step.residual])]
    if any(view.dtype not in _FLOATS for view in views):
        return ()
    length = step.x.shape[-1]
    first = _group(length, step.x.num_elements // max(length, 1))
    return tuple(NormWay(step, g) for g in dict.fromkeys((max(first, 8), 32, 8)))


_REDUCTIONS = {
    "sum": ("0.0f", "best + v"),
    "mean": ("0.0f", "best + v"),
    "max": ("__int_as_float(0xff800000)", "maximum(best, v)"),
    "min": ("__int_as_float(0x7f800000)", "minimum(best, v)"),
    "prod": ("1.0f", "best * v"),
    "l2": ("0.0f", "fmaf(v, v, best)"),
}


@dataclass(frozen=True, slots=True)
class ReduceWay:
    """A result per group of threads, combined in a fixed order."""

    step: Reduce
    group: int

    @property
    def name(self) -> str:
        return f"reduce g{self.group}"

    def build(self, weights: Mapping[str, np.ndarray]) -> Built:
        """Generate the kernel."""
        step = self.step
        axes = sorted(axis % len(step.x.shape) for axis in step.axes)
        kept, xs, sizes, steps = cut_view(step.x, axes)
        _, ys, _, _ = cut_view(step.y, axes)
        length = math.prod(sizes)
        inner = collapse(sizes, [steps])
        at = (
            f"{coordinates(inner.shape, 'i', 'r')}\n        "
            f"const T v = READ(from[{offset(inner.strides[0], 'r')}]);"
        )
        is_float = step.x.dtype in _FLOATS
        read = "to_float" if is_float else "(i64)"
        head = f"typedef {'float' if is_float else 'i64'} T;\n#define READ(v) {read}(v)\n"
        body = self._best(at, length, is_float, offset(xs, "k"), offset(ys, "k"))
        num_rows = math.prod(kept)
        x_type, y_type = C_TYPES[step.x.dtype], C_TYPES[step.y.dtype]
        text = source("common.cuh", "activation.cuh") + head
        text += _row_kernel(
            self.group, body, kept, num_rows, f"const {x_type}* x, {y_type}* y", "reduce"
        )
        launch = Launch(0, "reduce", _blocks(num_rows, self.group), (_THREADS, 1, 1),
                        (OfView(step.x), OfView(step.y)))  # fmt: skip
        return Built((Source(text),), (), (launch,))

    def _best(self, at: str, length: int, is_float: bool, x_at: str, y_at: str) -> str:
        kind, y_type = self.step.kind, C_TYPES[self.step.y.dtype]
        head = f"\n    const {C_TYPES[self.step.x.dtype]}* from = x + ({x_at});\n"
        store = f"    if (is_there && lane == 0) y[{y_at}] = ({y_type})"
        if self.step.y.dtype in _FLOATS:
            store = f"    if (is_there && lane == 0) y[{y_at}] = from_float<{y_type}>"
        if kind in ("argmax", "argmin"):
            better = "v > best" if kind == "argmax" else "v < best"
            nan = " || (v != v && best == best)" if is_float else ""
            # Of equal values the first wins, whoever saw it.
            return (
                head
                + f"""
    T best = 0;
    int where = -1;
    for (int i = lane; i < {length}; i += GROUP) {{
        {at}
        if (where < 0 || {better}{nan}) best = v, where = i;
    }}
#pragma unroll
    for (int d = (GROUP < 32 ? GROUP : 32) / 2; d > 0; d /= 2) {{
        const T v = __shfl_xor_sync(0xffffffffu, best, d);
        const int i = __shfl_xor_sync(0xffffffffu, where, d);
        const bool is_better = {better}{nan};
        const bool is_same = v == best{" || (v != v && best != best)" if is_float else ""};
        if (i >= 0 && (where < 0 || is_better || (is_same && i < where))) best = v, where = i;
    }}
    if constexpr (GROUP > 32) {{
        __shared__ T bests[32];
        __shared__ int places[32];
        if (threadIdx.x % 32 == 0)
            bests[threadIdx.x / 32] = best, places[threadIdx.x / 32] = where;
        __syncthreads();
        best = bests[0], where = places[0];
        for (int w = 1; w < GROUP / 32; w++) {{
            const T v = bests[w];
            const int i = places[w];
            const bool is_better = {better}{nan};
            const bool is_same = v == best{" || (v != v && best != best)" if is_float else ""};
            if (i >= 0 && (where < 0 || is_better || (is_same && i < where))) best = v, where = i;
        }}
    }}
{store}(where);
"""
            )
        first, with_v = _REDUCTIONS[kind]
        if not is_float:
            first = {"max": "(T)(1ULL << 63)", "min": "(T)~(1ULL << 63)", "prod": "1"}.get(
                kind, "0"
            )
            with_v = {
                "max": "best > v ? best : v", "min": "best < v ? best : v", "prod": "best * v",
            }.get(kind, "best + v")  # fmt: skip
        joined = with_v if kind != "l2" else "best + v"
        end = "best"
        if kind == "mean":
            end = f"best / {length}" + (".0f" if is_float else "")
        if kind == "l2":
            end = "sqrtf(best)"
        return (
            head
            + f"""
    T best = {first};
    for (int i = lane; i < {length}; i += GROUP) {{
        {at}
        best = {with_v};
    }}
#pragma unroll
    for (int d = (GROUP < 32 ? GROUP : 32) / 2; d > 0; d /= 2) {{
        const T v = __shfl_xor_sync(0xffffffffu, best, d);
        best = {joined};
    }}
    if constexpr (GROUP > 32) {{
        __shared__ T bests[32];
        if (threadIdx.x % 32 == 0) bests[threadIdx.x / 32] = best;
        __syncthreads();
        best = bests[0];
        for (int w = 1; w < GROUP / 32; w++) {{
            const T v = bests[w];
            best = {joined};
        }}
    }}
{store}({end});
"""
        )


def reduce_ways(step: Reduce, target: Target) -> tuple[ReduceWay, ...]:
    """Group sizes to try."""
    whole = ("int64", "int32", "bool", "uint8", "int8")
    if step.x.dtype not in (*_FLOATS, *whole) or step.y.dtype not in C_TYPES:
        return ()
    if step.x.dtype in whole and step.kind in ("mean", "l2"):
        return ()
    if step.kind.startswith("arg") and len(step.axes) != 1:
        return ()
    length = math.prod(step.x.shape[axis] for axis in step.axes)
    first = _group(length, step.y.num_elements)
    groups = [first, *(g for g in (1, 32) if g != first)]
    return tuple(ReduceWay(step, group) for group in groups)
