"""NPZ: one array per quantity over all pictures, for numpy.load.

Source: numpy.lib.format, for the header of an array in the archive.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from saccade.formats import ErrorNote, Job
from saccade.types import Availability

__all__ = ["FORMAT"]

# A fixed date in the archive: the same results give the same bytes.
DATE = (1980, 1, 1, 0, 0, 0)


class Npz:
    """Writes these arrays, for n pictures, k detections and e errors in all:

    paths (n,) text; sizes_wh (n, 2) int32, zeros where unknown; offsets (n + 1,) int64, picture i
    has rows offsets[i]:offsets[i+1] of boxes_xyxy (k, 4) float32, scores (k,) float32,
    classes (k,) int32 and, if the model has key points, keypoints_xy (k, p, 2) float32;
    error_indices (e,) int64, error_kinds (e,) text, errors (e,) text; labels (c,) text.
    """

    name = "npz"
    file_name = "detections.npz"

    def probe(self) -> Availability:
        return Availability(True)

    def write(self, job: Job, file: Path) -> None:
        extent = _measure(job)
        with zipfile.ZipFile(file, "w", allowZip64=True) as archive:
            for array in _arrays(job, extent):
                _write_array(archive, array)


class _Extent(msgspec.Struct):
    num_pictures: int = 0
    num_detections: int = 0
    num_points: int | None = None
    num_errors: int = 0
    path_chars: int = 1
    kind_chars: int = 1
    message_chars: int = 1


class _Path(msgspec.Struct):
    path: str


class _Size(msgspec.Struct):
    size_wh: tuple[int, int] | None = None


class _Boxes(msgspec.Struct):
    boxes_xyxy: list[tuple[float, float, float, float]] = []


class _Scores(msgspec.Struct):
    scores: list[float] = []


class _Classes(msgspec.Struct):
    classes: list[int] = []


class _Points(msgspec.Struct):
    keypoints_xy: list[list[tuple[float, float]]] | None = None


class _Error(msgspec.Struct):
    index: int
    error: ErrorNote | None = None


class _Measured(msgspec.Struct):
    path: str
    scores: list[float] = []
    keypoints_xy: list[list[tuple[float, float]]] | None = None
    error: ErrorNote | None = None


def _measure(job: Job) -> _Extent:
    """Read the records once for the shapes, which stand before the numbers in the file."""
    extent = _Extent()
    for record in job.records(_Measured):
        extent.num_pictures += 1
        extent.num_detections += len(record.scores)
        extent.path_chars = max(extent.path_chars, len(record.path))
        if record.keypoints_xy is not None and not extent.num_points:
            extent.num_points = len(record.keypoints_xy[0]) if record.keypoints_xy else 0
        if record.error is not None:
            extent.num_errors += 1
            extent.kind_chars = max(extent.kind_chars, len(record.error.kind))
            extent.message_chars = max(extent.message_chars, len(record.error.message))
    return extent


@dataclass(frozen=True, slots=True)
class _Array:
    """An array that is never whole in memory: its name, dtype, shape and pieces of its values."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    pieces: Iterable[Any]


def _arrays(job: Job, extent: _Extent) -> Iterator[_Array]:
    n, k, e = extent.num_pictures, extent.num_detections, extent.num_errors
    f32, i32, i64 = np.dtype("<f4"), np.dtype("<i4"), np.dtype("<i8")

    def text(chars: int) -> np.dtype[Any]:
        return np.dtype(f"<U{chars}")

    def errors(pick: Callable[[_Error, ErrorNote], Any]) -> Iterator[list[Any]]:
        return ([pick(r, r.error)] for r in job.records(_Error) if r.error is not None)

    records = job.records
    yield _Array("paths", text(extent.path_chars), (n,), ([r.path] for r in records(_Path)))
    sizes_wh = (r.size_wh or (0, 0) for r in records(_Size))
    yield _Array("sizes_wh", i32, (n, 2), sizes_wh)
    yield _Array("offsets", i64, (n + 1,), _offsets(job))
    yield _Array("boxes_xyxy", f32, (k, 4), (r.boxes_xyxy for r in records(_Boxes)))
    yield _Array("scores", f32, (k,), (r.scores for r in records(_Scores)))
    yield _Array("classes", i32, (k,), (r.classes for r in records(_Classes)))
    if extent.num_points is not None:
        points_xy = (r.keypoints_xy or [] for r in records(_Points))
        yield _Array("keypoints_xy", f32, (k, extent.num_points, 2), points_xy)
    yield _Array("error_indices", i64, (e,), errors(lambda record, _: record.index))
    yield _Array("error_kinds", text(extent.kind_chars), (e,), errors(lambda _, e: e.kind))
    yield _Array("errors", text(extent.message_chars), (e,), errors(lambda _, e: e.message))
    label_chars = max(map(len, job.labels), default=1) or 1
    yield _Array("labels", text(label_chars), (len(job.labels),), ([x] for x in job.labels))


def _offsets(job: Job) -> Iterator[list[int]]:
    total = 0
    yield [total]
    for record in job.records(_Scores):
        total += len(record.scores)
        yield [total]


def _write_array(archive: zipfile.ZipFile, array: _Array) -> None:
    entry = zipfile.ZipInfo(f"{array.name}.npy", DATE)
    # Text is mostly padding; numbers hardly shrink.
    entry.compress_type = zipfile.ZIP_DEFLATED if array.dtype.kind == "U" else zipfile.ZIP_STORED
    entry.external_attr = 0o644 << 16
    head = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
    written = 0
    with archive.open(entry, "w", force_zip64=True) as stream:
        np.lib.format.write_array_header_1_0(stream, head)
        for piece in array.pieces:
            values = np.asarray(piece, array.dtype)
            written += values.size
            stream.write(values.tobytes())
    wanted = int(np.prod(array.shape, dtype=np.int64))
    assert written == wanted, f"{array.name} has {written} values, not {wanted}"


FORMAT = Npz()
