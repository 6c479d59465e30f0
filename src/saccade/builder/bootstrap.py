"""How sure a drop in AP is: pictures drawn anew, a thousand times, for both at once.

Both detectors saw the same pictures, so each draw takes the same pictures for both. What the two
have in common then cancels out, and the interval is that of the drop.

Source: B. Efron, "Bootstrap methods: another look at the jackknife", 1979; percentile intervals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from saccade.builder.records import Interval
from saccade.vision.ap import ClassPool, Found, Pool, Truth, match_image, pool

__all__ = [
    "NUM_DRAWS",
    "Scored",
    "draw",
    "draw_weights",
    "figures",
    "num_pictures_needed",
    "paired_drops",
    "score_pictures",
]

NUM_DRAWS = 1000
_SEED = 20261120
_IOU_50, _IOU_75 = 0, 5
_RECALL_POINTS = np.linspace(0.0, 1.0, 101)
_TINY = np.spacing(1)
# COCO's ranges in square pixels; both ends belong to a range.
_RANGES = {
    "AP": (0.0, 1e10),
    "AP_small": (0.0, 32.0**2),
    "AP_medium": (32.0**2, 96.0**2),
    "AP_large": (96.0**2, 1e10),
}
_LOW_PERCENT, _HIGH_PERCENT = 2.5, 97.5


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """All pictures of one deployment, matched to the truth once.

    Attributes:
        pools: Matches by name of the size range.
        names: Class number to name.
    """

    pools: Mapping[str, Pool]
    names: Mapping[int, str]

    @property
    def num_pictures(self) -> int:
        return self.pools["AP"].num_images


def score_pictures(
    truth: Sequence[Truth], found: Sequence[Found], names: Mapping[int, str]
) -> Scored:
    """Match every picture, in every size range."""
    pools = {
        name: pool([match_image(t, f, area_range=area) for t, f in zip(truth, found, strict=True)])
        for name, area in _RANGES.items()
    }
    return Scored(pools, names)


def figures(scored: Scored) -> dict[str, float]:
    """AP, AP50, AP75, AP_small, AP_medium, AP_large, AR100 and class:NAME; those without a box to
    be found are left out."""
    drawn = draw(scored, np.ones((1, scored.num_pictures)))
    return {name: float(values[0]) for name, values in drawn.items() if np.isfinite(values[0])}


def draw_weights(num_pictures: int, num_draws: int = NUM_DRAWS, seed: int = _SEED) -> np.ndarray:
    """(num_draws, num_pictures) float64: how often each draw takes each picture."""
    rng = np.random.default_rng(seed)
    taken = rng.integers(0, num_pictures, (num_draws, num_pictures))
    return np.stack([np.bincount(row, minlength=num_pictures) for row in taken]).astype(np.float64)


def draw(scored: Scored, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The figures of many weighted sets of pictures at once.

    Args:
        scored: From `score_pictures`.
        weights: (d, num_pictures) float64, how often each picture counts in each set.

    Returns:
        By name (d,) float64, NaN in the sets that have no such box to be found.
    """
    made: dict[str, np.ndarray] = {}
    for name, pooled in scored.pools.items():
        by_class = {c: _class_figures(one, weights) for c, one in pooled.by_class.items()}
        if not by_class:
            continue
        precision = np.stack([precision for precision, _ in by_class.values()])
        made[name] = _mean(precision.mean(axis=2))
        if name == "AP":
            made["AP50"] = _mean(precision[..., _IOU_50])
            made["AP75"] = _mean(precision[..., _IOU_75])
            made["AR100"] = _mean(np.stack([recall for _, recall in by_class.values()]))
            made |= {f"class:{scored.names[c]}": p.mean(axis=1) for c, (p, _) in by_class.items()}
    return made


def _mean(by_class: np.ndarray) -> np.ndarray:
    """Mean over classes, of those that are there."""
    known = np.isfinite(by_class)
    num = known.sum(axis=0)
    total = np.where(known, by_class, 0.0).sum(axis=0)
    return np.where(num > 0, total / np.maximum(num, 1), np.nan)


def _class_figures(one: ClassPool, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average precision per IoU threshold, (d, 10), and mean recall, (d,), of one class.

    Between two true detections precision only falls and recall stays, so sums are needed only at
    detections that are true at some threshold. Each is a weighted sum over pictures of how many
    true and false ones that picture has so far: a matrix product.
    """
    num_truth = weights @ one.num_truth
    at = np.flatnonzero(one.is_true.any(axis=0))
    num_thresholds, num_draws = len(one.is_true), len(weights)
    precision = np.zeros((num_draws, num_thresholds))
    recall = np.zeros((num_draws, num_thresholds))
    with np.errstate(divide="ignore", invalid="ignore"):
        for t in range(num_thresholds if len(at) else 0):
            true = weights @ _so_far(one.image_index, one.is_true[t], at, weights.shape[1])
            false = weights @ _so_far(one.image_index, one.is_false[t], at, weights.shape[1])
            best = np.maximum.accumulate((true / (true + false + _TINY))[:, ::-1], axis=1)[:, ::-1]
            reached = np.searchsorted(_RECALL_POINTS, true / num_truth[:, None], side="right")
            precision[:, t] = (best * np.diff(reached, axis=1, prepend=0)).sum(axis=1)
            recall[:, t] = true[:, -1] / num_truth
    is_known = num_truth > 0
    precision = np.where(is_known[:, None], precision / len(_RECALL_POINTS), np.nan)
    return precision, np.where(is_known, recall.mean(axis=1), np.nan)


def _so_far(image_index: np.ndarray, counts: np.ndarray, at: np.ndarray, num: int) -> np.ndarray:
    """(num, m): of those detections that count, how many each picture has up to each of `at`."""
    column = np.searchsorted(at, np.arange(len(counts)))
    used = counts & (column < len(at))
    flat = image_index[used] * len(at) + column[used]
    table = np.bincount(flat, minlength=num * len(at)).reshape(num, len(at))
    return table.cumsum(axis=1).astype(np.float64)


def paired_drops(
    reference: Mapping[str, np.ndarray],
    candidate: Mapping[str, np.ndarray],
    values: Mapping[str, float],
) -> dict[str, Interval]:
    """Each drop with its 95 % interval over pictures.

    Args:
        reference: Draws of the reference's figures.
        candidate: The same draws of the candidate's.
        values: The drops themselves.
    """
    made = {}
    for name, value in values.items():
        drops = reference[name] - candidate[name]
        drops = drops[np.isfinite(drops)]
        ends = np.percentile(drops, [_LOW_PERCENT, _HIGH_PERCENT]) if len(drops) else (value, value)
        made[name] = Interval(value, float(ends[0]), float(ends[1]))
    return made


def num_pictures_needed(drop: Interval, limit: float, num_pictures: int) -> int:
    """Roughly how many pictures would make half the interval as narrow as the limit.

    An interval narrows with the square root of the number of pictures.
    """
    half = (drop.high - drop.low) / 2
    return math.ceil(num_pictures * (half / limit) ** 2)
