"""From candidates to detections: suppression of overlaps, the best ones, source pixels."""

from __future__ import annotations

import numpy as np

from saccade.errors import InputError
from saccade.types import Candidates, Detections, Placement, Thresholds
from saccade.vision.boxes import clip, iou_matrix, points_to_source, to_source

__all__ = ["MAX_CANDIDATES", "finish", "suppress", "suppress_reference"]

MAX_CANDIDATES = 30_000
_BLOCK = 64
_MAX_BLOCK = 2048


def suppress_reference(
    boxes_xyxy: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    iou: float,
    class_agnostic: bool = False,
) -> np.ndarray:
    """Greedy suppression, one box at a time, in float64.

    Best score first, of equal scores the lower index. A box is dropped if it overlaps a kept one
    of its class by more than `iou`. Boxes without area or with a coordinate or score that is not
    finite are no candidates.

    Args:
        boxes_xyxy: (k, 4).
        scores: (k,).
        classes: (k,); ignored if class_agnostic.
        iou: Overlap that is still allowed.
        class_agnostic: Whether boxes of other classes suppress too.

    Returns:
        Indices of the kept boxes, int64, best first.
    """
    boxes = np.asarray(boxes_xyxy, np.float64).reshape(-1, 4)
    order = [
        i
        for i in sorted(range(len(boxes)), key=lambda i: (-float(scores[i]), i))
        if np.isfinite(boxes[i]).all()
        and np.isfinite(scores[i])
        and boxes[i, 0] < boxes[i, 2]
        and boxes[i, 1] < boxes[i, 3]
    ]
    kept: list[int] = []
    for i in order:
        rivals = [j for j in kept if class_agnostic or classes[j] == classes[i]]
        if all(_iou(boxes[i], boxes[j]) <= iou for j in rivals):
            kept.append(i)
    return np.array(kept, np.int64)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return float(both / union)


def suppress(
    boxes_xyxy: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    iou: float,
    *,
    class_agnostic: bool = False,
    max_detections: int | None = None,
) -> np.ndarray:
    """As `suppress_reference`, but fast, and stops after max_detections boxes.

    Candidates are taken in blocks, best first: a block is held against all boxes kept so far,
    then against itself, with one bit set per row.
    """
    boxes = np.asarray(boxes_xyxy, np.float64).reshape(-1, 4)
    order = _sorted_candidates(boxes, np.asarray(scores))
    boxes, groups = boxes[order], None if class_agnostic else np.asarray(classes)[order]
    limit = len(order) if max_detections is None else max_detections
    kept = np.empty(0, np.int64)
    start, size = 0, _BLOCK
    while start < len(order) and len(kept) < limit:
        block = np.arange(start, min(start + size, len(order)))
        start += size
        if len(kept):
            block = block[~_overlap(boxes, groups, block, kept, iou).any(axis=1)]
        chosen = _greedy(_overlap(boxes, groups, block, block, iou))
        kept = np.concatenate((kept, block[chosen]))
        # Where most of a block fell to boxes kept before, larger blocks waste less on calls.
        size = _BLOCK if len(block) > _BLOCK else min(2 * size, _MAX_BLOCK)
    return order[kept[:limit]]


def _sorted_candidates(boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    x1, y1, x2, y2 = boxes.T
    usable = np.isfinite(boxes).all(axis=1) & np.isfinite(scores) & (x1 < x2) & (y1 < y2)
    found = np.flatnonzero(usable)
    return found[np.argsort(-scores[found], kind="stable")]


def _overlap(
    boxes: np.ndarray,
    groups: np.ndarray | None,
    rows: np.ndarray,
    columns: np.ndarray,
    iou: float,
) -> np.ndarray:
    """(rows, columns) bool: which suppress each other."""
    overlap = iou_matrix(boxes[rows], boxes[columns]) > iou
    if groups is not None:
        overlap &= groups[rows][:, None] == groups[columns]
    return overlap


def _greedy(overlap: np.ndarray) -> list[int]:
    """Indices kept of a block that is sorted best first."""
    packed = np.packbits(overlap, axis=1, bitorder="little")
    row_bytes, flat = packed.shape[1], packed.tobytes()
    kept, dropped = [], 0
    for i in range(len(overlap)):
        if not dropped >> i & 1:
            kept.append(i)
            dropped |= int.from_bytes(flat[i * row_bytes : (i + 1) * row_bytes], "little")
    return kept


def finish(
    candidates: Candidates,
    placement: Placement,
    thresholds: Thresholds,
    *,
    class_agnostic: bool = False,
) -> Detections:
    """Make detections of one picture's candidates.

    Overlaps are suppressed unless the candidates are final; the best max_detections remain, of
    equal scores the earlier; boxes go back to source pixels and are cut at the border, and boxes
    with nothing left are dropped. Key points are not cut.

    Of more than MAX_CANDIDATES candidates only the best MAX_CANDIDATES are looked at.

    Args:
        candidates: As a head read them.
        placement: Where the picture lay in the input.
        thresholds: iou and max_detections count here; the head has applied score.
        class_agnostic: As in HeadRule.
    """
    if thresholds.max_detections < 0:
        raise InputError(
            f"max_detections must be 0 or more, it is {thresholds.max_detections}; raise it"
        )
    boxes, scores, classes = candidates.boxes_xyxy, candidates.scores, candidates.classes
    points = candidates.keypoints_xy
    if len(scores) > MAX_CANDIDATES:
        best = np.sort(np.argsort(-scores, kind="stable")[:MAX_CANDIDATES])
        boxes, scores, classes = boxes[best], scores[best], classes[best]
        points = None if points is None else points[best]
    limit = thresholds.max_detections
    if candidates.is_final:
        kept = _sorted_candidates(boxes, scores)[:limit]
    else:
        kept = suppress(
            boxes,
            scores,
            classes,
            thresholds.iou,
            class_agnostic=class_agnostic,
            max_detections=limit,
        )
    found = np.asarray(boxes[kept], np.float32)
    if candidates.frame == "input":
        found = to_source(found, placement)
    found = clip(found, placement.source_wh)
    is_left = (found[:, 0] < found[:, 2]) & (found[:, 1] < found[:, 3])
    if not is_left.all():
        kept, found = kept[is_left], found[is_left]
    if points is not None:
        points = np.asarray(points[kept], np.float32)
        if candidates.frame == "input":
            points = points_to_source(points, placement)
    return Detections(
        boxes_xyxy=np.ascontiguousarray(found, np.float32),
        scores=np.ascontiguousarray(scores[kept], np.float32),
        classes=np.ascontiguousarray(classes[kept], np.int32),
        keypoints_xy=points,
    )
