"""Steps for the tests of kernels: every kind, odd sizes, slices of shared buffers, nasty values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from saccade.native import ops
from saccade.native.ops import Activation, Apply, Const, Operand
from saccade.native.plan import Draft
from saccade.native.reference import as_e4m3
from saccade.native.tensors import View, dense, pixels

__all__ = ["CASES", "Case", "contents"]


@dataclass(frozen=True, eq=False)
class Case:
    """One step, what it names, and what its buffers hold.

    Attributes:
        name: Unique.
        draft: Holds the buffers and weights.
        step: What is run.
        fill: Buffer to a function that makes its contents from a generator and a size; normal
            numbers where there is none.
        rtol: Allowed relative to the value, in units of the result's precision.
        atol: Allowed in absolute terms.
    """

    name: str
    draft: Draft
    step: ops.Step
    fill: dict[int, Callable[[np.random.Generator, int], np.ndarray]] = field(default_factory=dict)
    rtol: float = 2.0
    atol: float = 1e-3


def contents(case: Case, rng: np.random.Generator) -> dict[int, np.ndarray]:
    """What each buffer holds before the step; bfloat16 as float32 values of that precision."""
    made = {}
    for number, buffer in enumerate(case.draft.buffers):
        make = case.fill.get(number, lambda rng, size: rng.normal(size=size))
        array = np.asarray(make(rng, buffer.num_elements))
        if buffer.dtype == "bfloat16":
            bits = array.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
            made[number] = bits.view(np.float32)
        elif buffer.dtype == "float8_e4m3":
            made[number] = as_e4m3(array)[0]
        else:
            made[number] = array.astype(buffer.dtype)
    return made


class _Maker:
    """A draft and short ways to add buffers and weights of exact values."""

    def __init__(self) -> None:
        self.draft = Draft()
        self.rng = np.random.default_rng(5)

    def picture(
        self, n: int, h: int, w: int, c: int, dtype: str = "float16", *, pitch: int = 0,
        at: int = 0, apart: int = 0,
    ) -> View:  # fmt: skip
        pitch = pitch or c
        image = h * w * pitch + apart
        number = self.draft.buffer("x", dtype, n * image)
        strides = (image, w * pitch, pitch, 1)
        return View(number, dtype, (n, h, w, c), strides, at)  # type: ignore[arg-type]

    def array(self, *shape: int, dtype: str = "float16") -> View:
        number = self.draft.buffer("x", dtype, math.prod(shape))
        return dense(number, dtype, shape)  # type: ignore[arg-type]

    def weight(self, *shape: int, scale: float = 1.0) -> str:
        values = (self.rng.normal(size=shape) * scale).astype(np.float32)
        # Exact in FP16 and BF16 alike, so that only sums and results round.
        exact = (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        return self.draft.weight("w", exact)


def _conv(
    name: str, n: int, h: int, w: int, c: int, k: int, kernel: int | tuple[int, int],
    stride: int = 1, *, pad: int | None = None, dtype: str = "float16", out: str = "",
    x_pitch: int = 0, x_at: int = 0, y_pitch: int = 0, y_at: int = 0, residual: str = "",
    second: int = 0, up: bool = False, second_up: bool = False, dilation: int = 1,
    groups: int = 1, planes: bool = False, bias: bool = True, act: str = "silu", apart: int = 0,
    **options: Any,
) -> Case:  # fmt: skip
    m = _Maker()
    kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
    pads = ((kh - 1) * dilation // 2, (kw - 1) * dilation // 2) if pad is None else (pad, pad)
    x_h, x_w = (h // 2, w // 2) if up else (h, w)
    if planes:
        x = m.array(n, c, x_h, x_w, dtype=dtype).permuted(0, 2, 3, 1)
    else:
        x = m.picture(n, x_h, x_w, c, dtype, pitch=x_pitch, at=x_at, apart=apart)
    oh = (h + 2 * pads[0] - (kh - 1) * dilation - 1) // stride + 1
    ow = (w + 2 * pads[1] - (kw - 1) * dilation - 1) // stride + 1
    y_type = out or (dtype if dtype in ("float16", "bfloat16") else "float16")
    y = m.picture(n, oh, ow, k, y_type, pitch=y_pitch, at=y_at, apart=apart)
    more = None
    if second:
        more = m.picture(n, *((h // 2, w // 2) if second_up else (h, w)), second, dtype)
    depth = (c + second) // groups
    weight = m.weight(k, kh, kw, depth, scale=(depth * kh * kw) ** -0.5)
    step = ops.Conv(
        name, x, y, weight, (kh, kw), m.weight(k) if bias else None, (stride, stride),
        (pads[0], pads[1], pads[0], pads[1]), (dilation, dilation), groups,
        activation=Activation(act, 0.1, 0.5),  # type: ignore[arg-type]
        residual=m.picture(n, oh, ow, k, y_type, apart=apart // 2) if residual else None,
        residual_after=residual == "after", is_upsampled=up, second=more,
        second_is_upsampled=second_up, **options,
    )  # fmt: skip
    return Case(name, m.draft, step)


def _convs() -> Iterator[Case]:
    yield _conv("stem planes", 2, 37, 53, 3, 16, 3, 2, planes=True)
    yield _conv("stem planes even", 2, 64, 96, 3, 32, 3, 2, planes=True)
    yield _conv("stem fp32 planes", 1, 40, 70, 3, 24, 3, 2, planes=True, dtype="float32")
    yield _conv("stem pixels", 1, 33, 35, 3, 16, 3, 1)
    yield _conv("stem 7x7", 1, 45, 61, 3, 64, 7, 2, planes=True, act="relu")
    yield _conv("stem 6x6", 1, 44, 60, 3, 48, 6, 2, pad=2, planes=True)
    yield _conv("stem gray", 1, 31, 47, 1, 16, 3, 1, act="none")
    yield _conv("stem four", 2, 30, 30, 4, 20, 5, 2, bias=False)
    yield _conv("3x3", 2, 19, 23, 16, 16, 3)
    yield _conv("3x3 residual", 2, 20, 20, 32, 32, 3, residual="after")
    yield _conv("3x3 residual before", 1, 17, 18, 24, 40, 3, residual="before", act="relu")
    yield _conv(
        "3x3 after act", 1, 9, 9, 16, 16, 3, residual="after", after=Activation("relu"), scale=0.5
    )
    yield _conv("3x3 stride 2", 2, 27, 31, 16, 32, 3, 2)
    yield _conv("3x3 stride 2 deep", 1, 20, 20, 128, 96, 3, 2, act="hard_swish")
    yield _conv("3x3 dilated", 1, 21, 22, 32, 48, 3, dilation=2, act="leaky_relu")
    yield _conv("1x1", 2, 20, 20, 48, 32, 1)
    yield _conv("1x1 few out", 1, 13, 11, 64, 3, 1, act="none")
    yield _conv("1x1 odd channels", 1, 13, 11, 58, 58, 1, act="relu")
    yield _conv("1x1 very odd", 1, 7, 5, 33, 17, 1, act="gelu")
    yield _conv("1x1 slices", 1, 10, 12, 32, 24, 1, x_pitch=96, x_at=32, y_pitch=64, y_at=8)
    yield _conv("1x1 odd slice", 1, 10, 12, 30, 22, 1, x_pitch=58, x_at=28, y_pitch=44, y_at=22)
    yield _conv("1x1 fp32 out", 1, 10, 12, 64, 85, 1, out="float32", act="sigmoid")
    yield _conv("1x1 upsampled concat", 1, 12, 16, 64, 32, 1, up=True, second=32)
    yield _conv("1x1 concat upsampled", 1, 12, 16, 16, 32, 1, second=48, second_up=True)
    yield _conv("1x1 concat odd", 1, 12, 16, 40, 32, 1, second=24)
    yield _conv("1x1 apart", 3, 10, 12, 32, 24, 1, apart=64)
    yield _conv("3x3 apart", 3, 10, 12, 32, 48, 3, apart=640, residual="after")
    yield _conv("1x1 odd apart", 3, 9, 9, 64, 5, 1, out="float32", apart=85, act="none")
    yield _conv("depthwise apart", 2, 19, 17, 24, 24, 3, groups=24, apart=48, residual="before")
    yield _conv("stem apart", 3, 32, 48, 3, 16, 3, 2, planes=True, apart=160)
    yield _conv("3x3 bf16", 1, 14, 15, 32, 32, 3, dtype="bfloat16")
    yield _conv("1x7", 1, 9, 30, 16, 16, (1, 7))
    yield _conv("1x1 stride 2", 1, 15, 15, 32, 64, 1, 2, act="none")
    yield _conv("matrix", 1, 1, 37, 192, 100, 1, act="gelu_tanh")
    yield _conv("depthwise 3x3", 2, 19, 17, 24, 24, 3, groups=24, act="relu")
    yield _conv("depthwise 5x5 stride 2", 1, 25, 31, 64, 64, 5, 2, groups=64, act="hard_swish")
    yield _conv("depthwise odd", 1, 11, 11, 58, 58, 3, groups=58, act="none", residual="after")
    yield _conv("depthwise dilated", 1, 12, 15, 16, 16, 3, groups=16, dilation=2)
    yield _conv("depthwise fp32", 1, 12, 15, 12, 12, 3, groups=12, dtype="float32", out="float32")
    yield _conv("grouped", 1, 10, 10, 32, 48, 3, groups=4)
    yield _conv("fp32", 1, 10, 10, 20, 12, 3, dtype="float32", out="float32", act="mish")
    huge = _conv("3x3 overflow", 1, 8, 8, 16, 16, 3, act="none", bias=False)
    big = np.array([0.0, 1.0, -6e4, 6e4])
    yield Case(
        huge.name, huge.draft, huge.step, {0: lambda rng, size: rng.choice(big, size)}, atol=100.0
    )
    # A pixel that is not a number must not reach outputs that do not see it.
    bad = _conv("3x3 nan", 1, 12, 12, 16, 16, 3)
    yield Case(bad.name, bad.draft, bad.step, {0: _with_nan})


def _with_nan(rng: np.random.Generator, size: int) -> np.ndarray:
    values = rng.normal(size=size)
    values[size // 2 // 16 * 16 : size // 2 // 16 * 16 + 16] = np.nan
    return values


def _windows() -> Iterator[Case]:
    for name, kind, c, size, stride, pad, counts in (
        ("max 2", "max", 32, 2, 2, 0, False), ("max 3 odd", "max", 21, 3, 2, 1, False),
        ("mean 3", "mean", 16, 3, 1, 1, False), ("mean 3 whole", "mean", 10, 3, 2, 1, True),
    ):  # fmt: skip
        m = _Maker()
        x = m.picture(2, 15, 18, c, pitch=c + 3, at=2)
        oh, ow = ((v + 2 * pad - size) // stride + 1 for v in (15, 18))
        y = m.picture(2, oh, ow, c)
        step = ops.Pool(
            name, kind, x, y, (size, size), (stride, stride), (pad,) * 4,  # type: ignore[arg-type]
            counts_padding=counts,
        )  # fmt: skip
        yield Case(f"pool {name}", m.draft, step)
    for name, c, dtype in (
        ("half", 32, "float16"),
        ("bf16", 16, "bfloat16"),
        ("fp32", 8, "float32"),
    ):
        m = _Maker()
        number = m.draft.buffer("all", dtype, 2 * 9 * 11 * c * 4)
        parts = [
            pixels(number, dtype, (2, 9, 11, c), pitch=4 * c, offset=i * c)  # type: ignore[arg-type]
            for i in range(4)
        ]
        step = ops.PoolChain(name, parts[0], tuple(parts[1:]), 5)
        yield Case(f"chain {name}", m.draft, step)
    for name, kind, size, coordinates, rounding in (
        ("double", "nearest", (14, 18), "asymmetric", "floor"),
        ("odd", "nearest", (10, 13), "half_pixel", "round_prefer_floor"),
        ("linear", "linear", (14, 18), "half_pixel", "floor"),
        ("corners", "linear", (5, 20), "align_corners", "floor"),
        ("pytorch", "linear", (1, 20), "pytorch_half_pixel", "floor"),
    ):
        m = _Maker()
        x, y = m.picture(2, 7, 9, 24), m.picture(2, *size, 24, pitch=40, at=16)
        scale = (size[0] / 7, size[1] / 9)
        step_ = ops.Resize(name, kind, x, y, scale, coordinates, rounding)  # type: ignore[arg-type]
        yield Case(f"resize {name}", m.draft, step_)


def _pointwise(name: str, m: _Maker, operands: list[View], exprs: Any, results: list[View],
               fill: Any = None, **options: Any) -> Case:  # fmt: skip
    step = ops.Pointwise(name, tuple(operands), tuple(results), exprs, **options)
    return Case(f"pointwise {name}", m.draft, step, fill or {}, rtol=4.0)


_UNARY = ("neg", "abs", "exp", "sqrt", "rsqrt", "reciprocal", "floor", "ceil", "round", "sign",
          "sin", "cos", "erf", "log", "trunc")  # fmt: skip
_BINARY = ("add", "sub", "mul", "div", "pow", "min", "max", "mod", "less", "less_equal", "greater",
           "greater_equal", "equal", "and", "or")  # fmt: skip
_ACTS = ("relu", "clip", "leaky_relu", "silu", "sigmoid", "hard_sigmoid", "hard_swish", "gelu",
         "gelu_tanh", "tanh", "elu", "softplus", "mish")  # fmt: skip


def _pointwises() -> Iterator[Case]:
    a, b, c = Operand(0), Operand(1), Operand(2)
    for index, group in enumerate((_UNARY[:8], _UNARY[8:])):
        m = _Maker()
        x = m.array(3, 37, dtype="float32")
        ys = [m.array(3, 37, dtype="float32") for _ in group]
        exprs = tuple(Apply(op, (a,)) for op in group)
        yield _pointwise(f"unary {index}", m, [x], exprs, ys,
                         {0: lambda rng, size: np.abs(rng.normal(size=size)) + 0.01})  # fmt: skip
    m = _Maker()
    x, y = m.array(4, 33, dtype="float32"), m.array(4, 33, dtype="float32")
    whole = {i: lambda rng, size: rng.integers(1, 5, size).astype(np.float32) for i in (0, 1)}
    zs = [m.array(4, 33, dtype="float32") for _ in _BINARY]
    yield _pointwise("binary", m, [x, y], tuple(Apply(op, (a, b)) for op in _BINARY), zs, whole)
    m = _Maker()
    x = m.array(8, 40)
    ys = [m.array(8, 40) for _ in _ACTS]
    acts = tuple(Apply("act", (a,), Activation(kind, 0.2, 0.5)) for kind in _ACTS)  # type: ignore[arg-type]
    yield _pointwise("activations", m, [x], acts, ys, {0: lambda rng, size: rng.normal(0, 4, size)})
    m = _Maker()
    x, y = m.picture(2, 5, 6, 16, pitch=48, at=16), m.picture(2, 5, 6, 16)
    row = View(m.draft.buffer("row", "float16", 16), "float16", (2, 5, 6, 16), (0, 0, 0, 1))
    expr = (Apply("add", (Apply("mul", (a, b)), Const(0.5))),)
    yield _pointwise("broadcast", m, [x, row], expr, [y])
    m = _Maker()
    x = m.array(6, 50, dtype="int64")
    y = m.array(6, 50, dtype="int64")
    z = [m.array(6, 50, dtype="int64"), m.array(6, 50, dtype="bool")]
    ints = {0: lambda rng, size: rng.integers(-9, 9, size),
            1: lambda rng, size: rng.integers(1, 6, size)}  # fmt: skip
    exprs_ = (Apply("mod", (a, b)), Apply("less", (a, b)))
    yield _pointwise("whole", m, [x, y], exprs_, z, ints, compute="int64")
    m = _Maker()
    mask, x, y = m.array(5, 64, dtype="bool"), m.array(5, 64), m.array(5, 64)
    out = m.array(5, 64, dtype="float32")
    yield _pointwise("where", m, [mask, x, y], (Apply("where", (a, b, c)),), [out],
                     {0: lambda rng, size: rng.integers(0, 2, size)})  # fmt: skip
    for name, from_, to in (
        ("cast", "float32", "float16"),
        ("whole", "float32", "int32"),
        ("bf16", "bfloat16", "float32"),
        ("bytes", "uint8", "float16"),
    ):
        m = _Maker()
        x, y = m.array(3, 35, dtype=from_), m.array(3, 35, dtype=to)
        values = {0: lambda rng, size: rng.integers(0, 200, size) + 0.25}
        yield Case(f"copy {name}", m.draft, ops.Copy(name, x, y), values)
    m = _Maker()
    x, y = m.array(2, 20, 9, 37).permuted(0, 2, 3, 1), m.picture(2, 9, 37, 20, pitch=32, at=4)
    yield Case("copy planes", m.draft, ops.Copy("planes", x, y))
    m = _Maker()
    x, y = m.picture(2, 9, 37, 20, pitch=32, at=4), m.array(2, 20, 9, 37, dtype="float32")
    yield Case("copy to planes", m.draft, ops.Copy("p", x, y.permuted(0, 2, 3, 1)))
    m = _Maker()
    yield Case("fill", m.draft, ops.Fill("f", m.picture(1, 6, 7, 5, pitch=9, at=3), -2.5))


def _rows() -> Iterator[Case]:
    for name, shape, axis in (("last", (3, 7, 91), 2), ("channels", (2, 4, 16, 50), 2),
                              ("long", (2, 3000), 1), ("short", (700, 9, 4), 1)):  # fmt: skip
        m = _Maker()
        step = ops.Softmax(name, m.array(*shape), m.array(*shape, dtype="float32"), axis)
        yield Case(f"softmax {name}", m.draft, step, {0: _large}, atol=1e-4)
    m = _Maker()
    log = ops.Softmax("l", m.array(5, 33, dtype="float32"), m.array(5, 33), 1, is_log=True)
    yield Case("softmax log", m.draft, log, atol=5e-3)
    for name, c, options in (("layer", 192, {}), ("rms", 50, {"is_rms": True}),
                             ("residual", 96, {"residual": True})):  # fmt: skip
        m = _Maker()
        x, y = m.array(2, 65, c), m.array(2, 65, c)
        more = m.array(2, 65, c) if options.pop("residual", None) else None
        step_ = ops.Norm(name, x, y, 1e-5, m.weight(c), None if c == 50 else m.weight(c),
                         residual=more, **options)  # type: ignore[arg-type]  # fmt: skip
        yield Case(f"norm {name}", m.draft, step_, atol=4e-3)
    for kind in ("sum", "mean", "max", "min", "prod", "l2"):
        m = _Maker()
        x, y = m.array(3, 40, 5, 6, dtype="float32"), m.array(3, 1, 5, 1, dtype="float32")
        reduce = ops.Reduce(kind, kind, x, y, (1, 3))  # type: ignore[arg-type]
        yield Case(f"reduce {kind}", m.draft, reduce, rtol=64.0, atol=1e-4)
    for kind, dtype in (("argmax", "float16"), ("argmin", "int64")):
        m = _Maker()
        x, y = m.array(3, 500, dtype=dtype), m.array(3, 1, dtype="int64")
        few = {0: lambda rng, size: rng.integers(-3, 3, size)}  # many ties
        yield Case(f"reduce {kind}", m.draft, ops.Reduce(kind, kind, x, y, (1,)), few)  # type: ignore[arg-type]
    m = _Maker()
    x = m.array(5, 7, 4, 33)
    values, indices = m.array(5, 7, 4, 4), m.array(5, 7, 4, 4, dtype="int64")
    short = ops.TopK("rows", x, values, indices, 4)
    yield Case("topk rows", m.draft, short, {0: _tied}, rtol=0.0, atol=0.0)
    m = _Maker()
    step__ = ops.Reduce("m", "mean", m.picture(2, 20, 20, 24), m.picture(2, 1, 1, 24), (1, 2))
    yield Case("reduce pictures", m.draft, step__)
    for name, length, k, dtype, largest in (
        ("short", 100, 7, "float32", True), ("long", 8400, 300, "float16", True),
        ("smallest", 5000, 50, "float32", False), ("all", 64, 64, "float16", True),
    ):  # fmt: skip
        m = _Maker()
        x = m.array(3, length, dtype=dtype)
        values, indices = m.array(3, k, dtype=dtype), m.array(3, k, dtype="int64")
        top = ops.TopK(name, x, values, indices, k, largest)
        fill = {0: _tied} if name == "long" else {}
        yield Case(f"topk {name}", m.draft, top, fill, rtol=0.0, atol=0.0)


def _large(rng: np.random.Generator, size: int) -> np.ndarray:
    return rng.normal(0, 30, size)


def _tied(rng: np.random.Generator, size: int) -> np.ndarray:
    return rng.integers(-40, 40, size) / 8.0


def _products() -> Iterator[Case]:
    for name, m_, n, k, dtype, turned in (
        ("plain", 70, 90, 50, "float16", False), ("turned", 33, 40, 64, "float16", True),
        ("fp32", 65, 30, 20, "float32", True), ("bf16", 64, 64, 128, "bfloat16", False),
        ("tiny", 1, 5, 3, "float16", False),
    ):  # fmt: skip
        m = _Maker()
        a = m.array(2, 3, m_, k, dtype=dtype)
        b = (
            m.array(2, 3, n, k, dtype=dtype).permuted(0, 1, 3, 2)
            if turned
            else m.array(2, 3, k, n, dtype=dtype)
        )
        y = m.array(2, 3, m_, n, dtype=dtype)
        step = ops.MatMul(name, a, b, y, k**-0.5, m.weight(n), Activation("relu"))
        yield Case(f"matmul {name}", m.draft, step, atol=1e-2 if dtype == "bfloat16" else 2e-3)
    for name, q_len, k_len, d, e, dtype, masked in (
        ("square", 64, 64, 32, 32, "float16", False), ("odd", 37, 91, 24, 40, "float16", True),
        ("long", 300, 400, 32, 32, "float16", False), ("fp32", 20, 33, 16, 8, "float32", True),
        ("bf16", 70, 70, 64, 64, "bfloat16", False), ("odd depth", 30, 40, 9, 7, "float16", False),
    ):  # fmt: skip
        m = _Maker()
        # Heads lie inside rows, as after a projection: (b, length, heads, depth).
        q = m.array(2, q_len, 3, d, dtype=dtype).permuted(0, 2, 1, 3)
        k = m.array(2, k_len, 3, d, dtype=dtype).permuted(0, 2, 1, 3)
        v = m.array(2, k_len, 3, e, dtype=dtype).permuted(0, 2, 1, 3)
        y = m.array(2, q_len, 3, e, dtype=dtype).permuted(0, 2, 1, 3)
        mask = None
        fill: dict[int, Any] = {}
        if masked:
            number = m.draft.buffer("mask", "float32", q_len * k_len)
            mask = View(number, "float32", (2, 3, q_len, k_len), (0, 0, k_len, 1))
            fill[number] = lambda rng, size: np.where(rng.random(size) < 0.3, -np.inf, 0.0)
        step_ = ops.Attention(name, q, k, v, y, d**-0.5, mask)
        yield Case(f"attention {name}", m.draft, step_, fill,
                   atol=2e-2 if dtype == "bfloat16" else 2e-3)  # fmt: skip


def _places() -> Iterator[Case]:
    index = {1: lambda rng, size: rng.integers(-6, 6, size)}
    m = _Maker()
    x, i, y = m.array(4, 6, 5), m.array(2, 3, dtype="int64"), m.array(4, 2, 3, 5)
    yield Case("gather take", m.draft, ops.Gather("g", "take", x, i, y, 1), index)
    m = _Maker()
    x, i, y = m.array(4, 6, 5), m.array(4, 2, 5, dtype="int64"), m.array(4, 2, 5)
    yield Case("gather elements", m.draft, ops.Gather("g", "elements", x, i, y, 1), index)
    m = _Maker()
    x, i, y = m.array(4, 6, 7, 5), m.array(4, 3, 2, dtype="int64"), m.array(4, 3, 5)
    yield Case("gather nd", m.draft, ops.Gather("g", "nd", x, i, y, batch_axes=1), index)
    for kind in ("linear", "nearest"):
        for padding in ("zeros", "border", "reflection"):
            m = _Maker()
            x, y = m.picture(2, 9, 13, 8), m.picture(2, 5, 6, 8)
            grid = m.array(2, 5, 6, 2, dtype="float32")
            sample = ops.GridSample(
                "g", x, grid, y, kind, padding, padding == "border"  # type: ignore[arg-type]
            )  # fmt: skip
            yield Case(f"sample {kind} {padding}", m.draft, sample, atol=4e-3)
    for name, half, kind in (("mean", True, "mean"), ("max", False, "max")):
        m = _Maker()
        x, y = m.picture(2, 20, 25, 12), m.picture(7, 5, 5, 12)
        rois, pictures = m.array(7, 4, dtype="float32"), m.array(7, dtype="int64")
        fill = {2: lambda rng, size: np.sort(rng.uniform(-5, 90, (size // 4, 2, 2)), 1).ravel(),
                3: lambda rng, size: rng.integers(0, 2, size)}  # fmt: skip
        roi = ops.RoiAlign(name, x, rois, pictures, y, 0.25, 2, half, kind)  # type: ignore[arg-type]
        yield Case(f"roi {name}", m.draft, roi, fill, atol=4e-3)
    for form in ("cxcywh", "xyxy"):
        m = _Maker()
        levels = tuple(
            ops.Level(m.picture(2, h, w, 64), s) for h, w, s in ((8, 6, 8), (4, 3, 16), (2, 2, 32))
        )
        y = m.array(2, 4, 64, dtype="float32")
        boxes = ops.Boxes(form, levels, y, 16, form)  # type: ignore[arg-type]
        yield Case(f"boxes {form}", m.draft, boxes, atol=2e-3)


CASES = {
    case.name: case
    for make in (_convs, _windows, _pointwises, _rows, _products, _places)
    for case in make()
}
