"""Detections drawn onto a picture."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np
import simplejpeg

from saccade.errors import InputError
from saccade.types import Detections

__all__ = ["color_of", "draw", "encode_jpeg"]

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_GOLDEN = 0.618034


def color_of(index: int) -> tuple[int, int, int]:
    """A bright RGB colour; neighbouring classes lie far apart on the colour wheel."""
    hue = (0.02 + index * _GOLDEN) % 1.0
    value = (1.0, 0.8, 0.9)[index % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw(picture_rgb: np.ndarray, detections: Detections, labels: Sequence[str] = ()) -> np.ndarray:
    """Draw boxes, labels with scores, and key points onto a copy.

    Args:
        picture_rgb: (h, w, 3) uint8, RGB.
        detections: In source pixels of this picture.
        labels: Class names; a class without one shows its number.

    Returns:
        A new picture like `picture_rgb`.

    Raises:
        InputError: The picture is not uint8 RGB.
    """
    if picture_rgb.ndim != 3 or picture_rgb.shape[2] != 3 or picture_rgb.dtype != np.uint8:
        raise InputError(
            f"picture_rgb must be uint8 of shape (h, w, 3), got {picture_rgb.dtype} of shape "
            f"{picture_rgb.shape}; decode it with color 'rgb'"
        )
    canvas = np.array(picture_rgb, order="C")
    h, w = canvas.shape[:2]
    line = max(1, round(max(h, w) / 480))
    # The worst first, so that the best are on top.
    for k in range(len(detections) - 1, -1, -1):
        index = int(detections.classes[k])
        color = color_of(index)
        x1, y1, x2, y2 = (round(float(v)) for v in detections.boxes_xyxy[k])
        cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), color, line)
        if detections.keypoints_xy is not None:
            _draw_points(canvas, detections.keypoints_xy[k], color, line)
        name = labels[index] if 0 <= index < len(labels) else str(index)
        _draw_tag(canvas, f"{name} {float(detections.scores[k]):.2f}", (x1, y1), color, line)
    return canvas


def _draw_points(
    canvas: np.ndarray, points_xy: np.ndarray, color: tuple[int, int, int], line: int
) -> None:
    for x, y in points_xy:
        if np.isfinite(x) and np.isfinite(y) and max(abs(x), abs(y)) < 1e6:
            at = (round(float(x)), round(float(y)))
            cv2.circle(canvas, at, line + 2, (255, 255, 255), cv2.FILLED, cv2.LINE_AA)
            cv2.circle(canvas, at, line + 1, color, cv2.FILLED, cv2.LINE_AA)


def _draw_tag(
    canvas: np.ndarray, text: str, at_xy: tuple[int, int], color: tuple[int, int, int], line: int
) -> None:
    """Text on a filled tag above the box, or inside it at the picture's top; never cut off."""
    h, w = canvas.shape[:2]
    scale, margin = 0.38 + 0.12 * line, 2 + line
    # OpenCV's fonts know ASCII only and would draw several marks for one other letter.
    text = text.encode("ascii", "replace").decode()
    (text_w, text_h), below = cv2.getTextSize(text, _FONT, scale, max(1, line // 2 + line % 2))
    tag_w, tag_h = text_w + 2 * margin, text_h + below + 2 * margin - 2
    x = max(0, min(at_xy[0] - line // 2, w - tag_w))
    y = at_xy[1] - tag_h if at_xy[1] >= tag_h else min(at_xy[1], max(0, h - tag_h))
    cv2.rectangle(canvas, (x, y), (x + tag_w, y + tag_h), color, cv2.FILLED)
    red, green, blue = color
    is_light = 0.299 * red + 0.587 * green + 0.114 * blue > 140
    ink = (0, 0, 0) if is_light else (255, 255, 255)
    origin = (x + margin, y + margin + text_h - 1)
    cv2.putText(canvas, text, origin, _FONT, scale, ink, max(1, line // 2 + line % 2), cv2.LINE_AA)


def encode_jpeg(picture_rgb: np.ndarray, quality: int = 90) -> bytes:
    """(h, w, 3) uint8 RGB as a JPEG file with full colour resolution."""
    if not 1 <= quality <= 100:
        raise InputError(f"quality must be 1 to 100, got {quality}; 90 is a good choice")
    encoded: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(picture_rgb), quality)
    return encoded
