"""Parquet: one row per picture with list columns, for data frames. Needs pyarrow."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from saccade.errors import BackendUnavailable
from saccade.formats import Job, Record
from saccade.types import Availability

__all__ = ["FORMAT"]

ROWS_PER_GROUP = 2000
MISSING = (
    "the parquet format needs pyarrow, which is not installed; "
    "install it with: pip install 'saccade[interop]', or choose another format"
)


class Parquet:
    """Writes index, path, width, height, boxes_xyxy, scores, classes, keypoints_xy, error_kind
    and error. The labels are JSON under the key "saccade.labels" of the schema's metadata."""

    name = "parquet"
    file_name = "detections.parquet"

    def probe(self) -> Availability:
        try:
            found = importlib.util.find_spec("pyarrow") is not None
        except ValueError:  # blocked in sys.modules
            found = False
        return Availability(True) if found else Availability(False, MISSING)

    def write(self, job: Job, file: Path) -> None:
        try:
            import pyarrow as pa
            from pyarrow import parquet
        except ImportError as exc:
            raise BackendUnavailable(f"{MISSING} ({exc})") from exc
        schema = _schema(pa).with_metadata({"saccade.labels": msgspec.json.encode(job.labels)})
        with parquet.ParquetWriter(str(file), schema) as writer:
            for rows in _groups(map(_row, job.records(Record))):
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _schema(pa: Any) -> Any:
    f32 = pa.float32()
    return pa.schema(
        {
            "index": pa.int64(),
            "path": pa.string(),
            "width": pa.int32(),
            "height": pa.int32(),
            "boxes_xyxy": pa.list_(pa.list_(f32)),
            "scores": pa.list_(f32),
            "classes": pa.list_(pa.int32()),
            "keypoints_xy": pa.list_(pa.list_(pa.list_(f32))),
            "error_kind": pa.string(),
            "error": pa.string(),
        }
    )


def _row(record: Record) -> dict[str, Any]:
    width, height = record.size_wh or (None, None)
    failed = record.error is not None
    return {
        "index": record.index,
        "path": record.path,
        "width": width,
        "height": height,
        "boxes_xyxy": None if failed else record.boxes_xyxy,
        "scores": None if failed else record.scores,
        "classes": None if failed else record.classes,
        "keypoints_xy": record.keypoints_xy,
        "error_kind": record.error.kind if record.error else None,
        "error": record.error.message if record.error else None,
    }


def _groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    rows = iter(rows)
    while group := list(itertools.islice(rows, ROWS_PER_GROUP)):
        yield group


FORMAT = Parquet()
