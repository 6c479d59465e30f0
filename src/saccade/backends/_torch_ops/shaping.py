"""Operators that move, cut and repeat without computing."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from saccade.backends._torch_ops.lowering import Lowering, rank_of, sizes_of
from saccade.backends._torch_ops.values import Lacking, Op, Value, int_list, rule


@rule("Constant", "value value_float value_floats value_int value_ints", inputs=0)
def _constant(low: Lowering, op: Op) -> Value:
    (name, stored), *_ = op.attributes.items()
    if name == "value":
        return torch.as_tensor(stored)
    dtype = torch.float32 if "float" in name else torch.int64
    return torch.tensor(stored, dtype=dtype)


@rule("Shape", "start end")
def _shape(low: Lowering, op: Op) -> Value:
    sizes = sizes_of(op.symbol_or_tensor(0))
    start, end = op.integer("start", 0), op.integer("end", len(sizes))
    return torch.tensor(sizes[slice(start, end)], dtype=torch.int64)


@rule("Size")
def _size(low: Lowering, op: Op) -> Value:
    return torch.tensor(int(np.prod(sizes_of(op.symbol_or_tensor(0)))), dtype=torch.int64)


@rule("ConstantOfShape", "value", fixed=(0,))
def _constant_of_shape(low: Lowering, op: Op) -> Value:
    fill = torch.as_tensor(op.attributes.get("value", torch.zeros(1)))
    return fill.reshape(()).expand(int_list(op, 0, "")).clone()


@rule("Range", inputs=3, fixed=(0, 1, 2))
def _range(low: Lowering, op: Op) -> Value:
    ends = [op.fixed(index) for index in range(3)]
    start, limit, step = (end.item() for end in ends if end is not None)
    return torch.arange(start, limit, step, dtype=ends[0].dtype)  # type: ignore[union-attr]


@rule("Reshape", "shape allowzero consumed_inputs", inputs=2, fixed=(1,))
def _reshape(low: Lowering, op: Op) -> Value:
    x, wanted = op.symbol_or_tensor(0), int_list(op, 1, "shape")
    if wanted is None:
        raise Lacking("a shape must be given, it is left out")
    sizes = sizes_of(x)
    if not op.integer("allowzero", 0):
        wanted = [sizes[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    return low.emit(torch.reshape, x, wanted)


@rule("Flatten", "axis")
def _flatten(low: Lowering, op: Op) -> Value:
    x, axis = op.symbol_or_tensor(0), op.integer("axis", 1)
    sizes = sizes_of(x)
    axis = axis % len(sizes) if axis < 0 else axis
    rows = int(np.prod(sizes[:axis], dtype=np.int64))
    return low.emit(torch.reshape, x, [rows, int(np.prod(sizes[axis:], dtype=np.int64))])


@rule("Squeeze", "axes", inputs=2, fixed=(1,))
def _squeeze(low: Lowering, op: Op) -> Value:
    x, axes = op.symbol_or_tensor(0), int_list(op, 1, "axes")
    sizes = sizes_of(x)
    gone = {a % len(sizes) for a in axes} if axes else {a for a, s in enumerate(sizes) if s == 1}
    if any(sizes[axis] != 1 for axis in gone):
        raise Lacking(f"squeezed axes must have size 1, {sorted(gone)} of {sizes} do not")
    kept = [size for axis, size in enumerate(sizes) if axis not in gone]
    return low.emit(torch.reshape, x, kept)


@rule("Unsqueeze", "axes", inputs=2, fixed=(1,))
def _unsqueeze(low: Lowering, op: Op) -> Value:
    x, axes = op.symbol_or_tensor(0), int_list(op, 1, "axes") or []
    rank = rank_of(x) + len(axes)
    new, old = {axis % rank for axis in axes}, iter(sizes_of(x))
    return low.emit(torch.reshape, x, [1 if axis in new else next(old) for axis in range(rank)])


@rule("Transpose", "perm")
def _transpose(low: Lowering, op: Op) -> Value:
    x = op.symbol_or_tensor(0)
    order = op.attributes.get("perm") or list(range(rank_of(x)))[::-1]
    return low.emit(torch.permute, x, [int(axis) for axis in order])


@rule("Concat", "axis", inputs=10**6)
def _concat(low: Lowering, op: Op) -> Value:
    return low.emit(torch.cat, list(op.inputs), op.integer("axis", 1))


@rule("Split", "axis split num_outputs", inputs=2, outputs=10**6, fixed=(1,))
def _split(low: Lowering, op: Op) -> Value:
    x, axis = op.symbol_or_tensor(0), op.integer("axis", 0)
    parts = int_list(op, 1, "split")
    if parts is None:
        size, num = sizes_of(x)[axis], len(op.outputs)
        each = -(-size // num)
        parts = [min(each, size - index * each) for index in range(num)]
    return low.emit(torch.split, x, parts, axis)


@rule("Slice", "starts ends axes", inputs=5, fixed=(1, 2, 3, 4))
def _slice(low: Lowering, op: Op) -> Value:
    x = op.symbol_or_tensor(0)
    sizes = sizes_of(x)
    starts, ends = int_list(op, 1, "starts"), int_list(op, 2, "ends")
    if starts is None or ends is None:
        raise Lacking("starts and ends must be given, one is left out")
    axes = int_list(op, 3, "axes") or list(range(len(starts)))
    steps = int_list(op, 4, "steps") or [1] * len(starts)
    cut = [slice(None)] * len(sizes)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        places = _places(start, end, step, sizes[axis])
        if step < 0:
            x = low.emit(torch.index_select, x, axis, torch.tensor(list(places)))
        elif len(places) != sizes[axis]:
            cut[axis] = slice(places.start, max(places.stop, places.start), step)
    return x if cut == [slice(None)] * len(sizes) else low.emit(operator.getitem, x, tuple(cut))


def _places(start: int, end: int, step: int, size: int) -> range:
    """The indices that a slice takes; out-of-range ends are clamped as the specification says."""
    start = start + size if start < 0 else start
    end = end + size if end < 0 else end
    if step > 0:
        return range(min(max(start, 0), size), min(max(end, 0), size), step)
    return range(min(max(start, 0), size - 1), min(max(end, -1), size - 1), step)


@rule("Gather", "axis", inputs=2)
def _gather(low: Lowering, op: Op) -> Value:
    x, index, axis = op.symbol_or_tensor(0), op.symbol_or_tensor(1), op.integer("axis", 0)
    sizes, shape = sizes_of(x), sizes_of(index)
    axis %= len(sizes)
    if isinstance(index, torch.Tensor) and index.ndim == 0:
        return low.emit(torch.select, x, axis, int(index) % sizes[axis])
    flat = low.emit(torch.reshape, _from_end(low, index, sizes[axis]), [-1])
    taken = low.emit(torch.index_select, x, axis, flat)
    if len(shape) == 1:
        return taken
    return low.emit(torch.reshape, taken, sizes[:axis] + shape + sizes[axis + 1 :])


def _from_end(low: Lowering, index: Any, size: int) -> Any:
    """Indices with negative ones counted from the end."""
    if isinstance(index, torch.Tensor):
        return index.long() % size
    return low.emit(torch.remainder, low.cast(index, torch.int64), size)


@rule("GatherElements", "axis", inputs=2)
def _gather_elements(low: Lowering, op: Op) -> Value:
    x, axis = op.symbol_or_tensor(0), op.integer("axis", 0)
    index = _from_end(low, op.symbol_or_tensor(1), sizes_of(x)[axis])
    return low.emit(torch.gather, x, axis, index)


@rule("GatherND", "batch_dims", inputs=2,
      check=lambda op: "batch_dims" if op.integer("batch_dims", 0) else "")  # fmt: skip
def _gather_nd(low: Lowering, op: Op) -> Value:
    x, index = op.symbol_or_tensor(0), op.symbol_or_tensor(1)
    depth = sizes_of(index)[-1]
    columns = [
        _from_end(low, low.emit(torch.select, index, -1, place), sizes_of(x)[place])
        for place in range(depth)
    ]
    return low.emit(operator.getitem, x, tuple(columns))


@rule("Expand", inputs=2, fixed=(1,))
def _expand(low: Lowering, op: Op) -> Value:
    x, wanted = op.symbol_or_tensor(0), int_list(op, 1, "")
    target = np.broadcast_shapes(tuple(sizes_of(x)), tuple(wanted or ()))
    return low.emit(torch.broadcast_to, x, [int(size) for size in target])


@rule("Tile", "", inputs=2, fixed=(1,), check=lambda op: "version 1" if op.opset < 6 else "")
def _tile(low: Lowering, op: Op) -> Value:
    return low.emit(torch.tile, op.get(0), int_list(op, 1, ""))


@rule("DepthToSpace", "blocksize mode")
def _depth_to_space(low: Lowering, op: Op) -> Value:
    x, side = op.symbol_or_tensor(0), op.integer("blocksize", 1)
    b, c, h, w = sizes_of(x)
    inner = c // (side * side)
    if op.text("mode", "DCR") == "CRD":
        return low.emit(F.pixel_shuffle, x, side)
    split = low.emit(torch.reshape, x, [b, side, side, inner, h, w])
    moved = low.emit(torch.permute, split, [0, 3, 4, 1, 5, 2])
    return low.emit(torch.reshape, moved, [b, inner, h * side, w * side])


@rule("SpaceToDepth", "blocksize")
def _space_to_depth(low: Lowering, op: Op) -> Value:
    x, side = op.symbol_or_tensor(0), op.integer("blocksize", 1)
    b, c, h, w = sizes_of(x)
    split = low.emit(torch.reshape, x, [b, c, h // side, side, w // side, side])
    moved = low.emit(torch.permute, split, [0, 3, 5, 1, 2, 4])
    return low.emit(torch.reshape, moved, [b, c * side * side, h // side, w // side])


# What NumPy calls the ways of padding.
PAD_MODES = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}


@rule("Pad", "mode pads paddings value", inputs=4, fixed=(1, 2, 3),
      check=lambda op: "paddings" if "paddings" in op.attributes else "")  # fmt: skip
def _pad(low: Lowering, op: Op) -> Value:
    x, pads = op.symbol_or_tensor(0), int_list(op, 1, "pads")
    rank = rank_of(x)
    axes = [axis % rank for axis in int_list(op, 3, "") or range(rank)]
    before, after = [0] * rank, [0] * rank
    for place, axis in enumerate(axes):
        before[axis], after[axis] = (pads or [])[place], (pads or [])[place + len(axes)]
    mode = op.text("mode", "constant")
    if mode == "constant":
        stored = op.fixed(2)
        fill = op.number("value", 0.0) if stored is None else stored.item()
        both = [n for axis in reversed(range(rank)) for n in (before[axis], after[axis])]
        return low.emit(F.pad, x, both, value=fill) if any(both) else x
    for axis, size in enumerate(sizes_of(x)):
        if before[axis] or after[axis]:
            row = np.pad(np.arange(size), (before[axis], after[axis]), PAD_MODES[mode])  # type: ignore[call-overload]
            x = low.emit(torch.index_select, x, axis, torch.from_numpy(row))
    return x
