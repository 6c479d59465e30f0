"""YOLOv5, YOLOv7 and YOLOv6: rows of box in pixels, objectness and class scores.

One output (b, n, 5 + c), decoded in the graph: centre x, centre y, width, height in input pixels,
objectness, c class scores. YOLOv5 and v7 have three anchors per cell; YOLOv6 has one box per cell
and an objectness that is always 1. Old exports give the raw maps of each grid besides.

Source: ultralytics/yolov5 and WongKinYiu/yolov7 (models/yolo.py), meituan/YOLOv6
(models/effidehead.py), as exported to ONNX.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from saccade.errors import ContractError
from saccade.heads import _labels, _rows
from saccade.types import Candidates, HeadRule, Recognition, Signature, TensorSpec, Thresholds

__all__ = ["HEAD", "Yolov5"]

_STRIDES = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (16, 32))
_ANCHORS = 3
_CONVENTION = {
    "color": "rgb",
    "mean": (0.0, 0.0, 0.0),
    "std": (255.0, 255.0, 255.0),
    "resize": "letterbox",
    "anchor": "center",
    "pad_value": 114.0,
}


class Yolov5:
    """Rows decoded in the graph; options: `objectness` is False where it is always 1."""

    family = "yolov5"

    def recognise(self, signature: Signature) -> Recognition | None:
        """See the Head protocol."""
        output = _decoded_output(signature)
        if output is None or signature.metadata.get("task", "detect") != "detect":
            return None
        num_rows, width = output.shape[1:]
        if not isinstance(num_rows, int) or not isinstance(width, int) or width < 6:
            return None
        names = _labels.ultralytics_names(signature.metadata)
        tail = set(signature.tails.get(output.name, ()))
        if (names and len(names) + 5 != width) or {"TopK", "NonMaxSuppression"} & tail:
            return None
        if num_rows % _ANCHORS == 0 and {"Sigmoid", "Mul"} <= tail:
            strides = _rows.strides_of(signature.size_hw, num_rows // _ANCHORS, _STRIDES)
            if strides:
                return _recognition(signature, output, strides, has_objectness=True)
        strides = _rows.strides_of(signature.size_hw, num_rows, _STRIDES)
        # A box made of distances to its four sides needs both signs. YOLOX's needs Exp instead,
        # and has neither if its boxes are not decoded in the graph.
        if strides and {"Sub", "Add"} <= tail and "Exp" not in tail:
            return _recognition(signature, output, strides, has_objectness=False)
        return None

    def decode(
        self,
        outputs: Mapping[str, np.ndarray],
        rule: HeadRule,
        size_hw: tuple[int, int],
        thresholds: Thresholds,
    ) -> list[Candidates]:
        """See the Head protocol."""
        batch = _rows.read(outputs, rule, "rows", 3)
        if batch.shape[2] != 5 + rule.num_classes:
            raise ContractError(
                f"head yolov5 with {rule.num_classes} classes must have {5 + rule.num_classes} "
                f"values per row, the output has {batch.shape[2]}; correct head.num_classes in "
                f"the contract"
            )
        has_objectness = bool(rule.options.get("objectness", True))
        return [_decode_picture(rows_nc, thresholds, has_objectness) for rows_nc in batch]


def _decode_picture(
    rows_nc: np.ndarray, thresholds: Thresholds, has_objectness: bool
) -> Candidates:
    if has_objectness:
        rows, classes, scores = _rows.pick_with_objectness(rows_nc, thresholds)
    else:
        rows, classes, scores = _rows.pick(rows_nc[:, 5:], thresholds)
    return _rows.candidates(_rows.cxcywh_to_xyxy(rows_nc[rows, :4]), classes, scores)


def _decoded_output(signature: Signature) -> TensorSpec | None:
    """Return the output of decoded rows; any others must be the raw maps (b, 3, h, w, 5 + c)."""
    rows = [o for o in signature.outputs if len(o.shape) == 3]
    maps = [o for o in signature.outputs if len(o.shape) == 5]
    if len(rows) != 1 or len(rows) + len(maps) != len(signature.outputs):
        return None
    if any((m.shape[1], m.shape[4]) != (_ANCHORS, rows[0].shape[2]) for m in maps):
        return None
    return rows[0] if rows[0].dtype in ("float32", "float16") else None


def _recognition(
    signature: Signature, output: TensorSpec, strides: tuple[int, ...], *, has_objectness: bool
) -> Recognition:
    num_rows, num_classes = output.shape[1], int(output.shape[2]) - 5
    labels, seen, assumed = _labels.labels_of(signature, num_classes)
    h, w = signature.size_hw
    if has_objectness:
        why = (
            f"three for each cell of the grids of {', '.join(map(str, strides))} pixels",
            ("boxes are computed in the graph from anchors: the layout of YOLOv5 and YOLOv7"),
        )
    else:
        why = (
            f"one for each cell of the grids of {', '.join(map(str, strides))} pixels",
            (
                "boxes are computed in the graph from distances to their sides, without Exp: the "
                "layout of YOLOv6, whose objectness is always 1; YOLOX would have an Exp"
            ),
        )
    return Recognition(
        head=HeadRule(
            Yolov5.family, {"rows": output.name}, num_classes, {"objectness": has_objectness}
        ),
        input=_CONVENTION,
        detect=Thresholds(score=0.25, iou=0.45),
        evaluate=Thresholds(score=0.001, iou=0.6, multi_label=True),
        seen=(
            f"output {output.name!r} has {num_rows} rows, {why[0]} in a {w}x{h} picture",
            f"each row has 4 coordinates, an objectness and {num_classes} class scores",
            why[1],
            *seen,
        ),
        assumed=(
            "pictures are RGB, divided by 255, letterboxed in the centre on grey 114, as this "
            "family is trained; the graph does not say so",
            *assumed,
        ),
        labels=labels,
    )


HEAD = Yolov5()
