"""Resizing: the plain NumPy definition of every interpolation, and Pillow's antialias filter."""

from __future__ import annotations

import numpy as np
from PIL import Image

from saccade.types import Interpolation

__all__ = ["resample_antialias", "resample_reference"]


def resample_reference(
    picture: np.ndarray, size_hw: tuple[int, int], interpolation: Interpolation
) -> np.ndarray:
    """Resize in float64, rows and columns apart.

    Pixel centres are at half-integers and the border pixel is repeated, except for "nearest" and
    for "area" that enlarges, which follow OpenCV.

    Args:
        picture: (h, w, c), any integer dtype.
        size_hw: New height and width.
        interpolation: As in InputRule.

    Returns:
        (size_hw[0], size_hw[1], c) float64, neither rounded nor clipped; "antialias" of 8-bit
        pictures is rounded between the two passes, as Pillow does.
    """
    h, w = picture.shape[:2]
    new_h, new_w = size_hw
    values = picture.astype(np.float64)
    if (h, w) == size_hw:
        return values
    is_area = interpolation == "area" and new_h <= h and new_w <= w
    columns = _weights(w, new_w, interpolation, is_area)
    rows = _weights(h, new_h, interpolation, is_area)
    values = np.einsum("xw,hwc->hxc", columns, values, optimize=True)
    if interpolation == "antialias" and picture.dtype == np.uint8:
        values = np.clip(np.floor(values + 0.5), 0, 255)
    resized: np.ndarray = np.einsum("yh,hxc->yxc", rows, values, optimize=True)
    return resized


def _weights(old: int, new: int, interpolation: Interpolation, is_area: bool) -> np.ndarray:
    """(new, old): how much each old sample gives to each new one."""
    # Rounded twice like OpenCV's, which decides where i * scale falls on a whole number.
    scale = 1 / (new / old)
    weights = np.zeros((new, old))
    for i in range(new):
        if interpolation == "nearest":
            taps = [(int(i * scale), 1.0)]
        elif interpolation == "antialias":
            taps = _triangle_taps(i, scale, old)
        elif is_area:
            taps = _overlap_taps(i, scale, old)
        elif interpolation == "area":
            taps = _enlarging_area_taps(i, scale)
        elif interpolation == "cubic":
            taps = _cubic_taps((i + 0.5) * scale - 0.5)
        else:
            x = (i + 0.5) * scale - 0.5
            left = int(np.floor(x))
            taps = [(left, 1 - (x - left)), (left + 1, x - left)]
        for at, weight in taps:
            weights[i, min(max(at, 0), old - 1)] += weight
    return weights


def _triangle_taps(i: int, scale: float, old: int) -> list[tuple[int, float]]:
    support = max(scale, 1.0)
    center = (i + 0.5) * scale
    first, last = max(int(center - support + 0.5), 0), min(int(center + support + 0.5), old)
    raw = [max(0.0, 1 - abs((x + 0.5 - center) / support)) for x in range(first, last)]
    return [(first + k, weight / sum(raw)) for k, weight in enumerate(raw)]


def _overlap_taps(i: int, scale: float, old: int) -> list[tuple[int, float]]:
    start, stop = i * scale, (i + 1) * scale
    cells = range(int(start), min(int(np.ceil(stop)), old))
    return [(x, max(0.0, min(stop, x + 1) - max(start, x)) / scale) for x in cells]


def _enlarging_area_taps(i: int, scale: float) -> list[tuple[int, float]]:
    left = int(np.floor(i * scale))
    # In single precision, as in OpenCV: a part just below 1 becomes 0.
    part = float(np.float32((i + 1) - (left + 1) / scale))
    part = 0.0 if part <= 0 else part - int(part)
    return [(left, 1 - part), (left + 1, part)]


def _cubic_taps(x: float) -> list[tuple[int, float]]:
    """Source: R. Keys, "Cubic convolution interpolation", 1981, with a = -0.75 as OpenCV has it."""
    a, left = -0.75, int(np.floor(x))
    t = x - left

    def near(d: float) -> float:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: float) -> float:
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    kernel = (far(t + 1), near(t), near(1 - t), far(2 - t))
    return [(left - 1 + k, weight) for k, weight in enumerate(kernel)]


def resample_antialias(picture: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Resize with Pillow's bilinear filter, a triangle that widens when shrinking.

    Args:
        picture: (h, w, 3) or (h, w), uint8 or uint16.
        size_hw: New height and width.

    Returns:
        A new array of the picture's dtype.
    """
    size_wh = size_hw[::-1]
    if picture.dtype == np.uint8:
        resized = Image.fromarray(picture).resize(size_wh, Image.Resampling.BILINEAR)
        return np.asarray(resized)
    if picture.ndim == 3:
        planes = [resample_antialias(picture[:, :, c], size_hw) for c in range(picture.shape[2])]
        return np.stack(planes, axis=-1)
    # Pillow resizes 16-bit samples only as floating-point ones.
    deep = Image.fromarray(picture.astype(np.float32)).resize(size_wh, Image.Resampling.BILINEAR)
    rounded: np.ndarray = np.clip(np.rint(np.asarray(deep)), 0, 65535).astype(np.uint16)
    return rounded
