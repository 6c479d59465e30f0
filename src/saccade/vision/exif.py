"""Which way up a picture is: reading the EXIF orientation and applying it."""

from __future__ import annotations

import struct

import cv2
import numpy as np

__all__ = ["apply", "orientation_of_block"]

_ORIENTATION_TAG = 0x0112
_MAX_ENTRIES = 1000


def orientation_of_block(block: bytes) -> int:
    """Orientation in a TIFF block (what follows "Exif\\0\\0" in a JPEG): 1 to 8, 1 if untold.

    A damaged block says nothing, so the picture stays as it is stored; no length in the block is
    trusted.

    Source: EXIF 2.32, sections 4.6.2 (structure) and 4.6.4 (tag 0x0112).
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(block[:4]))
    if order is None or len(block) < 8:
        return 1
    start = struct.unpack_from(order + "I", block, 4)[0]
    if start + 2 > len(block):
        return 1
    count = struct.unpack_from(order + "H", block, start)[0]
    last = min(start + 2 + 12 * min(count, _MAX_ENTRIES), len(block) - 11)
    for at in range(start + 2, last, 12):
        tag, kind, num, value = struct.unpack_from(order + "HHIH", block, at)
        if tag == _ORIENTATION_TAG:
            return value if kind == 3 and num == 1 and 1 <= value <= 8 else 1
    return 1


def apply(picture: np.ndarray, orientation: int, out: np.ndarray | None = None) -> np.ndarray:
    """Turn a stored picture as a viewer shows it.

    Args:
        picture: (h, w) or (h, w, c), uint8 or uint16.
        orientation: EXIF orientation, 1 to 8.
        out: Where to write, C-contiguous, of the size that comes out; a new array if None.

    Returns:
        `out` or a new array; for orientation 1 the picture itself.
    """
    if orientation == 1:
        return picture
    if out is None:
        h, w = picture.shape[:2]
        size_hw = (w, h) if orientation >= 5 else (h, w)
        out = np.empty((*size_hw, *picture.shape[2:]), picture.dtype)
    match orientation:
        case 2:
            cv2.flip(picture, 1, dst=out)
        case 3:
            cv2.rotate(picture, cv2.ROTATE_180, dst=out)
        case 4:
            cv2.flip(picture, 0, dst=out)
        case 5:
            cv2.transpose(picture, dst=out)
        case 6:
            cv2.rotate(picture, cv2.ROTATE_90_CLOCKWISE, dst=out)
        case 7:
            cv2.transpose(picture[::-1, ::-1], dst=out)
        case _:
            cv2.rotate(picture, cv2.ROTATE_90_COUNTERCLOCKWISE, dst=out)
    return out
