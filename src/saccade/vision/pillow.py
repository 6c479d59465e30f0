"""WebP, BMP, TIFF and GIF through Pillow; 16-bit colour TIFF through OpenCV."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from PIL import BmpImagePlugin, GifImagePlugin, Image, TiffImagePlugin, WebPImagePlugin

from saccade.errors import PictureError

__all__ = ["decode"]

# The classes are called by name: Image.open would guess the format once more and warn about large
# pictures under its own limit, which is not ours.
_READERS: dict[str, Callable[[io.BytesIO], Image.Image]] = {
    "WebP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "GIF": GifImagePlugin.GifImageFile,
}
_ORIENTATION_TAG = 0x0112
_BITS_PER_SAMPLE_TAG = 258
_DEPTH_16 = frozenset(("I;16", "I;16L", "I;16B", "I;16N"))
_TOO_DEEP = frozenset(("I", "F"))


def decode(
    data: Any, kind: str, check_wh: Callable[[tuple[int, int]], None]
) -> tuple[np.ndarray, int]:
    """Decode the first frame, alpha dropped.

    Args:
        data: The file.
        kind: "WebP", "BMP", "TIFF" or "GIF".
        check_wh: Called with width and height before pixels are unpacked; raises if too large.

    Returns:
        The picture, (h, w, 3) RGB or (h, w) gray, uint8 or uint16, and the EXIF orientation that
        is still to be applied.

    Raises:
        PictureError: Truncated, corrupt, or samples deeper than 16 bits.
    """
    try:
        if kind == "WebP":
            check_wh(_webp_wh(data))
        with _READERS[kind](io.BytesIO(data)) as opened:
            check_wh(opened.size)
            return _unpack(opened, data, kind)
    except PictureError:
        raise
    # Hostile bytes make Pillow's parsers raise nearly anything, from struct.error to KeyError.
    except Exception as exc:
        raise PictureError(
            f"a {kind} must be complete and intact, this one is not ({type(exc).__name__}: {exc}); "
            "fetch or export the picture again"
        ) from exc


def _unpack(opened: Image.Image, data: Any, kind: str) -> tuple[np.ndarray, int]:
    if kind == "TIFF":
        bits = opened.tag_v2.get(_BITS_PER_SAMPLE_TAG, (1,))
        if tuple(bits)[:3] == (16, 16, 16):
            return _unpack_rgb16(data), 1
    if opened.mode in _TOO_DEEP:
        raise PictureError(
            f"samples must be 8 or 16 bits deep, this {kind} has mode {opened.mode!r} "
            "(32 bits); convert it to 16 bits"
        )
    opened.load()
    # Asked for after loading: Pillow turns a TIFF by itself then, and forgets the tag.
    orientation = opened.getexif().get(_ORIENTATION_TAG, 1)
    if orientation not in range(1, 9):
        orientation = 1
    if opened.mode in _DEPTH_16:
        return np.asarray(opened).astype(np.uint16), orientation
    frame = opened if opened.mode in ("L", "RGB") else opened.convert("RGB")
    return np.asarray(frame), orientation


def _unpack_rgb16(data: Any) -> np.ndarray:
    """Pillow would cut the samples to 8 bits. OpenCV applies the orientation itself."""
    flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if picture is None:
        raise PictureError("a 16-bit TIFF must be intact, this one does not unpack; export it anew")
    # IMREAD_COLOR_RGB is not heeded for this kind of file in OpenCV 5.0.
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))


def _webp_wh(data: Any) -> tuple[int, int]:
    """Size of a WebP before Pillow allocates its canvas.

    Source: WebP container specification (VP8X) and RFC 6386, section 9.1 (VP8).
    """
    kind, head = bytes(data[12:16]), bytes(data[20:30])
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little")
    if kind == b"VP8L":
        packed = int.from_bytes(head[1:5], "little")
        return 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", head, 6)
    return width & 0x3FFF, height & 0x3FFF
