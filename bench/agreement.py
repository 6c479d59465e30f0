"""Whether a contender's answers are right. A wrong answer has no speed."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np

from bench.cases import SHARED, Case

__all__ = ["Answers", "check", "count_boxes", "pack", "unpack"]

Answers = dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]

MIN_SCORE = 0.35
MIN_IOU = 0.9
MAX_SCORE_GAP = 0.02
MIN_AGREEMENT = 0.98
MAX_AP_DROP = 0.01


def pack(answers: list[tuple]) -> list[list[Any]]:
    """Answers as plain lists, for a JSON file."""
    return [
        [path, *(np.asarray(part, dtype=np.float64).tolist() for part in parts)]
        for path, *parts in answers
    ]


def unpack(rows: list[list[Any]]) -> Answers:
    """By path: boxes_xyxy (k, 4), scores (k,) and classes (k,)."""
    return {
        path: (np.reshape(boxes, (-1, 4)), np.asarray(scores), np.asarray(classes))
        for path, boxes, scores, classes in rows
    }


def count_boxes(answers: Answers, paths: list[str]) -> int:
    """Boxes that a round over these paths must give."""
    return sum(len(answers[path][1]) for path in paths)


def check(case: Case, rule: str, reference: Answers, answers: Answers) -> dict[str, Any]:
    """Compare with the reference; what was asked for, what came, and whether it passed.

    Args:
        case: Whose annotations AP is taken with.
        rule: "agreement" or "ap".
        reference: Answers of the plain NumPy pipeline.
        answers: The contender's, for the same paths.
    """
    result: dict[str, Any] = {"rule": rule, "num_pictures": len(reference)}
    missing = sorted(Path(path).name for path in reference.keys() - answers.keys())
    if missing:
        return {**result, "passed": False, "reason": f"no answer for {', '.join(missing)}"}
    result |= _agree(reference, answers)
    result["passed"] = result["agreement"] >= MIN_AGREEMENT and result["num_boxes"] > 0
    if case.annotations:
        result["ap_reference"] = average_precision(case, reference)
        result["ap"] = average_precision(case, answers)
    if rule == "ap":
        if not case.annotations:
            return {**result, "passed": False, "reason": "the case has no labelled pictures"}
        result["max_ap_drop"] = MAX_AP_DROP
        result["passed"] = result["ap"] >= result["ap_reference"] - MAX_AP_DROP
    return result


def _agree(reference: Answers, answers: Answers) -> dict[str, Any]:
    """Share of confident boxes found on the other side, the worse of both directions."""
    shares, counts = [], []
    for wanted, given in ((reference, answers), (answers, reference)):
        found = total = 0
        for path in reference:
            hits = _find(wanted[path], given[path])
            found, total = found + int(hits.sum()), total + len(hits)
        shares.append(found / total if total else 1.0)
        counts.append(total)
    return {
        "agreement": round(min(shares), 5),
        "num_boxes": counts[0],
        "num_boxes_contender": counts[1],
        "min_agreement": MIN_AGREEMENT,
        "min_score": MIN_SCORE,
        "min_iou": MIN_IOU,
        "max_score_gap": MAX_SCORE_GAP,
    }


def _find(wanted: tuple, given: tuple) -> np.ndarray:
    """For each confident wanted box: is it among the given ones, each used once?"""
    boxes, scores, classes = wanted
    others, other_scores, other_classes = given
    free = np.ones(len(other_scores), dtype=bool)
    chosen = np.flatnonzero(scores >= MIN_SCORE)
    hits = np.zeros(len(chosen), dtype=bool)
    for i, k in enumerate(chosen):
        iou = _iou(boxes[k], others)
        fits = free & (other_classes == classes[k]) & (iou >= MIN_IOU)
        fits &= np.abs(other_scores - scores[k]) <= MAX_SCORE_GAP
        if fits.any():
            hits[i] = True
            free[np.argmax(np.where(fits, iou, -1))] = False
    return hits


def _iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    inner = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    intersection = np.clip(inner, 0, None).prod(axis=1)
    union = np.prod(box[2:] - box[:2]) + (others[:, 2:] - others[:, :2]).prod(axis=1) - intersection
    return intersection / np.maximum(union, 1e-12)


def average_precision(case: Case, answers: Answers) -> float:
    """AP over IoU .50 to .95 on the labelled ones of the pictures that were answered.

    Boxes below the case's score threshold are missing, so this is lower than the model's AP; it
    is for comparing two sets of answers under one threshold.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(SHARED / str(case.annotations)))
        ids = {Path(image["file_name"]).name: image["id"] for image in truth.imgs.values()}
        rows = [
            {
                "image_id": ids[Path(path).name],
                "category_id": int(label) + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": float(score),
            }
            for path, (boxes, scores, classes) in answers.items()
            if Path(path).name in ids
            for (x1, y1, x2, y2), score, label in zip(boxes, scores, classes, strict=True)
        ]
        if not rows:
            return 0.0
        evaluation = COCOeval(truth, truth.loadRes(rows), "bbox")
        answered = {Path(path).name for path in answers}
        evaluation.params.imgIds = sorted(ids[name] for name in answered & ids.keys())
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return round(float(evaluation.stats[0]), 5)
