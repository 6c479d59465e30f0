"""COCO: one JSON object with images, annotations (with scores) and categories.

Source: "Data format" on the COCO data set's site, for the keys; `score` is that of its results
    format, and `errors` is an addition of ours that readers ignore.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np

from saccade.formats import Job, Record
from saccade.types import Availability

__all__ = ["FORMAT"]


class Coco:
    """Writes a data set whose annotations are the detections.

    Image ids are index + 1, annotation ids count from 1 (some readers take 0 for "none"), and
    category ids are class + 1. Pictures with an error are listed under "errors" only.
    """

    name = "coco"
    file_name = "detections.coco.json"

    def probe(self) -> Availability:
        return Availability(True)

    def write(self, job: Job, file: Path) -> None:
        info = {"description": "Detections by saccade", "job": dict(job.identity)}
        with open(file, "wb") as stream:
            stream.write(b'{"info":' + msgspec.json.encode(info))
            _write_list(stream, "images", _images(job))
            _write_list(stream, "annotations", _annotations(job))
            _write_list(stream, "categories", _categories(job))
            _write_list(stream, "errors", _errors(job))
            stream.write(b"}\n")


def _write_list(stream: BinaryIO, key: str, items: Iterable[dict[str, Any]]) -> None:
    encode = msgspec.json.Encoder().encode
    stream.write(f',"{key}":['.encode())
    for i, item in enumerate(items):
        stream.write((b",\n" if i else b"\n") + encode(item))
    stream.write(b"]")


def _images(job: Job) -> Iterator[dict[str, Any]]:
    for record in job.records(Record):
        if record.error is None and record.size_wh is not None:
            width, height = record.size_wh
            yield {
                "id": record.index + 1,
                "file_name": record.path,
                "width": width,
                "height": height,
            }


def _annotations(job: Job) -> Iterator[dict[str, Any]]:
    number = 0
    for record in job.records(Record):
        sizes_wh = _sizes(record) if record.scores else []
        for i, (x, y, _, _) in enumerate(record.boxes_xyxy):
            number += 1
            width, height = sizes_wh[i]
            annotation = {
                "id": number,
                "image_id": record.index + 1,
                "category_id": record.classes[i] + 1,
                "bbox": (x, y, width, height),
                "area": width * height,
                "iscrowd": 0,
                "score": record.scores[i],
            }
            if record.keypoints_xy is not None:
                points = record.keypoints_xy[i]
                annotation["keypoints"] = [v for x, y in points for v in (x, y, 2)]
                annotation["num_keypoints"] = len(points)
            yield annotation


def _sizes(record: Record) -> list[list[float]]:
    """Widths and heights, with as few decimals as still give back x2 and y2 exactly.

    The difference of two short decimals is a long one (0.3 - 0.1 is not 0.2 in binary).
    """
    boxes = np.array(record.boxes_xyxy, np.float64)
    sizes_wh = boxes[:, 2:] - boxes[:, :2]
    wanted = boxes[:, 2:].astype(np.float32)
    result = sizes_wh.copy()
    for digits in (9, 7, 5):
        rounded = np.round(sizes_wh, digits)
        is_exact = (boxes[:, :2] + rounded).astype(np.float32) == wanted
        result = np.where(is_exact, rounded, result)
    sizes: list[list[float]] = result.tolist()
    return sizes


class _Classes(msgspec.Struct):
    classes: list[int] = []


def _categories(job: Job) -> Iterator[dict[str, Any]]:
    num_seen = max((max(r.classes) + 1 for r in job.records(_Classes) if r.classes), default=0)
    for i in range(max(num_seen, len(job.labels))):
        yield {"id": i + 1, "name": job.label(i)}


def _errors(job: Job) -> Iterator[dict[str, Any]]:
    for record in job.records(Record):
        if record.error is not None:
            yield {
                "index": record.index,
                "file_name": record.path,
                "kind": record.error.kind,
                "message": record.error.message,
            }


FORMAT = Coco()
