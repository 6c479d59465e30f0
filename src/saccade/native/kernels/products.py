"""Products of matrices that are both computed, and attention: matmul.cu, attention.cu."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from saccade.native.kernels.sources import C_TYPES, activation_defines, literal, source
from saccade.native.kernels.strided import coordinates, offset
from saccade.native.ops import Attention, MatMul
from saccade.native.seam import Blob, Built, Launch, OfView, OfWeight, Source, Target
from saccade.native.tensors import View

__all__ = ["AttentionWay", "MatMulWay", "attention_ways", "matmul_ways"]

_FLOATS = ("float16", "bfloat16", "float32")
_HALVES = ("float16", "bfloat16")
_MAX_GRID = 65535


def _is_wide(view: View, axis: int) -> bool:
    """Whether eight neighbours along an axis can be read at once everywhere."""
    others = [s for i, (s, n) in enumerate(zip(view.strides, view.shape, strict=True))
              if i != axis % len(view.shape) and n > 1]  # fmt: skip
    return (
        view.strides[axis] == 1
        and view.shape[axis] % 8 == 0
        and math.gcd(8, view.offset, *others) == 8
    )


@dataclass(frozen=True, slots=True)
class MatMulWay:
    """matmul.cu with one tile: on the matrix units, or (0, 0) in FP32."""

    step: MatMul
    bm: int
    bn: int

    @property
    def name(self) -> str:
        return f"matmul {self.bm}x{self.bn}" if self.bm else "matmul fp32"

    def build(self, weights: Mapping[str, np.ndarray]) -> Built:
        """Describe the launch."""
        step = self.step
        a, b, y = step.a, step.b, step.y
        m, n = y.shape[-2:]
        lead = len(y.shape) - 2
        defines = (
            f"A_TYPE={C_TYPES[a.dtype]}", f"B_TYPE={C_TYPES[b.dtype]}",
            f"Y_TYPE={C_TYPES[y.dtype]}", f"M={m}", f"N={n}", f"K={a.shape[-1]}",
            f"A_ROW={a.strides[-2]}LL", f"A_K={a.strides[-1]}LL",
            f"B_K={b.strides[-2]}LL", f"B_COLUMN={b.strides[-1]}LL",
            f"Y_ROW={y.strides[-2]}LL", f"Y_COLUMN={y.strides[-1]}LL",
            f"USE_MMA={int(self.bm > 0)}", f"BM={self.bm}", f"BN={self.bn}",
            f"A_WIDE={int(_is_wide(a, -1))}", f"B_WIDE={int(_is_wide(b, -2))}",
            f"ALPHA={literal(step.alpha)}", f"HAS_BIAS={int(step.bias is not None)}",
            *activation_defines("ACT", step.activation),
        )  # fmt: skip
        text = source("common.cuh", "activation.cuh", "matmul.cu")
        text = text.replace("BATCH\n", coordinates(y.shape[:lead] or (1,), "linear", "k") + "\n")
        for name, view in (("A_AT", a), ("B_AT", b), ("Y_AT", y)):
            text = text.replace(name, offset(view.strides[:lead], "k"))
        arrays = () if step.bias is None else (weights[step.bias].astype(np.float32),)
        data = Blob(
            bytes(32),
            ((0, OfView(a)), (8, OfView(b)), (16, OfWeight(0) if arrays else OfView(a)),
             (24, OfView(y))),
        )  # fmt: skip
        bm, bn = (self.bm, self.bn) if self.bm else (64, 64)
        threads = bm // 32 * (bn // 32) * 32 if self.bm else 256
        grid = (-(-n // bn), -(-m // bm), math.prod(y.shape[:lead]))
        launch = Launch(0, "matmul", grid, (threads, 1, 1), (data,))
        return Built((Source(text, defines),), arrays, (launch,))


def matmul_ways(step: MatMul, target: Target) -> tuple[MatMulWay, ...]:
    """Tiles to try."""
    views = (step.a, step.b, step.y)
    m = step.y.shape[-2]
    if any(view.dtype not in _FLOATS for view in views):
        return ()
    if math.prod(step.y.shape[:-2]) > _MAX_GRID or m > 32 * _MAX_GRID:
        return ()
    if step.a.dtype == step.b.dtype and step.a.dtype in _HALVES:
        tiles = ((64, 64), (32, 64), (64, 32), (32, 32), (128, 64))
        return tuple(MatMulWay(step, bm, bn) for bm, bn in tiles)
    return (MatMulWay(step, 0, 0),)


@dataclass(frozen=True, slots=True)
class AttentionWay:
    """attention.cu on the matrix units, or with a warp per query in FP32."""

    step: Attention
    on_matrix_units: bool

    @property
    def name(self) -> str:
        return "attention 64" if self.on_matrix_units else "attention rows"

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        d, e = (-(-view.shape[3] // 16) * 16 for view in (self.step.q, self.step.v))
        if self.on_matrix_units:
            return (2 * 64 * (d + 8) + 64 * (e + 8)) * 2
        return self.step.k.shape[2] * 4

    def build(self, weights: Mapping[str, np.ndarray]) -> Built:
        """Describe the launch."""
        step = self.step
        q, k, v, y, mask = step.q, step.k, step.v, step.y, step.mask
        named = {"Q": (q, "M D"), "K": (k, "N D"), "V": (v, "N E"), "Y": (y, "M E")}
        if mask is not None:
            named["MASK"] = (mask, "M N")
        strides = [
            f"{name}_{axis}={stride}LL"
            for name, (view, axes) in named.items()
            for axis, stride in zip(("B", "HEAD", *axes.split()), view.strides, strict=True)
        ]
        defines = (
            f"TYPE={C_TYPES[q.dtype]}", f"Y_TYPE={C_TYPES[y.dtype]}",
            f"MASK_TYPE={C_TYPES[mask.dtype] if mask is not None else 'float'}",
            f"HEADS={q.shape[1]}", f"M={q.shape[2]}", f"N={k.shape[2]}", f"D={q.shape[3]}",
            f"E={v.shape[3]}", f"SCALE={literal(step.scale)}", f"HAS_MASK={int(mask is not None)}",
            f"USE_MMA={int(self.on_matrix_units)}", *strides,
            *(f"{name}_WIDE={int(_is_wide(view, 3))}"
              for name, view in (("Q", q), ("K", k), ("V", v))),
            *(f"MASK_{axis}=0" for axis in ("B", "HEAD", "M", "N") if mask is None),
        )  # fmt: skip
        made = Source(source("common.cuh", "activation.cuh", "attention.cu"), defines)
        data = Blob(
            struct.pack("<5Q", *[0] * 5),
            ((0, OfView(q)), (8, OfView(k)), (16, OfView(v)),
             (24, OfView(mask if mask is not None else q)), (32, OfView(y))),
        )  # fmt: skip
        rows, threads = (64, 128) if self.on_matrix_units else (1, 32)
        grid = (-(-q.shape[2] // rows), q.shape[0] * q.shape[1], 1)
        launch = Launch(0, "attention", grid, (threads, 1, 1), (data,), self.shared_bytes)
        return Built((made,), (), (launch,))


def attention_ways(step: Attention, target: Target) -> tuple[AttentionWay, ...]:
    """Both kernels where they fit."""
    views = (step.q, step.k, step.v, step.y)
    if any(view.dtype not in _FLOATS for view in views) or (
        step.mask is not None and step.mask.dtype not in C_TYPES
    ):
        return ()
    if step.q.shape[0] * step.q.shape[1] > _MAX_GRID:
        return ()
    same = step.q.dtype == step.k.dtype == step.v.dtype
    ways = []
    if same and step.q.dtype in _HALVES and max(step.q.shape[3], step.v.shape[3]) <= 128:
        ways.append(AttentionWay(step, True))
    if same:
        ways.append(AttentionWay(step, False))
    return tuple(way for way in ways if way.shared_bytes <= target.shared_bytes)
