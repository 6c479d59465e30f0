"""COCO instances files: read once, checked record by record.

A fault that makes scores meaningless is an error that names the record. A harmless one is a warning
that says what was done about it; nothing is repaired without one.

Source: the COCO data format (cocodataset.org, "Data format", object detection).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import msgspec
import numpy as np

from saccade.errors import AnnotationError

__all__ = ["AnnotatedImage", "Annotations", "Boxes", "Category", "read_annotations"]

_UTF8_BOM = b"\xef\xbb\xbf"
_MAX_ID = 2**53  # beyond it a number that passed through a float may be another number
_MAX_NUMBER = 1e12  # NaN and infinity fail the comparison with it


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """A picture that the file lists; width and height are None where the file does not say."""

    id: int
    file_name: str
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True, slots=True)
class Category:
    """A class that the file lists."""

    id: int
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """Every box of the file, in file order.

    Attributes:
        image_id: (m,) int64.
        category_id: (m,) int64.
        bbox_xywh: (m, 4) float64 left, top, width, height in source pixels, as in the file.
        area: (m,) float64 square pixels; of the outline where the file knows it, not of the box.
        iscrowd: (m,) bool, a box round a crowd, which counts neither for nor against a detector.
    """

    image_id: np.ndarray
    category_id: np.ndarray
    bbox_xywh: np.ndarray
    area: np.ndarray
    iscrowd: np.ndarray

    def __len__(self) -> int:
        return len(self.image_id)

    def __repr__(self) -> str:
        return f"Boxes({len(self)})"


@dataclass(frozen=True, slots=True, eq=False)
class Annotations:
    """A COCO instances file, checked.

    Attributes:
        images: In file order; ids are unique.
        categories: In file order; ids are unique, names may not be.
        boxes: What is to be found.
        warnings: What was done about harmless faults, one sentence for each kind.
    """

    images: tuple[AnnotatedImage, ...]
    categories: tuple[Category, ...]
    boxes: Boxes
    warnings: tuple[str, ...] = ()


class _Image(msgspec.Struct):
    id: Any = None
    file_name: Any = None
    width: Any = None
    height: Any = None


class _Category(msgspec.Struct):
    id: Any = None
    name: Any = None


class _Box(msgspec.Struct):
    """One annotation. What has no field here, outlines above all, is skipped unread."""

    id: Any = None
    image_id: Any = None
    category_id: Any = None
    bbox: Any = None
    area: Any = None
    iscrowd: Any = None


class _File(msgspec.Struct):
    images: list[_Image] | None = None
    annotations: list[_Box] | None = None
    categories: list[_Category] | None = None


class _Fault(Exception):
    """What is wrong with the file, without the file's name."""


class _Notes:
    """Harmless faults by what was done about them, with the first places of each."""

    def __init__(self) -> None:
        self._places: dict[str, list[str]] = {}

    def add(self, done: str, place: str = "") -> None:
        self._places.setdefault(done, []).append(place)

    def sentences(self) -> tuple[str, ...]:
        return tuple(map(_sentence, self._places, self._places.values()))


def _sentence(done: str, places: Sequence[str]) -> str:
    if not places[0]:
        return done
    return f"{done} ({len(places)}: {', '.join(places[:3])}{', ...' if places[3:] else ''})"


def read_annotations(path: str | Path) -> Annotations:
    """Read and check a COCO instances file.

    Raises:
        AnnotationError: The file cannot be read, is not a COCO instances file, or holds a record
            that would make scores meaningless; the message names it by JSON path and id.
    """
    notes = _Notes()
    try:
        file = _parse(_read(Path(path), notes), notes)
        for key in ("images", "annotations", "categories"):
            if getattr(file, key) is None:
                raise _Fault(
                    "a COCO instances file must have the lists images, annotations and categories; "
                    f"this one has no {key!r}; export it as COCO instances (object detection)"
                )
        images = _check_images(file.images or [], notes)
        categories = _check_categories(file.categories or [], notes)
        boxes = _check_boxes(file.annotations or [], images, categories, notes)
    except _Fault as exc:
        raise AnnotationError(f"{path}: {exc}") from exc.__cause__
    return Annotations(images, categories, boxes, notes.sentences())


def _read(path: Path, notes: _Notes) -> bytes:
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as exc:  # ValueError: a NUL character in the path
        reason = getattr(exc, "strerror", None) or exc
        raise _Fault(f"annotations must be a readable file; {reason}; check the path") from exc
    if content.startswith(_UTF8_BOM):
        notes.add("the file starts with a byte-order mark; it was skipped")
        content = content[len(_UTF8_BOM) :]
    if not content.strip():
        raise _Fault("annotations must be COCO instances JSON; the file is empty; export it again")
    return content


def _parse(content: bytes, notes: _Notes) -> _File:
    try:
        try:
            return msgspec.json.decode(content, type=_File)
        except msgspec.ValidationError:
            raise
        except (msgspec.DecodeError, UnicodeDecodeError):
            # Python's json also reads NaN, which it and pandas write; and it says where it stops.
            loose = json.loads(content.decode("utf-8"))
            notes.add("the file holds NaN or Infinity, which JSON has not; they were read as such")
            return msgspec.convert(loose, _File)
    except msgspec.ValidationError as exc:
        hint = " (a list of detections?)" if content.lstrip().startswith(b"[") else ""
        raise _Fault(
            "a COCO instances file must be an object with lists of objects: images, annotations, "
            f"categories; this one is not{hint}: {exc}; export it as COCO instances"
        ) from exc
    except UnicodeDecodeError as exc:
        raise _Fault(
            f"annotations must be JSON in UTF-8; byte {exc.start} is 0x{content[exc.start]:02x}, "
            "which is not; convert the file to UTF-8 or export it again"
        ) from exc
    except (ValueError, RecursionError) as exc:
        raise _Fault(
            f"annotations must be COCO instances JSON; this file ({len(content)} bytes, starts "
            f"{content[:16]!r}) is not: {exc}; if it was cut short, copy or export it again"
        ) from exc


def _check_images(records: Sequence[_Image], notes: _Notes) -> tuple[AnnotatedImage, ...]:
    if not records:
        raise _Fault("images must list at least one picture; it is empty; export the file again")
    images = []
    names: set[str] = set()
    for index, record in enumerate(records):
        place = _place("images", index, record.id)
        name = record.file_name
        if not isinstance(name, str) or not name.strip() or "\0" in name:
            raise _must_be(f"{place}.file_name", "the picture's file name", name)
        if _leaves_folder(name):
            notes.add("file_name is absolute or goes up with '..'; it was kept as written", place)
        if name in names:
            notes.add("several images have one file_name; all were kept", place)
        names.add(name)
        sides = [_side(record, side, place, notes) for side in ("width", "height")]
        images.append(AnnotatedImage(_id(record.id, f"{place}.id", notes), name, *sides))
    _check_unique("images", [i.id for i in images])
    return tuple(images)


def _check_categories(records: Sequence[_Category], notes: _Notes) -> tuple[Category, ...]:
    if not records:
        raise _Fault("categories must list at least one class; it is empty; export the file again")
    categories = []
    names: set[str] = set()
    for index, record in enumerate(records):
        place = _place("categories", index, record.id)
        if not isinstance(record.name, str) or not record.name.strip():
            raise _must_be(f"{place}.name", "the class's name", record.name)
        if record.name in names:
            notes.add("several categories have one name; all were kept", place)
        names.add(record.name)
        categories.append(Category(_id(record.id, f"{place}.id", notes), record.name))
    _check_unique("categories", [c.id for c in categories])
    return tuple(categories)


def _check_boxes(
    records: Sequence[_Box],
    images: Sequence[AnnotatedImage],
    categories: Sequence[Category],
    notes: _Notes,
) -> Boxes:
    image_of = {image.id: image for image in images}
    category_ids = {category.id for category in categories}
    rows: list[tuple[int, int, tuple[float, ...], float, bool]] = []
    seen: set[tuple[object, ...]] = set()
    seen_ids: set[object] = set()
    for index, record in enumerate(records):
        place = _place("annotations", index, record.id)
        image_id = _id(record.image_id, f"{place}.image_id", notes)
        if image_id not in image_of:
            raise _must_be(f"{place}.image_id", "the id of one of the images", image_id)
        category_id = _id(record.category_id, f"{place}.category_id", notes)
        if category_id not in category_ids:
            raise _must_be(f"{place}.category_id", "the id of one of the categories", category_id)
        bbox = _bbox(record.bbox, f"{place}.bbox")
        if bbox[2] == 0 or bbox[3] == 0:
            notes.add("the box has no area, so nothing can match it; it was dropped", place)
            continue
        if _is_outside(bbox, image_of[image_id]):
            notes.add("the box reaches out of its picture; it was kept as it is", place)
        row = (image_id, category_id, bbox, _area(record.area, bbox, place, notes))
        if row in seen:
            notes.add("the same box is listed again; it was kept and must be found twice", place)
        if type(record.id) in (int, str) and record.id in seen_ids:
            notes.add("annotation ids repeat; they are not used, so every box was kept", place)
        seen.add(row)
        seen_ids.add(record.id if type(record.id) in (int, str) else None)
        rows.append((*row, _crowd(record.iscrowd, f"{place}.iscrowd")))
    if not rows:
        notes.add("the file holds no box, so there is nothing to measure against")
    return Boxes(
        np.array([row[0] for row in rows], np.int64),
        np.array([row[1] for row in rows], np.int64),
        np.array([row[2] for row in rows], np.float64).reshape(-1, 4),
        np.array([row[3] for row in rows], np.float64),
        np.array([row[4] for row in rows], np.bool_),
    )


def _place(key: str, index: int, id: object) -> str:
    return f"$.{key}[{index}]" if id is None else f"$.{key}[{index}] (id {_show(id)})"


def _must_be(what: str, must: str, found: object) -> _Fault:
    return _Fault(f"{what} must be {must}, got {_show(found)}; correct or remove the record")


def _show(value: object) -> str:
    if value is None:
        return "nothing"
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check_unique(key: str, ids: Sequence[int]) -> None:
    twice = [(id, count) for id, count in Counter(ids).most_common(1) if count > 1]
    if twice:
        id, count = twice[0]
        first, second = [index for index, other in enumerate(ids) if other == id][:2]
        raise _Fault(
            f"ids of {key} must be unique, got id {id} {count} times, at $.{key}[{first}] and "
            f"$.{key}[{second}]; renumber one, and the annotations that mean it"
        )


def _id(value: object, what: str, notes: _Notes) -> int:
    if type(value) is float and value.is_integer() and abs(value) <= _MAX_ID:
        notes.add("ids are written with a decimal point; they were read as whole numbers", what)
        return int(value)
    if type(value) is not int or abs(value) > _MAX_ID:
        raise _must_be(what, f"a whole number, at most {_MAX_ID}", value)
    return value


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= _MAX_NUMBER


def _bbox(value: object, what: str) -> tuple[float, ...]:
    if not isinstance(value, list) or len(value) != 4 or not all(map(_is_number, value)):
        raise _must_be(what, "a list of four finite numbers: left, top, width, height", value)
    if value[2] < 0 or value[3] < 0:
        raise _Fault(
            f"{what} must have a width and height of 0 or more, got {_show(value)}; if it lists "
            "two corners, write left, top, width, height instead"
        )
    return tuple(map(float, value))


def _area(value: Any, bbox: Sequence[float], place: str, notes: _Notes) -> float:
    if value is None:
        notes.add("area is missing; the box's width times height was taken", place)
        return bbox[2] * bbox[3]
    if not _is_number(value) or value < 0:
        raise _must_be(f"{place}.area", "a finite number of square pixels, 0 or more", value)
    return float(value)


def _crowd(value: object, what: str) -> bool:
    if value not in (None, 0, 1):
        raise _must_be(what, "0 or 1", value)
    return bool(value)


def _side(record: _Image, side: str, place: str, notes: _Notes) -> int | None:
    value = getattr(record, side)
    if value is None:
        return None
    if not _is_number(value) or value != int(value):
        raise _must_be(f"{place}.{side}", "a whole number of pixels", value)
    if value <= 0:
        notes.add(f"{side} is not above 0; it was read as unknown", place)
        return None
    return int(value)


def _leaves_folder(name: str) -> bool:
    paths = (PurePosixPath(name), PureWindowsPath(name))
    return any(path.anchor or ".." in path.parts for path in paths)


def _is_outside(bbox: Sequence[float], image: AnnotatedImage) -> bool:
    """Whether a box reaches out by more than the pixel that rounding may cost."""
    left, top, width, height = bbox
    right, bottom = image.width or math.inf, image.height or math.inf
    return left < -1 or top < -1 or left + width > right + 1 or top + height > bottom + 1
