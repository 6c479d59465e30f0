"""Without labels: how far a candidate agrees with the FP32 reference. Never called AP.

The reference's boxes above the score threshold for looking at pictures stand in for the truth. The
reference agrees with itself to 1.0. Agreement says that answers stayed the same, not that they are
right.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from saccade.builder.evidence import Evidence
from saccade.errors import InputError
from saccade.types import Contract, Detections
from saccade.vision.ap import Truth

__all__ = ["from_reference"]


def from_reference(answers: Sequence[Detections | None], contract: Contract) -> Evidence:
    """Evidence from the reference's answers, one truth per picture.

    Raises:
        InputError: The reference finds nothing in any picture.
    """
    truth = tuple(_truth(one, contract.detect.score) for one in answers)
    if not sum(len(one.classes) for one in truth):
        raise InputError(
            "the pictures must show something that the model finds, else no candidate can be "
            f"judged; in {len(truth)} pictures it finds nothing above score "
            f"{contract.detect.score:g}: give other pictures with --images"
        )
    # Boxes below the threshold have classes as well, and candidates may score them higher.
    seen = max(int(one.classes.max(initial=0)) for one in answers if one is not None)
    num_classes = max(contract.head.num_classes, len(contract.labels), seen + 1)
    labels = contract.labels or tuple(map(str, range(num_classes)))
    return Evidence("agreement", truth, np.arange(num_classes), dict(enumerate(labels)))


def _truth(answer: Detections | None, score: float) -> Truth:
    if answer is None:
        return Truth(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, bool))
    shown = answer.scores > score
    boxes_xywh = answer.boxes_xyxy[shown].astype(np.float64)
    boxes_xywh[:, 2:] -= boxes_xywh[:, :2]
    areas = boxes_xywh[:, 2] * boxes_xywh[:, 3]
    classes = answer.classes[shown].astype(np.int64)
    return Truth(boxes_xywh, classes, areas, np.zeros(len(areas), bool))
