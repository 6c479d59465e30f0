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
    """A detector with the case's thresholds."""
    import saccade

    return saccade.load(case.model_path, backend=backend, precision=precision)


def run(state: Any, paths: list[str]) -> list[tuple]:
    import saccade

    answers = []
    for item in saccade.run(state, paths):
        if item.error is not None:
            raise item.error
        found = item.detections
        answers.append((item.path, found.boxes_xyxy, found.scores, found.classes))
    return answers


def versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("saccade", "numpy", "onnxruntime", "opencv-python-headless", "simplejpeg")
    return {name: version(name) for name in names}
