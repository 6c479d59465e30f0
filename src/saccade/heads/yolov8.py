"""YOLOv8, YOLO11 and their kin: boxes in pixels above class scores, no objectness.

One output (b, 4 + c, n): centre x, centre y, width, height in input pixels, then c class scores
after the sigmoid; n is the number of cells of all grids.

Source: the detection layer of Ultralytics YOLO as exported to ONNX, seen in its graphs.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from saccade.errors import ContractError
from saccade.heads import _labels, _rows
from saccade.types import Candidates, HeadRule, Recognition, Signature, Thresholds

__all__ = ["HEAD", "Yolov8"]

_STRIDES = ((8, 16, 32), (4, 8, 16, 32), (8, 16, 32, 64))
# 4 + 1 + 3 * 17: one class and COCO's 17 key points, which look like 52 classes.
_POSE_ROWS = 56
_CONVENTION = {
    "color": "rgb",
    "mean": (0.0, 0.0, 0.0),
    "std": (255.0, 255.0, 255.0),
    "resize": "letterbox",
    "anchor": "center",
    "pad_value": 114.0,
}


class Yolov8:
    """One output of boxes and class scores; options: `rows_first` for (b, n, 4 + c)."""

    family = "yolov8"

    def recognise(self, signature: Signature) -> Recognition | None:
        """See the Head protocol."""
        output = _rows.sole_output(signature)
        if output is None or signature.metadata.get("task", "detect") != "detect":
            return None
        names = _labels.ultralytics_names(signature.metadata)
        if names and len(names) + 4 not in output.shape[1:]:
            return None
        tail = signature.tails.get(output.name, ())
        # Oriented boxes have sines; final boxes have been sorted.
        if "Sigmoid" not in tail or {"Sin", "Cos", "TopK", "NonMaxSuppression"} & set(tail):
            return None
        rows, cols = (_rows.strides_of(signature.size_hw, n, _STRIDES) for n in output.shape[1:])
        if cols and not rows:
            strides, width, rows_first = cols, output.shape[1], False
        elif rows and not cols and len(names) + 4 == output.shape[2]:
            strides, width, rows_first = rows, output.shape[2], True
        else:
            return None
        if not isinstance(width, int) or width < 5 or (width == _POSE_ROWS and not names):
            return None
        return _recognition(signature, width - 4, strides, rows_first=rows_first)

    def decode(
        self,
        outputs: Mapping[str, np.ndarray],
        rule: HeadRule,
        size_hw: tuple[int, int],
        thresholds: Thresholds,
    ) -> list[Candidates]:
        """See the Head protocol."""
        batch = _rows.read(outputs, rule, "rows", 3)
        if not rule.options.get("rows_first", False):
            batch = batch.transpose(0, 2, 1)
        if batch.shape[2] != 4 + rule.num_classes:
            raise ContractError(
                f"head yolov8 with {rule.num_classes} classes must have {4 + rule.num_classes} "
                f"values per box, the output has {batch.shape[2]}; correct head.num_classes or "
                f"head.options.rows_first in the contract"
            )
        return [_decode_picture(rows_nc, thresholds) for rows_nc in batch]


def _decode_picture(rows_nc: np.ndarray, thresholds: Thresholds) -> Candidates:
    rows, classes, scores = _rows.pick(rows_nc[:, 4:], thresholds)
    return _rows.candidates(_rows.cxcywh_to_xyxy(rows_nc[rows, :4]), classes, scores)


def _recognition(
    signature: Signature, num_classes: int, strides: tuple[int, ...], *, rows_first: bool
) -> Recognition:
    output = signature.outputs[0]
    labels, seen, assumed = _labels.labels_of(signature, num_classes)
    h, w = signature.size_hw
    boxes = output.shape[1] if rows_first else output.shape[2]
    return Recognition(
        head=HeadRule(
            Yolov8.family,
            {"rows": output.name},
            num_classes,
            {"rows_first": rows_first},
        ),
        input=_CONVENTION,
        detect=Thresholds(score=0.25, iou=0.7),
        evaluate=Thresholds(score=0.001, iou=0.7, multi_label=True),
        seen=(
            f"the only output, {output.name!r}, has {boxes} boxes, one for each cell of the grids "
            f"of {', '.join(map(str, strides))} pixels in a {w}x{h} picture",
            f"each box has 4 coordinates and {num_classes} class scores that went through a "
            f"sigmoid, and no separate objectness: the layout of YOLOv8 and YOLO11",
            *seen,
        ),
        assumed=(
            "pictures are RGB, divided by 255, letterboxed in the centre on grey 114, as "
            "Ultralytics trains them; the graph does not say so",
            *assumed,
        ),
        labels=labels,
    )


HEAD = Yolov8()
