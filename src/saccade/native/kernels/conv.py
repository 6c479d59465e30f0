"""Convolutions as implicit matrix products on the matrix units: conv.cu."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from saccade.errors import BuildError
from saccade.native.kernels.sources import C_TYPES, activation_defines, literal, places_of, source
from saccade.native.ops import IDENTITY, Conv
from saccade.native.seam import Blob, Built, Launch, OfView, OfWeight, Source, Target
from saccade.native.tensors import View

__all__ = ["ConvWay", "Geometry", "Tiling", "conv_ways", "fits", "pack_weights"]

_MAX_SHARED = 99 * 1024  # of one block where the card does not say more (sm_86, 89, 120)
_LIMIT = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Tiling:
    """How the work is cut up.

    Attributes:
        th: Output rows of a tile.
        tw: Output columns of a tile.
        bn: Output channels of a block.
        wm: Warps that share the tile's pixels.
        wn: Warps that share its channels.
        wk: Warps that share each sum.
        cc: Input channels per step.
        stages: Steps whose data is in shared memory at once.
        is_resident: Whether a block keeps all its weights for all its tiles.
        waves: Blocks per multiprocessor that are started if there are more tiles than that;
            0 for one block per tile.
        is_joint: Whether four warps issue products of 64 rows together (Hopper).
    """

    th: int
    tw: int
    bn: int
    wm: int
    wn: int
    cc: int
    wk: int = 1
    stages: int = 2
    is_resident: bool = False
    waves: int = 0
    is_joint: bool = False

    @property
    def mi(self) -> int:
        """16-row matrices per warp."""
        return -(-self.th * self.tw // (16 * self.wm))

    @property
    def ni(self) -> int:
        """8-column matrices per warp."""
        return self.bn // 8 // self.wn

    @property
    def threads(self) -> int:
        return self.wm * self.wn * self.wk * 32

    @property
    def name(self) -> str:
        kept = "r" if self.is_resident else ""
        return (
            f"{'wgmma' if self.is_joint else 'conv'} {self.th}x{self.tw}x{self.bn} w{self.wm}.{self.wn}.{self.wk} c{self.cc} "
            f"s{self.stages}{kept} p{self.waves}"
        )


@dataclass(frozen=True, slots=True)
class Geometry:
    """A convolution's sizes as the kernel sees them: a pointwise one is a single row of pixels."""

    n: int
    h: int
    w: int
    oh: int
    ow: int
    first: int  # channels of x
    second: int  # channels of the second operand, or 0
    channels: int  # of y
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pads: tuple[int, int]

    @classmethod
    def of(cls, step: Conv) -> Geometry:
        n, oh, ow, channels = step.y.shape
        up = 2 if step.is_upsampled else 1
        h, w = step.x.h * up, step.x.w * up
        second = step.second.c if step.second is not None else 0
        is_flat = (
            step.kernel == (1, 1)
            and step.stride == (1, 1)
            and not any(step.pads)
            and not step.is_upsampled
            and not step.second_is_upsampled
        )
        if is_flat:
            # A matrix of pixels; of all pictures where none lies apart.
            h, w, oh, ow = 1, h * w, 1, oh * ow
            views = [v for v in (step.x, step.y, step.second, step.residual) if v is not None]
            if all(view.is_packed for view in views):
                n, w, ow = 1, n * w, n * ow
        return cls(
            n, h, w, oh, ow, step.x.c, second, channels,
            step.kernel, step.stride, step.dilation, step.pads[:2],
        )  # fmt: skip

    def chunks(self, cc: int) -> tuple[int, int]:
        """Steps over the channels of x, and of both operands."""
        first = -(-self.first // cc)
        return first, first + -(-self.second // cc)

    def tiles(self, tiling: Tiling) -> tuple[int, int]:
        """Tiles per row of tiles, rows of tiles per picture."""
        return -(-self.ow // tiling.tw), -(-self.oh // tiling.th)

    def input_pixels(self, tiling: Tiling) -> int:
        """Pixels in shared memory per stage."""
        rows = (tiling.th - 1) * self.stride[0] + (self.kernel[0] - 1) * self.dilation[0] + 1
        columns = (tiling.tw - 1) * self.stride[1] + (self.kernel[1] - 1) * self.dilation[1] + 1
        side = -(-columns // self.stride[1])
        return rows * side * self.stride[1]

    def shared_bytes(self, tiling: Tiling) -> int:
        """Shared memory of a block."""
        taps = math.prod(self.kernel)
        weights = taps * tiling.cc * tiling.bn * 2
        kept = self.chunks(tiling.cc)[1] if tiling.is_resident else tiling.stages
        inputs = self.input_pixels(tiling) * (tiling.cc * 2 + 16) * tiling.stages
        partial = (tiling.wk - 1) * tiling.wm * tiling.wn * tiling.mi * tiling.ni * 512
        return kept * weights + inputs + partial


def fits(geometry: Geometry, tiling: Tiling, shared_bytes: int) -> bool:
    """Whether the kernel can be compiled and started so."""
    return (
        tiling.bn % (16 * tiling.wn) == 0
        and tiling.cc % 16 == 0
        and tiling.cc // 16 % tiling.wk == 0
        and tiling.mi <= 8
        and tiling.ni <= (16 if tiling.is_joint else 8)
        and tiling.mi * tiling.ni <= 32
        and (not tiling.is_joint or (tiling.wm % 4 == 0 and tiling.wk == 1))
        and tiling.mi * tiling.wm * 16 < tiling.th * tiling.tw + 16 * tiling.wm
        and tiling.threads <= 512
        and geometry.shared_bytes(tiling) <= shared_bytes
    )


def permuted_channels(num_tiles: int) -> np.ndarray:
    """Channel of each column of a warp's 16x8 products.

    Threads hold columns 2t and 2t+1 of every product; numbered so, their channels lie side by side.

    Args:
        num_tiles: Products side by side (ni).

    Returns:
        (num_tiles, 8) int64.
    """
    group = 4 if num_tiles % 4 == 0 else 2
    tile, column = np.indices((num_tiles, 8))
    return tile // group * group * 8 + column // 2 * 2 * group + tile % group * 2 + column % 2


def pack_weights(
    weights: np.ndarray, first: int, tiling: Tiling, dtype: str = "float16"
) -> np.ndarray:
    """Weights in the order in which the kernel's threads hold them.

    Args:
        weights: (k, kh, kw, c) float32.
        first: Channels of the first operand; the rest are of the second.
        tiling: Of the kernel.
        dtype: float16 or bfloat16.

    Returns:
        uint16, (blocks, chunks, taps, cc / 16, bn / 16, 32, 8): bits of the elements.
    """
    cut = _cut(weights, first, tiling)
    blocks, taps, chunks = len(cut), cut.shape[3], cut.shape[4]
    # Columns: pair q of products, which of them, column g. Rows k: half, thread t, which of two.
    cut = cut.reshape(
        blocks, tiling.wn, tiling.ni // 2, 2, 8, taps, chunks, tiling.cc // 16, 2, 4, 2
    )
    #       blocks chunk tap kk wn q  g  t  which half two
    order = (0, 6, 5, 7, 1, 2, 4, 9, 3, 8, 10)
    packed = np.ascontiguousarray(cut.transpose(order))
    return as_bits(packed, dtype).reshape(
        blocks, chunks, taps, tiling.cc // 16, tiling.bn // 16, 32, 8
    )


def pack_tiles(
    weights: np.ndarray, first: int, tiling: Tiling, dtype: str = "float16"
) -> np.ndarray:
    """Weights in 8x8 tiles as the matrix units read them from shared memory.

    Args:
        weights: (k, kh, kw, c) float32.
        first: Channels of the first operand; the rest are of the second.
        tiling: Of the kernel.
        dtype: float16 or bfloat16.

    Returns:
        uint16, (blocks, chunks, taps, cc / 16, 2, bn / 8, 8, 8): bits of the elements.
    """
    cut = _cut(weights, first, tiling)
    blocks, taps, chunks = len(cut), cut.shape[3], cut.shape[4]
    cut = cut.reshape(blocks, tiling.wn, tiling.ni, 8, taps, chunks, tiling.cc // 16, 2, 8)
    #       blocks chunk tap kk half wn ni column depth
    packed = np.ascontiguousarray(cut.transpose(0, 5, 4, 6, 7, 1, 2, 3, 8))
    return as_bits(packed, dtype).reshape(
        blocks, chunks, taps, tiling.cc // 16, 2, tiling.bn // 8, 8, 8
    )


def _cut(weights: np.ndarray, first: int, tiling: Tiling) -> np.ndarray:
    """(blocks, wn, ni * 8, taps, chunks, cc / 16, 16): padded, columns as threads hold them."""
    num, kh, kw, _ = weights.shape
    parts = [weights[..., :first], weights[..., first:]]
    padded = []
    for part in parts:
        if part.shape[-1]:
            spare = -part.shape[-1] % tiling.cc
            padded.append(np.pad(part, ((0, 0), (0, 0), (0, 0), (0, spare))))
    whole = np.concatenate(padded, axis=-1)
    blocks = -(-num // tiling.bn)
    whole = np.pad(whole, ((0, blocks * tiling.bn - num), (0, 0), (0, 0), (0, 0)))
    chunks = whole.shape[-1] // tiling.cc
    cut = whole.reshape(blocks, tiling.wn, tiling.ni * 8, kh * kw, chunks, tiling.cc // 16, 16)
    return cut[:, :, permuted_channels(tiling.ni).reshape(-1)]


def as_bits(values: np.ndarray, dtype: str) -> np.ndarray:
    """Float32 values rounded to float16 or bfloat16, as uint16."""
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).view(np.uint16)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


_POINTERS = (0, 8, 16, 24, 32, 40)


@dataclass(frozen=True, slots=True)
class ConvWay:
    """conv.cu with one tiling."""

    step: Conv
    target: Target
    tiling: Tiling

    @property
    def name(self) -> str:
        return self.tiling.name

    def build(self, weights: Mapping[str, np.ndarray]) -> Built:
        """Pack the weights and describe the launch."""
        step, tiling = self.step, self.tiling
        geometry = Geometry.of(step)
        pack = pack_tiles if tiling.is_joint else pack_weights
        packed = pack(weights[step.weight], geometry.first, tiling, step.x.dtype)
        bias = np.zeros(packed.shape[0] * tiling.bn, np.float32)
        if step.bias is not None:
            bias[: geometry.channels] = weights[step.bias]
        blocks, workers = packed.shape[0], self._workers(packed.shape[0])
        addresses = (
            OfView(step.x),
            OfView(step.second) if step.second is not None else None,
            OfWeight(0),
            OfWeight(1),
            OfView(step.residual) if step.residual is not None else None,
            OfView(step.y),
        )
        pointers = tuple(
            (at, address)
            for at, address in zip(_POINTERS, addresses, strict=True)
            if address is not None
        )
        launch = Launch(
            0, "conv", (blocks * workers, 1, 1), (tiling.threads, 1, 1),
            (Blob(bytes(48), pointers),), geometry.shared_bytes(tiling),
        )  # fmt: skip
        return Built((conv_source(step, tiling, workers),), (packed, bias), (launch,))

    def _workers(self, blocks: int) -> int:
        """Blocks that share the tiles of one block of channels."""
        geometry = Geometry.of(self.step)
        tiles = geometry.n * math.prod(geometry.tiles(self.tiling))
        if not self.tiling.waves:
            return tiles
        most = self.target.num_multiprocessors * self.tiling.waves
        return min(tiles, max(most // blocks, 1))


def conv_source(step: Conv, tiling: Tiling, workers: int) -> Source:
    """conv.cu for a step."""
    geometry = Geometry.of(step)
    (kh, kw), (sh, sw), (dh, dw) = step.kernel, step.stride, step.dilation
    operands = [step.x] + ([step.second] if step.second is not None else [])
    held = 8 if tiling.ni % 4 == 0 else 4
    residual = 0 if step.residual is None else 2 if step.residual_after else 1
    if residual == 0 and step.after != IDENTITY:
        raise BuildError("a convolution without a residual must have one activation, it has two")
    defines = (
        f"ELEMENT={C_TYPES[step.x.dtype]}", f"OUT={C_TYPES[step.y.dtype]}",
        f"KH={kh}", f"KW={kw}", f"SH={sh}", f"SW={sw}", f"DH={dh}", f"DW={dw}",
        f"PT={step.pads[0]}", f"PL={step.pads[1]}",
        f"NUM={geometry.n}", f"IN_H={geometry.h}", f"IN_W={geometry.w}",
        f"OUT_H={geometry.oh}", f"OUT_W={geometry.ow}", f"CHANNELS={geometry.channels}",
        f"X_CHANNELS={geometry.first}", f"SECOND_CHANNELS={geometry.second}",
        *places_of("X", step.x), *places_of("Y", step.y), *places_of("SECOND", step.second),
        *places_of("RESIDUAL", step.residual),
        f"WORKERS={workers}", f"USE_WGMMA={int(tiling.is_joint)}",
        f"TH={tiling.th}", f"TW={tiling.tw}", f"BN={tiling.bn}", f"CC={tiling.cc}",
        f"WM={tiling.wm}", f"WN={tiling.wn}", f"WK={tiling.wk}",
        f"MI={tiling.mi}", f"NI={tiling.ni}",
        f"STAGES={tiling.stages}", f"RESIDENT={int(tiling.is_resident)}",
        f"MIN_BLOCKS={min_blocks(tiling)}",
        f"VEC={min(vector_bytes(view) for view in operands)}",
        f"HAS_SECOND={int(step.second is not None)}",
        f"X_UP={int(step.is_upsampled)}", f"SECOND_UP={int(step.second_is_upsampled)}",
        f"RESIDUAL={residual}",
        f"RES_WIDE={int(step.residual is not None and vector_bytes(step.residual) >= 8)}",
        f"Y_WIDE={int(is_wide(step.y, held))}",
        *activation_defines("ACT", step.activation),
        *activation_defines("AFTER", step.after),
        f"SCALE={literal(step.scale)}",
    )  # fmt: skip
    text = source("common.cuh", "activation.cuh", "conv.cu")
    if tiling.is_joint:
        # The architecture's own instructions: see saccade.cuda.compile.
        text = "// only for sm_90a\n" + _joint_product(tiling.ni, step.x.dtype) + text
    return Source(text, defines)


def _joint_product(ni: int, dtype: str) -> str:
    """The function multiply_tiles: sums += a tiles, 64 rows, ni * 8 columns, 16 deep."""
    kind = {"float16": "f16", "bfloat16": "bf16"}[dtype]
    num = ni * 4
    sums = ", ".join(f"%{i}" for i in range(num))
    a = ", ".join(f"%{num + i}" for i in range(4))
    held = ", ".join(f'"+f"(c[{i // 4}][{i % 4}])' for i in range(num))
    return (
        f"__device__ __forceinline__ void multiply_tiles(float (&c)[{ni}][4], "
        "const unsigned (&a)[4], unsigned long long tiles) {\n"
        '    asm volatile("{\\n.reg .pred p;\\nsetp.ne.b32 p, 1, 0;\\n"\n'
        f'                 "wgmma.mma_async.sync.aligned.m64n{ni * 8}k16.f32.{kind}.{kind} "\n'
        f'                 "{{{sums}}}, {{{a}}}, %{num + 4}, p, 1, 1, 0;\\n}}\\n"\n'
        f"                 : {held}\n"
        '                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(tiles));\n}\n'
    )


def vector_bytes(view: View) -> int:
    """Bytes that can be moved at once: of every eighth channel's address."""
    return view.alignment if view.strides[-1] == 1 or view.c == 1 else 2


def is_wide(view: View, held: int) -> bool:
    """Whether a thread's neighbouring channels can be stored at once."""
    num_bytes = min(16, held * (4 if view.dtype == "float32" else 2))
    return vector_bytes(view) >= num_bytes


def min_blocks(tiling: Tiling) -> int:
    """Blocks per multiprocessor that registers should allow."""
    registers = tiling.mi * tiling.ni * 4 + tiling.mi * 5 + tiling.ni * 2 + 48
    return max(1, min(8, 65536 // (tiling.threads * min(255, -(-registers // 8) * 8))))


def can_run(step: Conv) -> bool:
    """Whether conv.cu covers a step."""
    views = [step.x, step.y, *(v for v in (step.second, step.residual) if v is not None)]
    is_float = step.x.dtype in ("float16", "bfloat16")
    same = {step.x.dtype} == {v.dtype for v in views if v is not step.y}
    return (
        step.groups == 1
        and is_float
        and same
        and step.y.dtype in (step.x.dtype, "float32")
        and all(view.is_pixels for view in views)
        and not (step.residual is None and step.after != IDENTITY)
        and max(view.num_elements for view in views) < _LIMIT
    )


def conv_ways(step: Conv, target: Target, limit: int = 10) -> tuple[ConvWay, ...]:
    """The most promising tilings for a step, best first."""
    if not can_run(step):
        return ()
    geometry = Geometry.of(step)
    plain = _ranked(geometry, target, is_joint=False)[:limit]
    joint = _ranked(geometry, target, is_joint=True)[: limit // 2]
    return tuple(ConvWay(step, target, tiling) for tiling in (*plain, *joint))


@functools.lru_cache(1024)
def _ranked(geometry: Geometry, target: Target, *, is_joint: bool) -> tuple[Tiling, ...]:
    if is_joint and target.arch != "sm_90":
        return ()
    found = joint_candidates(geometry) if is_joint else candidates(geometry)
    ranked = sorted(
        {t for t in found if fits(geometry, t, target.shared_bytes)},
        key=lambda t: (estimate(geometry, t, target), t.name),
    )
    # The model is rough: of tilings that differ little, only the best is worth a measurement.
    chosen: dict[tuple[object, ...], Tiling] = {}
    for tiling in ranked:
        kind = (tiling.th * tiling.tw // 32, tiling.bn, tiling.is_resident, tiling.wk, tiling.cc)
        chosen.setdefault(kind, tiling)
    return tuple(chosen.values())


def candidates(geometry: Geometry) -> Iterator[Tiling]:
    """Tilings worth a look."""
    channels = geometry.channels
    bns = sorted({min(bn, -(-channels // 16) * 16) for bn in (16, 32, 48, 64, 96, 128)})
    ccs = sorted({min(cc, -(-geometry.first // 16) * 16) for cc in (16, 32, 48, 64, 128)})
    shapes = list(_tiles(geometry))
    for (th, tw), bn, cc in itertools.product(shapes, bns, ccs):
        if geometry.second and geometry.first % cc and cc > 32:
            continue
        for wm, wn, wk in ((1, 1, 1), (1, 1, 2), (1, 1, 4), (2, 1, 1), (2, 1, 2), (1, 2, 1),
                           (1, 2, 2), (4, 1, 1), (2, 2, 1), (2, 2, 2), (4, 2, 1), (2, 4, 1),
                           (1, 4, 1), (8, 1, 1), (4, 1, 2)):  # fmt: skip
            base = Tiling(th, tw, bn, wm, wn, cc, wk)
            if bn % (16 * wn) or base.mi * base.ni < 2:
                continue
            chunks = geometry.chunks(cc)[1]
            for stages in sorted({min(stages, chunks) for stages in (2, 3, 4)}):
                yield Tiling(th, tw, bn, wm, wn, cc, wk, stages)
            if wk == 1:
                for waves in (1, 2, 3, 4, 6, 8):
                    yield Tiling(th, tw, bn, wm, wn, cc, wk, 2, is_resident=True, waves=waves)


def joint_candidates(geometry: Geometry) -> Iterator[Tiling]:
    """Tilings for products that four warps issue together."""
    channels = geometry.channels
    bns = sorted({min(bn, -(-channels // 16) * 16) for bn in (16, 32, 64, 96, 128)})
    ccs = sorted({min(cc, -(-geometry.first // 16) * 16) for cc in (16, 32, 64, 128)})
    for (th, tw), bn, cc in itertools.product(_tiles(geometry), bns, ccs):
        if geometry.second and geometry.first % cc and cc > 32:
            continue
        for wm, wn in ((4, 1), (8, 1), (4, 2)):
            rows = -(-th * tw // (wm * 16)) * wm * 16
            if th * tw * 10 < rows * 7:
                continue
            base = Tiling(th, tw, bn, wm, wn, cc, is_joint=True)
            chunks = geometry.chunks(cc)[1]
            for stages in sorted({min(stages, chunks) for stages in (1, 2, 3, 4)}):
                yield replace(base, stages=stages)
            for waves in (1, 2, 3, 4):
                yield replace(base, stages=2, is_resident=True, waves=waves)
                if waves < 3:
                    yield replace(base, stages=3, is_resident=True, waves=waves)


def _tiles(geometry: Geometry) -> Iterator[tuple[int, int]]:
    if geometry.oh == 1:
        for pixels in (16, 32, 64, 128, 256):
            yield 1, pixels
        return
    ow, oh = geometry.ow, geometry.oh
    widths = {8, 16, 32, 64}
    widths |= {-(-ow // parts) for parts in (1, 2, 3, 4, 5) if 5 <= -(-ow // parts) <= 40}
    for tw in sorted(widths):
        if tw > 2 * ow:
            continue
        for th in (1, 2, 4, 5, 8, 10, 16):
            if th <= oh and 16 <= th * tw <= 272:
                yield th, tw


def estimate(geometry: Geometry, tiling: Tiling, target: Target) -> float:
    """Cycles that a tiling may take: good to 8 per cent on average where it was fitted.

    A sum of what one multiprocessor has to do (products, reads of shared memory, instructions,
    loads) and of what its blocks wait for (steps and chunks, one after another), with weights
    fitted to 990 measured kernels on one H200 (docs/performance/native-kernels.md).
    """
    taps = math.prod(geometry.kernel)
    chunks = geometry.chunks(tiling.cc)[1]
    depth = taps * chunks * tiling.cc // 16
    pixels, ni = tiling.wm * tiling.mi * 16, tiling.ni
    warps = tiling.wm * tiling.wn
    blocks = -(-geometry.channels // tiling.bn)
    tiles = geometry.n * math.prod(geometry.tiles(tiling))
    per_sm = -(-tiles * blocks // target.num_multiprocessors)
    # Blocks that run at once, and how often that many follow each other.
    at_once = max(1, min(
        228 * 1024 // (geometry.shared_bytes(tiling) + 1024), 2048 // tiling.threads,
        min_blocks(tiling), per_sm, tiling.waves or per_sm,
    ))  # fmt: skip
    rounds = -(-per_sm // at_once)
    products = depth * (pixels / 16) * (tiling.bn / 8) * 1.6
    reads = depth * warps * (tiling.mi + ni / 2) * 4
    pieces = geometry.input_pixels(tiling) * chunks * tiling.cc / 8
    weights = taps * chunks * tiling.cc * tiling.bn * 2
    finish = pixels * tiling.bn
    moved = geometry.n * (
        geometry.h * geometry.w * (geometry.first + geometry.second)
        + geometry.oh * geometry.ow * geometry.channels
    )
    memory = moved * 2 / target.num_multiprocessors / 22
    ahead = {1: 1.0, 2: 1.0, 3: 0.6}.get(tiling.stages, 0.45)
    steps = depth / tiling.wk
    fetched = weights * (1.0 if tiling.is_resident else per_sm)
    if tiling.is_joint:
        reads = depth * tiling.wn * pixels / 4 + depth * pixels / 64 * tiling.bn / 4
        work = products * 0.37 + reads * 0.2 + pieces * 0.52 + finish * 0.21
        waits = steps * (37 + 3.8 * tiling.mi * ni) + chunks * ahead * 612
        return 2379 + per_sm * work + rounds * waits + fetched * 0.015 + memory * 0.07
    issued = depth * warps * (tiling.mi * ni + tiling.mi + ni / 2) + pieces * 0.3 + finish * 0.31
    work = products * 0.107 + reads * 0.48 + issued * 0.314 + pieces * 0.43 + finish * 0.035
    waits = steps * 4.25 * tiling.mi * ni + chunks * ahead * 449
    return 2581 + per_sm * work + rounds * waits + fetched * 0.016 + memory * 0.17
