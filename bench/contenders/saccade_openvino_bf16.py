"""saccade on OpenVINO in BF16."""

from __future__ import annotations

from typing import Any

from bench.cases import Case
from bench.contenders import saccade
from bench.contenders.saccade import close, run

__all__ = ["close", "run", "setup", "versions"]

LABEL = "saccade, OpenVINO, BF16"
NOTE = "checked by AP"
CASES = ("cells_640", "yolox_nano", "fastestdet")
VENV = None
CHECK = "ap"


def setup(case: Case) -> Any:
    return saccade.start(case, backend="openvino", precision="bf16")


def versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("saccade", "numpy", "openvino", "opencv-python-headless", "simplejpeg")
    return {name: version(name) for name in names}
