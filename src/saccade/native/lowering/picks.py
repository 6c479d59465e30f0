"""Elements picked by numbers: gathers, the best k, sampling at places."""

from __future__ import annotations

import numpy as np

from saccade.native.lowering.rules import Lowering, Node, Refused, Value, rule
from saccade.native.ops import Gather, GridSample, TopK
from saccade.native.tensors import View
from saccade.native.views import sliced, sliding_order

__all__: list[str] = []


@rule("Gather")
def _gather(low: Lowering, node: Node) -> Value:
    x, picked = low.operand(node, 0), node.value(1)
    axis = int(node.get("axis", 0)) % len(x.shape)
    if isinstance(picked, np.ndarray):
        found = _as_slice(x, axis, picked)
        if found is not None:
            shape = (*x.shape[:axis], *picked.shape, *x.shape[axis + 1 :])
            return low.reshape(found, shape, node.name)
    indices = low.view(picked, f"{node.name}:indices")
    shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    order = sliding_order(x) if len(indices.shape) == 1 else None
    y = low.draft.new(node.name, shape, x.dtype, order)
    low.draft.steps.append(Gather(node.name, "take", x, indices, y, axis))
    return y


def _as_slice(x: View, axis: int, picked: np.ndarray) -> View | None:
    """Evenly spaced indices are another view."""
    flat = picked.reshape(-1).astype(np.int64) % x.shape[axis]
    if len(flat) == 0:
        return None
    steps = np.diff(flat)
    if len(steps) and (steps != steps[0]).any():
        return None
    step = int(steps[0]) if len(steps) else 1
    if step == 0:
        return None
    return sliced(x, axis, int(flat[0]), int(flat[-1]) + (1 if step > 0 else -1), step)


@rule("GatherElements")
def _gather_elements(low: Lowering, node: Node) -> Value:
    x, indices = low.operand(node, 0), low.operand(node, 1)
    axis = int(node.get("axis", 0)) % len(x.shape)
    y = low.draft.new(node.name, indices.shape, x.dtype)
    low.draft.steps.append(Gather(node.name, "elements", x, indices, y, axis))
    return y


@rule("GatherND")
def _gather_nd(low: Lowering, node: Node) -> Value:
    x, indices = low.operand(node, 0), low.operand(node, 1)
    batch = int(node.get("batch_dims", 0))
    depth = indices.shape[-1]
    y = low.draft.new(node.name, (*indices.shape[:-1], *x.shape[batch + depth :]), x.dtype)
    low.draft.steps.append(Gather(node.name, "nd", x, indices, y, batch_axes=batch))
    return y


@rule("TopK")
def _top_k(low: Lowering, node: Node) -> list[Value]:
    x = low.operand(node, 0)
    rank = len(x.shape)
    axis = int(node.get("axis", -1)) % rank
    k = (node.ints(1, "k") or [0])[0]
    others = [a for a in range(rank) if a != axis]
    x = x.permuted(*others, axis)
    shape = (*x.shape[:-1], k)
    made: list[View | None] = [
        low.draft.new(f"{node.name}:{what}", shape, dtype) if wanted else None
        for what, dtype, wanted in zip(("values", "indices"), (x.dtype, "int64"), node.wanted,
                                       strict=True)
    ]  # fmt: skip
    low.draft.steps.append(TopK(node.name, x, made[0], made[1], k, bool(node.get("largest", 1))))
    back = [*range(axis), rank - 1, *range(axis, rank - 1)]
    empty = np.empty(0, np.float32)
    return [empty if view is None else view.permuted(*back) for view in made]


@rule("GridSample")
def _grid_sample(low: Lowering, node: Node) -> Value:
    kind = node.get("mode", "bilinear")
    kinds = {"bilinear": "linear", "linear": "linear", "nearest": "nearest"}
    if kind not in kinds:
        raise Refused(f"mode {kind!r}; linear and nearest are covered")
    x, grid = low.pictures(node.value(0), node.name), low.operand(node, 1)
    if len(grid.shape) != 4:
        raise Refused("it samples volumes")
    y = low.new_pictures(node, (x.n, grid.shape[1], grid.shape[2], x.c))
    low.draft.steps.append(
        GridSample(
            node.name,
            x,
            grid,
            y,
            kinds[kind],  # type: ignore[arg-type]
            node.get("padding_mode", "zeros"),
            bool(node.get("align_corners", 0)),
        )
    )
    return y.permuted(0, 3, 1, 2)
