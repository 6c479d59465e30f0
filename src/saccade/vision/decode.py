"""From bytes or files to pixels: exact, upright, within limits, or a PictureError that says why."""

from __future__ import annotations

import os
from typing import Any, Literal

import cv2
import numpy as np

from saccade.errors import InputError, PictureError
from saccade.types import Color
from saccade.vision import exif, jpeg, png

__all__ = ["DEFAULT_MAX_PIXELS", "Decoder"]

DEFAULT_MAX_PIXELS = 50_000_000
_FORMATS = "JPEG, PNG, WebP, BMP, TIFF or GIF"
_LOOKS = (
    (b"<svg", "SVG"),
    (b"<!doctype html", "HTML"),
    (b"<html", "HTML"),
    (b"<?xml", "XML or SVG"),
    (b"%pdf", "PDF"),
    (b"\0\0\0\x0cjp  ", "JPEG 2000"),
)


class Decoder:
    """Decodes pictures into its own buffers. One per thread.

    The format follows from the first bytes, never from the file's name. Alpha is dropped, not
    blended; of animations and multi-picture files the first picture is taken.

    Args:
        color: Channel order of the result.
        bits: 8, or 16 for uint16 results: 8-bit samples become v * 257. With 8, 16-bit samples
            become v / 257, rounded.
        max_pixels: Pictures whose header claims more are refused before memory is reserved.
        scaled_for_wh: Lets JPEG pictures be decoded at a smaller scale that is still at least
            this wide and high. Faster, but not the same pixels as shrinking the full picture.

    Attributes:
        source_wh: Width and height of the last picture, upright and in full.
    """

    def __init__(
        self,
        color: Color = "rgb",
        *,
        bits: Literal[8, 16] = 8,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        scaled_for_wh: tuple[int, int] | None = None,
    ) -> None:
        if color not in ("rgb", "bgr", "gray") or bits not in (8, 16):
            raise InputError(
                f"color must be rgb, bgr or gray and bits 8 or 16; got {color!r} and {bits!r}"
            )
        self.source_wh = (0, 0)
        self._color = color
        self._bits = bits
        self._max_pixels = max_pixels
        self._scaled_for_wh = scaled_for_wh
        self._num_channels = 1 if color == "gray" else 3
        self._pixels = np.empty(0, np.uint8)
        self._upright = np.empty(0, np.uint8)
        self._file = bytearray()

    def read(self, path: str | os.PathLike[str]) -> np.ndarray:
        """Decode a file.

        Returns:
            As `decode`.

        Raises:
            PictureError: The file cannot be read or is no picture; the message names it.
        """
        try:
            data = self._read_bytes(path)
        except IsADirectoryError as exc:
            raise PictureError(
                f"a picture must be a file, {os.fspath(path)!r} is a folder; name the files in it"
            ) from exc
        except (OSError, ValueError) as exc:
            reason = getattr(exc, "strerror", None) or str(exc)
            raise PictureError(
                f"a picture must be a readable file, {os.fspath(path)!r} is not ({reason}); "
                "check the path and its permissions"
            ) from exc
        try:
            return self.decode(data)
        except PictureError as exc:
            raise PictureError(f"{os.fspath(path)}: {exc}") from exc

    def decode(self, data: bytes | bytearray | memoryview) -> np.ndarray:
        """Decode a file's content.

        Returns:
            (h, w, 3), or (h, w) for gray; uint8, or uint16 with bits=16; EXIF orientation
            applied. Valid until the next call: it may lie in this decoder's buffers.

        Raises:
            PictureError: Not a picture, truncated, corrupt, or larger than max_pixels.
        """
        if data[:3] == b"\xff\xd8\xff":
            picture, orientation = self._decode_jpeg(data)
        else:
            picture, orientation = self._decode_other(data)
        if orientation != 1:
            picture = self._turn(picture, orientation)
        if picture.dtype == np.uint8:
            return picture if self._bits == 8 else picture * np.uint16(257)
        if self._bits == 16:
            return picture
        return ((picture.astype(np.uint32) + 128) // 257).astype(np.uint8)

    def _decode_jpeg(self, data: Any) -> tuple[np.ndarray, int]:
        header = jpeg.read_header(data)
        self._check_wh(header.wh)
        (w, h), orientation = header.wh, header.orientation
        self.source_wh = (h, w) if orientation >= 5 else (w, h)
        min_wh = self._scaled_for_wh
        if min_wh is not None and orientation >= 5:
            min_wh = min_wh[::-1]
        num_bytes = w * h * self._num_channels
        if self._pixels.size < num_bytes:
            self._pixels = np.empty(num_bytes, np.uint8)
        return jpeg.decode(data, header, self._color, self._pixels, min_wh), orientation

    def _decode_other(self, data: Any) -> tuple[np.ndarray, int]:
        kind = _kind_of(data)
        if kind == "PNG":
            self._check_wh(png.read_wh(data))
            picture, orientation = png.decode(data, "bgr" if self._color == "bgr" else "rgb")
            if self._color == "gray":
                picture = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        else:
            from saccade.vision import pillow

            picture, orientation = pillow.decode(data, kind, self._check_wh)
            picture = _recolor(picture, self._color)
        h, w = picture.shape[:2]
        self.source_wh = (h, w) if orientation >= 5 else (w, h)
        return picture, orientation

    def _turn(self, picture: np.ndarray, orientation: int) -> np.ndarray:
        if picture.dtype != np.uint8:
            return exif.apply(picture, orientation)
        h, w = picture.shape[:2]
        if self._upright.size < picture.size:
            self._upright = np.empty(picture.size, np.uint8)
        size_hw = (w, h) if orientation >= 5 else (h, w)
        out = self._upright[: picture.size].reshape(*size_hw, *picture.shape[2:])
        return exif.apply(picture, orientation, out)

    def _check_wh(self, wh: tuple[int, int]) -> None:
        w, h = wh
        if w < 1 or h < 1:
            raise PictureError(
                f"a picture must be at least 1 x 1 pixels, this one says {w} x {h}; "
                "fetch or export it again"
            )
        if w * h > self._max_pixels:
            raise PictureError(
                f"a picture must have at most {self._max_pixels} pixels, this one says {w} x {h} "
                f"= {w * h}; raise the limit with --max-pixels if you trust it"
            )

    def _read_bytes(self, path: str | os.PathLike[str]) -> memoryview:
        with open(path, "rb", buffering=0) as file:
            num_bytes = os.fstat(file.fileno()).st_size
            # One byte more than expected, so that a full read shows that the end was reached.
            if len(self._file) <= num_bytes:
                self._file = bytearray(num_bytes + 1)
            filled = 0
            view = memoryview(self._file)
            while got := file.readinto(view[filled:]):
                filled += got
                if filled == len(view):
                    grown = bytearray(2 * filled + 65536)
                    grown[:filled] = view
                    self._file, view = grown, memoryview(grown)
        return view[:filled]


def _kind_of(data: Any) -> str:
    head = bytes(data[:16])
    if head.startswith(png.SIGNATURE):
        return "PNG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[:2] == b"BM":
        return "BMP"
    if head[:4] in (b"II*\0", b"MM\0*"):
        return "TIFF"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if not head:
        raise PictureError(
            "a picture must have content, this one is empty (0 bytes); fetch it anew"
        )
    raise PictureError(
        f"a picture must be {_FORMATS}, this one starts with {head!r}{_look_of(data)}; "
        "convert it to one of these formats"
    )


def _look_of(data: Any) -> str:
    start = bytes(data[:256]).lower().lstrip(b"\xef\xbb\xbf \t\r\n")
    for sign, name in _LOOKS:
        if start.startswith(sign):
            return f", which is {name}"
    if bytes(data[4:8]) == b"ftyp":
        return ", which is HEIF, AVIF or a video"
    is_text = all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in start)
    return ", which is text" if is_text else ""


def _recolor(picture: np.ndarray, color: Color) -> np.ndarray:
    """Pillow's RGB or gray into the order asked for."""
    if picture.ndim == 2:
        if color == "gray":
            return picture
        return cv2.merge((picture, picture, picture))  # type: ignore[no-any-return]
    if color == "rgb":
        return picture
    code = cv2.COLOR_RGB2BGR if color == "bgr" else cv2.COLOR_RGB2GRAY
    return cv2.cvtColor(picture, code)  # type: ignore[no-any-return]
