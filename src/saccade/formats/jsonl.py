"""JSON lines: one line per picture, in order, readable while the next is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from saccade.formats import Job, Record
from saccade.types import Availability

__all__ = ["FORMAT"]


class JsonLines:
    """Writes {"index", "path", "width", "height", "detections"} or {"index", "path", "error"}."""

    name = "jsonl"
    file_name = "detections.jsonl"

    def probe(self) -> Availability:
        return Availability(True)

    def write(self, job: Job, file: Path) -> None:
        encode = msgspec.json.Encoder().encode
        with open(file, "wb") as stream:
            for record in job.records(Record):
                stream.write(encode(_line(record, job)) + b"\n")


def _line(record: Record, job: Job) -> dict[str, Any]:
    line: dict[str, Any] = {"index": record.index, "path": record.path}
    if record.size_wh is not None:
        line["width"], line["height"] = record.size_wh
    if record.error is not None:
        line["error"] = record.error
        return line
    rows = zip(record.boxes_xyxy, record.scores, record.classes, strict=True)
    found = [
        {"box_xyxy": box, "score": score, "class": label, "label": job.label(label)}
        for box, score, label in rows
    ]
    if record.keypoints_xy is not None:
        for detection, points in zip(found, record.keypoints_xy, strict=True):
            detection["keypoints_xy"] = points
    line["detections"] = found
    return line


FORMAT = JsonLines()
