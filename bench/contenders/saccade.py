"""saccade itself: the front door, FP32 on ONNX Runtime."""

from __future__ import annotations

from typing import Any

from bench.cases import Case

LABEL = "saccade, ONNX Runtime, FP32"
NOTE = ""
CASES = None
VENV = None
CHECK = "agreement"


def setup(case: Case) -> Any:
    return start(case, backend="onnxruntime", precision="fp32")


def start(case: Case, *, backend: str, precision: str) -> Any:
    """A detector, and thresholds as everyone has them."""
    import dataclasses

    import saccade

    detector = saccade.load(case.model_path, backend=backend, precision=precision)
    thresholds = dataclasses.replace(detector.contract.detect, score=case.score, iou=case.iou)
    return detector, thresholds


def run(state: Any, paths: list[str]) -> list[tuple]:
    import saccade

    detector, thresholds = state
    answers = []
    for item in saccade.run(detector, paths, thresholds=thresholds):
        if item.error is not None:
            raise item.error
        found = item.detections
        answers.append((item.path, found.boxes_xyxy, found.scores, found.classes))
    return answers


def close(state: Any) -> None:
    state[0].close()


def versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("saccade", "numpy", "onnxruntime", "opencv-python-headless", "simplejpeg")
    return {name: version(name) for name in names}
