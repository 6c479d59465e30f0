"""PNG: every chunk is checked, then OpenCV decodes what the pixels need."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from saccade.errors import PictureError
from saccade.vision.exif import orientation_of_block

__all__ = ["SIGNATURE", "decode", "read_wh"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Colour profiles, gamma, transparency and animation are left out: they only make libpng warn on
# the terminal, blend, or pick another frame.
_KEPT = frozenset((b"IHDR", b"PLTE", b"IDAT", b"IEND"))


@dataclass(frozen=True, slots=True)
class _Chunks:
    file: bytes
    orientation: int


def read_wh(data: Any) -> tuple[int, int]:
    """Width and height from the first chunk.

    Raises:
        PictureError: The file ends before, or begins with another chunk.
    """
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise _broken("it ends inside its header")
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def decode(data: Any, color: str) -> tuple[np.ndarray, int]:
    """Decode as stored, alpha dropped.

    Args:
        data: The file.
        color: "rgb" or "bgr".

    Returns:
        The picture, (h, w, 3) uint8 or uint16 as stored, and the EXIF orientation.

    Raises:
        PictureError: Truncated, a checksum is wrong, or the pixels do not unpack.
    """
    chunks = _check(data)
    flags = cv2.IMREAD_ANYDEPTH | (cv2.IMREAD_COLOR_RGB if color == "rgb" else cv2.IMREAD_COLOR)
    try:
        picture = cv2.imdecode(np.frombuffer(chunks.file, np.uint8), flags)
    except cv2.error as exc:
        raise _broken(str(exc).strip()) from exc
    if picture is None:
        raise _broken("its pixels do not unpack")
    return picture, chunks.orientation


def _check(data: Any) -> _Chunks:
    at, kept, orientation, kind = 8, [SIGNATURE], 1, b""
    view = memoryview(data)
    while kind != b"IEND":
        if at + 12 > len(view):
            raise _broken(f"it ends at byte {len(view)} before its end chunk")
        (length,) = struct.unpack_from(">I", view, at)
        kind = bytes(view[at + 4 : at + 8])
        after = at + 12 + length
        if after > len(view):
            raise _broken(f"it ends at byte {len(view)} inside the chunk {kind!r}")
        if kind in _KEPT:
            (stored,) = struct.unpack_from(">I", view, after - 4)
            if zlib.crc32(view[at + 4 : after - 4]) != stored:
                raise _broken(f"the checksum of the chunk {kind!r} at byte {at} is wrong")
            kept.append(bytes(view[at:after]))
        elif kind == b"eXIf":
            orientation = orientation_of_block(bytes(view[at + 8 : after - 4]))
        at = after
    return _Chunks(b"".join(kept), orientation)


def _broken(why: str) -> PictureError:
    return PictureError(
        f"a PNG must be complete and intact, this one is not ({why}); "
        "fetch or export the picture again"
    )
