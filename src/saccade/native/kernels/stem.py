"""First convolutions, of at most four channels of any layout: stem.cu."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from saccade.native.kernels.eight import EIGHT, uses_e4m3
from saccade.native.kernels.packing import pack_stem
from saccade.native.kernels.sources import (
    C_TYPES,
    activation_defines,
    is_wide,
    literal,
    places_of,
    source,
)
from saccade.native.ops import IDENTITY, Conv
from saccade.native.seam import Blob, Built, Launch, OfView, OfWeight, Source, Target
from saccade.native.tensors import SIZES

__all__ = ["StemTiling", "StemWay", "stem_ways"]

_MAX_CHANNELS = 128


@dataclass(frozen=True, slots=True)
class StemTiling:
    """How the work is cut up.

    Attributes:
        th: Output rows of a block.
        tw: Output columns of a block, a multiple of 16.
        warps: Of a block.
        mi: Runs of 16 pixels that a warp makes at a time.
    """

    th: int
    tw: int
    warps: int
    mi: int

    @property
    def name(self) -> str:
        return f"stem {self.th}x{self.tw} w{self.warps} m{self.mi}"


_TILINGS = (
    StemTiling(8, 64, 8, 2),
    StemTiling(8, 32, 4, 2),
    StemTiling(4, 64, 4, 2),
    StemTiling(16, 64, 8, 4),
    StemTiling(4, 32, 4, 1),
    StemTiling(8, 128, 8, 4),
    StemTiling(4, 160, 4, 2),
    StemTiling(16, 32, 8, 2),
    StemTiling(2, 64, 4, 2),
    StemTiling(8, 16, 4, 1),
)


@dataclass(frozen=True, slots=True)
class StemWay:
    """stem.cu with one tiling."""

    step: Conv
    tiling: StemTiling

    @property
    def name(self) -> str:
        return self.tiling.name

    @property
    def _block(self) -> int:
        return 32 if self.step.y.c > 16 else 16

    @property
    def _lead(self) -> int:
        # A warp's reads are aligned to 16 bytes where strides and the first column are even.
        return self.step.pads[1] % 2 if self.step.stride[1] % 2 == 0 else 0

    @property
    def _input_bytes(self) -> int:
        step, tiling = self.step, self.tiling
        quads = -(-(self._lead + step.kernel[1]) // 4)
        rows = (tiling.th - 1) * step.stride[0] + step.kernel[0]
        columns = ((tiling.tw - 1) * step.stride[1] + quads * 4 + 1) // 2 * 2
        return rows * columns * 8

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        step = self.step
        quads = -(-(self._lead + step.kernel[1]) // 4)
        channels = -(-step.y.c // self._block) * self._block
        return step.kernel[0] * quads * channels * 32 + self._input_bytes

    @property
    def _min_blocks(self) -> int:
        registers = 48 + self.tiling.mi * (self._block // 8 * 4 + 6)
        return max(1, 65536 // (self.tiling.warps * 32 * registers))

    def source(self) -> Source:
        """stem.cu for the step."""
        step, tiling = self.step, self.tiling
        block, x = self._block, step.x
        size = SIZES[x.dtype]
        strides = (x.strides[0], x.strides[1], x.strides[3], x.offset)
        first_column = step.pads[1] + self._lead
        # Pairs of pixels lie side by side, and those that are read together begin at even places.
        is_paired = (
            x.strides[2] == 1
            and all(stride % 2 == 0 for stride in strides)
            and first_column % 2 == 0
            and tiling.tw * step.stride[1] % 2 == 0
            and x.w % 2 == 0
        )
        held = 8 if block == 32 else 4
        element = _element(step)
        defines = (
            f"IN={C_TYPES[x.dtype]}", f"ELEMENT={C_TYPES[element]}", f"OUT={C_TYPES[step.y.dtype]}",
            f"Y_INVERSE={literal(1.0 / step.y_scale)}",
            f"IS_HALF={int(element == 'float16')}",
            f"IN_H={x.h}", f"IN_W={x.w}", f"OUT_H={step.y.h}", f"OUT_W={step.y.w}",
            f"IMAGE={x.strides[0]}LL", f"LINE={x.strides[1]}", f"COLUMN={x.strides[2]}",
            f"PLANE={x.strides[3]}", *places_of("Y", step.y), f"CHANNELS={step.y.c}",
            f"C={x.c}", f"KH={step.kernel[0]}", f"KW={step.kernel[1]}",
            f"SH={step.stride[0]}", f"SW={step.stride[1]}",
            f"PT={step.pads[0]}", f"PL={step.pads[1]}", f"LEAD={self._lead}",
            f"TH={tiling.th}", f"TW={tiling.tw}", f"WARPS={tiling.warps}", f"MI={tiling.mi}",
            f"NB={-(-step.y.c // block) * block}", f"BN={block}",
            f"ALIGNED={int(step.stride[1] % 2 == 0)}", f"PAIRS={int(is_paired)}",
            f"UNROLL={4 if size <= 2 else 3}", f"MIN_BLOCKS={self._min_blocks}",
            f"Y_WIDE={int(is_wide(step.y, held))}",
            *activation_defines("ACT", step.activation),
            f"SCALE={literal(step.scale)}",
        )  # fmt: skip
        return Source(source("common.cuh", "activation.cuh", "stem.cu"), defines)

    def build(self, weights: Mapping[str, np.ndarray]) -> Built:
        """Pack the weights and describe the launch."""
        step, tiling = self.step, self.tiling
        packed = pack_stem(weights[step.weight], self._lead, self._block, _element(step))
        bias = np.zeros(packed.shape[2] * 16, np.float32)
        if step.bias is not None:
            bias[: step.y.c] = weights[step.bias]
        tiles_x, tiles_y = -(-step.y.w // tiling.tw), -(-step.y.h // tiling.th)
        pointers = ((0, OfView(step.x)), (8, OfWeight(0)), (16, OfWeight(1)), (24, OfView(step.y)))
        launch = Launch(
            0, "stem", (tiles_x * tiles_y * step.x.n, 1, 1), (tiling.warps * 32, 1, 1),
            (Blob(bytes(32), pointers),), self.shared_bytes,
        )  # fmt: skip
        return Built((self.source(),), (packed, bias), (launch,))


def _element(step: Conv) -> str:
    """What products are taken in: halves, where the result is 8-bit codes."""
    return "float16" if step.y.dtype in EIGHT else step.y.dtype


def stem_ways(step: Conv, target: Target) -> tuple[StemWay, ...]:
    """Tilings for a step; () if it is no first convolution."""
    can = (
        step.groups == 1
        and step.x.c <= 4
        and step.y.c <= _MAX_CHANNELS
        and step.y.dtype in ("float16", "bfloat16", *EIGHT)
        and step.x.dtype in ("float32", "float16", "bfloat16", "uint8")
        and step.y.is_pixels
        and step.dilation == (1, 1)
        and step.residual is None
        and step.after == IDENTITY
        and step.second is None
        and not step.is_upsampled
        and step.weight_scale is None
        and step.y_units is None
    )
    if not can or (uses_e4m3(step) and int(target.arch[3:]) < 89):
        return ()
    ways = (StemWay(step, tiling) for tiling in _TILINGS)
    return tuple(
        way
        for way in ways
        if way.shared_bytes <= target.shared_bytes
        and way.tiling.th * way.tiling.tw // 16 % way.tiling.mi == 0
    )
