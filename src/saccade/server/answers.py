"""What was found in a picture, as a client wants it: JSON, arrays, or the picture with boxes."""

from __future__ import annotations

from typing import Any

import cv2
import msgspec
import numpy as np

from saccade.pipeline.decimals import shortest_decimals
from saccade.server.forms import ARRAYS_HEAD
from saccade.types import Contract, Detections
from saccade.vision.draw import draw, encode_jpeg

__all__ = ["answer_of"]

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
    if form == "json":
        width, height = source_wh
        return _encode({"width": width, "height": height, "detections": rows(found, contract)})
    if form == "arrays and json":
        arrays = answer_of("arrays", found, source_wh, picture, contract)
        return arrays + answer_of("json", found, source_wh, picture, contract)
    if form == "arrays":
        points = found.keypoints_xy
        num_points = 0 if points is None else points.shape[1]
        parts = [found.boxes_xyxy, found.scores, found.classes]
        parts += [] if points is None else [np.ascontiguousarray(points, np.float32)]
        head = ARRAYS_HEAD.pack(len(found), num_points, *source_wh)
        return head + b"".join(part.tobytes() for part in parts)
    drawn = draw(_rgb(picture, contract), found, contract.labels)
    if form == "jpeg":
        return encode_jpeg(drawn)
    return bytes(cv2.imencode(".png", cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))[1])


def rows(found: Detections, contract: Contract) -> list[dict[str, Any]]:
    """One object per box, best first, as in JSON lines files."""
    if not len(found):
        return []
    boxes = shortest_decimals(found.boxes_xyxy.reshape(-1)).reshape(-1, 4).tolist()
    scores = shortest_decimals(found.scores).tolist()
    labels = contract.labels
    made = [
        {
            "box_xyxy": box,
            "score": score,
            "class": index,
            "label": labels[index] if 0 <= index < len(labels) else f"class_{index}",
        }
        for box, score, index in zip(boxes, scores, found.classes.tolist(), strict=True)
    ]
    if found.keypoints_xy is not None:
        flat = shortest_decimals(np.asarray(found.keypoints_xy, np.float32).reshape(-1))
        points = flat.reshape(len(made), -1, 2).tolist()
        for item, its_points in zip(made, points, strict=True):
            item["keypoints_xy"] = its_points
    return made


def _rgb(picture: np.ndarray, contract: Contract) -> np.ndarray:
    if picture.dtype != np.uint8:
        picture = (picture // 257).astype(np.uint8)
    if picture.ndim == 2:
        return np.asarray(cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB))
    if contract.input.color == "bgr":
        return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
    return picture
