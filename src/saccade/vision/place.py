"""From a decoded picture to its place in the network's input."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import cv2
import numpy as np

from saccade.errors import InputError
from saccade.types import InputRule, Placement
from saccade.vision.resample import resample_antialias, resample_reference

__all__ = ["Placer", "place_reference", "placement_of", "single_threaded_cv2"]

_Geometry = tuple[Placement, tuple[int, int, int, int]]
_CV2_INTERPOLATION = {
    "linear": cv2.INTER_LINEAR,
    "area": cv2.INTER_AREA,
    "nearest": cv2.INTER_NEAREST,
    "cubic": cv2.INTER_CUBIC,
}


class _Users:
    """How many want OpenCV single-threaded, and the number to go back to after the last."""

    lock = threading.Lock()
    num = 0
    num_threads_before = 0


@contextlib.contextmanager
def single_threaded_cv2() -> Iterator[None]:
    """Keep OpenCV from starting threads of its own, process-wide.

    The old number comes back when the last of all concurrent users leaves, in whatever order.
    """
    with _Users.lock:
        if _Users.num == 0:
            _Users.num_threads_before = cv2.getNumThreads()
            cv2.setNumThreads(1)
        _Users.num += 1
    try:
        yield
    finally:
        with _Users.lock:
            _Users.num -= 1
            if _Users.num == 0:
                cv2.setNumThreads(_Users.num_threads_before)


def placement_of(source_wh: tuple[int, int], rule: InputRule) -> Placement:
    """Where a picture of this size lies in the input; geometry only."""
    return _geometry(source_wh, rule)[0]


def _geometry(source_wh: tuple[int, int], rule: InputRule) -> _Geometry:
    """The placement, and left, top, width and height of the picture in the input."""
    w, h = source_wh
    input_h, input_w = rule.size_hw
    if w < 1 or h < 1:
        raise InputError(f"a picture must be at least 1 x 1 pixels, got {w} x {h}; pass another")
    left = top = 0
    if rule.resize == "stretch":
        new_w, new_h = input_w, input_h
    else:
        ratio = min(input_h / h, input_w / w)
        if not rule.enlarge:
            ratio = min(ratio, 1.0)
        new_w, new_h = max(1, round(w * ratio)), max(1, round(h * ratio))
        if rule.anchor == "center":
            # An odd pixel of padding goes to the right and the bottom.
            left, top = (input_w - new_w) // 2, (input_h - new_h) // 2
    placement = Placement(
        source_wh=(w, h),
        scale_xy=(new_w / w, new_h / h),
        offset_xy=(float(left), float(top)),
    )
    return placement, (left, top, new_w, new_h)


def place_reference(picture: np.ndarray, rule: InputRule) -> tuple[np.ndarray, Placement]:
    """Place a picture in plain NumPy, float64 inside.

    The resized picture is rounded to levels of its depth, as pipelines on integers do.

    Args:
        picture: (h, w, 3) or (h, w, 1) or (h, w), uint8 or uint16, in the rule's colour order.
        rule: How.

    Returns:
        One item of the rule's layout and dtype, and where the picture lies in it.
    """
    picture = picture if picture.ndim == 3 else picture[:, :, None]
    placement, (left, top, new_w, new_h) = _geometry((picture.shape[1], picture.shape[0]), rule)
    levels = np.iinfo(picture.dtype).max
    resized = resample_reference(picture, (new_h, new_w), rule.interpolation)
    canvas = np.full((*rule.size_hw, rule.num_channels), rule.pad_value, np.float64)
    canvas[top : top + new_h, left : left + new_w] = np.clip(np.rint(resized), 0, levels)
    num = rule.num_channels
    values = (canvas - np.asarray(rule.mean[:num])) / np.asarray(rule.std[:num])
    item = values.transpose(2, 0, 1) if rule.layout == "nchw" else values
    return _to_dtype(item, np.dtype(rule.dtype)), placement


def _to_dtype(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return np.ascontiguousarray(values, dtype)


class Placer:
    """Places pictures into batches, reusing its buffers. One per thread.

    Args:
        rule: How.

    Raises:
        InputError: mean or std do not fit the channels.
    """

    def __init__(self, rule: InputRule) -> None:
        num = rule.num_channels
        if len(rule.mean) < num or len(rule.std) < num or 0 in rule.std[:num]:
            raise InputError(
                f"mean and std must have {num} values and std none of zero, "
                f"got mean {rule.mean} and std {rule.std}"
            )
        self._rule = rule
        self._dtype = np.dtype(rule.dtype)
        self._is_nchw = rule.layout == "nchw"
        self._sample = np.dtype(np.uint16 if rule.bits == 16 else np.uint8)
        mean = np.asarray(rule.mean[:num], np.float64)
        std = np.asarray(rule.std[:num], np.float64)
        self._subtract = mean.astype(np.float32)
        self._multiply = (1 / std).astype(np.float32)
        self._pads = _to_dtype((rule.pad_value - mean) / std, self._dtype)
        self._pad_row = np.tile(self._pads, rule.size_hw[1])
        self._is_even = len(set(zip(mean, std, strict=True))) == 1
        self._is_plain = not mean.any() and bool((std == 1).all())
        table = (np.arange(256)[:, None] - mean) / std
        self._table = _to_dtype(table, self._dtype).reshape(1, 256, num)
        self._resized = np.empty(0, self._sample)
        self._planes = np.empty(0, self._sample)
        self._scratch = np.empty(0, np.float32)
        self._geometry_of: tuple[tuple[int, int], _Geometry] | None = None

    def place(
        self, picture: np.ndarray, out: np.ndarray, *, source_wh: tuple[int, int] | None = None
    ) -> Placement:
        """Write one item of a batch.

        All of `out` is written, padding too: buffers move between threads, so what the padding
        holds is not known.

        Args:
            picture: (h, w, 3), or (h, w) or (h, w, 1) for gray; uint8, or uint16 with bits=16; in
                the rule's colour order.
            out: (c, h, w) or (h, w, c) of the rule's layout, size and dtype, C-contiguous.
            source_wh: The full size, if `picture` was decoded at a smaller scale.

        Returns:
            Where the picture lies in the input.

        Raises:
            InputError: `picture` or `out` does not fit the rule.
        """
        self._check(picture, out)
        placement, (left, top, w, h) = self._cached_geometry(
            source_wh or (picture.shape[1], picture.shape[0])
        )
        canvas_hw = self._rule.size_hw
        if (h, w) != canvas_hw:
            self._pad(out, left, top, w, h)
        if self._is_nchw:
            region = out[:, top : top + h, left : left + w]
            self._write_planes(self._resize(picture, w, h), region)
        else:
            self._write_pixels(picture, out[top : top + h, left : left + w])
        return placement

    def _cached_geometry(self, wh: tuple[int, int]) -> _Geometry:
        # Neighbours in a job tend to have one size.
        if self._geometry_of is None or self._geometry_of[0] != wh:
            self._geometry_of = (wh, _geometry(wh, self._rule))
        return self._geometry_of[1]

    def _resize(self, picture: np.ndarray, w: int, h: int) -> np.ndarray:
        """(h, w, 3) or (h, w), valid until the next call."""
        if picture.ndim == 3 and picture.shape[2] == 1:
            picture = picture[:, :, 0]
        if picture.shape[:2] == (h, w):
            return picture
        if self._rule.interpolation == "antialias":
            return resample_antialias(picture, (h, w))
        num = h * w * self._rule.num_channels
        if self._resized.size < num:
            self._resized = np.empty(num, self._sample)
        out = self._resized[:num].reshape(h, w, *picture.shape[2:])
        return cv2.resize(  # type: ignore[no-any-return]
            picture, (w, h), dst=out, interpolation=_CV2_INTERPOLATION[self._rule.interpolation]
        )

    def _write_planes(self, pixels: np.ndarray, region: np.ndarray) -> None:
        """(h, w, c) integers to (c, h, w) of the rule's dtype; docs/performance/cpu-prepare.md."""
        if self._is_plain and self._dtype == self._sample:
            if pixels.ndim == 2:
                np.copyto(region[0], pixels)
            else:
                cv2.split(pixels, list(region))
            return
        if pixels.ndim == 2:
            planes = [pixels]
        else:
            if self._planes.size < pixels.size:
                self._planes = np.empty(pixels.size, self._sample)
            h, w, c = pixels.shape
            planes = list(self._planes[: pixels.size].reshape(c, h, w))
            cv2.split(pixels, planes)
        for channel, plane in enumerate(planes):
            self._write_plane(plane, region[channel], channel)

    def _write_plane(self, plane: np.ndarray, target: np.ndarray, channel: int) -> None:
        if self._dtype != np.float32 and self._sample == np.uint8:
            # Exact for every dtype; float16 passes through OpenCV as the bits it is made of.
            table = np.ascontiguousarray(self._table[:, :, channel])
            _look_up(plane, table, target)
            return
        values = target
        if self._dtype != np.float32:
            if self._scratch.size < plane.size:
                self._scratch = np.empty(plane.size, np.float32)
            values = self._scratch[: plane.size].reshape(plane.shape)
        np.copyto(values, plane)
        if self._subtract[channel]:
            np.subtract(values, self._subtract[channel], out=values)
        if self._multiply[channel] != 1:
            np.multiply(values, self._multiply[channel], out=values)
        if values is not target:
            target[...] = _to_dtype(values, self._dtype)

    def _write_pixels(self, picture: np.ndarray, region: np.ndarray) -> None:
        """To (h, w, c) of the rule's dtype."""
        h, w, num = region.shape
        pixels = self._resize(picture, w, h).reshape(h, w, num)
        if self._is_plain and self._dtype in (self._sample, np.float32):
            np.copyto(region, pixels)
        elif self._is_even and self._dtype == np.float32:
            np.copyto(region, pixels)
            if self._subtract[0]:
                np.subtract(region, self._subtract[0], out=region)
            np.multiply(region, self._multiply[0], out=region)
        elif self._sample == np.uint8:
            _look_up(pixels, self._table, region)
        else:
            values = (pixels - self._subtract) * self._multiply
            region[...] = _to_dtype(values, self._dtype)

    def _pad(self, out: np.ndarray, left: int, top: int, w: int, h: int) -> None:
        """Write what lies around the picture, row by row as flat memory."""
        input_h, input_w = self._rule.size_hw
        if self._is_nchw:
            for plane, pad in zip(out, self._pads, strict=True):
                _pad_around(plane, pad, (top, top + h), (left, left + w))
        else:
            num = len(self._pads)
            rows = out.reshape(input_h, input_w * num)
            _pad_around(rows, self._pad_row, (top, top + h), (left * num, (left + w) * num))

    def _check(self, picture: np.ndarray, out: np.ndarray) -> None:
        num = self._rule.num_channels
        shape = (num, *self._rule.size_hw) if self._is_nchw else (*self._rule.size_hw, num)
        if out.shape != shape or out.dtype != self._dtype:
            raise InputError(
                f"out must be {self._dtype} of shape {shape}, "
                f"got {out.dtype} of shape {out.shape}; pass one item of the slot's input"
            )
        channels = picture.shape[2] if picture.ndim == 3 else 1
        if picture.dtype != self._sample or picture.ndim not in (2, 3) or channels != num:
            raise InputError(
                f"a picture must be {self._sample} with {num} channels, got {picture.dtype} of "
                f"shape {picture.shape}; decode it as the rule's color and bits say"
            )


def _pad_around(
    rows: np.ndarray, pad: np.ndarray, top_bottom: tuple[int, int], left_right: tuple[int, int]
) -> None:
    """Fill (h, w) outside of a rectangle with one value or with the columns of a row (w,)."""
    (top, bottom), (left, right) = top_bottom, left_right
    # A single value is written faster than a row of equal ones.
    before, after = (pad, pad) if pad.ndim == 0 else (pad[:left], pad[right:])
    rows[:top] = pad
    rows[bottom:] = pad
    if left:
        rows[top:bottom, :left] = before
    if right < rows.shape[1]:
        rows[top:bottom, right:] = after


def _look_up(values: np.ndarray, table: np.ndarray, out: np.ndarray) -> None:
    """out = table[values] through OpenCV, in place."""
    if table.dtype == np.float16:
        table, out = table.view(np.uint16), out.view(np.uint16)
    cv2.LUT(values, table, dst=out)
