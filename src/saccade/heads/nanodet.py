"""NanoDet and NanoDet-Plus: class scores per cell and, per side of the box, a distribution.

Each cell of each grid says how far the left, top, right and bottom side of the box is from its
point. Not as a number but as reg_max + 1 logits: the distance is the mean of 0 .. reg_max under
their softmax, times the stride.

Two layouts, which differ in where the point of a cell lies:

    NanoDet       two outputs per stride, scores (b, n, c) and logits (b, n, 4 * (reg_max + 1));
                  the point is the centre of the cell, (i + 0.5) * stride
    NanoDet-Plus  one output (b, n, c + 4 * (reg_max + 1)), all strides one after another; the
                  point is the upper left corner of the cell, i * stride, without half a pixel

Source: github.com/RangiLyu/nanodet, nanodet/model/head/gfl_head.py and nanodet_plus_head.py
(get_single_level_center_point, get_single_level_center_priors, _forward_onnx); the distribution
is from "Generalized Focal Loss" (Li et al. 2020), section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from saccade.errors import ContractError
from saccade.heads._labels import COCO_80
from saccade.heads._rows import candidates, grid_centres, num_cells, pick, read
from saccade.types import Candidates, HeadRule, Recognition, Signature, TensorSpec, Thresholds

__all__ = ["HEAD", "NanoDet"]

_STRIDES = ((8, 16, 32), (8, 16, 32, 64))
_PLUS_STRIDES = ((8, 16, 32, 64), (8, 16, 32), (8, 16, 32, 64, 128))
_PLUS_REG_MAX = 7
_INPUT = {
    "color": "bgr",
    "resize": "stretch",
    "mean": (103.53, 116.28, 123.675),
    "std": (57.375, 57.12, 58.395),
}
_DETECT = Thresholds(score=0.35, iou=0.6)
_EVALUATE = Thresholds(score=0.01, iou=0.6, multi_label=True)
_ASSUMED_INPUT = (
    "pictures are stretched to the input size, in the channel order blue, green, red, minus "
    "(103.53, 116.28, 123.675), divided by (57.375, 57.12, 58.395): what NanoDet's public "
    "configurations do; the graph does not say"
)


class NanoDet:
    family = "nanodet"

    def recognise(self, signature: Signature) -> Recognition | None:
        if len(signature.outputs) == 1:
            return _recognise_plus(signature)
        return _recognise_pairs(signature)

    def decode(
        self,
        outputs: Mapping[str, np.ndarray],
        rule: HeadRule,
        size_hw: tuple[int, int],
        thresholds: Thresholds,
    ) -> list[Candidates]:
        levels = _levels(outputs, rule)
        strides = tuple(rule.options["strides"])
        points_xy, cell_strides = grid_centres(size_hw, strides, rule.options["centre"])
        _check_cells(levels, len(points_xy), size_hw, rule)
        grid = _Grid(points_xy, cell_strides, size_hw)
        num_pictures = len(levels[0][0])
        return [
            _read_picture([(s[i], d[i]) for s, d in levels], grid, thresholds)
            for i in range(num_pictures)
        ]


class _Grid(NamedTuple):
    points_xy: np.ndarray
    strides: np.ndarray
    size_hw: tuple[int, int]


def _levels(
    outputs: Mapping[str, np.ndarray], rule: HeadRule
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Scores (b, n, c) and logits (b, n, 4 * (reg_max + 1)) per output pair."""
    num_logits = 4 * (int(rule.options["reg_max"]) + 1)
    if "rows" in rule.outputs:
        rows = read(outputs, rule, "rows", 3)
        levels = [(rows[..., : rule.num_classes], rows[..., rule.num_classes :])]
    else:
        levels = [
            (read(outputs, rule, f"cls_{s}", 3), read(outputs, rule, f"dis_{s}", 3))
            for s in rule.options["strides"]
        ]
    for _, logits in levels:
        if logits.shape[2] != num_logits:
            raise ContractError(
                f"nanodet with reg_max {num_logits // 4 - 1} must have {num_logits} values per "
                f"cell for the distances, got {logits.shape[2]}; correct reg_max or num_classes "
                f"in the contract"
            )
    return levels


def _check_cells(
    levels: list[tuple[np.ndarray, np.ndarray]], want: int, size_hw: tuple[int, int], rule: HeadRule
) -> None:
    for position, what in enumerate(("scores", "distances")):
        got = sum(pair[position].shape[1] for pair in levels)
        if got != want:
            raise ContractError(
                f"nanodet with strides {list(rule.options['strides'])} on {size_hw[0]} x "
                f"{size_hw[1]} pixels must have {want} cells, the {what} have {got}; correct the "
                f"strides or the input size in the contract"
            )


def _read_picture(
    levels: list[tuple[np.ndarray, np.ndarray]], grid: _Grid, thresholds: Thresholds
) -> Candidates:
    """Candidates of one picture from scores (n, c) and logits (n, 4 * bins) per level."""
    found: list[tuple[np.ndarray, ...]] = []
    start = num_cells_read = 0
    for scores_nc, logits in levels:
        rows, classes, scores = pick(scores_nc, thresholds)
        if len(rows) or not found:
            cells, which = _once(rows, thresholds)
            found.append((cells + start, logits[cells], which + num_cells_read, classes, scores))
            num_cells_read += len(cells)
        start += len(scores_nc)
    cells, logits, which, classes, scores = map(np.concatenate, zip(*found, strict=True))
    distances = _expected(logits.reshape(len(cells), 4, logits.shape[1] // 4))
    return candidates(_boxes(grid, cells, distances)[which], classes, scores)


def _once(rows: np.ndarray, thresholds: Thresholds) -> tuple[np.ndarray, np.ndarray]:
    """Each row once, and where each of rows is among them; several classes share one box."""
    if not thresholds.multi_label:
        return rows, np.arange(len(rows))
    unique, which = np.unique(rows, return_inverse=True)
    return unique, which


# Infinite outputs become NaN here, and NaN is dropped later; nobody needs a warning.
@np.errstate(invalid="ignore")
def _expected(logits: np.ndarray) -> np.ndarray:
    """Mean (k, 4) float32 of 0 .. reg_max under the softmax of logits (k, 4, reg_max + 1)."""
    logits = logits.astype(np.float32, copy=False)
    weights = np.exp(logits - logits.max(axis=2, keepdims=True))
    mean = weights @ np.arange(logits.shape[2], dtype=np.float32)
    mean /= weights.sum(axis=2)
    return np.asarray(mean)


def _boxes(grid: _Grid, rows: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Corners (k, 4) from distances (k, 4) in strides.

    They are cut at the input's edge before suppression, as in the public decoder.
    """
    points_xy, distances = grid.points_xy[rows], distances * grid.strides[rows, None]
    boxes = np.concatenate([points_xy - distances[:, :2], points_xy + distances[:, 2:]], axis=1)
    h, w = grid.size_hw
    np.clip(boxes, 0.0, np.array([w, h, w, h], np.float32), out=boxes)
    return boxes


def _recognise_pairs(signature: Signature) -> Recognition | None:
    for strides in _STRIDES:
        pairs = [_pair(signature, num_cells(signature.size_hw, (s,))) for s in strides]
        if len(signature.outputs) != 2 * len(strides) or None in pairs:
            continue
        found = [pair for pair in pairs if pair is not None]
        shapes = {(scores.shape[2], logits.shape[2]) for scores, logits in found}
        num_classes, num_logits = shapes.pop()
        if shapes or not isinstance(num_classes, int) or not isinstance(num_logits, int):
            continue
        if num_logits % 4 or num_logits < 8:
            continue
        roles: dict[str, str] = {}
        for stride, (scores, logits) in zip(strides, found, strict=True):
            roles |= {f"cls_{stride}": scores.name, f"dis_{stride}": logits.name}
        bins = num_logits // 4
        options = {"reg_max": bins - 1, "strides": list(strides), "centre": 0.5}
        return _recognition(
            HeadRule("nanodet", roles, num_classes, options),
            f"{2 * len(strides)} outputs in pairs, one pair for each of the strides "
            f"{', '.join(map(str, strides))}: {num_classes} class scores (a sigmoid is in the "
            f"graph) and 4 x {bins} values per cell, a distribution for the distance to each "
            f"side of the box",
            "distances are measured from the centre of a cell, as NanoDet does (NanoDet-Plus, "
            "which has a single output, measures from the corner)",
        )
    return None


def _pair(signature: Signature, num: int) -> tuple[TensorSpec, TensorSpec] | None:
    """The outputs with num cells as (scores, logits), or None if there are not just these two."""
    of_level = [o for o in signature.outputs if len(o.shape) == 3 and o.shape[1] == num]
    scores = [o for o in of_level if "Sigmoid" in signature.tails.get(o.name, ())]
    logits = [o for o in of_level if "Sigmoid" not in signature.tails.get(o.name, ())]
    return (scores[0], logits[0]) if len(scores) == len(logits) == 1 else None


def _recognise_plus(signature: Signature) -> Recognition | None:
    output = signature.outputs[0]
    tail = set(signature.tails.get(output.name, ()))
    # In a decoded head (YOLO) the tail has arithmetic; in YOLOX's rows nothing is split.
    if "Sigmoid" not in tail or not tail & {"Split", "Slice"} or tail & {"Exp", "Mul", "Add"}:
        return None
    if len(output.shape) != 3 or not isinstance(output.shape[2], int):
        return None
    num_logits = 4 * (_PLUS_REG_MAX + 1)
    num_classes = output.shape[2] - num_logits
    for strides in _PLUS_STRIDES:
        if num_classes < 1 or output.shape[1] != num_cells(signature.size_hw, strides):
            continue
        options = {"reg_max": _PLUS_REG_MAX, "strides": list(strides), "centre": 0.0}
        return _recognition(
            HeadRule("nanodet", {"rows": output.name}, num_classes, options),
            f"one output with a row for each of the {output.shape[1]} cells of the strides "
            f"{', '.join(map(str, strides))}; its columns are split, some go through a sigmoid "
            f"(class scores), the others are left raw (distances)",
            f"{num_logits} of the {output.shape[2]} columns are distances, 4 x {num_logits // 4} "
            f"as in every public NanoDet-Plus, so there are {num_classes} classes; distances are "
            f"measured from the upper left corner of a cell, as the public code does",
        )
    return None


def _recognition(rule: HeadRule, seen: str, assumed: str) -> Recognition:
    is_coco = rule.num_classes == len(COCO_80)
    names = ("class names are those of COCO, because there are 80",) if is_coco else ()
    return Recognition(
        head=rule,
        input=_INPUT,
        detect=_DETECT,
        evaluate=_EVALUATE,
        seen=(seen,),
        assumed=(assumed, _ASSUMED_INPUT, *names),
        labels=COCO_80 if is_coco else (),
    )


HEAD = NanoDet()
