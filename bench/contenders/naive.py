"""What most people write: a loop over cv2.imread, a default session, NumPy over every row."""

from __future__ import annotations

from typing import Any

from bench.cases import Case

LABEL = "naive loop (cv2 + ONNX Runtime + NumPy)"
NOTE = "default session (all cores inside one inference), one picture at a time"
CASES = None
VENV = None
CHECK = "agreement"


def setup(case: Case) -> tuple[Case, Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(case.model_path, providers=["CPUExecutionProvider"])
    return case, session


def run(state: tuple[Case, Any], paths: list[str]) -> list[tuple]:
    import cv2
    import numpy as np

    from bench import recipes

    case, session = state
    name = session.get_inputs()[0].name
    answers = []
    for path in paths:
        canvas, place = recipes.place(case, cv2.imread(path))
        if case.family == "yolov8":
            canvas = cv2.cvtColor(canvas, cv2.COLOR_BGR2RGB)
        tensor = canvas.transpose(2, 0, 1)[None].astype(np.float32)
        if case.family != "yolox":
            tensor /= 255.0
        output = session.run(None, {name: tensor})[0]
        boxes_xyxy, scores, classes = recipes.read_all(case, output)
        keep = scores > case.score
        found = recipes.finish(case, place, boxes_xyxy[keep], scores[keep], classes[keep])
        answers.append((path, *found))
    return answers


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("numpy", "onnxruntime", "opencv-python-headless")}
