"""What only puts elements elsewhere: mostly other views."""

from __future__ import annotations

import itertools
import math

import numpy as np

from saccade.native.lowering.rules import Lowering, Node, Refused, Value, rule
from saccade.native.ops import Copy
from saccade.native.tensors import View
from saccade.native.views import broadcast, sliced, sliding_order

__all__: list[str] = []


@rule("Identity", "Dropout")
def _identity(low: Lowering, node: Node) -> Value:
    if any(node.wanted[1:]):
        raise Refused("it gives a mask")
    return low.operand(node, 0)


@rule("Reshape")
def _reshape(low: Lowering, node: Node) -> Value:
    view = low.operand(node, 0)
    shape = node.ints(1, "shape") or []
    if not node.get("allowzero", 0):
        shape = [view.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    if -1 in shape:
        known = math.prod(size for size in shape if size != -1)
        shape[shape.index(-1)] = view.num_elements // known
    return low.reshape(view, shape, node.name)


@rule("Flatten")
def _flatten(low: Lowering, node: Node) -> Value:
    view = low.operand(node, 0)
    axis = int(node.get("axis", 1)) % (len(view.shape) + 1)
    return low.reshape(
        view, (math.prod(view.shape[:axis]), math.prod(view.shape[axis:])), node.name
    )


@rule("Squeeze")
def _squeeze(low: Lowering, node: Node) -> Value:
    view = low.operand(node, 0)
    rank = len(view.shape)
    axes = node.ints(1, "axes")
    gone = (
        {a % rank for a in axes}
        if axes is not None
        else {a for a in range(rank) if view.shape[a] == 1}
    )
    return low.reshape(view, [s for a, s in enumerate(view.shape) if a not in gone], node.name)


@rule("Unsqueeze")
def _unsqueeze(low: Lowering, node: Node) -> Value:
    view = low.operand(node, 0)
    axes = node.ints(1, "axes") or []
    rank = len(view.shape) + len(axes)
    new = {a % rank for a in axes}
    sizes = iter(view.shape)
    return low.reshape(view, [1 if a in new else next(sizes) for a in range(rank)], node.name)


@rule("Transpose")
def _transpose(low: Lowering, node: Node) -> Value:
    view = low.operand(node, 0)
    return view.permuted(*(node.get("perm", None) or range(len(view.shape))[::-1]))


@rule("Expand")
def _expand(low: Lowering, node: Node) -> Value:
    view = low.operand(node, 0)
    return broadcast(view, np.broadcast_shapes(view.shape, tuple(node.ints(1, "shape") or ())))


@rule("Tile")
def _tile(low: Lowering, node: Node) -> Value:
    view = low.operand(node, 0)
    repeats = node.ints(1, "repeats") or []
    # Each axis becomes (repeat, size) with stride 0 on the repeat.
    pairs = [
        pair for repeat, size in zip(repeats, view.shape, strict=True) for pair in (repeat, size)
    ]
    strides = [s for stride in view.strides for s in (0, stride)]
    wide = View(view.buffer, view.dtype, tuple(pairs), tuple(strides), view.offset)
    return low.reshape(wide, [r * s for r, s in zip(repeats, view.shape, strict=True)], node.name)


@rule("Slice")
def _slice(low: Lowering, node: Node) -> Value:
    view = low.operand(node, 0)
    starts, ends = node.ints(1, "starts") or [], node.ints(2, "ends") or []
    axes = node.ints(3, "axes") if node.has(3) or "axes" in node.attributes else None
    steps = node.ints(4, "steps") if node.has(4) else None
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        chosen = range(view.shape[axis])[start:end:step]
        view = sliced(view, axis % len(view.shape), chosen.start, chosen.stop, chosen.step)
    return view


@rule("Split")
def _split(low: Lowering, node: Node) -> list[Value]:
    view = low.operand(node, 0)
    axis = int(node.get("axis", 0)) % len(view.shape)
    num = len(node.wanted)
    sizes = node.ints(1, "split")
    if sizes is None:
        each = -(-view.shape[axis] // num)
        sizes = [min(each, view.shape[axis] - i * each) for i in range(num)]
    bounds = np.cumsum([0, *sizes]).tolist()
    return [sliced(view, axis, a, b) for a, b in itertools.pairwise(bounds)]


@rule("Concat")
def _concat(low: Lowering, node: Node) -> Value:
    parts = [low.operand(node, i) for i in range(len(node.inputs))]
    parts = [part for part in parts if part.num_elements]
    if len(parts) == 1:
        return parts[0]
    axis = int(node.attributes["axis"]) % len(parts[0].shape)
    shape = list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    widest = max(parts, key=lambda part: part.num_elements)
    y = low.draft.new(node.name, shape, widest.dtype, sliding_order(widest))
    at = 0
    for part in parts:
        place = sliced(y, axis, at, at + part.shape[axis])
        low.draft.steps.append(Copy(node.name, part, place))
        at += part.shape[axis]
    return y


@rule("DepthToSpace")
def _depth_to_space(low: Lowering, node: Node) -> Value:
    view, b = low.operand(node, 0), int(node.attributes["blocksize"])
    n, c, h, w = view.shape
    if node.get("mode", "DCR") == "DCR":
        wide = low.reshape(view, (n, b, b, c // b // b, h, w), node.name).permuted(0, 3, 4, 1, 5, 2)
    else:
        wide = low.reshape(view, (n, c // b // b, b, b, h, w), node.name).permuted(0, 1, 4, 2, 5, 3)
    return low.reshape(wide, (n, c // b // b, h * b, w * b), node.name)


@rule("SpaceToDepth")
def _space_to_depth(low: Lowering, node: Node) -> Value:
    view, b = low.operand(node, 0), int(node.attributes["blocksize"])
    n, c, h, w = view.shape
    wide = low.reshape(view, (n, c, h // b, b, w // b, b), node.name).permuted(0, 3, 5, 1, 2, 4)
    return low.reshape(wide, (n, c * b * b, h // b, w // b), node.name)
