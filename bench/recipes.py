"""How a careful script feeds the three model families and reads them, shared by the scripts.

Independent of `bench.reference` (which says what is right) and of saccade. cv2 and NumPy only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np

from bench.cases import Case

__all__ = ["Placement", "finish", "place", "prepare", "read_all", "read_kept", "suppress"]


class Placement(NamedTuple):
    """x_input = x_source * scale_xy[0] + offset_xy[0]; likewise y. source_wh in pixels."""

    scale_xy: tuple[float, float]
    offset_xy: tuple[int, int]
    source_wh: tuple[int, int]


def prepare(case: Case, picture_bgr: np.ndarray) -> tuple[np.ndarray, Placement]:
    """(h, w, 3) uint8 BGR to the (1, 3, h, w) float32 that the model wants."""
    canvas, placement = place(case, picture_bgr)
    factor = 1.0 if case.family == "yolox" else 1 / 255
    return cv2.dnn.blobFromImage(canvas, factor, swapRB=case.family == "yolov8"), placement


def place(case: Case, picture_bgr: np.ndarray) -> tuple[np.ndarray, Placement]:
    """The picture in the size of the input, still uint8 BGR, and where it lies there."""
    (height, width), (in_h, in_w) = picture_bgr.shape[:2], case.size_hw
    if case.family == "fastestdet":
        canvas = cv2.resize(picture_bgr, (in_w, in_h), interpolation=cv2.INTER_LINEAR)
        return canvas, Placement((in_w / width, in_h / height), (0, 0), (width, height))
    scale = min(in_h / height, in_w / width)
    new_w, new_h = round(width * scale), round(height * scale)
    centered = case.family == "yolov8"
    left, top = ((in_w - new_w) // 2, (in_h - new_h) // 2) if centered else (0, 0)
    canvas = np.full((in_h, in_w, 3), 114, dtype=np.uint8)
    if (new_w, new_h) == (width, height):
        resized = picture_bgr
    else:
        resized = cv2.resize(picture_bgr, (new_w, new_h), interpolation=cv2.INTER_LINEAR)
    canvas[top : top + new_h, left : left + new_w] = resized
    return canvas, Placement((new_w / width, new_h / height), (left, top), (width, height))


def read_all(case: Case, output: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every row of (1, ...) to boxes, best score and class; thresholds come later."""
    rows = _rows(case, output)
    first, grid = (4, None) if case.family == "yolov8" else (5, _grid(case))
    scores = _scores(case, rows, slice(None), first)
    boxes_xyxy = _boxes(case, rows, grid)
    return boxes_xyxy, scores.max(axis=1), scores.argmax(axis=1)


def read_kept(case: Case, output: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Only rows that can pass the threshold: a cheap test first, then the arithmetic."""
    rows = _rows(case, output)
    if case.family == "yolov8":
        scores = output[0, 4:]
        best = scores.max(axis=0)
        kept = np.flatnonzero(best > case.score)
        return _boxes(case, rows[kept], None), best[kept], scores[:, kept].argmax(axis=0)
    least = case.score if case.family == "yolox" else case.score ** (1 / 0.6)
    kept = np.flatnonzero(rows[:, 4 if case.family == "yolox" else 0] > least)
    scores = _scores(case, rows, kept, 5)
    best = scores.max(axis=1) if len(kept) else np.empty(0, np.float32)
    passed = best > case.score
    kept, scores = kept[passed], scores[passed]
    boxes_xyxy = _boxes(case, rows[kept], _grid(case)[kept])
    return boxes_xyxy, best[passed], scores.argmax(axis=1) if len(kept) else np.empty(0, int)


def _rows(case: Case, output: np.ndarray) -> np.ndarray:
    if case.family == "yolox":
        return output[0]
    return output[0].reshape(output.shape[1], -1).T


def _scores(case: Case, rows: np.ndarray, kept: Any, first: int) -> np.ndarray:
    if case.family == "yolov8":
        return rows[kept, first:]
    if case.family == "yolox":
        return rows[kept, first:] * rows[kept, 4:5]
    return rows[kept, first:] ** 0.4 * rows[kept, :1] ** 0.6


def _boxes(case: Case, rows: np.ndarray, grid: np.ndarray | None) -> np.ndarray:
    if grid is None:
        xy, wh = rows[:, :2], rows[:, 2:4]
    elif case.family == "yolox":
        xy, wh = (rows[:, :2] + grid[:, :2]) * grid[:, 2:], np.exp(rows[:, 2:4]) * grid[:, 2:]
    else:
        in_h, in_w = case.size_hw
        xy = (np.tanh(rows[:, 1:3]) + grid[:, :2]) * grid[:, 2:]
        wh = np.array([in_w, in_h], np.float32) / (1 + np.exp(-rows[:, 3:5]))
    return np.concatenate([xy - wh / 2, xy + wh / 2], axis=1)


_GRIDS: dict[str, np.ndarray] = {}


def _grid(case: Case) -> np.ndarray:
    """Column, row and stride of every cell, (n, 3) float32."""
    if case.name not in _GRIDS:
        parts = []
        for stride in (8, 16, 32) if case.family == "yolox" else (16,):
            row, column = np.mgrid[: case.size_hw[0] // stride, : case.size_hw[1] // stride]
            cells = [column.ravel(), row.ravel(), np.full(row.size, stride)]
            parts.append(np.stack(cells, axis=1))
        _GRIDS[case.name] = np.concatenate(parts).astype(np.float32)
    return _GRIDS[case.name]


def suppress(boxes_xyxy: np.ndarray, scores: np.ndarray, iou: float) -> list[int]:
    """The greedy suppression that every tutorial shows; one class at a time."""
    x1, y1, x2, y2 = boxes_xyxy.T
    areas = (x2 - x1) * (y2 - y1)
    order = scores.argsort()[::-1]
    kept = []
    while order.size:
        best, rest = order[0], order[1:]
        kept.append(int(best))
        w = np.minimum(x2[best], x2[rest]) - np.maximum(x1[best], x1[rest])
        h = np.minimum(y2[best], y2[rest]) - np.maximum(y1[best], y1[rest])
        shared = np.maximum(w, 0) * np.maximum(h, 0)
        order = rest[shared / (areas[best] + areas[rest] - shared) <= iou]
    return kept


def finish(
    case: Case,
    place: Placement,
    boxes_xyxy: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Suppress per class by shifting classes apart, then go back to source pixels."""
    if not len(scores):
        return boxes_xyxy.reshape(0, 4), scores, classes
    kept = suppress(boxes_xyxy + classes[:, None] * 8192.0, scores, case.iou)
    boxes_xyxy = boxes_xyxy[kept] - np.array(place.offset_xy * 2, np.float32)
    boxes_xyxy = boxes_xyxy / np.array(place.scale_xy * 2, np.float32)
    boxes_xyxy = np.clip(boxes_xyxy, 0, np.array(place.source_wh * 2, np.float32))
    return boxes_xyxy, scores[kept], classes[kept]
