"""Which of the model's classes is which category of the file: by name, else by order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from saccade.errors import AnnotationError, InputError
from saccade.evaluation.annotations import Annotations, Category

__all__ = ["CategoryMap", "match_categories"]


@dataclass(frozen=True, slots=True)
class CategoryMap:
    """Class index to category id.

    Attributes:
        category_ids: One per class of the model; None where the file has no such category.
        notes: What was assumed or left out, in sentences.
    """

    category_ids: tuple[int | None, ...]
    notes: tuple[str, ...] = ()

    def apply(self, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Translate class indices.

        Args:
            classes: (k,) integers from 0 to the number of classes - 1.

        Returns:
            is_known (k,) bool, which detections to keep, and category_ids (number kept,) int64.
        """
        known = np.array([id is not None for id in self.category_ids], np.bool_)
        ids = np.array([0 if id is None else id for id in self.category_ids], np.int64)
        is_known = known[classes]
        return is_known, ids[classes[is_known]]


def match_categories(
    labels: Sequence[str], num_classes: int, annotations: Annotations
) -> CategoryMap:
    """Find each class's category: by name, else by order of ids where the counts are equal.

    Names are compared without regard to case and to white space round them. Classes without a
    category are left out, and a note says so; so does one for categories the model does not know.

    Args:
        labels: The model's class names, index 0 first; empty if unknown.
        num_classes: How many classes the model has.
        annotations: The file.

    Raises:
        InputError: There are labels, but not one per class.
        AnnotationError: No name matches and the counts differ, or a name is ambiguous.
    """
    if labels and len(labels) != num_classes:
        raise InputError(
            f"labels must be one per class of the model ({num_classes}), got {len(labels)}; "
            "correct the list given with --labels FILE"
        )
    by_name = _by_name(annotations, labels)
    ids = tuple(by_name.get(_plain(label)) for label in labels)
    if any(id is not None for id in ids):
        return CategoryMap(ids, _notes(labels, ids, annotations.categories))
    categories = sorted(annotations.categories, key=lambda category: category.id)
    if num_classes != len(categories):
        raise AnnotationError(
            "the annotation file's categories must be named as the model's classes are, or be as "
            f"many; the model has {num_classes} ({_listed(labels) or 'names unknown'}), the file "
            f"has {len(categories)} ({_listed([c.name for c in categories])}); give the model's "
            "class names with --labels FILE, one a line, spelled as in the annotation file"
        )
    why = "none of the model's class names is in the file" if labels else "the model names no class"
    pairs = [
        f"{i} {label} = {c.name}"
        for i, (label, c) in enumerate(zip(labels or [""] * num_classes, categories, strict=True))
    ]
    note = (
        f"{why}, so classes were taken in the order of category ids: {_listed(pairs)}; "
        "if that is wrong, give names with --labels FILE"
    )
    return CategoryMap(tuple(category.id for category in categories), (note,))


def _plain(name: str) -> str:
    return name.strip().casefold()


def _by_name(annotations: Annotations, labels: Sequence[str]) -> dict[str, int]:
    """Category id by plain name; of several with one name, the only one that has boxes."""
    groups: dict[str, list[Category]] = {}
    for category in annotations.categories:
        groups.setdefault(_plain(category.name), []).append(category)
    used = set(annotations.boxes.category_id.tolist())
    wanted = set(map(_plain, labels))
    chosen: dict[str, int] = {}
    for name, group in groups.items():
        # Some exporters add a parent category without boxes that has a class's own name.
        busy = [category for category in group if category.id in used]
        if len(group) > 1 and len(busy) > 1 and name in wanted:
            raise AnnotationError(
                f"a category name must mean one category, got {name!r} for the ids "
                f"{', '.join(str(c.id) for c in busy)}, all of which have boxes; merge or rename "
                "them in the annotation file"
            )
        chosen[name] = (busy or group)[0].id
    return chosen


def _notes(
    labels: Sequence[str], ids: Sequence[int | None], categories: Sequence[Category]
) -> tuple[str, ...]:
    notes = []
    dropped = [label for label, id in zip(labels, ids, strict=True) if id is None]
    if dropped:
        notes.append(
            f"{len(dropped)} of the model's {len(labels)} classes are not in the annotation file; "
            f"their detections are dropped: {_listed(dropped)}"
        )
    missed = [category.name for category in categories if category.id not in ids]
    if missed:
        notes.append(
            f"{len(missed)} of the file's {len(categories)} categories are not among the model's "
            f"classes; their boxes count as missed: {_listed(missed)}"
        )
    return tuple(notes)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f", ... ({len(names)} in all)" if len(names) > 8 else "")
