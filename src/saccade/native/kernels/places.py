"""Gathering, sampling and boxes: places.cu, and a generated kernel for Gather."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from saccade.native.kernels.sources import C_TYPES, literal, source
from saccade.native.kernels.strided import coordinates, offset
from saccade.native.ops import Boxes, Gather, GridSample, RoiAlign
from saccade.native.seam import Blob, Built, Launch, OfView, Source, Target
from saccade.native.tensors import SIZES, View

__all__ = ["PlacesWay", "boxes_ways", "gather_ways", "grid_sample_ways", "roi_align_ways"]

_FLOATS = ("float16", "bfloat16", "float32")
_WHOLE = ("int64", "int32")
_FILES = ("common.cuh", "activation.cuh", "places.cu")


@dataclass(frozen=True, slots=True)
class PlacesWay:
    """The one kernel of a step: a thread per value, or per side of a box."""

    step: Gather | GridSample | RoiAlign | Boxes

    @property
    def name(self) -> str:
        return type(self.step).__name__.lower()

    def build(self, weights: Mapping[str, np.ndarray]) -> Built:
        """Describe the launch."""
        if isinstance(self.step, Gather):
            return _gather(self.step)
        if isinstance(self.step, GridSample):
            return _grid_sample(self.step)
        if isinstance(self.step, RoiAlign):
            return _roi_align(self.step)
        return _boxes(self.step)


def _named(prefix: str, axes: str, view: View) -> list[str]:
    return [f"{prefix}_{a}={s}LL" for a, s in zip(axes.split(), view.strides, strict=True)]


def _one(made: Source, function: str, num: int, arguments: Sequence[OfView | Blob]) -> Built:
    grid = (max(-(-num // 128), 1), 1, 1)
    return Built((made,), (), (Launch(0, function, grid, (128, 1, 1), tuple(arguments)),))


def _grid_sample(step: GridSample) -> Built:
    x, y = step.x, step.y
    defines = (
        "GRID_SAMPLE", f"X_TYPE={C_TYPES[x.dtype]}", f"GRID_TYPE={C_TYPES[step.grid.dtype]}",
        f"Y_TYPE={C_TYPES[y.dtype]}", f"N={y.n}", f"OH={y.h}", f"OW={y.w}", f"C={y.c}",
        f"H={x.h}", f"W={x.w}", *_named("X", "N H W C", x), *_named("GRID", "N H W C", step.grid),
        *_named("Y", "N H W C", y), f"IS_LINEAR={int(step.kind == 'linear')}",
        f"PADDING={('zeros', 'border', 'reflection').index(step.padding)}",
        f"ALIGN_CORNERS={int(step.align_corners)}",
    )  # fmt: skip
    arguments = (OfView(x), OfView(step.grid), OfView(y))
    return _one(Source(source(*_FILES), defines), "grid_sample", y.num_elements, arguments)


def _roi_align(step: RoiAlign) -> Built:
    x, y = step.x, step.y
    defines = (
        "ROI_ALIGN", f"X_TYPE={C_TYPES[x.dtype]}", f"ROI_TYPE={C_TYPES[step.rois.dtype]}",
        f"PICTURE_TYPE={C_TYPES[step.pictures.dtype]}", f"Y_TYPE={C_TYPES[y.dtype]}",
        f"R={y.n}", f"OH={y.h}", f"OW={y.w}", f"C={y.c}", f"H={x.h}", f"W={x.w}",
        *_named("X", "N H W C", x), *_named("Y", "N H W C", y),
        f"ROI_R={step.rois.strides[0]}LL", f"ROI_C={step.rois.strides[1]}LL",
        f"PICTURE_R={step.pictures.strides[0]}LL", f"SCALE={literal(step.scale)}",
        f"SAMPLES={step.samples}", f"HALF_PIXEL={int(step.half_pixel)}",
        f"IS_MAX={int(step.kind == 'max')}",
    )  # fmt: skip
    arguments = (OfView(x), OfView(step.rois), OfView(step.pictures), OfView(y))
    return _one(Source(source(*_FILES), defines), "roi_align", y.num_elements, arguments)


def _table(kind: str, name: str, values: Sequence[object]) -> str:
    return f"__device__ constexpr {kind} {name}[] = {{{', '.join(map(str, values))}}};\n"


def _boxes(step: Boxes) -> Built:
    y, levels = step.y, step.levels
    first = [0]
    for level in levels:
        first.append(first[-1] + level.x.h * level.x.w)
    strides = zip(*(level.x.strides for level in levels), strict=True)
    head = _table("int", "FIRST", first) + _table("int", "WIDTH", [v.x.w for v in levels])
    head += _table("float", "STRIDE", [literal(level.stride) for level in levels])
    for axis, values in zip("NHWC", strides, strict=True):
        head += _table("long long", f"L_{axis}", values)
    defines = (
        f"BOXES={len(levels)}", f"X_TYPE={C_TYPES[levels[0].x.dtype]}",
        f"Y_TYPE={C_TYPES[y.dtype]}", f"NUM={y.shape[0]}", f"CELLS={first[-1]}",
        f"BINS={step.bins}", f"IS_CENTRE={int(step.form == 'cxcywh')}",
        *_named("Y", "N ROW CELL", y),
    )  # fmt: skip
    data = struct.pack(f"<{len(levels)}Q", *[0] * len(levels))
    blob = Blob(data, tuple((8 * i, OfView(level.x)) for i, level in enumerate(levels)))
    made = Source(head + source(*_FILES), defines)
    return _one(made, "boxes", y.shape[0] * first[-1] * 4, (blob, OfView(y)))


_GATHER = """
__device__ __forceinline__ i64 held(i64 index, i64 size) {
    // Negative ones count from the end; what points outside reads the border and no other memory.
    index += index < 0 ? size : 0;
    return index < 0 ? 0 : index >= size ? size - 1 : index;
}
extern "C" __global__ void __launch_bounds__(128)
gather(const TYPE* x, const INDEX_TYPE* indices, TYPE* y) {
    let_next_start();
    wait_for_inputs();
    i64 linear = (i64)blockIdx.x * 128 + threadIdx.x;
    if (linear >= NUM) return;
    PLACE
    y[Y_AT] = x[X_AT];
}
"""


def _gather(step: Gather) -> Built:
    x, y, indices = step.x, step.y, step.indices
    lines = [coordinates(y.shape or (1,), "linear", "k", wide=True)]

    def term(stride: int, place: str) -> str:
        return f"(i64)({place}) * {stride}"

    def picked(coords: Sequence[str], size: int) -> str:
        at = " + ".join(term(s, c) for s, c in zip(indices.strides, coords, strict=True)) or "0"
        return f"held((i64)indices[{at}], {size})"

    places: list[str] = []
    names = [f"k{i}" for i in range(len(y.shape))]
    axis = step.axis % max(len(x.shape), 1)
    if step.kind == "take":
        rank = len(indices.shape)
        places = names[:axis]
        places.append(picked(names[axis : axis + rank], x.shape[axis]))
        places += names[axis + rank :]
    elif step.kind == "elements":
        places = list(names)
        places[axis] = picked(names, x.shape[axis])
    else:
        lead = len(indices.shape) - 1
        depth = indices.shape[-1]
        batch = step.batch_axes
        places = names[:batch]
        places += [picked([*names[:lead], str(i)], x.shape[batch + i]) for i in range(depth)]
        places += names[lead:]
    for i, place in enumerate(places):
        lines.append(f"const i64 g{i} = {place};")
    text = _GATHER.replace("PLACE\n", "\n    ".join(lines) + "\n")
    text = text.replace("Y_AT", offset(y.strides, "k")).replace("X_AT", offset(x.strides, "g"))
    sizes = {1: "u8", 2: "u16", 4: "u32", 8: "u64"}
    defines = (
        f"TYPE={sizes[SIZES[x.dtype]]}", f"INDEX_TYPE={C_TYPES[indices.dtype]}",
        f"NUM={y.num_elements}LL",
    )  # fmt: skip
    made = Source(source("common.cuh") + text, defines)
    return _one(made, "gather", y.num_elements, (OfView(x), OfView(indices), OfView(y)))


def gather_ways(step: Gather, target: Target) -> tuple[PlacesWay, ...]:
    """The one kernel."""
    can = step.x.dtype == step.y.dtype and step.indices.dtype in _WHOLE
    return (PlacesWay(step),) if can else ()


def grid_sample_ways(step: GridSample, target: Target) -> tuple[PlacesWay, ...]:
    """The one kernel."""
    views = (step.x, step.grid, step.y)
    return (PlacesWay(step),) if all(view.dtype in _FLOATS for view in views) else ()


def roi_align_ways(step: RoiAlign, target: Target) -> tuple[PlacesWay, ...]:
    """The one kernel."""
    views = (step.x, step.rois, step.y)
    can = all(view.dtype in _FLOATS for view in views) and step.pictures.dtype in _WHOLE
    return (PlacesWay(step),) if can and step.samples > 0 else ()


def boxes_ways(step: Boxes, target: Target) -> tuple[PlacesWay, ...]:
    """The one kernel."""
    dtypes = {level.x.dtype for level in step.levels}
    can = len(dtypes) == 1 and dtypes <= set(_FLOATS) and step.y.dtype in _FLOATS
    return (PlacesWay(step),) if can else ()
