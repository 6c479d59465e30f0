"""DAMO-YOLO: class scores and finished boxes of every cell, in two outputs.

Scores are (b, n, c) with the sigmoid in the graph and no objectness, boxes (b, n, 4) corners in
input pixels; n counts the cells of the strides 8, 16 and 32. YOLO-NAS writes outputs of the same
kind, to be read the same way, but its pictures are prepared differently; so the input rule is
only given where the graph shows one of two habits of DAMO-YOLO: a class column too many that is
cut off (Slice), or the mean of the distances taken as a matrix product (MatMul).

Source: github.com/tinyvision/DAMO-YOLO, damo/base_models/heads/zero_head.py (outputs),
damo/config/augmentations.py, damo/dataset/datasets/coco.py and transforms_keepratio.py
(pictures), configs/ and tools/demo.py (thresholds).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from saccade.errors import ContractError
from saccade.heads._labels import COCO_80
from saccade.heads._rows import candidates, num_cells, pick, read
from saccade.types import Candidates, HeadRule, Recognition, Signature, TensorSpec, Thresholds

__all__ = ["HEAD", "DamoYolo"]

_STRIDES = (8, 16, 32)
_INPUT = {"color": "rgb", "resize": "stretch", "mean": (0.0,) * 3, "std": (1.0,) * 3}
_ASSUMED_INPUT = (
    "pictures are stretched to the input size, in the channel order red, green, blue, values 0 to "
    "255 as they are: the test transform of DAMO-YOLO's public configuration (keep_ratio False, "
    "mean 0, std 1); its first models, of 2022, kept the aspect ratio instead (a letterbox in the "
    "upper left corner filled with 0)"
)
_NO_INPUT = (
    "DAMO-YOLO and YOLO-NAS write outputs like these and prepare pictures differently; nothing in "
    "the graph says which of them this is"
)


class DamoYolo:
    family = "damo_yolo"

    def recognise(self, signature: Signature) -> Recognition | None:
        num = num_cells(signature.size_hw, _STRIDES)
        found = _scores_and_boxes(signature, num)
        if found is None:
            return None
        scores, boxes = found
        num_classes = int(scores.shape[2])
        is_damo = "Slice" in signature.tails[scores.name] or "MatMul" in signature.tails.get(
            boxes.name, ()
        )
        is_coco = num_classes == len(COCO_80)
        names = ("class names are those of COCO, because there are 80",) if is_coco else ()
        roles = {"scores": scores.name, "boxes": boxes.name}
        return Recognition(
            head=HeadRule(self.family, roles, num_classes, {"strides": list(_STRIDES)}),
            input=_INPUT if is_damo else None,
            detect=Thresholds(score=0.6, iou=0.7),
            evaluate=Thresholds(score=0.05, iou=0.7, multi_label=True),
            seen=(
                f"two outputs with a row for each of the {num} cells of the strides 8, 16 and "
                f"32: {num_classes} class scores (a sigmoid is in the graph, no background "
                f"column, no objectness) and a box",
            ),
            assumed=(
                "boxes are left, top, right, bottom in pixels of the input",
                _ASSUMED_INPUT if is_damo else _NO_INPUT,
                *names,
            ),
            labels=COCO_80 if is_coco else (),
        )

    def decode(
        self,
        outputs: Mapping[str, np.ndarray],
        rule: HeadRule,
        size_hw: tuple[int, int],
        thresholds: Thresholds,
    ) -> list[Candidates]:
        scores, boxes = read(outputs, rule, "scores", 3), read(outputs, rule, "boxes", 3)
        if boxes.shape != (*scores.shape[:2], 4) or scores.shape[2] != rule.num_classes:
            raise ContractError(
                f"damo_yolo with {rule.num_classes} classes must have scores of shape (b, n, "
                f"{rule.num_classes}) and boxes of shape (b, n, 4), got {scores.shape} and "
                f"{boxes.shape}; correct head.outputs or num_classes in the contract"
            )
        found = []
        for scores_nc, boxes_xyxy in zip(scores, boxes, strict=True):
            rows, classes, best = pick(scores_nc, thresholds)
            found.append(candidates(boxes_xyxy[rows], classes, best))
        return found


def _scores_and_boxes(signature: Signature, num: int) -> tuple[TensorSpec, TensorSpec] | None:
    if len(signature.outputs) != 2:
        return None
    for scores, boxes in (signature.outputs, signature.outputs[::-1]):
        if len(scores.shape) != 3 or len(boxes.shape) != 3:
            return None
        tail_scores = signature.tails.get(scores.name, ())
        tail_boxes = signature.tails.get(boxes.name, ())
        if scores.shape[1] != num or boxes.shape[1:] != (num, 4):
            continue
        if not isinstance(scores.shape[2], int) or "Sigmoid" not in tail_scores:
            continue
        # A softmax means a background column; a sigmoid or exp on boxes, boxes not yet decoded.
        if "Softmax" not in tail_scores and not {"Sigmoid", "Exp"} & set(tail_boxes):
            return scores, boxes
    return None


HEAD = DamoYolo()
