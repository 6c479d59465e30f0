"""FastestDet: one grid of stride 16, one box per cell.

The only output is (b, 5 + c, h / 16, w / 16). Of each cell: objectness (a sigmoid is in the
graph), four raw values t0..t3 of the box, and c class probabilities (a softmax is in the graph).
With a grid of rows by cols cells the box is

    centre x = (tanh(t0) + col) / cols     width  = sigmoid(t2)
    centre y = (tanh(t1) + row) / rows     height = sigmoid(t3)

as parts of the input, and the score is objectness ** 0.6 * probability ** 0.4.

Source: github.com/dog-qiuqiu/FastestDet, utils/tool.py (handle_preds).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from saccade.errors import ContractError
from saccade.heads._labels import COCO_80
from saccade.heads._rows import above, candidates, cxcywh_to_xyxy, num_cells, pick, read
from saccade.types import Candidates, HeadRule, Recognition, Signature, Thresholds

__all__ = ["HEAD", "FastestDet"]

_STRIDE = 16
_OBJECT_POWER, _CLASS_POWER = 0.6, 0.4
_INPUT = {"color": "bgr", "resize": "stretch", "mean": (0.0,) * 3, "std": (255.0,) * 3}


class FastestDet:
    family = "fastestdet"

    def recognise(self, signature: Signature) -> Recognition | None:
        if len(signature.outputs) != 1 or len(signature.outputs[0].shape) != 4:
            return None
        output = signature.outputs[0]
        _, channels, rows, cols = output.shape
        grid = tuple(-(-side // _STRIDE) for side in signature.size_hw)
        tail = signature.tails.get(output.name, ())
        if (rows, cols) != grid or not isinstance(channels, int) or channels < 6:
            return None
        if "Sigmoid" not in tail or "Softmax" not in tail:
            return None
        num_classes = channels - 5
        is_coco = num_classes == len(COCO_80)
        names = ("class names are those of COCO, because there are 80",) if is_coco else ()
        return Recognition(
            head=HeadRule(self.family, {"map": output.name}, num_classes, {"stride": _STRIDE}),
            input=_INPUT,
            detect=Thresholds(score=0.4, iou=0.45),
            evaluate=Thresholds(score=0.01, iou=0.45, multi_label=True),
            seen=(
                f"one output, a map of {rows} x {cols} cells of {_STRIDE} pixels with {channels} "
                f"values per cell: 1 objectness (a sigmoid is in the graph), 4 for the box and "
                f"{num_classes} class probabilities (a softmax is in the graph)",
            ),
            assumed=(
                "pictures are stretched to the input size, in the channel order blue, green, "
                "red, divided by 255: what the public FastestDet code does; the graph does not "
                "say",
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
        maps = read(outputs, rule, "map", 4)
        _, channels, rows, cols = maps.shape
        stride = int(rule.options["stride"])
        if channels != 5 + rule.num_classes or rows * cols != num_cells(size_hw, (stride,)):
            raise ContractError(
                f"a fastestdet map of {rule.num_classes} classes on {size_hw[0]} x {size_hw[1]} "
                f"pixels must have {5 + rule.num_classes} channels and one cell per {stride} "
                f"pixels, its shape is {maps.shape}; correct num_classes, stride or the input "
                f"size in the contract"
            )
        cells = maps.reshape(len(maps), channels, rows * cols)
        return [_read_picture(values, (rows, cols), size_hw, thresholds) for values in cells]


# Infinite outputs become NaN here, and NaN is dropped later; nobody needs a warning.
@np.errstate(invalid="ignore")
def _read_picture(
    values: np.ndarray, grid_hw: tuple[int, int], size_hw: tuple[int, int], thresholds: Thresholds
) -> Candidates:
    """Candidates of one picture from values (5 + c, rows * cols)."""
    cells = above(values[0], _least_objectness(thresholds.score))
    columns = values[:, cells].astype(np.float32, copy=False)
    picked, classes, scores = _score(columns[0], columns[5:].T, thresholds)
    tx, ty, tw, th = columns[1:5, picked]
    rows, cols = np.divmod(cells[picked], grid_hw[1])
    h, w = size_hw
    boxes = np.empty((len(picked), 4), np.float32)
    boxes[:, 0] = (np.tanh(tx) + cols) * (w / grid_hw[1])
    boxes[:, 1] = (np.tanh(ty) + rows) * (h / grid_hw[0])
    boxes[:, 2] = _sigmoid(tw) * w
    boxes[:, 3] = _sigmoid(th) * h
    return candidates(cxcywh_to_xyxy(boxes), classes, scores)


def _least_objectness(score: float) -> float:
    """Objectness below which no class can lift a cell above the score; a touch lower.

    Class probabilities are at most 1, so the score is at most objectness ** 0.6.
    """
    return float((score ** (1 / _OBJECT_POWER)) * 0.999) if score > 0 else score


def _score(
    objectness: np.ndarray, probabilities: np.ndarray, thresholds: Thresholds
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, classes and scores above the threshold of objectness (k,), probabilities (k, c)."""
    # Eight-bit graphs round: a probability may come out as slightly negative, or above 1.
    objectness = np.clip(objectness, 0, 1) ** np.float32(_OBJECT_POWER)
    probabilities = np.clip(probabilities, 0, 1)
    if thresholds.multi_label or probabilities.size == 0:
        powers = probabilities ** np.float32(_CLASS_POWER)
        return pick(powers * objectness[:, None], thresholds)
    # The power keeps the order, so only the best class of a row needs it.
    classes = probabilities.argmax(axis=1)
    best = probabilities[np.arange(len(classes)), classes]
    scores = best ** np.float32(_CLASS_POWER) * objectness
    rows = above(scores, thresholds.score)
    return rows, classes[rows], scores[rows]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    # Through tanh, because exp of a large number would overflow.
    return np.asarray(0.5 * np.tanh(0.5 * x) + 0.5)


HEAD = FastestDet()
