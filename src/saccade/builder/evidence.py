"""What answers are held against: labels, or without them the reference's own boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from saccade.builder.bootstrap import Scored, score_pictures
from saccade.errors import AnnotationError
from saccade.evaluation.annotations import Annotations
from saccade.evaluation.matching import match_categories
from saccade.types import Contract, Detections
from saccade.vision.ap import Found, Truth

__all__ = ["PER_PICTURE", "Evidence", "from_labels", "score"]

# As `saccade eval` counts: the best so many of a picture, over all classes.
PER_PICTURE = 100


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """The truth about each picture, or what stands in for it.

    Attributes:
        judged_by: "AP" if people drew the boxes, "agreement" if the reference did.
        truth: One per picture.
        numbers: For each class of the model the number used in `truth`; -1 where `truth` has no
            such class.
        names: Number to name.
        notes: What was assumed about classes, in sentences.
    """

    judged_by: Literal["AP", "agreement"]
    truth: tuple[Truth, ...]
    numbers: np.ndarray
    names: Mapping[int, str]
    notes: tuple[str, ...] = ()


def from_labels(annotations: Annotations, contract: Contract) -> Evidence:
    """Evidence from an annotation file; one truth for each of its images, in the order of ids.

    Raises:
        AnnotationError: The file's classes cannot be matched with the model's.
    """
    num_classes = contract.head.num_classes or len(contract.labels)
    if not num_classes:
        raise AnnotationError(
            "the number of classes cannot be seen in this model; give their names with --labels "
            "FILE, one a line"
        )
    matched = match_categories(contract.labels, num_classes, annotations)
    if not len(annotations.boxes):
        raise AnnotationError(
            "the annotation file must hold boxes to judge by, it holds none; leave --data out to "
            "judge by agreement with the FP32 reference"
        )
    boxes = annotations.boxes
    truth = []
    for image in sorted(annotations.images, key=lambda image: image.id):
        here = boxes.image_id == image.id
        truth.append(
            Truth(
                boxes.bbox_xywh[here],
                boxes.category_id[here],
                boxes.area[here],
                boxes.iscrowd[here],
            )
        )
    numbers = np.array([-1 if n is None else n for n in matched.category_ids], np.int64)
    names = {category.id: category.name for category in annotations.categories}
    return Evidence("AP", tuple(truth), numbers, names, matched.notes)


def score(evidence: Evidence, answers: Sequence[Detections | None]) -> Scored:
    """Match answers to the truth. A picture without an answer is one where nothing was found."""
    found = [_found(evidence, one) for one in answers]
    return score_pictures(evidence.truth, found, evidence.names)


def _found(evidence: Evidence, answer: Detections | None) -> Found:
    if answer is None:
        return Found(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
    classes = answer.classes[:PER_PICTURE]
    # Where nobody says how many classes there are, an answer may have one that was never seen.
    is_counted = classes < len(evidence.numbers)
    numbers = np.where(is_counted, evidence.numbers[np.where(is_counted, classes, 0)], -1)
    known = numbers >= 0
    boxes_xywh = answer.boxes_xyxy[:PER_PICTURE][known].astype(np.float64)
    boxes_xywh[:, 2:] -= boxes_xywh[:, :2]
    return Found(boxes_xywh, answer.scores[:PER_PICTURE][known].astype(np.float64), numbers[known])
