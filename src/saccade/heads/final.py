"""Graphs that end with final boxes: suppression has been done inside, or is not needed.

The option `layout` says how the boxes are laid out; all are corners in input pixels:

    num_dets     count (b, 1), boxes (b, k, 4), scores (b, k), classes (b, k)
    dets_labels  boxes with scores (b, k, 5) and classes (b, k)
    nms6         rows (b, k, 6) of x1, y1, x2, y2, score, class
    nms7         rows (m, 7) of picture, x1, y1, x2, y2, class, score, all pictures mixed

Unused slots have score 0 or class -1.

Source: the EfficientNMS plug-in of NVIDIA/TensorRT, the ONNX Runtime exports of
open-mmlab/mmdeploy, THU-MIG/yolov10 and Ultralytics, the end-to-end export of WongKinYiu/yolov7.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from saccade.errors import ContractError
from saccade.heads import _labels, _rows
from saccade.types import Candidates, HeadRule, Recognition, Signature, TensorSpec, Thresholds

__all__ = ["HEAD", "Final"]

# "detection_boxes" and the like are left out: TensorFlow uses these names for boxes in 0..1 with
# y first, TensorRT's plug-in for pixels with x first.
_NAMES = {
    "count": {"num_dets", "num_det", "num_detections"},
    "boxes": {"det_boxes", "boxes", "bboxes"},
    "scores": {"det_scores", "scores"},
    "classes": {"det_classes", "classes", "labels"},
}
_FLOATS = ("float32", "float16")
_SELECTION = frozenset({"TopK", "NonMaxSuppression"})
_CONVENTION = {
    "color": "rgb",
    "mean": (0.0, 0.0, 0.0),
    "std": (255.0, 255.0, 255.0),
    "resize": "letterbox",
    "anchor": "center",
    "pad_value": 114.0,
}


class Final:
    """Final boxes; options: `layout`, and for nms7 `batch`, the fixed number of pictures."""

    family = "final"

    def recognise(self, signature: Signature) -> Recognition | None:
        """See the Head protocol."""
        for look in (_see_num_dets, _see_dets_labels, _see_nms6, _see_nms7):
            found = look(signature)
            if found is not None:
                return found
        return None

    def decode(
        self,
        outputs: Mapping[str, np.ndarray],
        rule: HeadRule,
        size_hw: tuple[int, int],
        thresholds: Thresholds,
    ) -> list[Candidates]:
        """See the Head protocol.

        With the layout nms7 and no option `batch`, pictures after the last one that has a box
        cannot be known; they are missing from the list.
        """
        layout = rule.options.get("layout")
        if layout not in _DECODERS:
            raise ContractError(
                f"head.options.layout of head final must be one of {', '.join(_DECODERS)}, it is "
                f"{layout!r}; correct it in the contract"
            )
        return _DECODERS[layout](outputs, rule, thresholds)


def _keep(
    boxes: np.ndarray, classes: np.ndarray, scores: np.ndarray, threshold: float
) -> Candidates:
    """Make candidates of the slots in use: above the threshold, with a class."""
    rows = _rows.above(scores, threshold)
    chosen = classes[rows]
    rows = rows[(chosen >= 0) & (chosen < np.inf)]
    return _rows.candidates(boxes[rows], classes[rows], scores[rows], is_final=True)


def _check_width(rule: HeadRule, role: str, array: np.ndarray, width: int) -> np.ndarray:
    if array.shape[-1] != width:
        raise ContractError(
            f"output {rule.outputs[role]!r} must have {width} values per box in layout "
            f"{rule.options['layout']!r}, its shape is {array.shape}; correct head.options.layout "
            f"in the contract"
        )
    return array


def _decode_num_dets(
    outputs: Mapping[str, np.ndarray], rule: HeadRule, thresholds: Thresholds
) -> list[Candidates]:
    boxes = _check_width(rule, "boxes", _rows.read(outputs, rule, "boxes", 3), 4)
    scores = _rows.read(outputs, rule, "scores", 2)
    classes = _rows.read(outputs, rule, "classes", 2)
    counts = _rows.read(outputs, rule, "count", None).reshape(-1)  # (b, 1) or (b,)
    return [
        _keep(boxes[i, :count], classes[i, :count], scores[i, :count], thresholds.score)
        for i, count in enumerate(np.maximum(counts, 0).tolist())
    ]


def _decode_dets_labels(
    outputs: Mapping[str, np.ndarray], rule: HeadRule, thresholds: Thresholds
) -> list[Candidates]:
    dets = _check_width(rule, "dets", _rows.read(outputs, rule, "dets", 3), 5)
    labels = _rows.read(outputs, rule, "labels", 2)
    return [
        _keep(rows[:, :4], classes, rows[:, 4], thresholds.score)
        for rows, classes in zip(dets, labels, strict=True)
    ]


def _decode_nms6(
    outputs: Mapping[str, np.ndarray], rule: HeadRule, thresholds: Thresholds
) -> list[Candidates]:
    batch = _check_width(rule, "rows", _rows.read(outputs, rule, "rows", 3), 6)
    return [_keep(rows[:, :4], rows[:, 5], rows[:, 4], thresholds.score) for rows in batch]


def _decode_nms7(
    outputs: Mapping[str, np.ndarray], rule: HeadRule, thresholds: Thresholds
) -> list[Candidates]:
    rows = _check_width(rule, "rows", _rows.read(outputs, rule, "rows", 2), 7)
    pictures = rows[:, 0]
    num_pictures = rule.options.get("batch")
    if num_pictures is None:
        known = pictures[np.isfinite(pictures)]
        num_pictures = int(known.max(initial=0)) + 1
    return [
        _keep(own[:, 1:5], own[:, 5], own[:, 6], thresholds.score)
        for own in (rows[pictures == i] for i in range(num_pictures))
    ]


_Decoder = Callable[[Mapping[str, np.ndarray], HeadRule, Thresholds], list[Candidates]]
_DECODERS: dict[str, _Decoder] = {
    "num_dets": _decode_num_dets,
    "dets_labels": _decode_dets_labels,
    "nms6": _decode_nms6,
    "nms7": _decode_nms7,
}


def _see_num_dets(signature: Signature) -> Recognition | None:
    roles: dict[str, TensorSpec] = {}
    for output in signature.outputs:
        for role, names in _NAMES.items():
            if output.name in names:
                roles[role] = output
    if len(signature.outputs) != 4 or len(roles) != 4:
        return None
    ranks = [len(roles[role].shape) for role in ("boxes", "scores", "classes")]
    if ranks != [3, 2, 2] or roles["boxes"].shape[2] != 4:
        return None
    if "int" not in roles["count"].dtype or roles["scores"].dtype not in _FLOATS:
        return None
    return _recognition(
        signature,
        "num_dets",
        {role: spec.name for role, spec in roles.items()},
        f"the outputs {', '.join(o.name for o in signature.outputs)} are a count, boxes, scores "
        "and classes",
    )


def _see_dets_labels(signature: Signature) -> Recognition | None:
    outputs = {o.name: o for o in signature.outputs}
    if set(outputs) != {"dets", "labels"}:
        return None
    dets, labels = outputs["dets"], outputs["labels"]
    if len(dets.shape) != 3 or dets.shape[2] != 5 or dets.dtype not in _FLOATS:
        return None
    if len(labels.shape) != 2 or "int" not in labels.dtype:
        return None
    return _recognition(
        signature,
        "dets_labels",
        {"dets": "dets", "labels": "labels"},
        "the outputs dets (four corners and a score per box) and labels are those of MMDeploy",
    )


def _see_nms6(signature: Signature) -> Recognition | None:
    output = _rows.sole_output(signature)
    if output is None or output.shape[2] != 6:
        return None
    if not _SELECTION & set(signature.tails.get(output.name, ())):
        return None
    metadata = signature.metadata
    if metadata.get("task", "detect") != "detect" or "rtdetr" in _squeezed(metadata):
        return None  # RT-DETR with two classes: also (b, 300, 6), but centres and class scores
    is_ultralytics = bool(_labels.ultralytics_names(metadata)) and "stride" in metadata
    return _recognition(
        signature,
        "nms6",
        {"rows": output.name},
        f"the only output, {output.name!r}, has 6 values per box and the graph itself selects "
        "the best boxes: corners, score, class, as YOLOv10 and YOLO26 give them",
        convention="its metadata is Ultralytics'" if is_ultralytics else None,
    )


def _squeezed(metadata: Mapping[str, str]) -> str:
    return metadata.get("description", "").lower().replace("-", "").replace("_", "")


def _see_nms7(signature: Signature) -> Recognition | None:
    if len(signature.outputs) != 1:
        return None
    output = signature.outputs[0]
    if len(output.shape) != 2 or output.shape[1] != 7 or output.dtype not in _FLOATS:
        return None
    if "NonMaxSuppression" not in signature.tails.get(output.name, ()):
        return None
    batch = next((i.shape[0] for i in signature.inputs if len(i.shape) == 4), None)
    return _recognition(
        signature,
        "nms7",
        {"rows": output.name},
        f"the only output, {output.name!r}, has 7 values per row after a NonMaxSuppression: "
        "picture, corners, class, score, as YOLOv7's end-to-end export gives them",
        convention="YOLOv7 is trained so",
        options={"batch": batch} if isinstance(batch, int) else {},
    )


def _recognition(
    signature: Signature,
    layout: str,
    outputs: Mapping[str, str],
    seen: str,
    *,
    convention: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Recognition:
    """Put a recognition together; convention says why pictures are fed in the YOLO way, if so."""
    names = _labels.ultralytics_names(signature.metadata)
    notes = ["boxes are corners in pixels of the network's input; the graph does not say so"]
    if convention:
        notes.append(
            "pictures are RGB, divided by 255, letterboxed in the centre on grey 114, because "
            + convention
        )
    return Recognition(
        head=HeadRule(Final.family, outputs, len(names), {"layout": layout, **(options or {})}),
        input=_CONVENTION if convention else None,
        detect=Thresholds(score=0.25),
        evaluate=Thresholds(score=0.001),
        seen=(seen, *([f"the file's metadata lists {len(names)} class names"] if names else [])),
        assumed=tuple(notes),
        labels=names,
    )


HEAD = Final()
