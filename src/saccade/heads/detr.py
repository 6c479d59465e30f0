"""DETR and its descendants: a set of queries, each at most one object, nothing to suppress.

The option `layout` says where the graph ends:

    post  labels (b, q), boxes (b, q, 4) corners in source pixels, scores (b, q); a second input
          takes the source size (RT-DETR, D-FINE, DEIM with their post-processing)
    raw   logits (b, q, c) and boxes (b, q, 4), centre form in 0..1 of the input

Source: Carion et al., "End-to-End Object Detection with Transformers" (softmax, the last class
means no object); Zhu et al., "Deformable DETR" (sigmoid, the best pairs of query and class).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from saccade.errors import ContractError
from saccade.heads import _labels, _rows
from saccade.types import Candidates, HeadRule, Recognition, Signature, TensorSpec, Thresholds

__all__ = ["HEAD", "Detr"]

_FLOATS = ("float32", "float16")
_LOGITS = ("pred_logits", "logits", "labels")
_BOXES = ("pred_boxes", "boxes", "dets")
_DETR_QUERIES = 100
_UNIT = {"mean": (0.0, 0.0, 0.0), "std": (255.0, 255.0, 255.0)}
_IMAGENET = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
# These models are trained on pictures that Pillow's antialiasing filter has resized. A contract
# may say interpolation = "antialias"; it is not assumed because it costs more than it gains where
# the published figures were taken with plain linear resizing.
_STRETCH = {"color": "rgb", "resize": "stretch"}


class Detr:
    """Set prediction; options: `layout`, and for raw `activation` and `no_object`.

    `activation` is "sigmoid" or "softmax"; `no_object` is True if the last logit is no class.
    """

    family = "detr"

    def recognise(self, signature: Signature) -> Recognition | None:
        """See the Head protocol."""
        return _see_post(signature) or _see_raw(signature)

    def decode(
        self,
        outputs: Mapping[str, np.ndarray],
        rule: HeadRule,
        size_hw: tuple[int, int],
        thresholds: Thresholds,
    ) -> list[Candidates]:
        """See the Head protocol."""
        layout = rule.options.get("layout")
        if layout == "post":
            return _decode_post(outputs, rule, thresholds)
        if layout == "raw":
            return _decode_raw(outputs, rule, size_hw, thresholds)
        raise ContractError(
            f"head.options.layout of head detr must be 'post' or 'raw', it is {layout!r}; "
            f"correct it in the contract"
        )


def _decode_post(
    outputs: Mapping[str, np.ndarray], rule: HeadRule, thresholds: Thresholds
) -> list[Candidates]:
    boxes = _rows.read(outputs, rule, "boxes", 3)
    labels = _rows.read(outputs, rule, "labels", 2)
    scores = _rows.read(outputs, rule, "scores", 2)
    found = []
    for i in range(len(scores)):
        rows = _rows.above(scores[i], thresholds.score)
        found.append(
            _rows.candidates(
                boxes[i, rows], labels[i, rows], scores[i, rows], frame="source", is_final=True
            )
        )
    return found


def _decode_raw(
    outputs: Mapping[str, np.ndarray],
    rule: HeadRule,
    size_hw: tuple[int, int],
    thresholds: Thresholds,
) -> list[Candidates]:
    logits = _rows.read(outputs, rule, "logits", 3)
    boxes = _rows.read(outputs, rule, "boxes", 3)
    activation = rule.options.get("activation", "sigmoid")
    if activation not in ("sigmoid", "softmax"):
        raise ContractError(
            f"head.options.activation of head detr must be 'sigmoid' or 'softmax', it is "
            f"{activation!r}; correct it in the contract"
        )
    is_softmax = activation == "softmax"
    width = rule.num_classes + bool(rule.options.get("no_object", is_softmax))
    if logits.shape[2] != width:
        raise ContractError(
            f"head detr with {rule.num_classes} classes must have {width} logits per query, the "
            f"output has {logits.shape[2]}; correct head.num_classes or head.options.no_object "
            f"in the contract"
        )
    h, w = size_hw
    scale = np.array([w, h, w, h], np.float32)
    found = []
    for logits_qc, boxes_q4 in zip(logits, boxes, strict=True):
        if is_softmax:
            probabilities = _softmax(logits_qc)[:, : rule.num_classes]
            queries, classes, scores = _rows.pick(probabilities, thresholds)
        else:
            queries, classes, scores = _best_pairs(logits_qc[:, : rule.num_classes], thresholds)
        corners = _rows.cxcywh_to_xyxy(boxes_q4[queries]) * scale
        found.append(_rows.candidates(corners, classes, scores, is_final=True))
    return found


def _softmax(logits_qc: np.ndarray) -> np.ndarray:
    """Turn logits (q, c) into float32 probabilities per query."""
    with np.errstate(invalid="ignore"):  # a query that holds NaN or infinity becomes NaN
        powers = logits_qc.astype(np.float32)
        powers -= powers.max(axis=1, keepdims=True)
        np.exp(powers, out=powers)
        powers /= powers.sum(axis=1, keepdims=True)
    return powers


def _best_pairs(
    logits_qc: np.ndarray, thresholds: Thresholds
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Choose the best pairs of query and class, as many as there are queries, best first.

    The sigmoid is monotone, so logits are cut and ranked and only the survivors go through it. A
    query that holds a NaN is left out.
    """
    num_queries, num_classes = logits_qc.shape
    logits = logits_qc.astype(np.float32, copy=False)
    is_broken = np.isnan(logits.max(axis=1, initial=-np.inf))
    if is_broken.any():
        logits = np.where(is_broken[:, None], np.float32(-np.inf), logits)
    logits = logits.ravel()
    t = thresholds.score
    if 0 < t < 1:  # cut a little early; the exact comparison comes after the sigmoid
        pairs = np.flatnonzero(logits > np.log(t / (1 - t)) - 1e-3)
    else:
        pairs = np.flatnonzero(logits > -np.inf)
    if len(pairs) > num_queries:
        worst = len(pairs) - num_queries
        pairs = pairs[logits[pairs] >= np.partition(logits[pairs], worst)[worst]]
    pairs = pairs[np.argsort(-logits[pairs], kind="stable")][:num_queries]
    with np.errstate(over="ignore"):
        scores = 1 / (1 + np.exp(-logits[pairs]))
    keep = scores > t
    queries, classes = np.divmod(pairs[keep], max(num_classes, 1))
    return queries, classes.astype(np.int32), scores[keep]


def _see_post(signature: Signature) -> Recognition | None:
    shapes = {o.name: o.shape for o in signature.outputs}
    if set(shapes) != {"labels", "boxes", "scores"}:
        return None
    if [len(shapes[name]) for name in ("labels", "boxes", "scores")] != [2, 3, 2]:
        return None
    sizes = [i for i in signature.inputs if len(i.shape) == 2 and i.shape[1] == 2]
    if shapes["boxes"][2] != 4 or len(sizes) != 1 or len(signature.inputs) != 2:
        return None
    return Recognition(
        head=HeadRule(
            Detr.family, {name: name for name in ("labels", "boxes", "scores")}, 0,
            {"layout": "post"},
        ),
        input={**_STRETCH, **_UNIT, "size_input": sizes[0].name, "size_order": "wh"},
        detect=Thresholds(score=0.4),
        evaluate=Thresholds(score=0.0),
        seen=(
            "the outputs are labels, boxes and scores, selected in the graph",
            f"the second input, {sizes[0].name!r}, takes the picture's size, so boxes come back "
            "in its own pixels: the layout of RT-DETR, D-FINE and DEIM",
        ),
        assumed=(
            "pictures are RGB, divided by 255, stretched to the input size (interpolation = "
            "'antialias', as in training, may gain a point of AP and takes longer to prepare); "
            "models with a DINO backbone want ImageNet's mean and std",
            "the size is given as width, height",
            "how many classes there are cannot be seen once the best have been selected",
        ),
    )  # fmt: skip


def _see_raw(signature: Signature) -> Recognition | None:
    found = _raw_outputs(signature)
    if found is None:
        return None
    logits, boxes = found
    num_queries, width = logits.shape[1:]
    if not isinstance(width, int) or width < 1:
        return None
    is_rf = (logits.name, boxes.name) == ("labels", "dets")
    is_softmax = num_queries == _DETR_QUERIES and not is_rf and width > 1
    # RF-DETR has a slot for no object behind the classes, except with COCO's 91 numbers.
    no_object = is_softmax or (is_rf and width > 1 and width != len(_labels.COCO_91))
    num_classes = width - no_object
    labels: tuple[str, ...] = ()
    notes = [_activation_note(is_softmax, no_object)]
    if num_classes == len(_labels.COCO_91):
        labels = _labels.COCO_91
        notes.append("91 classes are taken to be COCO's category numbers 0 to 90")
    else:
        labels, _, assumed = _labels.labels_of(signature, num_classes)
        notes += assumed
    if is_rf or is_softmax:
        notes.append(
            "pictures are RGB with ImageNet's mean and std, stretched to the input size, as "
            + ("RF-DETR" if is_rf else "DETR")
            + " is trained; the graph does not say so"
        )
    options: dict[str, Any] = {
        "layout": "raw",
        "activation": "softmax" if is_softmax else "sigmoid",
        "no_object": no_object,
    }
    return Recognition(
        head=HeadRule(
            Detr.family, {"logits": logits.name, "boxes": boxes.name}, num_classes, options
        ),
        input={**_STRETCH, **_IMAGENET} if is_rf or is_softmax else None,
        detect=Thresholds(score=0.7 if is_softmax else 0.5),
        evaluate=Thresholds(score=0.0),
        seen=(
            f"output {logits.name!r} has {width} raw class scores and {boxes.name!r} a box for "
            f"each of {num_queries} queries, and both end in a matrix product: a transformer "
            "that predicts a set, as DETR does",
        ),
        assumed=tuple(notes),
        labels=labels,
    )


def _activation_note(is_softmax: bool, no_object: bool) -> str:
    if is_softmax:
        return (
            f"{_DETR_QUERIES} queries are taken for the original DETR: class scores need a "
            "softmax, and the last of them means no object"
        )
    last = "the last of them means no object" if no_object else "all of them are classes"
    return f"class scores need a sigmoid, as in Deformable DETR and its heirs, and {last}"


def _raw_outputs(signature: Signature) -> tuple[TensorSpec, TensorSpec] | None:
    """Find logits and boxes, by name: with four classes their shapes are the same."""
    outputs = {o.name: o for o in signature.outputs}
    logits = next((outputs[name] for name in _LOGITS if name in outputs), None)
    boxes = next((outputs[name] for name in _BOXES if name in outputs), None)
    if logits is None or boxes is None or len(signature.outputs) != 2:
        return None
    if len(logits.shape) != 3 or len(boxes.shape) != 3 or logits.shape[1] != boxes.shape[1]:
        return None
    if boxes.shape[2] != 4 or {logits.dtype, boxes.dtype} - set(_FLOATS):
        return None
    ends = [_up_to_product(signature, o.name) for o in (logits, boxes)]
    if any(end is None for end in ends) or {"Sigmoid", "Softmax"} & set(ends[0] or ()):
        return None
    return logits, boxes


def _up_to_product(signature: Signature, name: str) -> tuple[str, ...] | None:
    """The operators between an output and the nearest matrix product; None if there is none."""
    tail = signature.tails.get(name, ())
    for i, kind in enumerate(tail):
        if "MatMul" in kind or "Gemm" in kind:
            return tail[:i]
    return None


HEAD = Detr()
