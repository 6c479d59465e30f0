"""Pictures that are decoded already: from a caller's RGB array to the order a network wants."""

from __future__ import annotations

import cv2
import numpy as np

from saccade.errors import PictureError
from saccade.types import Color

__all__ = ["from_rgb"]


def from_rgb(picture: np.ndarray, color: Color, bits: int, max_pixels: int) -> np.ndarray:
    """Put an RGB picture into another channel order and depth.

    Args:
        picture: (h, w, 3) uint8 RGB.
        color: Order of the result; "gray" gives (h, w).
        bits: 8, or 16 to widen samples to uint16 (v * 257).
        max_pixels: Larger pictures are refused, as they are when decoded.

    Returns:
        The picture itself if it has that order and depth, else a new array.

    Raises:
        PictureError: The array is too large.
    """
    height, width = picture.shape[:2]
    if height * width > max_pixels:
        raise PictureError(
            f"a picture must have at most {max_pixels} pixels, this array has {height * width} "
            f"({width}x{height}); raise --max-pixels if that is right"
        )
    if color == "bgr":
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    elif color == "gray":
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    return picture if bits == 8 else picture * np.uint16(257)
