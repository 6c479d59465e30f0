"""Whether two answers about one picture are the same answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from saccade.types import Detections

__all__ = ["Tolerance", "difference"]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far two answers may lie apart.

    Attributes:
        px: Any corner of a box, in source pixels of a picture of 640 pixels or less; in larger
            pictures it grows with their size.
        score: Any score. A box this close to the threshold may also be missing.
    """

    px: float
    score: float


_NOMINAL_SIDE_PX = 640.0


def difference(one: Detections, two: Detections, tolerance: Tolerance, score: float) -> str:
    """Say in words how two answers differ; "" if they do not.

    Each box above the score threshold needs a partner of its class in the other answer. Order does
    not count, for boxes of equal scores have none.

    Args:
        one: An answer.
        two: Another answer about the same picture.
        tolerance: How far they may lie apart.
        score: Boxes below are not looked at.
    """
    if not (_is_finite(one) and _is_finite(two)):
        return "" if _is_equal(one, two) else "NaN or infinity in one of the answers"
    return _missing(one, two, tolerance, score) or _missing(two, one, tolerance, score)


def _is_finite(found: Detections) -> bool:
    return bool(np.isfinite(found.boxes_xyxy).all() and np.isfinite(found.scores).all())


def _is_equal(one: Detections, two: Detections) -> bool:
    return np.array_equal(one.boxes_xyxy, two.boxes_xyxy, equal_nan=True) and np.array_equal(
        one.scores, two.scores, equal_nan=True
    )


def _missing(one: Detections, two: Detections, tolerance: Tolerance, score: float) -> str:
    wanted = one.scores > score + tolerance.score
    side_px = float(one.boxes_xyxy.max(initial=_NOMINAL_SIDE_PX))
    allowed_px = tolerance.px * max(1.0, side_px / _NOMINAL_SIDE_PX)
    for box, points, number in zip(
        one.boxes_xyxy[wanted], one.scores[wanted], one.classes[wanted], strict=True
    ):
        rivals = two.classes == number
        if not rivals.any():
            return f"a box of class {number} with score {points:.3f} has no counterpart"
        gap_px = np.abs(two.boxes_xyxy[rivals] - box).max(axis=1)
        gap_score = np.abs(two.scores[rivals] - points)
        if not ((gap_px <= allowed_px) & (gap_score <= tolerance.score)).any():
            best = int(gap_px.argmin())
            return (
                f"the nearest to a box of class {number} with score {points:.3f} is "
                f"{gap_px[best]:.3g} px and {gap_score[best]:.3g} in score away"
            )
    return ""
