"""Average precision as COCO defines it, in NumPy: the reference, and cheap to resample.

Matching looks at one picture at a time; only the last step looks across pictures. So pictures are
matched once, and drawing them anew (a bootstrap) costs one weighted sum per draw.

Source: T.-Y. Lin et al., "Microsoft COCO: Common Objects in Context", 2014, and the COCO detection
evaluation page: ten IoU thresholds, 101 recall points, crowds ignored, ties in file order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

__all__ = [
    "IOU_THRESHOLDS",
    "ClassPool",
    "Found",
    "Matches",
    "Pool",
    "Truth",
    "accumulate",
    "average_precision_reference",
    "match_image",
    "pool",
    "precision_table",
]

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RECALL_POINTS = np.linspace(0.0, 1.0, 101)


class Truth(NamedTuple):
    """What is in one picture.

    Attributes:
        boxes_xywh: (m, 4) float64 left, top, width, height in source pixels.
        classes: (m,) integers.
        areas: (m,) float64 square pixels, for the size range.
        is_crowd: (m,) bool.
    """

    boxes_xywh: np.ndarray
    classes: np.ndarray
    areas: np.ndarray
    is_crowd: np.ndarray


class Found(NamedTuple):
    """What a detector said of one picture, in any order.

    Attributes:
        boxes_xywh: (k, 4) float64 left, top, width, height in source pixels.
        scores: (k,) float.
        classes: (k,) integers, the same numbers as in Truth.
    """

    boxes_xywh: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """One class in one picture.

    Attributes:
        scores: (k,) float64, best first.
        is_true: (10, k) bool per IoU threshold, whether the detection found a box of its own.
        is_ignored: (10, k) bool, whether it counts neither for nor against.
        num_truth: Boxes that ought to be found.
    """

    scores: np.ndarray
    is_true: np.ndarray
    is_ignored: np.ndarray
    num_truth: int


class ClassPool(NamedTuple):
    """One class in all pictures: detections best first, and which picture each is from."""

    image_index: np.ndarray
    is_true: np.ndarray
    is_false: np.ndarray
    num_truth: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Matches of all pictures, sorted by score once.

    Attributes:
        num_images: Pictures pooled.
        by_class: One entry per class, by number.
    """

    num_images: int
    by_class: Mapping[int, ClassPool]


def match_image(
    truth: Truth,
    found: Found,
    *,
    max_detections: int = 100,
    area_range: tuple[float, float] = (0.0, 1e10),
) -> dict[int, Matches]:
    """Match one picture's detections to its boxes, class by class.

    Args:
        truth: What is in the picture.
        found: What the detector said.
        max_detections: At most this many are looked at per class, best first.
        area_range: Boxes with an area outside are ignored, and so are detections outside that
            match nothing; both ends belong to the range.
    """
    classes = np.union1d(truth.classes, found.classes).tolist()
    return {
        int(c): _match_class(
            Truth(*(part[truth.classes == c] for part in truth)),
            Found(*(part[found.classes == c] for part in found)),
            max_detections,
            area_range,
        )
        for c in classes
    }


def _match_class(
    truth: Truth, found: Found, max_detections: int, area_range: tuple[float, float]
) -> Matches:
    low, high = area_range
    is_crowd = np.asarray(truth.is_crowd, bool)
    is_ignored = is_crowd | (truth.areas < low) | (truth.areas > high)
    best = np.argsort(-found.scores, kind="stable")[:max_detections]
    boxes_xywh = found.boxes_xywh[best]
    overlap = _overlap(boxes_xywh, truth.boxes_xywh, is_crowd)
    matched = _match_greedily(overlap, is_crowd, is_ignored)
    is_match = matched >= 0
    out_of_range = _is_outside(boxes_xywh[:, 2] * boxes_xywh[:, 3], low, high)
    to_ignored = np.zeros_like(is_match)
    to_ignored[is_match] = is_ignored[matched[is_match]]
    return Matches(
        scores=np.asarray(found.scores[best], np.float64),
        is_true=is_match & ~to_ignored,
        is_ignored=to_ignored | (~is_match & out_of_range),
        num_truth=int((~is_ignored).sum()),
    )


def _is_outside(areas: np.ndarray, low: float, high: float) -> np.ndarray:
    outside: np.ndarray = (areas < low) | (areas > high)
    return outside


def _overlap(a_xywh: np.ndarray, b_xywh: np.ndarray, is_crowd: np.ndarray) -> np.ndarray:
    """(k, m) intersection over union; over a's area where b is a crowd."""
    a, b = a_xywh[:, None, :], b_xywh[None, :, :]
    size = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    size = np.maximum(size - np.maximum(a[..., :2], b[..., :2]), 0.0)
    both = size[..., 0] * size[..., 1]
    area_a, area_b = a[..., 2] * a[..., 3], b[..., 2] * b[..., 3]
    whole = np.where(is_crowd[None, :], area_a, area_a + area_b - both)
    overlap: np.ndarray = np.divide(both, whole, out=np.zeros_like(both), where=both > 0)
    return overlap


def _match_greedily(
    overlap: np.ndarray, is_crowd: np.ndarray, is_ignored: np.ndarray
) -> np.ndarray:
    """(10, k) index of the box that each detection takes at each threshold, or -1.

    The best detection chooses first: the box it overlaps most among those still free, the later
    one in a tie; one that is ignored only if no other is left. Crowds are never used up.
    """
    k, m = overlap.shape
    matched = np.full((len(IOU_THRESHOLDS), k), -1)
    if m == 0:
        return matched
    is_free = np.ones((len(IOU_THRESHOLDS), m), bool)
    rows = np.arange(len(IOU_THRESHOLDS))
    for d in range(k):
        fits = is_free & (overlap[d] >= np.minimum(IOU_THRESHOLDS, 1 - 1e-10)[:, None])
        counts = fits & ~is_ignored
        choice = np.where(counts.any(axis=1)[:, None], counts, fits)
        best = m - 1 - np.where(choice, overlap[d], -1.0)[:, ::-1].argmax(axis=1)
        has_match = fits[rows, best]
        matched[has_match, d] = best[has_match]
        is_free[rows[has_match], best[has_match]] = is_crowd[best[has_match]]
    return matched


def pool(images: Sequence[Mapping[int, Matches]]) -> Pool:
    """Sort all pictures' detections by score, once for any number of draws."""
    classes = sorted(set().union(*images)) if images else []
    return Pool(len(images), {c: _pool_class(images, c) for c in classes})


def _pool_class(images: Sequence[Mapping[int, Matches]], number: int) -> ClassPool:
    here = [(i, image[number]) for i, image in enumerate(images) if number in image]
    scores = np.concatenate([matches.scores for _, matches in here])
    order = np.argsort(-scores, kind="stable")
    index = np.repeat([i for i, _ in here], [len(matches.scores) for _, matches in here])
    is_true = np.concatenate([matches.is_true for _, matches in here], axis=1)
    is_ignored = np.concatenate([matches.is_ignored for _, matches in here], axis=1)
    num_truth = np.zeros(len(images), np.int64)
    num_truth[[i for i, _ in here]] = [matches.num_truth for _, matches in here]
    return ClassPool(index[order], is_true[:, order], ~(is_true | is_ignored)[:, order], num_truth)


def precision_table(pooled: Pool, weights: np.ndarray | None = None) -> dict[int, np.ndarray]:
    """Average precision per class, (10,) float64 per IoU threshold.

    Classes without a box to be found are left out.

    Args:
        pooled: From `pool`.
        weights: (num_images,) how often each picture counts; once if None. For a bootstrap, how
            often each was drawn.
    """
    weight = np.ones(pooled.num_images) if weights is None else np.asarray(weights, np.float64)
    table = {}
    for number, one in pooled.by_class.items():
        num_truth = float(weight @ one.num_truth)
        if num_truth > 0:
            table[number] = _class_precision(one, weight[one.image_index], num_truth)
    return table


def _class_precision(one: ClassPool, weight: np.ndarray, num_truth: float) -> np.ndarray:
    true = np.cumsum(one.is_true * weight, axis=1)
    false = np.cumsum(one.is_false * weight, axis=1)
    precision = true / (true + false + np.spacing(1))
    # From each recall on, the best precision that is still reached.
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    result = np.zeros(len(IOU_THRESHOLDS))
    for t, recall in enumerate(true / num_truth):
        first = np.searchsorted(recall, _RECALL_POINTS, side="left")
        reached = first < len(recall)
        result[t] = precision[t, first[reached]].sum() / len(_RECALL_POINTS)
    return result


def accumulate(
    images: Pool | Sequence[Mapping[int, Matches]], weights: np.ndarray | None = None
) -> float | None:
    """Mean average precision over classes and IoU thresholds .5 to .95.

    Args:
        images: Matches of every picture, from `match_image`; for many draws, from `pool`.
        weights: (num_images,) how often each picture counts; once if None.

    Returns:
        AP in [0, 1], or None if there is no box to be found.
    """
    pooled = images if isinstance(images, Pool) else pool(images)
    table = precision_table(pooled, weights)
    return float(np.mean(list(table.values()))) if table else None


def average_precision_reference(
    truth: Sequence[Truth], found: Sequence[Found], *, max_detections: int = 100
) -> float | None:
    """AP of pictures in order, the plain way: match each, then accumulate."""
    pairs = zip(truth, found, strict=True)
    return accumulate([match_image(t, f, max_detections=max_detections) for t, f in pairs])
