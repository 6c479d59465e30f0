"""What heads have in common: grids, reading one output, and picking rows before decoding them.

A head gives thousands of rows, of which a handful pass the threshold. So every family thresholds
on scores first and decodes the survivors only; nothing here makes a copy of all scores.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from saccade.errors import ContractError
from saccade.types import Candidates, HeadRule, Signature, TensorSpec, Thresholds

__all__ = [
    "above",
    "candidates",
    "cxcywh_to_xyxy",
    "grid_centres",
    "num_cells",
    "pick",
    "pick_with_objectness",
    "read",
    "sole_output",
    "strides_of",
]


def num_cells(size_hw: tuple[int, int], strides: Sequence[int]) -> int:
    """Count the cells of all grids; a picture that does not fill its last cell still has it."""
    h, w = size_hw
    return sum(-(-h // s) * -(-w // s) for s in strides)


def grid_centres(
    size_hw: tuple[int, int], strides: Sequence[int], offset: float
) -> tuple[np.ndarray, np.ndarray]:
    """Lay out one point per cell, row by row, the first stride's grid first.

    Args:
        size_hw: Height and width of the input in pixels.
        strides: Input pixels per cell, one per grid.
        offset: Where in its cell a point lies: 0 the upper left corner, 0.5 the centre.

    Returns:
        (n, 2) float32 points x, y in input pixels and (n,) float32 strides; both read-only,
        because they are kept for the next call.
    """
    return _grid(tuple(size_hw), tuple(strides), float(offset))


@functools.lru_cache(maxsize=32)
def _grid(
    size_hw: tuple[int, int], strides: tuple[int, ...], offset: float
) -> tuple[np.ndarray, np.ndarray]:
    h, w = size_hw
    points, steps = [], []
    for stride in strides:
        rows, cols = -(-h // stride), -(-w // stride)
        y, x = np.divmod(np.arange(rows * cols), cols)
        points.append((np.stack([x, y], axis=1) + offset) * stride)
        steps.append(np.full(rows * cols, stride))
    grid = (np.concatenate(points).astype(np.float32), np.concatenate(steps).astype(np.float32))
    for array in grid:
        array.setflags(write=False)
    return grid


def cxcywh_to_xyxy(boxes: np.ndarray) -> np.ndarray:
    """Turn (n, 4) centre x, centre y, width, height into (n, 4) float32 corners."""
    boxes = boxes.astype(np.float32, copy=False)
    half = boxes[:, 2:4] * np.float32(0.5)
    out = np.empty((len(boxes), 4), np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # such boxes are dropped by candidates()
        np.subtract(boxes[:, :2], half, out=out[:, :2])
        np.add(boxes[:, :2], half, out=out[:, 2:])
    return out


def above(scores: np.ndarray, threshold: float) -> np.ndarray:
    """Indices (m,) of the scores (n,) above the threshold; never those that are NaN.

    The comparison is done in float32: in float16 the threshold itself would be rounded.
    """
    return np.flatnonzero(scores.astype(np.float32, copy=False) > threshold)


def pick(
    scores_nc: np.ndarray, thresholds: Thresholds
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Choose the rows, and their classes, whose score is above the threshold.

    Each surviving row gives its best class (the first of equals), or with
    `thresholds.multi_label` every class above the threshold. Rows that hold a NaN are dropped.

    Args:
        scores_nc: (n, c) float32 or float16; a transposed view of a (c, n) array is as good.
        thresholds: `score` and `multi_label` are used.

    Returns:
        rows (m,) int64, classes (m,) int32, scores (m,) float32; rows in ascending order.
    """
    rows = _likely_rows(scores_nc, thresholds.score)
    survivors = scores_nc[rows].astype(np.float32, copy=False)
    whole = ~np.isnan(survivors).any(axis=1)
    if not whole.all():
        rows, survivors = rows[whole], survivors[whole]
    if thresholds.multi_label:
        which, classes = np.nonzero(survivors > thresholds.score)
        return rows[which], classes.astype(np.int32), survivors[which, classes]
    classes = survivors.argmax(axis=1) if survivors.size else np.zeros(0, np.int64)
    scores = survivors[np.arange(len(survivors)), classes]
    keep = scores > thresholds.score
    return rows[keep], classes[keep].astype(np.int32), scores[keep]


def pick_with_objectness(
    rows_nc: np.ndarray, thresholds: Thresholds
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Like pick, for rows (n, 5 + c) of box, objectness, class scores; score is their product.

    No product is greater than its objectness, so the objectness is looked at first and alone.
    """
    likely = above(rows_nc[:, 4], thresholds.score)
    products = rows_nc[likely, 5:].astype(np.float32, copy=False)
    products *= rows_nc[likely, 4].astype(np.float32, copy=False)[:, None]
    which, classes, scores = pick(products, thresholds)
    return likely[which], classes, scores


def _likely_rows(scores_nc: np.ndarray, threshold: float) -> np.ndarray:
    """Indices (m,) of the rows with a score above the threshold; a NaN beside it may hide there."""
    if scores_nc.dtype == np.float32 and scores_nc.flags.c_contiguous and scores_nc.size:
        # Comparing all scores in one run and dividing the few hits is several times as fast as
        # the best score of each short row, unless a good part of all scores is above.
        hits = np.flatnonzero(scores_nc.reshape(-1) > threshold)
        if len(hits) < len(scores_nc):
            rows = hits // scores_nc.shape[1]
            is_first = np.empty(len(rows), np.bool_)
            is_first[:1] = True
            np.not_equal(rows[1:], rows[:-1], out=is_first[1:])
            found: np.ndarray = rows[is_first]
            return found
    return above(_row_maxima(scores_nc, threshold), threshold)


def _row_maxima(scores_nc: np.ndarray, threshold: float) -> np.ndarray:
    """Best score (n,) of each row; if negative, then only good for saying so."""
    if scores_nc.shape[1] == 0:
        return np.full(len(scores_nc), -np.inf, np.float32)
    if scores_nc.dtype == np.float16 and threshold >= 0:
        # NumPy compares float16 one by one through float32. The bit patterns of numbers that are
        # not negative are ordered like the numbers, and integers are compared many at a time.
        bits: np.ndarray = scores_nc.view(np.int16).max(axis=1)
        return bits.view(np.float16)
    maxima: np.ndarray = scores_nc.max(axis=1)
    return maxima


def sole_output(signature: Signature) -> TensorSpec | None:
    """Return the output if there is only one and it is floating-point with three axes."""
    if len(signature.outputs) != 1:
        return None
    output = signature.outputs[0]
    is_float = output.dtype in ("float32", "float16")
    return output if is_float and len(output.shape) == 3 else None


def strides_of(
    size_hw: tuple[int, int], num_rows: int | str, known: Sequence[tuple[int, ...]]
) -> tuple[int, ...] | None:
    """Say which of the known sets of strides has that many cells at this size, if any has."""
    return next((s for s in known if num_cells(size_hw, s) == num_rows), None)


def read(
    outputs: Mapping[str, np.ndarray], rule: HeadRule, role: str, ndim: int | None
) -> np.ndarray:
    """Return the output that plays a role.

    Raises:
        ContractError: The rule names no such output, or its number of axes is not ndim (if given).
    """
    name = rule.outputs.get(role, "")
    if name not in outputs:
        raise ContractError(
            f"head {rule.family!r} needs an output for {role!r} among {', '.join(outputs)}, "
            f"the contract names {name!r}; correct head.outputs in the contract"
        )
    array = outputs[name]
    if ndim is not None and array.ndim != ndim:
        raise ContractError(
            f"output {name!r} of head {rule.family!r} must have {ndim} axes, its shape is "
            f"{array.shape}; choose another head family in the contract"
        )
    return array


def candidates(
    boxes_xyxy: np.ndarray,
    classes: np.ndarray,
    scores: np.ndarray,
    *,
    frame: Literal["input", "source"] = "input",
    is_final: bool = False,
) -> Candidates:
    """Build Candidates of the promised types, without boxes that are not finite."""
    boxes_xyxy = boxes_xyxy.astype(np.float32, copy=False)
    finite = np.isfinite(boxes_xyxy).all(axis=1)
    if not finite.all():
        boxes_xyxy, classes, scores = boxes_xyxy[finite], classes[finite], scores[finite]
    return Candidates(
        boxes_xyxy,
        scores.astype(np.float32, copy=False),
        classes.astype(np.int32, copy=False),
        frame=frame,
        is_final=is_final,
    )
