"""Two sets of boxes on one small picture, as JPEG inside the page."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from saccade.types import Detections
from saccade.vision.boxes import iou_matrix
from saccade.vision.draw import encode_jpeg

if TYPE_CHECKING:
    from saccade.builder.report import Difference

__all__ = ["data_uris", "draw_both", "is_matched"]

MATCH_IOU = 0.5
_REFERENCE_RGB = (30, 144, 255)
_CHOSEN_RGB = (255, 140, 0)
_WIDTH_PX = 460
_QUALITY = 68


def data_uris(differing: Sequence[Difference], room_bytes: int) -> Iterator[str]:
    """One URI per picture, for as many of the first as fit."""
    for one in differing:
        picture = draw_both(one.picture_rgb, one.reference, one.chosen)
        uri = "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(picture, _QUALITY)).decode()
        # 1 KB for its caption.
        room_bytes -= len(uri) + 1_000
        if room_bytes < 0:
            return
        yield uri


def draw_both(picture_rgb: np.ndarray, reference: Detections, chosen: Detections) -> np.ndarray:
    """A small copy with both sets of boxes; what only one set has is drawn thick.

    Args:
        picture_rgb: (h, w, 3) uint8, RGB.
        reference: In blue.
        chosen: In orange.

    Returns:
        (h', w', 3) uint8, RGB, at most 460 pixels wide or high.
    """
    scale = min(1.0, _WIDTH_PX / max(picture_rgb.shape[:2]))
    size_wh = tuple(max(1, round(side * scale)) for side in picture_rgb.shape[1::-1])
    canvas = cv2.resize(picture_rgb, size_wh, interpolation=cv2.INTER_AREA)
    both = ((reference, chosen, _REFERENCE_RGB, 0), (chosen, reference, _CHOSEN_RGB, 1))
    for is_thick in (False, True):
        for own, other, color, inset in both:
            for box, matched in zip(own.boxes_xyxy, is_matched(own, other), strict=True):
                if bool(matched) != is_thick:
                    x1, y1, x2, y2 = (round(float(v) * scale) for v in box)
                    corner = (x1 + inset, y1 + inset), (x2 - 1 - inset, y2 - 1 - inset)
                    cv2.rectangle(canvas, *corner, color, 3 if is_thick else 1)
    return np.asarray(canvas)


def is_matched(own: Detections, other: Detections) -> np.ndarray:
    """(k,) bool: whether the other set has a box of the same class with an IoU of one half."""
    if not len(own) or not len(other):
        return np.zeros(len(own), bool)
    overlap = iou_matrix(own.boxes_xyxy, other.boxes_xyxy)
    same = own.classes[:, None] == other.classes[None, :]
    return np.asarray(((overlap >= MATCH_IOU) & same).any(axis=1))
