"""SSD: class probabilities with a background column, and boxes relative to fixed priors.

Two outputs: scores (b, n, 1 + c), column 0 the background, and boxes (b, n, 4), one row per prior
box. What is done in the graph differs, so options say it:

    "priors"      "in_graph": boxes are finished corners; or how the priors are laid out (below)
    "boxes"       "normalised" corners 0 .. 1, or "pixels" of the input
    "background"  0, or None if there is no background column
    "activation"  "none" if scores are probabilities, "softmax" if they are logits
    "variances"   factors of the encoded offsets, (0.1, 0.2) by custom

Priors outside the graph are laid out by a mapping with one entry per feature map: "feature_maps"
(cells per side, or [rows, cols]), "steps" (input pixels per cell), "min_sizes" and "max_sizes"
(pixels; a number or a list; max_sizes may be missing), "aspect_ratios" (lists) and "clip". With
a prior's centre p and size s, v the variances, and t the output:

    centre = p + t[0:2] * v[0] * s        size = s * exp(t[2:4] * v[1])

UltraFace is an SSD for faces that finishes boxes in the graph; it is recognised by the number of
its priors: 3, 2, 2 and 3 per cell of the strides 8, 16, 32 and 64.

Source: "SSD: Single Shot MultiBox Detector" (Liu et al. 2016), section 2.2; the layout of
SSD300 as in github.com/amdegroot/ssd.pytorch, layers/functions/prior_box.py and data/config.py;
github.com/Linzaer/Ultra-Light-Fast-Generic-Face-Detector-1MB, vision/ssd/config/fd_config.py.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from saccade.errors import ContractError
from saccade.heads._rows import candidates, cxcywh_to_xyxy, num_cells, pick, read
from saccade.types import Candidates, HeadRule, Recognition, Signature, TensorSpec, Thresholds

__all__ = ["HEAD", "SSD300_COCO", "SSD300_VOC", "Ssd", "prior_boxes"]

_SSD300: Mapping[str, Any] = {
    "feature_maps": [38, 19, 10, 5, 3, 1],
    "steps": [8, 16, 32, 64, 100, 300],
    "aspect_ratios": [[2], [2, 3], [2, 3], [2, 3], [2], [2]],
    "clip": True,
}
SSD300_VOC: Mapping[str, Any] = {
    **_SSD300,
    "min_sizes": [30, 60, 111, 162, 213, 264],
    "max_sizes": [60, 111, 162, 213, 264, 315],
}
SSD300_COCO: Mapping[str, Any] = {
    **_SSD300,
    "min_sizes": [21, 45, 99, 153, 207, 261],
    "max_sizes": [45, 99, 153, 207, 261, 315],
}
_SSD300_PRIORS = 8732
_ULTRAFACE_PRIORS = {8: 3, 16: 2, 32: 2, 64: 3}
_ULTRAFACE_INPUT = {"color": "rgb", "resize": "stretch", "mean": (127.0,) * 3, "std": (128.0,) * 3}
_MAX_EXPONENT = 20.0


class Ssd:
    family = "ssd"

    def recognise(self, signature: Signature) -> Recognition | None:
        if len(signature.outputs) != 2 or any(len(o.shape) != 3 for o in signature.outputs):
            return None
        for recognise in (_recognise_decoded, _recognise_ssd300):
            both = (signature.outputs, signature.outputs[::-1])
            found = [recognise(signature, scores, boxes) for scores, boxes in both]
            fitting = [r for r in found if r is not None]
            if len(fitting) == 1:  # two: nothing says which output is which
                return fitting[0]
        return None

    def decode(
        self,
        outputs: Mapping[str, np.ndarray],
        rule: HeadRule,
        size_hw: tuple[int, int],
        thresholds: Thresholds,
    ) -> list[Candidates]:
        scores, boxes = read(outputs, rule, "scores", 3), read(outputs, rule, "boxes", 3)
        layout = rule.options["priors"]
        priors = None if layout == "in_graph" else prior_boxes(layout, size_hw)
        _check(scores, boxes, rule, priors)
        h, w = size_hw
        is_normalised = rule.options["boxes"] == "normalised"
        scale = np.array((w, h, w, h) if is_normalised else (1,) * 4, np.float32)
        found = []
        for columns, encoded in zip(scores, boxes, strict=True):
            rows, classes, best = _pick(columns, rule, thresholds)
            corners = encoded[rows].astype(np.float32)
            if priors is not None:
                corners = _decode(corners, priors[rows], rule.options["variances"])
            found.append(candidates(corners * scale, classes, best))
        return found


def prior_boxes(layout: Mapping[str, Any], size_hw: tuple[int, int]) -> np.ndarray:
    """Lay out the priors of all feature maps, as the head's rows are ordered.

    Args:
        layout: See the head of this file.
        size_hw: Height and width of the input in pixels.

    Returns:
        (n, 4) float32 centre x, centre y, width, height as parts of the input; read-only, because
        it is kept for the next call.

    Raises:
        ContractError: An entry is missing, or the entries differ in length.
    """
    known = {"feature_maps", "steps", "min_sizes", "max_sizes", "aspect_ratios", "clip"}
    missing = known - {"max_sizes", "clip"} - set(layout)
    if missing or set(layout) - known:
        raise ContractError(
            f"the priors of an ssd head must have {', '.join(sorted(known))}; missing are "
            f"{sorted(missing)}, unknown are {sorted(set(layout) - known)}; correct "
            f"head.options.priors in the contract"
        )
    steps = tuple(layout["steps"])
    per_map = {
        "feature_maps": tuple(_pair(f) for f in layout["feature_maps"]),
        "min_sizes": tuple(map(_tuple, layout["min_sizes"])),
        "max_sizes": tuple(map(_tuple, layout.get("max_sizes") or [()] * len(steps))),
        "aspect_ratios": tuple(map(_tuple, layout["aspect_ratios"])),
    }
    for name, entries in per_map.items():
        if len(entries) != len(steps):
            raise ContractError(
                f"the priors of an ssd head must have one entry per feature map in each list, "
                f"steps has {len(steps)} and {name} has {len(entries)}; correct "
                f"head.options.priors in the contract"
            )
    maps = tuple(zip(*per_map.values(), steps, strict=True))
    return _lay_out(maps, tuple(size_hw), bool(layout.get("clip", False)))


@functools.lru_cache(maxsize=8)
def _lay_out(maps: tuple[Any, ...], size_hw: tuple[int, int], clip: bool) -> np.ndarray:
    h, w = size_hw
    priors = []
    for (rows, cols), min_sizes, max_sizes, ratios, step in maps:
        sizes = np.array(list(_sizes(min_sizes, max_sizes, ratios))) / (w, h)
        y, x = np.divmod(np.arange(rows * cols), cols)
        centres = (np.stack([x, y], axis=1) + 0.5) * step / (w, h)
        both = (np.repeat(centres, len(sizes), axis=0), np.tile(sizes, (rows * cols, 1)))
        priors.append(np.concatenate(both, axis=1))
    out = np.concatenate(priors)
    out = (out.clip(0, 1) if clip else out).astype(np.float32)
    out.setflags(write=False)
    return out


def _sizes(
    min_sizes: tuple[float, ...], max_sizes: tuple[float, ...], ratios: tuple[float, ...]
) -> Iterable[tuple[float, float]]:
    """Width and height in pixels of the priors of one cell, in order."""
    for place, small in enumerate(min_sizes):
        yield small, small
        if max_sizes:
            middle = math.sqrt(small * max_sizes[place])
            yield middle, middle
        for ratio in ratios:
            root = math.sqrt(ratio)
            yield small * root, small / root
            yield small / root, small * root


def _pair(cells: Any) -> tuple[int, int]:
    return (cells, cells) if isinstance(cells, int) else (int(cells[0]), int(cells[1]))


def _tuple(entry: Any) -> tuple[float, ...]:
    return (entry,) if isinstance(entry, (int, float)) else tuple(entry)


def _check(
    scores: np.ndarray, boxes: np.ndarray, rule: HeadRule, priors: np.ndarray | None
) -> None:
    num_columns = rule.num_classes + (rule.options["background"] is not None)
    if boxes.shape != (*scores.shape[:2], 4) or scores.shape[2] != num_columns:
        raise ContractError(
            f"ssd with {rule.num_classes} classes must have scores of shape (b, n, {num_columns}) "
            f"and boxes of shape (b, n, 4), got {scores.shape} and {boxes.shape}; correct "
            f"head.outputs, num_classes or background in the contract"
        )
    if priors is not None and len(priors) != scores.shape[1]:
        raise ContractError(
            f"ssd must have one row per prior, there are {len(priors)} priors and "
            f"{scores.shape[1]} rows; correct head.options.priors in the contract"
        )
    if rule.options["background"] not in (0, None):
        raise ContractError(
            f"the background of an ssd head must be column 0 or null (none), got "
            f"{rule.options['background']!r}; correct head.options.background in the contract"
        )
    if rule.options["activation"] not in ("none", "softmax"):
        raise ContractError(
            f"the activation of an ssd head must be 'none' or 'softmax', got "
            f"{rule.options['activation']!r}; correct head.options.activation in the contract"
        )
    if rule.options["boxes"] not in ("normalised", "pixels") or (
        priors is not None and rule.options["boxes"] != "normalised"
    ):
        raise ContractError(
            f"the boxes of an ssd head must be 'normalised', or 'pixels' with priors in the "
            f"graph, got {rule.options['boxes']!r}; correct head.options.boxes in the contract"
        )


# Infinite outputs become NaN here, and NaN is dropped later; nobody needs a warning.
@np.errstate(invalid="ignore")
def _pick(
    columns: np.ndarray, rule: HeadRule, thresholds: Thresholds
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, classes (without background) and scores above the threshold of (n, columns)."""
    first = 0 if rule.options["background"] is None else 1
    if rule.options["activation"] == "none":
        return pick(columns[:, first:], thresholds)
    rows = _hopeful(columns, first, thresholds.score)
    logits = columns[rows].astype(np.float32, copy=False)
    if not len(rows):
        return pick(logits[:, first:], thresholds)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    chosen, classes, scores = pick(weights[:, first:], thresholds)
    return rows[chosen], classes, scores


def _hopeful(columns: np.ndarray, first: int, score: float) -> np.ndarray:
    """Rows whose softmax may be above the score, found without computing it.

    A probability is at most 1 / (1 + exp(background - logit)), which is what it would be if there
    were no other classes; so logit - background must be above log(score / (1 - score)).
    """
    if first == 0 or not 0 < score < 1 or columns.shape[1] == first:
        return np.arange(len(columns))
    # In float32 and a touch lower, so that rounding loses no row.
    lead = columns[:, first:].max(axis=1).astype(np.float32) - columns[:, 0]
    return np.flatnonzero(lead > math.log(score / (1 - score)) - 1e-3)


@np.errstate(invalid="ignore")
def _decode(encoded: np.ndarray, priors: np.ndarray, variances: Iterable[float]) -> np.ndarray:
    """Corners (k, 4) of the encoded offsets (k, 4) from priors (k, 4) in centre form."""
    of_centre, of_size = variances
    out = np.empty_like(encoded)
    out[:, :2] = priors[:, :2] + encoded[:, :2] * np.float32(of_centre) * priors[:, 2:]
    # No box is exp(20) priors wide; without the limit, garbage would overflow.
    exponent = np.minimum(encoded[:, 2:] * np.float32(of_size), _MAX_EXPONENT)
    out[:, 2:] = priors[:, 2:] * np.exp(exponent)
    return cxcywh_to_xyxy(out)


def _recognise_decoded(
    signature: Signature, scores: TensorSpec, boxes: TensorSpec
) -> Recognition | None:
    """Softmax scores, and boxes whose size goes through an exp in the graph."""
    num, columns = scores.shape[1:]
    tail_scores = signature.tails.get(scores.name, ())
    if boxes.shape[1:] != (num, 4) or not isinstance(columns, int) or columns < 2:
        return None
    if "Softmax" not in tail_scores or "Exp" not in signature.tails.get(boxes.name, ()):
        return None
    rule = HeadRule(
        "ssd",
        {"scores": scores.name, "boxes": boxes.name},
        columns - 1,
        {
            "priors": "in_graph",
            "boxes": "normalised",
            "background": 0,
            "activation": "none",
            "variances": [0.1, 0.2],
        },
    )
    seen = (
        f"two outputs with {num} rows: {columns} class probabilities (a softmax is in the graph) "
        f"and a box whose size goes through an exponential in the graph, so priors are inside"
    )
    priors = sum(k * num_cells(signature.size_hw, (s,)) for s, k in _ULTRAFACE_PRIORS.items())
    if columns == 2 and num == priors:
        return Recognition(
            head=rule,
            input=_ULTRAFACE_INPUT,
            detect=Thresholds(score=0.7, iou=0.3),
            evaluate=Thresholds(score=0.01, iou=0.3),
            seen=(
                seen,
                f"{num} is the number of UltraFace's priors at this input size: 3, 2, 2 and 3 "
                f"per cell of the strides 8, 16, 32 and 64",
            ),
            assumed=(
                "pictures are stretched to the input size, in the channel order red, green, blue, "
                "minus 127, divided by 128: what the public UltraFace code does; the graph does "
                "not say",
                "column 0 is the background, column 1 a face; boxes are corners from 0 to 1",
            ),
            labels=("face",),
        )
    return Recognition(
        head=rule,
        input=None,
        detect=Thresholds(score=0.5, iou=0.45),
        evaluate=Thresholds(score=0.01, iou=0.45, multi_label=True),
        seen=(seen,),
        assumed=("column 0 is the background; boxes are corners from 0 to 1", _NO_INPUT),
    )


_NO_INPUT = (
    "SSD networks prepare pictures in many ways; nothing in the graph says which one this is"
)


def _recognise_ssd300(
    signature: Signature, scores: TensorSpec, boxes: TensorSpec
) -> Recognition | None:
    """SSD300 with its 8732 priors outside the graph: raw offsets, scores raw or softmax."""
    num, columns = scores.shape[1:]
    if num != _SSD300_PRIORS or signature.size_hw != (300, 300) or boxes.shape[1:] != (num, 4):
        return None
    tail_scores = signature.tails.get(scores.name, ())
    tail_boxes = signature.tails.get(boxes.name, ())
    if not isinstance(columns, int) or columns < 2 or "Sigmoid" in tail_scores:
        return None
    if {"Sigmoid", "Softmax", "Exp"} & set(tail_boxes):
        return None
    is_coco = columns == 81
    has_softmax = "Softmax" in tail_scores
    layout = SSD300_COCO if is_coco else SSD300_VOC
    rule = HeadRule(
        "ssd",
        {"scores": scores.name, "boxes": boxes.name},
        columns - 1,
        {
            "priors": dict(layout),
            "boxes": "normalised",
            "background": 0,
            "activation": "none" if has_softmax else "softmax",
            "variances": [0.1, 0.2],
        },
    )
    return Recognition(
        head=rule,
        input=None,
        detect=Thresholds(score=0.5, iou=0.45),
        evaluate=Thresholds(score=0.01, iou=0.45, multi_label=True),
        seen=(
            f"two outputs with 8732 rows at 300 x 300 pixels, the number of SSD300's priors: "
            f"{columns} class {'probabilities' if has_softmax else 'logits'} and 4 raw values "
            f"each; no exponential in the graph, so priors are applied outside",
        ),
        assumed=(
            f"column 0 is the background; the priors have the sizes that SSD300 uses for "
            f"{'COCO' if is_coco else 'Pascal VOC'} (the count is the same for both); offsets "
            f"are scaled by 0.1 and 0.2",
            _NO_INPUT,
        ),
    )


HEAD = Ssd()
