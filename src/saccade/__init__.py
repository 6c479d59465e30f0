"""saccade: a trained vision model in, the fastest correct deployment out.

    import saccade

    detector = saccade.load("model.onnx")
    found = detector("street.jpg")
    for item in saccade.run(detector, "pictures/"):
        item.path, item.detections, item.error

    saccade.build("model.onnx", "bundle/", data="ann.json", images="pictures/")

Importing this package imports nothing heavy; its names are looked up when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saccade.builder.build import BuildOptions
    from saccade.builder.front import build
    from saccade.errors import (
        AccuracyError,
        AnnotationError,
        BackendUnavailable,
        BuildError,
        ContractError,
        EngineError,
        InputError,
        ModelError,
        Overloaded,
        PictureError,
        SaccadeError,
        SinkError,
    )
    from saccade.pipeline.detector import Detector, load
    from saccade.pipeline.run import Run, RunOptions, run
    from saccade.types import Contract, Detections, Plan, Result, Thresholds

__version__ = "0.1.0"

_HOMES = {
    "BuildOptions": "saccade.builder.build",
    "build": "saccade.builder.front",
    **dict.fromkeys(("Detector", "load"), "saccade.pipeline.detector"),
    **dict.fromkeys(("Run", "RunOptions", "run"), "saccade.pipeline.run"),
    **dict.fromkeys(("Contract", "Detections", "Plan", "Result", "Thresholds"), "saccade.types"),
    **dict.fromkeys(
        (
            "AccuracyError",
            "AnnotationError",
            "BackendUnavailable",
            "BuildError",
            "ContractError",
            "EngineError",
            "InputError",
            "ModelError",
            "Overloaded",
            "PictureError",
            "SaccadeError",
            "SinkError",
        ),
        "saccade.errors",
    ),
}

__all__ = [
    "AccuracyError",
    "AnnotationError",
    "BackendUnavailable",
    "BuildError",
    "BuildOptions",
    "Contract",
    "ContractError",
    "Detections",
    "Detector",
    "EngineError",
    "InputError",
    "ModelError",
    "Overloaded",
    "PictureError",
    "Plan",
    "Result",
    "Run",
    "RunOptions",
    "SaccadeError",
    "SinkError",
    "Thresholds",
    "build",
    "load",
    "run",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
