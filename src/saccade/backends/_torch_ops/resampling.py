"""Resize, Upsample and GridSample.

Which source pixels an output pixel reads is computed here, per axis, by the formulas of the ONNX
specification in float32. Where torch's own interpolation reads the same pixels with the same
weights it is used; otherwise the tables are.

Source: ONNX operator specification, Resize-10 to Resize-19 and Upsample-7 and -9.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from saccade.backends._torch_ops.lowering import Lowering, rank_of, sizes_of
from saccade.backends._torch_ops.values import Lacking, Op, Symbol, Value, rule

COORDINATES = (
    "half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric",
    "tf_half_pixel_for_nn",
)  # fmt: skip
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


def _check_resize(op: Op) -> str:
    wanted = {
        "mode": (op.text("mode", "nearest"), ("nearest", "linear")),
        "coordinate_transformation_mode": (_coordinates(op), COORDINATES),
        "nearest_mode": (_rounding(op), ROUNDINGS),
        "antialias": (op.text("antialias", "0"), ("0",)),
        "keep_aspect_ratio_policy": (op.text("keep_aspect_ratio_policy", "stretch"), ("stretch",)),
    }
    bad = [f"{name}={got!r}" for name, (got, known) in wanted.items() if got not in known]
    return ", ".join(bad)


def _coordinates(op: Op) -> str:
    default = "half_pixel" if op.kind == "Resize" and op.opset >= 11 else "asymmetric"
    return op.text("coordinate_transformation_mode", default)


def _rounding(op: Op) -> str:
    default = "round_prefer_floor" if op.kind == "Resize" and op.opset >= 11 else "floor"
    return op.text("nearest_mode", default)


@rule("Upsample", "mode scales height_scale width_scale", inputs=2, fixed=(1,),
      check=lambda op: _check_resize(op) or ("height_scale" if op.opset < 7 else ""))  # fmt: skip
@rule(
    "Resize",
    "antialias axes coordinate_transformation_mode cubic_coeff_a exclude_outside "
    "extrapolation_value keep_aspect_ratio_policy mode nearest_mode",
    inputs=4,
    fixed=(1, 2, 3),
    check=_check_resize,
)
def _resize(low: Lowering, op: Op) -> Value:
    x = op.symbol_or_tensor(0)
    scales, sizes = _targets(op, sizes_of(x))
    if op.opset < 11 and op.text("mode", "nearest") == "nearest" and min(scales) < 1:
        raise Lacking("scales must be at least 1 with mode 'nearest' before opset 11")
    tables = [
        _positions(_coordinates(op), before, after, scale)
        for before, after, scale in zip(sizes_of(x), sizes, scales, strict=True)
    ]
    changed = [axis for axis, size in enumerate(sizes_of(x)) if _moves(tables[axis], size)]
    if op.text("mode", "nearest") == "nearest":
        return _nearest(low, x, {axis: _rounded(op, tables[axis]) for axis in changed})
    return _linear(low, x, {axis: tables[axis] for axis in changed})


def _targets(op: Op, before: list[int]) -> tuple[list[float], list[int]]:
    """Scale and size of each axis."""
    is_new = op.kind == "Resize" and op.opset >= 11
    stored = op.fixed(2 if is_new else 1)
    sizes = op.fixed(3) if is_new else None
    axes = [int(a) % len(before) for a in op.attributes.get("axes", range(len(before)))]
    scales, after = [1.0] * len(before), list(before)
    if sizes is not None and sizes.numel():
        for axis, size in zip(axes, sizes.tolist(), strict=True):
            scales[axis], after[axis] = size / before[axis], int(size)
        return scales, after
    numbers = op.attributes.get("scales") if stored is None else stored.tolist()
    if not numbers:
        raise Lacking("scales or sizes must be given, both are left out")
    for axis, scale in zip(axes, numbers, strict=True):
        scales[axis], after[axis] = float(scale), int(np.floor(before[axis] * float(scale)))
    return scales, after


def _positions(mode: str, before: int, after: int, scale: float) -> np.ndarray:
    """(after,) float32 source position of each output pixel along one axis, not yet clamped."""
    x = np.arange(after, dtype=np.float32)
    ratio, half = np.float32(scale), np.float32(0.5)
    if mode == "asymmetric":
        return np.asarray(x / ratio, np.float32)
    if mode == "tf_half_pixel_for_nn":
        return np.asarray((x + half) / ratio, np.float32)
    if mode == "align_corners":
        return np.asarray(x * np.float32((before - 1) / max(after - 1, 1)), np.float32)
    if mode == "pytorch_half_pixel" and after == 1:
        return np.zeros(1, np.float32)
    centred = np.asarray((x + half) / ratio - half, np.float32)
    if mode == "half_pixel_symmetric":
        shift = before / 2 * (1 - after / (scale * before))
        centred = np.asarray(centred + np.float32(shift), np.float32)
    return np.maximum(centred, 0) if mode == "pytorch_half_pixel" else centred


def _moves(table: np.ndarray, before: int) -> bool:
    return len(table) != before or not np.array_equal(table, np.arange(before))


def _rounded(op: Op, table: np.ndarray) -> np.ndarray:
    mode = _rounding(op)
    shift = {"round_prefer_floor": -0.5, "round_prefer_ceil": 0.5}.get(mode, 0.0)
    rounding = np.floor if mode in ("floor", "round_prefer_ceil") else np.ceil
    return np.asarray(rounding(table + np.float32(shift)), np.float32)


def _nearest(
    low: Lowering, x: Symbol | torch.Tensor, tables: dict[int, np.ndarray]
) -> Symbol | torch.Tensor:
    sizes = sizes_of(x)
    rows = {axis: np.clip(t, 0, sizes[axis] - 1).astype(np.int64) for axis, t in tables.items()}
    if (
        rank_of(x) == 4
        and set(rows) <= {2, 3}
        and all(
            len(row) % sizes[axis] == 0
            and np.array_equal(row, np.arange(len(row)) // (len(row) // sizes[axis]))
            for axis, row in rows.items()
        )
    ):
        target = [len(rows[axis]) if axis in rows else sizes[axis] for axis in (2, 3)]
        return low.emit(F.interpolate, x, size=target, mode="nearest")
    for axis, row in rows.items():
        x = low.emit(torch.index_select, x, axis, torch.from_numpy(row))
    return x


def _linear(
    low: Lowering, x: Symbol | torch.Tensor, tables: dict[int, np.ndarray]
) -> Symbol | torch.Tensor:
    sizes = sizes_of(x)
    target = [len(tables.get(axis, range(size))) for axis, size in enumerate(sizes)]
    inside = {axis: np.clip(t, 0, sizes[axis] - 1) for axis, t in tables.items()}
    if rank_of(x) == 4 and inside and set(inside) <= {2, 3}:
        # The positions that torch itself uses with align_corners off and on.
        for mode in ("half_pixel", "align_corners"):
            same = {
                axis: np.clip(_positions(mode, sizes[axis], after, after / sizes[axis]), 0, None)
                for axis, after in ((2, target[2]), (3, target[3]))
            }
            if all(_agree(same[axis], inside.get(axis), sizes[axis]) for axis in (2, 3)):
                return low.emit(
                    F.interpolate,
                    x,
                    size=target[2:],
                    mode="bilinear",
                    align_corners=mode == "align_corners",
                )
    for axis, table in inside.items():
        x = _blended(low, x, axis, table)
    return x


def _agree(ours: np.ndarray, table: np.ndarray | None, size: int) -> bool:
    wanted = np.arange(size) if table is None else table
    return bool(np.allclose(np.clip(ours, 0, size - 1), wanted, atol=1e-5, rtol=0))


def _blended(low: Lowering, x: Symbol | torch.Tensor, axis: int, table: np.ndarray) -> Any:
    size = sizes_of(x)[axis]
    first = np.floor(table).astype(np.int64)
    shape = [-1 if index == axis else 1 for index in range(rank_of(x))]
    dtype = x.meta.dtype if isinstance(x, Symbol) else x.dtype
    share = torch.from_numpy((table - first).astype(np.float32)).to(dtype).reshape(shape)
    lower = low.emit(torch.index_select, x, axis, torch.from_numpy(first))
    upper = low.emit(torch.index_select, x, axis, torch.from_numpy(np.minimum(first + 1, size - 1)))
    return low.emit(torch.lerp, lower, upper, share)


MODES = {"linear": "bilinear", "bilinear": "bilinear", "nearest": "nearest",
         "cubic": "bicubic", "bicubic": "bicubic"}  # fmt: skip


@rule("GridSample", "align_corners mode padding_mode", inputs=2,
      check=lambda op: "" if op.text("mode", "bilinear") in MODES
      else f"mode={op.text('mode', '')!r}")  # fmt: skip
def _grid_sample(low: Lowering, op: Op) -> Value:
    return low.emit(
        F.grid_sample,
        op.get(0),
        op.get(1),
        mode=MODES[op.text("mode", "bilinear")],
        padding_mode=op.text("padding_mode", "zeros"),
        align_corners=bool(op.integer("align_corners", 0)),
    )
