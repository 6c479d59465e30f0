"""Geometry of boxes and key points."""

from __future__ import annotations

import numpy as np

from saccade.types import Placement

__all__ = ["clip", "iou_matrix", "points_to_source", "to_source"]


def iou_matrix(boxes_xyxy: np.ndarray, others_xyxy: np.ndarray) -> np.ndarray:
    """Intersection over union of each box with each other box.

    Args:
        boxes_xyxy: (k, 4), x1 <= x2 and y1 <= y2.
        others_xyxy: (m, 4), likewise.

    Returns:
        (k, m) float64 in [0, 1]; 0 where both boxes are empty.
    """
    a = np.asarray(boxes_xyxy, np.float64).reshape(-1, 4)
    b = np.asarray(others_xyxy, np.float64).reshape(-1, 4)
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a.T[:, :, None], b.T[:, None, :]
    width = np.minimum(ax2, bx2)
    width -= np.maximum(ax1, bx1)
    np.maximum(width, 0, out=width)
    height = np.minimum(ay2, by2)
    height -= np.maximum(ay1, by1)
    np.maximum(height, 0, out=height)
    width *= height
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1)
    union -= width
    union[union <= 0] = 1
    width /= union
    iou: np.ndarray = width
    return iou


def clip(boxes_xyxy: np.ndarray, size_wh: tuple[int, int]) -> np.ndarray:
    """Cut boxes, (k, 4), at the picture's border; a new array of the same dtype."""
    w, h = size_wh
    inside: np.ndarray = np.clip(boxes_xyxy, 0, np.array((w, h, w, h), boxes_xyxy.dtype))
    return inside


def to_source(boxes_xyxy: np.ndarray, placement: Placement) -> np.ndarray:
    """Boxes, (k, 4), from pixels of the input to pixels of the source; float32."""
    return points_to_source(boxes_xyxy.reshape(-1, 2, 2), placement).reshape(-1, 4)


def points_to_source(points_xy: np.ndarray, placement: Placement) -> np.ndarray:
    """Points, (..., 2), from pixels of the input to pixels of the source; float32."""
    offset, scale = np.asarray(placement.offset_xy), np.asarray(placement.scale_xy)
    moved: np.ndarray = ((points_xy - offset) / scale).astype(np.float32)
    return moved
