"""What a build found out, as one page for people and one file for programs."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from saccade.builder.records import BuildRecord, Row
from saccade.bundles.plain import plain
from saccade.errors import SinkError
from saccade.types import Detections

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Difference", "rate_of", "score_key", "score_of", "write_report"]

SCHEMA = 1


@dataclass(frozen=True, slots=True, eq=False)
class Difference:
    """One picture as two plans see it.

    Attributes:
        name: Of the picture, for people.
        picture_rgb: (h, w, 3) uint8, RGB.
        chosen: What the chosen plan found.
        reference: What FP32 found.
    """

    name: str
    picture_rgb: np.ndarray
    chosen: Detections
    reference: Detections


def write_report(
    record: BuildRecord,
    folder: str | Path,
    differing: Sequence[Difference] = (),
    *,
    labels: Sequence[str] = (),
) -> tuple[Path, Path]:
    """Write report.html and report.json.

    Args:
        record: The build.
        folder: Where they go; made if it is not there.
        differing: Pictures on which the chosen plan and FP32 differ, the most first. As many are
            shown as fit into the page's 500 KB.
        labels: Class names.

    Returns:
        Paths of the page and of the JSON file.

    Raises:
        SinkError: They could not be written.
    """
    from saccade.builder.report_html import page

    folder = Path(folder)
    html, data = folder / "report.html", folder / "report.json"
    contents = {
        html: page(record, differing, labels).encode("utf-8", "replace"),
        data: msgspec.json.format(msgspec.json.encode(as_dict(record, differing)), indent=1),
    }
    for path, content in contents.items():
        aside = path.with_name(path.name + ".partial")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            aside.write_bytes(content)
            os.replace(aside, path)
        except OSError as exc:
            raise SinkError(
                f"{path} must be writable, it is not: {exc.strerror}; free space or choose "
                "another folder"
            ) from exc
    return html, data


def as_dict(record: BuildRecord, differing: Sequence[Difference] = ()) -> dict[str, Any]:
    """The report as plain values: the record, and what the page derives from it."""
    return {
        "schema": SCHEMA,
        **_readable(plain(record)),
        "candidates": [_summary(record, index) for index in range(len(record.rows))],
        "differing": [
            {
                "name": _readable(one.name),
                "chosen_boxes": len(one.chosen),
                "reference_boxes": len(one.reference),
            }
            for one in differing
        ],
    }


def _readable(value: Any) -> Any:
    """Text that UTF-8 can write: file names may hold bytes that are no text."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_readable(key): _readable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_readable(one) for one in value]
    return value


def _summary(record: BuildRecord, index: int) -> dict[str, Any]:
    row = record.rows[index]
    told: dict[str, Any] = _readable(
        {
            "number": index + 1,
            "label": row.candidate.label,
            "status": row.status,
            "is_reference": index == record.reference,
            "is_chosen": index == record.chosen,
            "pictures_per_s": rate_of(row),
            score_key(record): score_of(record, index),
            "why": why(row),
        }
    )
    return told


def rate_of(row: Row) -> float | None:
    """Median pictures per second, or None if it was not timed."""
    if row.speed is None or not row.speed.pictures_per_s:
        return None
    return statistics.median(row.speed.pictures_per_s)


def score_key(record: BuildRecord) -> str:
    """What candidates were judged by: "AP" or "agreement"."""
    return next((row.verdict.judged_by for row in record.rows if row.verdict), "AP")


def score_of(record: BuildRecord, index: int) -> float | None:
    """AP or agreement of a row; that of the reference stands in every verdict."""
    key, row = score_key(record), record.rows[index]
    if row.verdict is not None and key in row.verdict.metrics:
        return row.verdict.metrics[key]
    if index != record.reference:
        return None
    told = (r.verdict.reference.get(key) for r in record.rows if r.verdict is not None)
    return next((value for value in told if value is not None), None)


def why(row: Row) -> str:
    """Why a candidate is not the answer: the gate's reasons, or what went wrong."""
    reasons = row.verdict.reasons if row.verdict is not None else ()
    told = [reason.text + (f" ({reason.where})" if reason.where else "") for reason in reasons]
    return "; ".join([*told, row.error] if row.error else told)
