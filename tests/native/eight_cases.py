"""Steps on 8-bit codes for the tests of kernels: every mix of types, slices, units per channel."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from native.kernel_cases import Case
from saccade.native import ops
from saccade.native.ops import Activation
from saccade.native.plan import Draft
from saccade.native.reference import as_e4m3
from saccade.native.tensors import View

__all__ = ["CASES"]

UNIT = 0.03


class _Maker:
    def __init__(self) -> None:
        self.draft = Draft()
        self.rng = np.random.default_rng(11)
        self.fill: dict[int, Any] = {}

    def picture(self, shape: tuple[int, ...], dtype: str, pitch: int = 0, at: int = 0) -> View:
        n, h, w, c = shape
        pitch = pitch or c
        number = self.draft.buffer("x", dtype, n * h * w * pitch)
        if dtype == "int8":
            self.fill[number] = lambda rng, size: rng.integers(-128, 128, size)
        elif dtype == "float8_e4m3":
            self.fill[number] = lambda rng, size: as_e4m3(rng.normal(size=size) * 16)[0]
        strides = (h * w * pitch, w * pitch, pitch, 1)
        return View(number, dtype, (n, h, w, c), strides, at)  # type: ignore[arg-type]

    def weight(self, array: np.ndarray) -> str:
        return self.draft.weight("w", array)


def _conv(
    name: str, shape: tuple[int, ...], k: int, kernel: int, *, x: str = "int8", y: str = "int8",
    stride: int = 1, residual: str = "", after: bool = True, pitch: int = 0, at: int = 0,
    y_pitch: int = 0, y_at: int = 0, act: str = "silu", is_apart: bool = False, second: int = 0,
    bias: bool = True,
) -> Case:  # fmt: skip
    m = _Maker()
    n, h, w, c = shape
    pad = kernel // 2
    oh, ow = ((size + 2 * pad - kernel) // stride + 1 for size in (h, w))
    view = m.picture(shape, x, pitch, at)
    more = m.picture((n, h, w, second), x) if second else None
    depth = kernel * kernel * (c + second)
    if x == "int8":
        codes = m.rng.integers(-127, 128, (k, kernel, kernel, c + second)).astype(np.int8)
        spread = 127 / 3 * 128 / 2  # of products of codes
    elif x == "float8_e4m3":
        values = m.rng.normal(size=(k, kernel, kernel, c + second)) * 32
        codes = as_e4m3(values)[1].view(np.int8)
        spread = 32 * 16
    else:
        codes = (m.rng.normal(size=(k, kernel, kernel, c)) / depth**0.5).astype(np.float32)
    units = x_scale = None
    if x != "float16":
        units = m.weight((m.rng.uniform(0.5, 2, k) / UNIT / spread / depth**0.5).astype(np.float32))
        x_scale = UNIT
    step = ops.Conv(
        name, view, m.picture((n, oh, ow, k), y, y_pitch, y_at), m.weight(codes), (kernel, kernel),
        m.weight(m.rng.normal(size=k).astype(np.float32)) if bias else None, (stride, stride),
        (pad,) * 4, activation=Activation(act),  # type: ignore[arg-type]
        residual=m.picture((n, oh, ow, k), residual) if residual else None,
        residual_after=after, second=more, weight_scale=units, x_scale=x_scale or 1.0,
        y_scale=UNIT if y in ("int8", "float8_e4m3") and not is_apart else 1.0,
        residual_scale=UNIT if residual not in ("", "float16") else 1.0,
        y_units=m.weight(np.repeat([UNIT, 2 * UNIT], k // 2).astype(np.float32))
        if is_apart
        else None,
    )  # fmt: skip
    return Case(name, m.draft, step, m.fill)


def _pool_chain() -> Case:
    m = _Maker()
    x = m.picture((2, 13, 11, 32), "int8", 128)
    ys = tuple(dataclasses.replace(x, offset=32 * i) for i in (1, 2, 3))
    return Case("chain", m.draft, ops.PoolChain("chain", x, ys, 5), m.fill)


def _pool() -> Case:
    m = _Maker()
    x, y = m.picture((2, 13, 11, 24), "int8"), m.picture((2, 7, 6, 24), "int8", 48, 24)
    return Case("pool", m.draft, ops.Pool("pool", "max", x, y, (3, 3), (2, 2), (1,) * 4), m.fill)


def _resize() -> Case:
    m = _Maker()
    x, y = m.picture((2, 7, 9, 24), "int8", 40, 8), m.picture((2, 14, 18, 24), "int8", 48, 16)
    step = ops.Resize("resize", "nearest", x, y, (2.0, 2.0), "asymmetric")
    return Case("resize", m.draft, step, m.fill)


def _stem() -> Case:
    m = _Maker()
    x, y = m.picture((2, 37, 53, 3), "float16"), m.picture((2, 19, 27, 16), "int8")
    weights = m.weight((m.rng.normal(size=(16, 3, 3, 3)) / 5).astype(np.float32))
    step = ops.Conv("stem", x, y, weights, (3, 3), None, (2, 2), (1, 1, 1, 1), y_scale=UNIT,
                    activation=Activation("silu"))  # fmt: skip
    return Case("stem", m.draft, step, m.fill)


FP8 = "float8_e4m3"
_ALL = [
    _conv("3x3", (2, 19, 23, 32), 32, 3),
    _conv("3x3 sixteen", (2, 19, 23, 16), 16, 3),
    _conv("3x3 slices", (2, 20, 20, 16), 32, 3, pitch=48, at=16, y_pitch=96, y_at=32),
    _conv("3x3 residual codes", (2, 20, 20, 32), 32, 3, residual="int8"),
    _conv("3x3 residual before", (1, 17, 18, 32), 48, 3, residual="int8", after=False, act="relu"),
    _conv("3x3 residual halves", (1, 17, 18, 32), 64, 3, residual="float16"),
    _conv("3x3 stride 2 deep", (1, 20, 20, 256), 64, 3, stride=2),
    _conv("1x1", (2, 20, 20, 48), 32, 1),
    _conv("1x1 halves out", (2, 20, 20, 64), 64, 1, y="float16", act="none"),
    _conv("1x1 few out", (1, 13, 11, 64), 3, 1, y="float16", act="none"),
    _conv("1x1 fp32 out", (1, 13, 11, 64), 24, 1, y="float32", act="sigmoid", bias=False),
    _conv("1x1 few codes out", (1, 13, 11, 64), 5, 1),
    _conv("1x1 odd places", (1, 13, 11, 30), 22, 1, pitch=46, at=2),
    _conv("1x1 second", (1, 12, 16, 64), 32, 1, second=32),
    _conv("3x3 units per channel", (1, 20, 20, 64), 128, 3, is_apart=True),
    _conv("3x3 halves in", (2, 19, 23, 32), 64, 3, x="float16"),
    _conv("3x3 halves in, residual", (2, 20, 20, 32), 32, 3, x="float16", residual="int8"),
    _conv("3x3 fp8", (2, 19, 23, 32), 32, 3, x=FP8, y=FP8),
    _conv("1x1 fp8 residual", (2, 20, 20, 64), 64, 1, x=FP8, y=FP8, residual=FP8),
    _conv("3x3 fp8 halves out", (1, 20, 20, 128), 48, 3, x=FP8, y="float16"),
    _conv("3x3 halves in, fp8 out", (2, 19, 23, 32), 64, 3, x="float16", y=FP8),
    _stem(),
    _pool_chain(),
    _pool(),
    _resize(),
]
CASES = {case.name: case for case in _ALL}
