"""Output formats, one file per format. The file name is the format; nothing else lists it.

A format turns the records of a finished job into one file. It reads the records as often as it
likes, one at a time, so that its memory does not grow with the job.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import msgspec

from saccade import registry
from saccade.types import Availability

__all__ = ["ErrorNote", "Format", "Job", "Record", "Records", "get", "names"]

Fields = TypeVar("Fields", bound=msgspec.Struct)


class ErrorNote(msgspec.Struct, frozen=True):
    """What is wrong with a picture: the error's class and its message."""

    kind: str
    message: str


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """One picture's outcome as plain numbers; each is the shortest decimal of a float32.

    Attributes:
        index: Position in the job, from 0.
        path: Where the picture came from, valid Unicode.
        size_wh: Width and height of the source picture, or None if it could not be read.
        boxes_xyxy: k boxes in source pixels, best score first.
        scores: k numbers.
        classes: k numbers.
        keypoints_xy: For each of the k boxes p points in source pixels; None if there are none.
        error: What is wrong with the picture, or None.
    """

    index: int
    path: str
    size_wh: tuple[int, int] | None = None
    boxes_xyxy: list[tuple[float, float, float, float]] = []
    scores: list[float] = []
    classes: list[int] = []
    keypoints_xy: list[list[tuple[float, float]]] | None = None
    error: ErrorNote | None = None


class Records(Protocol):
    """Reads the job's records from the start, in order."""

    def __call__(self, fields: type[Fields], /) -> Iterator[Fields]:
        """Yield one `fields` per picture: Record, or a Struct of some of its fields (faster)."""
        ...


@dataclass(frozen=True, slots=True)
class Job:
    """All that a format writes.

    Attributes:
        records: Reads the records.
        labels: Class names, index 0 first; empty if unknown.
        identity: What was run, as plain values: the model's digest, thresholds and so on.
    """

    records: Records
    labels: tuple[str, ...] = ()
    identity: Mapping[str, Any] = field(default_factory=dict)

    def label(self, index: int) -> str:
        """Name of a class, made up from its index if the labels do not reach that far."""
        return self.labels[index] if 0 <= index < len(self.labels) else f"class_{index}"


class Format(Protocol):
    """One output format. The file name is the name."""

    name: str
    file_name: str

    def probe(self) -> Availability:
        """Say whether the format can be written here. Never raises."""
        ...

    def write(self, job: Job, file: Path) -> None:
        """Write the whole file; the caller makes it safe and gives it its final name.

        Raises:
            OSError: The file could not be written.
        """
        ...


def names() -> tuple[str, ...]:
    """Names of all formats, importing none of them."""
    return registry.names(__name__)


def get(name: str) -> Format:
    """Return the format called name.

    Raises:
        InputError: There is none of that name.
    """
    return cast(Format, registry.get(__name__, name, "FORMAT", "output format"))
