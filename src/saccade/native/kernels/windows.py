"""Pooling, chains of it, and resizing: windows.cu."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from saccade.native.kernels.eight import EIGHT, is_even, paired
from saccade.native.kernels.sources import C_TYPES, places_of, source
from saccade.native.ops import Pool, PoolChain, Resize
from saccade.native.seam import Blob, Built, Launch, OfView, OfWeight, Source, Target
from saccade.native.tensors import SIZES, View

__all__ = ["ChainWay", "PoolWay", "ResizeWay", "chain_ways", "pool_ways", "resize_ways"]

_FLOATS = ("float16", "bfloat16", "float32")
_FILES = ("common.cuh", "activation.cuh", "windows.cu")


def channels_at_once(*views: View) -> int:
    """Channels that one thread can move at once in all views: 8, 4, 2 or 1."""
    for width in (8, 4, 2):
        if all(_fits(view, width) for view in views):
            return width
    return 1


def _fits(view: View, width: int) -> bool:
    size = SIZES[view.dtype]
    steps = [s for s, n in zip(view.strides[:3], view.shape[:3], strict=True) if n > 1]
    return (
        view.c % width == 0
        and (view.strides[3] == 1 or view.c == 1)
        and width * size <= 32
        and math.gcd(view.offset, *steps) % min(width, 16 // size) == 0
    )


def _common(x: View, y: View, width: int) -> tuple[str, ...]:
    names = [(f"X_{a}", s) for a, s in zip("NHWC", x.strides, strict=True)]
    names += [(f"Y_{a}", s) for a, s in zip("NHWC", y.strides, strict=True)]
    return (
        f"X_TYPE={C_TYPES[x.dtype]}", f"Y_TYPE={C_TYPES[y.dtype]}", f"V={width}",
        f"N={y.n}", f"OH={y.h}", f"OW={y.w}", f"C={y.c}", f"H={x.h}", f"W={x.w}",
        *(f"{name}={stride}LL" for name, stride in names),
    )  # fmt: skip


def _grid(y: View, width: int) -> tuple[int, int, int]:
    return (max(-(-y.num_elements // width // 128), 1), 1, 1)


@dataclass(frozen=True, slots=True)
class PoolWay:
    """One thread per output pixel and some channels."""

    step: Pool
    width: int

    @property
    def name(self) -> str:
        return f"pool {self.width}"

    def build(self, weights: Mapping[str, np.ndarray]) -> Built:
        """Describe the launch."""
        step = self.step
        (kh, kw), (sh, sw), (dh, dw) = step.kernel, step.stride, step.dilation
        defines = (
            "POOL", *_common(step.x, step.y, self.width),
            f"KH={kh}", f"KW={kw}", f"SH={sh}", f"SW={sw}", f"DH={dh}", f"DW={dw}",
            f"PT={step.pads[0]}", f"PL={step.pads[1]}", f"IS_MAX={int(step.kind == 'max')}",
            f"COUNTS_PADDING={int(step.counts_padding)}",
        )  # fmt: skip
        made = Source(source(*_FILES), defines)
        arguments = (OfView(step.x), OfView(step.y))
        launch = Launch(0, "pool", _grid(step.y, self.width), (128, 1, 1), arguments)
        return Built((made,), (), (launch,))


def pool_ways(step: Pool, target: Target) -> tuple[PoolWay, ...]:
    """Widths, widest first."""
    is_coded = step.kind == "max" and step.x.dtype == step.y.dtype == "int8"
    if not is_coded and not {step.x.dtype, step.y.dtype} <= set(_FLOATS):
        return ()
    most = channels_at_once(step.x, step.y)
    return tuple(PoolWay(step, width) for width in (8, 4, 2, 1) if width <= most)[:2]


@dataclass(frozen=True, slots=True)
class ChainWay:
    """All maxima of a chain in one launch, eight channels of a picture per block."""

    step: PoolChain
    threads: int

    @property
    def name(self) -> str:
        return f"chain t{self.threads}"

    def build(self, weights: Mapping[str, np.ndarray]) -> Built:
        """Describe the launch."""
        step, x = self.step, self.step.x
        is_int8 = x.dtype == "int8"
        pitches = ", ".join(str(y.strides[2]) for y in step.ys)
        images = ", ".join(str(y.strides[0]) for y in step.ys)
        head = f"__device__ constexpr int PITCHES[] = {{{pitches}}};\n"
        head += f"__device__ constexpr long long IMAGES[] = {{{images}}};\n"
        defines = (
            f"CHAIN={len(step.ys)}", f"X_TYPE={C_TYPES[x.dtype]}", f"Y_TYPE={C_TYPES[x.dtype]}",
            "V=8", f"IS_HALF={int(is_int8 or x.dtype == 'float16')}",
            f"IS_INT8={int(is_int8)}", f"THREADS={self.threads}",
            f"H={x.h}", f"W={x.w}", f"C={x.c}", f"SIZE={step.size}", *places_of("X", x),
        )  # fmt: skip
        made = Source(head + source(*_FILES), defines)
        data = struct.pack(f"<{len(step.ys)}Q", *[0] * len(step.ys))
        results = Blob(data, tuple((8 * i, OfView(y)) for i, y in enumerate(step.ys)))
        launch = Launch(
            0, "chain", (x.n * (x.c // 8), 1, 1), (self.threads, 1, 1),
            (OfView(x), results), x.h * x.w * 32,
        )  # fmt: skip
        return Built((made,), (), (launch,))


@dataclass(frozen=True, slots=True)
class _PoolsWay:
    """A chain as one pooling after another."""

    step: PoolChain

    @property
    def name(self) -> str:
        return "chain apart"

    def build(self, weights: Mapping[str, np.ndarray]) -> Built:
        """Describe the launches."""
        step, half = self.step, self.step.size // 2
        sources: list[Source] = []
        launches = []
        before = step.x
        for y in step.ys:
            pool = Pool("", "max", before, y, (step.size,) * 2, (1, 1), (half,) * 4)
            built = PoolWay(pool, channels_at_once(before, y)).build(weights)
            first = built.launches[0]
            assert isinstance(first, Launch)
            launches.append(
                Launch(len(sources), first.function, first.grid, first.block, first.arguments)
            )
            sources += built.sources
            before = y
        return Built(tuple(sources), (), tuple(launches))


def chain_ways(step: PoolChain, target: Target) -> tuple[ChainWay | _PoolsWay, ...]:
    """Ways to run a chain, best first."""
    views = (step.x, *step.ys)
    is_int8 = step.x.dtype == "int8"
    if any(view.dtype not in _FLOATS for view in views) and not is_int8:
        return ()
    can_share = (
        all(view.dtype == step.x.dtype and view.is_pixels
            and view.alignment >= 8 * SIZES[view.dtype] for view in views)
        and step.x.dtype != "float32"
        and step.x.c % 8 == 0
        and step.x.h * step.x.w * 32 <= target.shared_bytes
        and len(step.ys) <= 8
    )  # fmt: skip
    shared = [ChainWay(step, threads) for threads in (128, 256, 512)] if can_share else []
    return tuple(shared) if is_int8 else (*shared, _PoolsWay(step))


@dataclass(frozen=True, slots=True)
class ResizeWay:
    """One thread per output pixel and some channels; places come from tables."""

    step: Resize
    width: int

    @property
    def name(self) -> str:
        return f"resize {self.width}"

    def build(self, weights: Mapping[str, np.ndarray]) -> Built:
        """Compute the tables as runtimes do, in float32, and describe the launch."""
        step = self.step
        rows, row_shares = places(step, 0)
        columns, column_shares = places(step, 1)
        factor = step.y.h // step.x.h
        is_whole = (
            step.kind == "nearest"
            and np.array_equal(rows, np.arange(step.y.h) // max(factor, 1))
            and np.array_equal(columns, np.arange(step.y.w) // max(factor, 1))
        )
        is_moved = step.kind == "nearest" and step.x.dtype == step.y.dtype
        x, y = _moved(step)
        defines = (
            "RESIZE", *_common(x, y, self.width), f"IS_MOVED={int(is_moved)}",
            f"IS_LINEAR={int(step.kind == 'linear')}", f"FACTOR={factor if is_whole else 0}",
        )  # fmt: skip
        made = Source(source(*_FILES), defines)
        tables = Blob(bytes(32), tuple((8 * i, OfWeight(i)) for i in range(4)))
        launch = Launch(
            0, "resize", _grid(y, self.width), (128, 1, 1),
            (OfView(step.x), tables, OfView(step.y)),
        )  # fmt: skip
        return Built((made,), (rows, columns, row_shares, column_shares), (launch,))


def places(step: Resize, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """For each index of y: the index of x (the lower one), int32, and the next one's share."""
    size, out = step.x.shape[axis + 1], step.y.shape[axis + 1]
    index, scale = np.arange(out, dtype=np.float32), np.float32(step.scale[axis])
    half = np.float32(0.5)
    if step.coordinates == "asymmetric":
        at = index / scale
    elif step.coordinates == "align_corners":
        at = index * np.float32(size - 1) / np.float32(max(out - 1, 1))
    elif step.coordinates == "pytorch_half_pixel" and out == 1:
        at = np.zeros(1, np.float32)
    else:
        at = (index + half) / scale - half
    if step.kind == "linear":
        at = np.clip(at, 0, size - 1)
        low = np.floor(at)
        return low.astype(np.int32), (at - low).astype(np.float32)
    rounded = {
        "floor": np.floor(at),
        "ceil": np.ceil(at),
        "round_prefer_floor": np.ceil(at - half),
        "round_prefer_ceil": np.floor(at + half),
    }[step.rounding]
    return np.clip(rounded, 0, size - 1).astype(np.int32), np.zeros(out, np.float32)


def _moved(step: Resize) -> tuple[View, View]:
    """Operands as the kernel sees them: codes that are only moved go two at a time."""
    views = (step.x, step.y)
    is_moved = step.kind == "nearest" and step.x.dtype == step.y.dtype
    if is_moved and all(v.dtype in EIGHT and is_even(v) for v in views):
        return paired(step.x), paired(step.y)
    return views


def resize_ways(step: Resize, target: Target) -> tuple[ResizeWay, ...]:
    """Widths, widest first."""
    x, y = _moved(step)
    if x.dtype not in _FLOATS or y.dtype not in _FLOATS:
        return ()
    most = channels_at_once(x, y)
    return tuple(ResizeWay(step, width) for width in (8, 4, 2, 1) if width <= most)[:2]
