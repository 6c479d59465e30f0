"""The main job on an embedded default: pictures drawn with known truth, found by real weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from saccade.demo.render import render
from saccade.errors import InputError
from saccade.types import Detections
from saccade.vision.boxes import iou_matrix
from saccade.vision.draw import encode_jpeg

__all__ = ["CLASS_NAMES", "Found", "Truth", "draw_pictures", "model_path", "score"]

CLASS_NAMES = ("Platelets", "RBC", "WBC")
_MODEL = "cells_640.onnx"
_IOU = 0.5
_JPEG_QUALITY = 92


def model_path() -> Path:
    """The weights that come with saccade: beside this file when installed, in `models` of a
    checkout."""
    here = Path(__file__).resolve().parent
    places = [here / _MODEL, here.parents[2] / "models" / _MODEL]
    for place in places:
        if place.is_file():
            return place
    raise InputError(
        f"the demo needs {_MODEL}, which is neither in {places[0].parent} nor in "
        f"{places[1].parent}; install saccade again"
    )


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """What was drawn into one picture.

    Attributes:
        path: The picture.
        boxes_xyxy: (k, 4) float32.
        classes: (k,) int32, an index into CLASS_NAMES.
    """

    path: Path
    boxes_xyxy: np.ndarray
    classes: np.ndarray


@dataclass(frozen=True, slots=True)
class Found:
    """How much of one class was found, over all pictures.

    Attributes:
        name: The class.
        num_drawn: Cells drawn.
        num_found: Of these, how many have a detection of their class with IoU of at least 0.5.
        num_detections: Detections of the class.
        num_right: Of these, how many have a cell.
    """

    name: str
    num_drawn: int
    num_found: int
    num_detections: int
    num_right: int


def draw_pictures(
    folder: Path, num: int, seed: int, on_picture: Callable[[], None] = lambda: None
) -> list[Truth]:
    """Render pictures into a folder, and the truth beside them as truth.json."""
    folder.mkdir(parents=True, exist_ok=True)
    truths = []
    for index in range(num):
        made = render(np.random.default_rng([seed, index]))
        path = folder / f"smear_{index:04d}.jpg"
        path.write_bytes(encode_jpeg(made.picture_rgb, _JPEG_QUALITY))
        truths.append(Truth(path, made.boxes_xyxy, made.classes))
        on_picture()
    table = [
        {"picture": t.path.name, "boxes_xyxy": t.boxes_xyxy.tolist(), "classes": t.classes.tolist()}
        for t in truths
    ]
    told = {"class_names": CLASS_NAMES, "pictures": table}
    (folder / "truth.json").write_bytes(msgspec.json.encode(told))
    return truths


def score(truths: list[Truth], found: list[Detections]) -> list[Found]:
    """Match detections with what was drawn; each cell and each detection counts once."""
    return [_score_class(truths, found, index, name) for index, name in enumerate(CLASS_NAMES)]


def _score_class(truths: list[Truth], found: list[Detections], index: int, name: str) -> Found:
    num_drawn = num_found = num_detections = 0
    for truth, detections in zip(truths, found, strict=True):
        drawn = truth.boxes_xyxy[truth.classes == index]
        boxes = detections.boxes_xyxy[detections.classes == index]
        overlaps = iou_matrix(boxes, drawn)
        num_drawn += len(drawn)
        num_detections += len(boxes)
        for row in overlaps:  # best score first
            if row.size and row.max() >= _IOU:
                num_found += 1
                overlaps[:, row.argmax()] = 0
    return Found(name, num_drawn, num_found, num_detections, num_found)
