"""Detections in the form that COCO tools read as results."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from saccade.errors import SinkError
from saccade.evaluation.metrics import ImageDetections

__all__ = ["write_results"]


def write_results(detections: Iterable[ImageDetections], path: str | Path) -> None:
    """Write a COCO results list: image_id, category_id, bbox (x, y, width, height) and score.

    Raises:
        SinkError: The file could not be written; no part of it is left under that name.
    """
    path = Path(path)
    aside = path.with_name(path.name + ".partial")
    try:
        aside.write_bytes(msgspec.json.encode(list(_rows(detections))))
        os.replace(aside, path)
    except OSError as exc:
        aside.unlink(missing_ok=True)
        raise SinkError(
            f"{path} must be writable, it is not ({exc.strerror}); choose another file"
        ) from exc


def _rows(detections: Iterable[ImageDetections]) -> Iterator[dict[str, Any]]:
    for one in detections:
        for (x1, y1, x2, y2), score, category in zip(
            one.boxes_xyxy.tolist(), one.scores.tolist(), one.category_ids.tolist(), strict=True
        ):
            yield {
                "image_id": one.image_id,
                "category_id": category,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
            }
