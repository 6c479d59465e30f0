"""COCO's twelve numbers, and those per class, from hotcoco."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from saccade.errors import BackendUnavailable, InputError
from saccade.evaluation.annotations import Annotations

__all__ = ["ClassMetrics", "ImageDetections", "Metrics", "evaluate"]

_IOU_50, _IOU_75 = 0, 5  # positions in .50, .55, ..., .95
_ALL, _SMALL, _MEDIUM, _LARGE = range(4)


class ImageDetections(NamedTuple):
    """What a detector said of one picture.

    Attributes:
        image_id: As in the annotation file.
        boxes_xyxy: (k, 4) float, source pixels.
        scores: (k,) float.
        category_ids: (k,) integers as in the annotation file, see `match_categories`.
    """

    image_id: int
    boxes_xyxy: np.ndarray
    scores: np.ndarray
    category_ids: np.ndarray


class ClassMetrics(NamedTuple):
    """Numbers of one class; None where the pictures show none of it."""

    AP: float | None
    AP50: float | None
    AR100: float | None
    num_boxes: int


@dataclass(frozen=True, slots=True)
class Metrics:
    """COCO's numbers, each in [0, 1], or None where there is no such box to be found.

    AP is the mean over IoU thresholds .50 to .95 and classes, AP50 and AP75 at one threshold. AR is
    the mean recall with the best 1, 10 or 100 detections of a class in a picture. Small is below
    32 x 32 square pixels, large above 96 x 96.

    Attributes:
        per_class: By category name; "name (id N)" where the file has that name twice.
        num_images: Pictures that were evaluated.
        num_boxes: Boxes to be found in them; crowds are not counted.
        num_detections: Detections that were looked at.
    """

    AP: float | None
    AP50: float | None
    AP75: float | None
    AP_small: float | None
    AP_medium: float | None
    AP_large: float | None
    AR1: float | None
    AR10: float | None
    AR100: float | None
    AR_small: float | None
    AR_medium: float | None
    AR_large: float | None
    per_class: Mapping[str, ClassMetrics]
    num_images: int
    num_boxes: int
    num_detections: int


def evaluate(
    annotations: Annotations,
    image_ids: Sequence[int],
    results: Iterable[ImageDetections | tuple[int, np.ndarray, np.ndarray, np.ndarray]],
    *,
    max_detections: int = 100,
    per_picture: int | None = None,
) -> Metrics:
    """Measure detections against annotations, to the digit as pycocotools does.

    Args:
        annotations: What is to be found.
        image_ids: The pictures to evaluate. One without a result counts as one where nothing was
            found.
        results: At most one per picture, in any order.
        max_detections: Best detections looked at per class in a picture. AR100 and the figures by
            size are taken at this number; COCO's own is 100.
        per_picture: If given, only the best so many detections of a picture, over all its classes,
            are looked at. COCO itself has no such cut. Classes that were dropped before because
            the file lacks them no longer compete; to let them, cut before dropping.

    Raises:
        BackendUnavailable: The package hotcoco is missing.
        InputError: Results do not fit the pictures or the categories, or are not finite.
    """
    if max_detections < 1 or (per_picture is not None and per_picture < 1):
        raise InputError(
            "max_detections and per_picture must be 1 or more, got "
            f"{max_detections} and {per_picture}; leave them out for COCO's rules"
        )
    image_rank = _rank_images(annotations, image_ids)
    category_rank = {
        id: rank for rank, id in enumerate(sorted(c.id for c in annotations.categories), 1)
    }
    truth = _truth_rows(annotations, image_rank, category_rank)
    found = _found_rows(results, image_rank, category_rank, per_picture)
    precision, recall = _tables(truth, found, (len(image_rank), len(category_rank)), max_detections)
    names = _names(annotations)
    counts = np.bincount(
        [row["category_id"] for row in truth if not row["iscrowd"]], minlength=len(names) + 1
    )
    per_class = {
        names[id]: ClassMetrics(
            AP=_mean(precision[:, :, rank - 1, _ALL, 2]),
            AP50=_mean(precision[_IOU_50, :, rank - 1, _ALL, 2]),
            AR100=_mean(recall[:, rank - 1, _ALL, 2]),
            num_boxes=int(counts[rank]),
        )
        for id, rank in category_rank.items()
    }
    return Metrics(
        AP=_mean(precision[..., _ALL, 2]),
        AP50=_mean(precision[_IOU_50, ..., _ALL, 2]),
        AP75=_mean(precision[_IOU_75, ..., _ALL, 2]),
        AP_small=_mean(precision[..., _SMALL, 2]),
        AP_medium=_mean(precision[..., _MEDIUM, 2]),
        AP_large=_mean(precision[..., _LARGE, 2]),
        AR1=_mean(recall[..., _ALL, 0]),
        AR10=_mean(recall[..., _ALL, 1]),
        AR100=_mean(recall[..., _ALL, 2]),
        AR_small=_mean(recall[..., _SMALL, 2]),
        AR_medium=_mean(recall[..., _MEDIUM, 2]),
        AR_large=_mean(recall[..., _LARGE, 2]),
        per_class=per_class,
        num_images=len(image_rank),
        num_boxes=int(counts.sum()),
        num_detections=len(found),
    )


def _rank_images(annotations: Annotations, image_ids: Sequence[int]) -> dict[int, int]:
    """Number the pictures from 1 in the order of their ids, in which ties are broken."""
    known = {image.id for image in annotations.images}
    wanted = [int(id) for id in image_ids]
    unknown = [id for id in wanted if id not in known]
    if unknown or not wanted or len(set(wanted)) < len(wanted):
        raise InputError(
            f"image_ids must be one or more different ids of the {len(known)} annotated images, "
            f"got {len(wanted)} ids, {len(set(wanted))} of them different, "
            f"{len(unknown)} unknown {unknown[:3]}; take them from annotations.images"
        )
    return {id: rank for rank, id in enumerate(sorted(wanted), 1)}


def _truth_rows(
    annotations: Annotations, image_rank: Mapping[int, int], category_rank: Mapping[int, int]
) -> list[dict[str, Any]]:
    """COCO records with ids of our own: from 1, for pycocotools takes id 0 for "no match"."""
    boxes = annotations.boxes
    columns = zip(
        boxes.image_id.tolist(),
        boxes.category_id.tolist(),
        boxes.bbox_xywh.tolist(),
        boxes.area.tolist(),
        boxes.iscrowd.tolist(),
        strict=True,
    )
    rows = (
        {
            "image_id": image_rank[image_id],
            "category_id": category_rank[category_id],
            "bbox": bbox,
            "area": area,
            "iscrowd": int(iscrowd),
        }
        for image_id, category_id, bbox, area, iscrowd in columns
        if image_id in image_rank
    )
    return [{"id": id, **row} for id, row in enumerate(rows, 1)]


def _found_rows(
    results: Iterable[ImageDetections | tuple[int, np.ndarray, np.ndarray, np.ndarray]],
    image_rank: Mapping[int, int],
    category_rank: Mapping[int, int],
    per_picture: int | None,
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    seen: set[int] = set()
    for image_id, boxes_xyxy, scores, category_ids in results:
        if image_id not in image_rank or image_id in seen:
            raise InputError(
                "results must hold at most one entry for each of image_ids, got "
                f"{'a second' if image_id in seen else 'one'} for image id {image_id}; "
                "merge or leave out what is not evaluated"
            )
        seen.add(image_id)
        boxes, scores, ids = _check_result(image_id, boxes_xyxy, scores, category_ids)
        unknown = sorted(set(ids.tolist()) - set(category_rank))
        if unknown:
            raise InputError(
                f"category ids of image id {image_id} must be in the annotation file, got "
                f"{unknown[:5]}; translate class indices with match_categories first"
            )
        best = np.argsort(-scores, kind="stable")[:per_picture]
        boxes[:, 2:] -= boxes[:, :2]
        rows += (
            {
                "image_id": image_rank[image_id],
                "category_id": category_rank[id],
                "bbox": box,
                "score": score,
            }
            for box, score, id in zip(
                boxes[best].tolist(), scores[best].tolist(), ids[best].tolist(), strict=True
            )
        )
    # Equal scores are ranked in the order of image ids, whatever order the pictures finished in.
    return sorted(rows, key=lambda row: int(row["image_id"]))


def _check_result(
    image_id: int, boxes_xyxy: np.ndarray, scores: np.ndarray, category_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Copies as (k, 4) float64, (k,) float64, (k,) int64."""
    boxes = np.array(boxes_xyxy, np.float64)
    points = np.array(scores, np.float64)
    ids = np.array(category_ids)
    k = len(points) if points.ndim == 1 else -1
    if k == 0 and boxes.size == 0 and ids.size == 0:
        return boxes.reshape(0, 4), points, ids.reshape(0).astype(np.int64)
    if boxes.shape != (k, 4) or ids.shape != (k,) or ids.dtype.kind not in "iu":
        raise InputError(
            f"result of image id {image_id} must be boxes (k, 4), scores (k,) and integer category "
            f"ids (k,), got {boxes.shape}, {points.shape} and {ids.dtype} {ids.shape}; "
            "reshape or convert them"
        )
    if not (np.isfinite(boxes).all() and np.isfinite(points).all()):
        raise InputError(
            f"boxes and scores of image id {image_id} must be finite, got NaN or infinity; "
            "look at the model's raw output for this picture"
        )
    if (boxes[:, 2:] < boxes[:, :2]).any():
        raise InputError(
            f"boxes_xyxy of image id {image_id} must have x1 <= x2 and y1 <= y2, got boxes that "
            "have not; give corners, not widths and heights"
        )
    return boxes, points, ids.astype(np.int64)


def _tables(
    truth: list[dict[str, Any]],
    found: list[dict[str, Any]],
    num_images_categories: tuple[int, int],
    max_detections: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Precision (10, 101, c, 4, 3) and recall (10, c, 4, 3), -1 where undefined.

    Axes: IoU thresholds, recall points, classes, sizes (all, small, medium, large), and the best
    1, 10 and max_detections detections.
    """
    try:
        import hotcoco
    except ImportError as exc:
        raise BackendUnavailable(
            "measuring AP needs the package hotcoco, which cannot be imported here "
            f"({exc}); run: pip install 'saccade[eval]'"
        ) from exc
    num_images, num_categories = num_images_categories
    truth_set = hotcoco.COCO(
        {
            "images": [{"id": id} for id in range(1, num_images + 1)],
            "categories": [{"id": id, "name": str(id)} for id in range(1, num_categories + 1)],
            "annotations": truth,
        }
    )
    run = hotcoco.COCOeval(truth_set, truth_set.load_res(found), "bbox")
    run.params.max_dets = [min(1, max_detections), min(10, max_detections), max_detections]
    run.evaluate()
    run.accumulate()
    tables: Any = run.eval
    return np.asarray(tables["precision"]), np.asarray(tables["recall"])


def _mean(table: np.ndarray) -> float | None:
    """Mean of what is defined; -1 marks a class without such boxes."""
    defined = table[table > -1]
    return float(defined.mean()) if defined.size else None


def _names(annotations: Annotations) -> dict[int, str]:
    all_names = [category.name for category in annotations.categories]
    return {
        category.id: category.name
        if all_names.count(category.name) == 1
        else f"{category.name} (id {category.id})"
        for category in annotations.categories
    }
