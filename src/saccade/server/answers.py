"""What was found in a picture, as a client wants it: JSON, arrays, or the picture with boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import msgspec
import numpy as np

from saccade.pipeline.decimals import shortest_decimals
from saccade.server.forms import ARRAYS_HEAD, DRAWN_FORMS
from saccade.types import Contract, Detections
from saccade.vision.draw import draw, encode_jpeg

__all__ = ["answer_of", "answers_of"]

_encode = msgspec.json.Encoder().encode


def answer_of(
    form: str,
    found: Detections,
    source_wh: tuple[int, int],
    picture: np.ndarray,
    contract: Contract,
) -> bytes:
    """One picture's answer.

    Args:
        form: "json": the members of an object without its braces' model and id, which the front
            adds; "arrays": as `saccade.server.forms` says; "arrays and json": both;
            "jpeg" or "png": the drawn picture.
        found: What was found.
        source_wh: Width and height of the picture.
        picture: As decoded, in the contract's channel order.
        contract: For labels and channel order.
    """
    if form not in DRAWN_FORMS:
        return answers_of([form], [found], [source_wh], contract)[0]
    drawn = draw(_rgb(picture, contract), found, contract.labels)
    if form == "jpeg":
        return encode_jpeg(drawn)
    return bytes(cv2.imencode(".png", cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))[1])


def answers_of(
    forms: Sequence[str],
    several: Sequence[Detections],
    source_wh: Sequence[tuple[int, int]],
    contract: Contract,
) -> list[bytes]:
    """The answers of a batch; as `answer_of` for each, with the decimals found in one go.

    Args:
        forms: "json", "arrays" or "arrays and json".
        several: What was found in each.
        source_wh: Width and height of each.
        contract: For labels.
    """
    wanting = [found for form, found in zip(forms, several, strict=True) if "json" in form]
    made = iter(rows_of(wanting, contract))
    answers = []
    for form, found, wh in zip(forms, several, source_wh, strict=True):
        parts = [_arrays(found, wh)] if "arrays" in form else []
        if "json" in form:
            parts.append(_encode({"width": wh[0], "height": wh[1], "detections": next(made)}))
        answers.append(b"".join(parts))
    return answers


def rows_of(several: Sequence[Detections], contract: Contract) -> list[list[dict[str, Any]]]:
    """For each picture one object per box, best first, as in JSON lines files."""
    parts: list[np.ndarray] = []
    for found in several:
        parts += [found.boxes_xyxy.reshape(-1), found.scores]
        if found.keypoints_xy is not None:
            parts.append(np.asarray(found.keypoints_xy, np.float32).reshape(-1))
    if not parts:
        return []
    numbers, labels, at = shortest_decimals(np.concatenate(parts)).tolist(), contract.labels, 0
    made = []
    for found in several:
        num, its_rows = len(found), []
        scores_at = at + 4 * num
        for place, index in enumerate(found.classes.tolist()):
            its_rows.append(
                {
                    "box_xyxy": numbers[at + 4 * place : at + 4 * place + 4],
                    "score": numbers[scores_at + place],
                    "class": index,
                    "label": labels[index] if 0 <= index < len(labels) else f"class_{index}",
                }
            )
        at = scores_at + num
        if found.keypoints_xy is not None:
            size = found.keypoints_xy.shape[1]
            for item in its_rows:
                item["keypoints_xy"] = [numbers[i : i + 2] for i in range(at, at + 2 * size, 2)]
                at += 2 * size
        made.append(its_rows)
    return made


def _arrays(found: Detections, source_wh: tuple[int, int]) -> bytes:
    points = found.keypoints_xy
    num_points = 0 if points is None else points.shape[1]
    parts = [found.boxes_xyxy, found.scores, found.classes]
    parts += [] if points is None else [np.ascontiguousarray(points, np.float32)]
    head = ARRAYS_HEAD.pack(len(found), num_points, *source_wh)
    return head + b"".join(part.tobytes() for part in parts)


def _rgb(picture: np.ndarray, contract: Contract) -> np.ndarray:
    if picture.dtype != np.uint8:
        picture = (picture // 257).astype(np.uint8)
    if picture.ndim == 2:
        return np.asarray(cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB))
    if contract.input.color == "bgr":
        return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
    return picture
