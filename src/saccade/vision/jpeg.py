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
        is_untidy: Whether the header has what libjpeg warns of without harm to a pixel: bytes
            between segments that belong to none, or an unknown JFIF version.
        scan_at: Where the first scan starts.
    """

    wh: tuple[int, int]
    channels: int
    orientation: int
    is_adobe: bool
    is_untidy: bool
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
    channels, orientation, is_adobe, is_untidy = 0, 1, False, False
    while at + 4 <= end:
        if data[at] != 0xFF:
            is_untidy = True
            at += 1
            continue
        marker = data[at + 1]
        if marker in (0x00, 0xFF):
            is_untidy = is_untidy or marker == 0
            at += 1
            continue
        if marker in _ALONE:
            at += 2
            continue
        if marker == 0xDA and wh is not None:
            return JpegHeader(wh, channels, orientation, is_adobe, is_untidy, at)
        if marker == 0xDA or marker == 0xD9:
            break
        length = data[at + 2] << 8 | data[at + 3]
        after = at + 2 + length
        if length < 2 or after > end:
            break
        if marker == 0xE1 and length > 16 and data[at + 4 : at + 10] == b"Exif\0\0":
            orientation = orientation_of_block(bytes(data[at + 10 : after]))
        elif marker == 0xE0 and data[at + 4 : at + 9] == b"JFIF\0":
            is_untidy = is_untidy or (length > 7 and data[at + 9] != 1)
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
    if header.is_untidy:
        data = _tidied(data)
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


def _tidied(data: Any) -> bytes:
    """The same file without what `JpegHeader.is_untidy` tells of."""
    kept, at = [b"\xff\xd8"], 2
    while True:
        marker = data[at + 1]
        if data[at] != 0xFF or marker in (0x00, 0xFF):
            at += 1
        elif marker in _ALONE:
            at += 2
        elif marker == 0xDA:
            return b"".join((*kept, bytes(data[at:])))
        else:
            after = at + 2 + (data[at + 2] << 8 | data[at + 3])
            segment = bytearray(data[at:after])
            if marker == 0xE0 and segment[4:9] == b"JFIF\0" and len(segment) > 9:
                segment[9] = 1
            kept.append(bytes(segment))
            at = after


def _broken(exc: ValueError) -> PictureError:
    return PictureError(
        f"a JPEG must be complete and intact, this one is not ({exc}); "
        "fetch or export the picture again"
    )
