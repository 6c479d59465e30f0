"""Ultralytics (AGPL-3.0, an outside peer in its own environment) on its ONNX Runtime path."""

from __future__ import annotations

import os
import tempfile
from typing import Any

from bench.cases import WORK, Case

LABEL = "Ultralytics predict on ONNX Runtime"
NOTE = (
    "batch 1 from a list of files; rect=False, because the graph's height and width are fixed; "
    "box suppression through OpenCV in place of torchvision"
)
CASES = ("cells_640",)
VENV = "ultralytics"
CHECK = "agreement"


def setup(case: Case) -> tuple[Case, Any]:
    return start(case, case.model_path)


def start(case: Case, model: str) -> tuple[Case, Any]:
    """Load without any of its calls home."""
    os.environ.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false", YOLO_VERBOSE="false")
    os.environ["YOLO_CONFIG_DIR"] = str(WORK / "ultralytics")
    (WORK / "ultralytics").mkdir(parents=True, exist_ok=True)
    from ultralytics import YOLO, settings

    settings.update(sync=False)
    return case, YOLO(model, task="detect")


def run(state: tuple[Case, Any], paths: list[str]) -> list[tuple]:
    case, model = state
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as listing:
        listing.write("\n".join(paths))
        listing.flush()
        results = model.predict(
            listing.name,
            batch=1,
            imgsz=case.size_hw[0],
            rect=False,
            conf=case.score,
            iou=case.iou,
            device="cpu",
            stream=True,
            verbose=False,
        )
        answers = []
        for result in results:
            rows = result.boxes.data.numpy()
            answers.append((result.path, rows[:, :4], rows[:, 4], rows[:, 5].astype(int)))
    return answers


def versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("ultralytics", "torch", "numpy", "onnxruntime", "opencv-python-headless")
    return {name: version(name) for name in names}
