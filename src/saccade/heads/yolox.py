"""YOLOX: one row per cell of box, objectness and class scores; boxes usually not yet decoded.

One output (b, n, 5 + c), the scores after the sigmoid. With g the cell's column and row and s its
stride, the box is xy = (t_xy + g) * s and wh = exp(t_wh) * s in input pixels, centre form.

Source: Ge et al., "YOLOX: Exceeding YOLO Series in 2021", and Megvii-BaseDetection/YOLOX
(models/yolo_head.py, decode_outputs); the export keeps or leaves out that decoding.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from saccade.errors import ContractError
from saccade.heads import _labels, _rows
from saccade.types import Candidates, HeadRule, Recognition, Signature, Thresholds

__all__ = ["HEAD", "Yolox"]

_STRIDES = (8, 16, 32)
_FOREIGN = frozenset({"Pow", "Softmax", "TopK", "NonMaxSuppression"})
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})
_CONVENTION = {
    "color": "bgr",
    "mean": (0.0, 0.0, 0.0),
    "std": (1.0, 1.0, 1.0),
    "resize": "letterbox",
    "anchor": "top_left",
    "pad_value": 114.0,
}


class Yolox:
    """One row per cell; options: `decoded`, whether the graph computes pixels by itself."""

    family = "yolox"

    def recognise(self, signature: Signature) -> Recognition | None:
        """See the Head protocol."""
        output = _rows.sole_output(signature)
        if output is None or signature.metadata.get("task", "detect") != "detect":
            return None
        num_rows, width = output.shape[1:]
        if num_rows != _rows.num_cells(signature.size_hw, _STRIDES):
            return None
        if not isinstance(width, int) or width < 6:
            return None
        names = _labels.ultralytics_names(signature.metadata)
        if names and len(names) + 5 != width:
            return None
        tail = set(signature.tails.get(output.name, ()))
        if "Sigmoid" not in tail or _FOREIGN & tail:
            return None
        if "Exp" not in tail and _ARITHMETIC & tail:
            return None  # decoded in some other way, perhaps YOLOv6's
        return _recognition(signature, width - 5, is_decoded="Exp" in tail)

    def decode(
        self,
        outputs: Mapping[str, np.ndarray],
        rule: HeadRule,
        size_hw: tuple[int, int],
        thresholds: Thresholds,
    ) -> list[Candidates]:
        """See the Head protocol."""
        batch = _rows.read(outputs, rule, "rows", 3)
        is_decoded = bool(rule.options.get("decoded", False))
        num_rows = batch.shape[1] if is_decoded else _rows.num_cells(size_hw, _STRIDES)
        if batch.shape[1:] != (num_rows, 5 + rule.num_classes):
            raise ContractError(
                f"head yolox with {rule.num_classes} classes must have {num_rows} rows of "
                f"{5 + rule.num_classes} values at {size_hw[1]}x{size_hw[0]} pixels, the output "
                f"is {batch.shape[1]} by {batch.shape[2]}; correct input.size_hw or "
                f"head.num_classes in the contract"
            )
        return [_decode_picture(rows_nc, size_hw, thresholds, is_decoded) for rows_nc in batch]


def _decode_picture(
    rows_nc: np.ndarray, size_hw: tuple[int, int], thresholds: Thresholds, is_decoded: bool
) -> Candidates:
    rows, classes, scores = _rows.pick_with_objectness(rows_nc, thresholds)
    boxes = rows_nc[rows, :4].astype(np.float32, copy=False)
    if not is_decoded:
        corners, strides = _rows.grid_centres(size_hw, _STRIDES, 0.0)
        stride = strides[rows, None]
        with np.errstate(over="ignore"):  # a box without end is dropped by candidates()
            boxes[:, 2:] = np.exp(boxes[:, 2:]) * stride
        boxes[:, :2] = boxes[:, :2] * stride + corners[rows]
    return _rows.candidates(_rows.cxcywh_to_xyxy(boxes), classes, scores)


def _recognition(signature: Signature, num_classes: int, *, is_decoded: bool) -> Recognition:
    output = signature.outputs[0]
    labels, seen, assumed = _labels.labels_of(signature, num_classes)
    h, w = signature.size_hw
    how = (
        "the graph ends with an Exp, which turns YOLOX's logarithmic sizes into pixels (YOLOv6 "
        "has the same shape but no Exp): boxes are already in pixels"
        if is_decoded
        else "no arithmetic follows the last convolutions (YOLOv6, which has the same shape, "
        "would add and subtract there): boxes are still relative to their cells"
    )
    return Recognition(
        head=HeadRule(Yolox.family, {"rows": output.name}, num_classes, {"decoded": is_decoded}),
        input=_CONVENTION,
        detect=Thresholds(score=0.3, iou=0.45),
        evaluate=Thresholds(score=0.001, iou=0.65, multi_label=True),
        seen=(
            f"the only output, {output.name!r}, has {output.shape[1]} rows, one for each cell of "
            f"the grids of 8, 16 and 32 pixels in a {w}x{h} picture",
            f"each row has 4 coordinates, an objectness and {num_classes} class scores",
            how,
            *seen,
        ),
        assumed=(
            "pictures are BGR, 0 to 255 without normalisation, letterboxed into the upper left "
            "corner on grey 114, as YOLOX trains them; the graph does not say so",
            *assumed,
        ),
        labels=labels,
    )


HEAD = Yolox()
