"""Convolutions as implicit matrix products on the matrix units: conv.cu.

8-bit pictures and weights are described to the kernel as halves of half as many channels
(`kernels/eight.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from saccade.errors import BuildError
from saccade.native.kernels.eight import EIGHT, can_pair, is_small, sums_as_values, units, uses_e4m3
from saccade.native.kernels.packing import folded, pack_tiles, pack_weights
from saccade.native.kernels.sources import (
    C_TYPES,
    activation_defines,
    is_wide,
    literal,
    places_of,
    source,
    vector_bytes,
)
from saccade.native.kernels.tilings import FOLDED, Geometry, Tiling, min_blocks, ranked
from saccade.native.ops import IDENTITY, Conv
from saccade.native.seam import Blob, Built, Launch, OfView, OfWeight, Source, Target

__all__ = ["ConvWay", "conv_source", "conv_ways"]

_LIMIT = 2**31 - 1
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
        geometry = Geometry.of(units(step))
        pack = pack_tiles if tiling.is_joint else pack_weights
        kernel = weights[step.weight]
        is_eight = step.x.dtype in EIGHT
        given = kernel.view(np.uint16) if is_eight else kernel
        if tiling.cc == FOLDED:
            packed = pack(folded(given), 16, replace(tiling, cc=16), step.x.dtype)
        else:
            packed = pack(given, geometry.first, tiling, step.x.dtype)
        is_exact = is_small(step, kernel)
        bias = np.zeros(packed.shape[0] * tiling.bn, np.float32)
        arrays: tuple[np.ndarray, ...] = (packed, bias)
        if is_eight:
            gains = np.zeros_like(bias)
            used = slice(geometry.channels)
            gains[used], bias[used] = sums_as_values(step, weights, is_exact=is_exact)
            arrays = (packed, bias, gains)
        elif step.bias is not None:
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
        if is_eight:
            pointers += ((48, OfWeight(2)),)
        if step.y_units is not None:
            inverses = np.ones_like(bias)
            inverses[: geometry.channels] = np.float32(1) / weights[step.y_units]
            pointers += ((56, OfWeight(len(arrays))),)
            arrays += (inverses,)
        launch = Launch(
            0, "conv", (blocks * workers, 1, 1), (tiling.threads, 1, 1),
            (Blob(bytes(64), pointers),), geometry.shared_bytes(tiling),
        )  # fmt: skip
        made = conv_source(step, tiling, workers, is_small=is_exact)
        return Built((made,), arrays, (launch,))

    def _workers(self, blocks: int) -> int:
        """Blocks that share the tiles of one block of channels."""
        geometry = Geometry.of(units(self.step))
        tiles = geometry.n * math.prod(geometry.tiles(self.tiling))
        if not self.tiling.waves:
            return tiles
        most = self.target.num_multiprocessors * self.tiling.waves
        return min(tiles, max(most // blocks, 1))


def conv_source(step: Conv, tiling: Tiling, workers: int, *, is_small: bool = False) -> Source:
    """conv.cu for a step; with `is_small` sums of codes stay below 2^22."""
    kind, step = step.x.dtype, units(step)
    geometry = Geometry.of(step)
    (kh, kw), (sh, sw), (dh, dw) = step.kernel, step.stride, step.dilation
    operands = [step.x] + ([step.second] if step.second is not None else [])
    held = 8 if tiling.ni % 4 == 0 else 4
    residual = 0 if step.residual is None else 2 if step.residual_after else 1
    if residual == 0 and step.after != IDENTITY:
        raise BuildError("a convolution without a residual must have one activation, it has two")
    added = step.x if step.residual is None else step.residual
    sums = "int" if kind == "int8" else "float"
    defines = (
        f"ELEMENT={C_TYPES[step.x.dtype]}", f"OUT={C_TYPES[step.y.dtype]}",
        f"EIGHT={int(kind in EIGHT)}", f"SUM={sums}", f"SUM4={sums}4", f"IS_SMALL={int(is_small)}",
        f"RES={C_TYPES[added.dtype]}", f"RES_SCALE={literal(step.residual_scale)}",
        f"Y_INVERSE={literal(1.0 / step.y_scale)}", f"Y_APART={int(step.y_units is not None)}",
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
        f"RES_WIDE={int(step.residual is not None and is_wide(step.residual, 4))}",
        f"Y_WIDE={int(is_wide(step.y, held))}",
        *activation_defines("ACT", step.activation),
        *activation_defines("AFTER", step.after),
        f"SCALE={literal(step.scale)}",
    )  # fmt: skip
    text = source("common.cuh", "activation.cuh", "conv.cu")
    if tiling.is_joint:
        # The architecture's own instructions: see saccade.cuda.compile.
        text = "// only for sm_90a\n" + _joint_product(tiling.ni, kind) + text
    return Source(text, defines)


def _joint_product(ni: int, dtype: str) -> str:
    """The function multiply_tiles: sums += a tiles, 64 rows, ni * 8 columns, 16 (32) deep."""
    kind, scales = {
        "float16": ("k16.f32.f16.f16", ", 1, 1, 0"),
        "bfloat16": ("k16.f32.bf16.bf16", ", 1, 1, 0"),
        "float8_e4m3": ("k32.f32.e4m3.e4m3", ", 1, 1"),
        "int8": ("k32.s32.s8.s8", ""),
    }[dtype]
    held_as, sums_as = ("r", "int") if dtype == "int8" else ("f", "float")
    num = ni * 4
    sums = ", ".join(f"%{i}" for i in range(num))
    a = ", ".join(f"%{num + i}" for i in range(4))
    held = ", ".join(f'"+{held_as}"(c[{i // 4}][{i % 4}])' for i in range(num))
    return (
        f"__device__ __forceinline__ void multiply_tiles({sums_as} (&c)[{ni}][4], "
        "const unsigned (&a)[4], unsigned long long tiles) {\n"
        '    asm volatile("{\\n.reg .pred p;\\nsetp.ne.b32 p, 1, 0;\\n"\n'
        f'                 "wgmma.mma_async.sync.aligned.m64n{ni * 8}{kind} "\n'
        f'                 "{{{sums}}}, {{{a}}}, %{num + 4}, p{scales};\\n}}\\n"\n'
        f"                 : {held}\n"
        '                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(tiles));\n}\n'
    )


def can_run(step: Conv) -> bool:
    """Whether conv.cu covers a step."""
    views = [step.x, step.y, *(v for v in (step.second, step.residual) if v is not None)]
    is_eight = step.x.dtype in EIGHT
    added = {"float16", *EIGHT} if is_eight else {step.x.dtype, *EIGHT}
    return (
        step.groups == 1
        and (step.x.dtype in ("float16", "bfloat16") or is_eight)
        and (step.second is None or step.second.dtype == step.x.dtype)
        and (step.residual is None or step.residual.dtype in added)
        and step.y.dtype in ("float32", *added)
        and (not is_eight or can_pair(step))
        and all(view.is_pixels for view in views)
        and not (step.residual is None and step.after != IDENTITY)
        and max(view.num_elements for view in views) < _LIMIT
    )


def conv_ways(step: Conv, target: Target, limit: int = 10) -> tuple[ConvWay, ...]:
    """The most promising tilings for a step, best first."""
    if not can_run(step) or (uses_e4m3(step) and int(target.arch[3:]) < 89):
        return ()
    geometry = Geometry.of(units(step))
    plain = ranked(geometry, target, is_joint=False)[:limit]
    joint = ranked(geometry, target, is_joint=True)[: limit // 2]
    return tuple(ConvWay(step, target, tiling) for tiling in (*plain, *joint))
