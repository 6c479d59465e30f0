"""How the work of a convolution can be cut up, and which ways are worth a measurement."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from saccade.native.ops import Conv
from saccade.native.seam import Target

__all__ = ["FOLDED", "Geometry", "Tiling", "estimate", "fits", "min_blocks", "ranked"]

# Channels of pixels of 16 bytes: a product takes two of them.
FOLDED = 8


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
        cc: Input channels per step; with 8, a product takes two taps of the kernel.
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
        kind = "wgmma" if self.is_joint else "conv"
        kept = "r" if self.is_resident else ""
        return (
            f"{kind} {self.th}x{self.tw}x{self.bn} w{self.wm}.{self.wn}.{self.wk} c{self.cc} "
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

    def depth(self, tiling: Tiling) -> int:
        """Products one after another, per step over the channels."""
        taps = math.prod(self.kernel)
        return -(-taps // 2) if tiling.cc == FOLDED else taps * tiling.cc // 16

    def shared_bytes(self, tiling: Tiling) -> int:
        """Shared memory of a block."""
        weights = self.depth(tiling) * 32 * tiling.bn
        pixel_bytes = 16 if tiling.cc == FOLDED else tiling.cc * 2 + 16
        kept = self.chunks(tiling.cc)[1] if tiling.is_resident else tiling.stages
        inputs = self.input_pixels(tiling) * pixel_bytes * tiling.stages
        partial = (tiling.wk - 1) * tiling.wm * tiling.wn * tiling.mi * tiling.ni * 512
        return kept * weights + inputs + partial


def fits(geometry: Geometry, tiling: Tiling, shared_bytes: int) -> bool:
    """Whether the kernel can be compiled and started so."""
    return (
        tiling.bn % (16 * tiling.wn) == 0
        and (tiling.cc % 16 == 0 or (tiling.cc == FOLDED and geometry.first == FOLDED))
        and max(tiling.cc // 16, 1) % tiling.wk == 0
        and tiling.mi <= 8
        and tiling.ni <= (16 if tiling.is_joint else 8)
        and tiling.mi * tiling.ni <= 32
        and (not tiling.is_joint or (tiling.wm % 4 == 0 and tiling.wk == 1))
        and tiling.mi * tiling.wm * 16 < tiling.th * tiling.tw + 16 * tiling.wm
        and tiling.threads <= 512
        and geometry.shared_bytes(tiling) <= shared_bytes
    )


def min_blocks(tiling: Tiling) -> int:
    """Blocks per multiprocessor that registers should allow."""
    registers = tiling.mi * tiling.ni * 4 + tiling.mi * 5 + tiling.ni * 2 + 48
    return max(1, min(8, 65536 // (tiling.threads * min(255, -(-registers // 8) * 8))))


@functools.lru_cache(1024)
def ranked(geometry: Geometry, target: Target, *, is_joint: bool) -> tuple[Tiling, ...]:
    """Tilings that can run, the most promising first.

    Args:
        geometry: Of the convolution.
        target: The card.
        is_joint: Those that Hopper's warps run in fours, or the others.
    """
    if is_joint and target.arch != "sm_90":
        return ()
    found = joint_candidates(geometry) if is_joint else candidates(geometry)
    sorted_ones = sorted(
        {t for t in found if fits(geometry, t, target.shared_bytes)},
        key=lambda t: (estimate(geometry, t, target), t.name),
    )
    # The model is rough: of tilings that differ little, only the best is worth a measurement.
    chosen: dict[tuple[object, ...], Tiling] = {}
    for tiling in sorted_ones:
        kind = (tiling.th * tiling.tw // 32, tiling.bn, tiling.is_resident, tiling.wk, tiling.cc)
        chosen.setdefault(kind, tiling)
    return tuple(chosen.values())


def candidates(geometry: Geometry) -> Iterator[Tiling]:
    """Tilings worth a look."""
    channels = geometry.channels
    bns = sorted({min(bn, -(-channels // 16) * 16) for bn in (16, 32, 48, 64, 96, 128)})
    ccs = _channels_per_step(geometry, (16, 32, 48, 64, 128))
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
    ccs = _channels_per_step(geometry, (16, 32, 64, 128))
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


def _channels_per_step(geometry: Geometry, sizes: tuple[int, ...]) -> list[int]:
    if geometry.first == FOLDED and not geometry.second:
        return [FOLDED, 16]
    return sorted({min(cc, -(-geometry.first // 16) * 16) for cc in sizes})


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
    depth = geometry.depth(tiling) * chunks
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
