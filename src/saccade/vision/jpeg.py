"""JPEG: the header in microseconds, and pixels that are complete or an error."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import simplejpeg

from saccade.errors import PictureError
from saccade.vision.exif import orientation_of_block

__all__ = ["JpegHeader", "decode", "read_header"]

_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))
_STRAY = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """What stands before the pixels.

    Attributes:
        wh: Stored width and height, before orientation.
        channels: 1, 3 or 4.
        orientation: EXIF orientation, 1 to 8.
        is_adobe: Whether an Adobe segment exists (then CMYK is stored inverted).
        has_stray: Whether bytes that belong to no segment stand between segments.
        scan_at: Where the first scan starts.
    """

    wh: tuple[int, int]
    channels: int
    orientation: int
    is_adobe: bool
    has_stray: bool
    scan_at: int


def read_header(data: Any) -> JpegHeader:
    """Walk the segments up to the first scan.

    Args:
        data: bytes, bytearray or memoryview of a file that starts with FF D8.

    Raises:
        PictureError: The file ends or breaks off before its size and first scan.

    Source: ITU-T T.81, annex B.
    """
    at, end = 2, len(data)
    wh: tuple[int, int] | None = None
    channels, orientation, is_adobe, has_stray = 0, 1, False, False
    while at + 4 <= end:
        if data[at] != 0xFF:
            has_stray = True
            at += 1
            continue
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker in _ALONE:
            at += 2
            continue
        if marker == 0xDA and wh is not None:
            return JpegHeader(wh, channels, orientation, is_adobe, has_stray, at)
        if marker == 0xDA or marker == 0xD9:
            break
        length = data[at + 2] << 8 | data[at + 3]
        after = at + 2 + length
        if length < 2 or after > end:
            break
        if marker == 0xE1 and length > 16 and data[at + 4 : at + 10] == b"Exif\0\0":
            orientation = orientation_of_block(bytes(data[at + 10 : after]))
        elif marker == 0xEE and data[at + 4 : at + 9] == b"Adobe":
            is_adobe = True
        elif marker in _FRAME_MARKERS and length >= 8:
            wh = (data[at + 7] << 8 | data[at + 8], data[at + 5] << 8 | data[at + 6])
            channels = data[at + 9]
        at = after
    raise PictureError(
        f"a JPEG must have a complete header, this one of {end} bytes breaks off at byte "
        f"{min(at, end)}; fetch or export the picture again"
    )


def decode(
    data: Any,
    header: JpegHeader,
    color: str,
    buffer: np.ndarray,
    min_wh: tuple[int, int] | None = None,
) -> np.ndarray:
    """Decode as stored, without orientation, with the exact DCT and upsampling.

    Args:
        data: The file.
        header: Of that file.
        color: "rgb", "bgr" or "gray".
        buffer: uint8, at least w * h * channels of `color` long; the result lies in it.
        min_wh: Allows decoding at a smaller scale that is at least this wide and high.

    Returns:
        (h, w, 3), or (h, w) for gray; uint8.

    Raises:
        PictureError: Truncated or corrupt.
    """
    if header.has_stray:
        data = _without_stray(data)
    if header.channels == 4:
        return _decode_cmyk(data, header, color)
    min_width, min_height = min_wh or (0, 0)
    try:
        picture = simplejpeg.decode_jpeg(
            data, color, min_width=min_width, min_height=min_height, buffer=buffer
        )
    except ValueError as exc:
        if not _is_harmless(str(exc), data, header):
            raise _broken(exc) from exc
        picture = _decode_lenient(data, color, min_wh or (0, 0))
    stored: np.ndarray = picture[:, :, 0] if color == "gray" else picture
    return stored


def _decode_lenient(data: Any, color: str, min_wh: tuple[int, int]) -> np.ndarray:
    try:
        picture: np.ndarray = simplejpeg.decode_jpeg(
            data, color, min_width=min_wh[0], min_height=min_wh[1], strict=False
        )
    except ValueError as exc:
        raise _broken(exc) from exc
    return picture


def _decode_cmyk(data: Any, header: JpegHeader, color: str) -> np.ndarray:
    """Inks to light: each of red, green, blue is what its ink and black let through."""
    try:
        cmyk = simplejpeg.decode_jpeg(data, "CMYK")
    except ValueError as exc:
        raise _broken(exc) from exc
    light = cmyk if header.is_adobe else 255 - cmyk
    order = (2, 1, 0) if color == "bgr" else (0, 1, 2)
    black = light[:, :, 3]
    planes = [cv2.multiply(light[:, :, c], black, scale=1 / 255) for c in order]
    picture: np.ndarray = cv2.merge(planes)
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)) if color == "gray" else picture


def _is_harmless(message: str, data: Any, header: JpegHeader) -> bool:
    """Whether libjpeg's complaint leaves every pixel right.

    Some writers put padding between the last pixel and the end marker. A scan that lost its
    place also ends with bytes to spare, but these are compressed pixels: many and unequal.
    """
    found = _STRAY.match(message)
    if not found:
        return False
    num = int(found[1])
    body = bytes(data[header.scan_at :])
    stop = body.find(b"\xff\xd9")
    return num <= 2 or len(set(body[max(0, stop - num) : stop])) == 1


def _without_stray(data: Any) -> bytes:
    """The same file without the bytes between header segments that belong to none."""
    kept, at = [b"\xff\xd8"], 2
    while True:
        while data[at] != 0xFF or data[at + 1] == 0xFF or data[at + 1] in _ALONE:
            at += 2 if data[at] == 0xFF and data[at + 1] in _ALONE else 1
        if data[at + 1] == 0xDA:
            return b"".join((*kept, bytes(data[at:])))
        after = at + 2 + (data[at + 2] << 8 | data[at + 3])
        kept.append(bytes(data[at:after]))
        at = after


def _broken(exc: ValueError) -> PictureError:
    return PictureError(
        f"a JPEG must be complete and intact, this one is not ({exc}); "
        "fetch or export the picture again"
    )
