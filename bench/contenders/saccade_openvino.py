"""saccade on OpenVINO in FP32."""

from __future__ import annotations

from typing import Any

from bench.cases import Case
from bench.contenders import saccade
from bench.contenders.saccade import close, run

__all__ = ["close", "run", "setup", "versions"]

LABEL = "saccade, OpenVINO, FP32"
NOTE = ""
CASES = None
VENV = None
CHECK = "agreement"


def setup(case: Case) -> Any:
    return saccade.start(case, backend="openvino", precision="fp32")


def versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("saccade", "numpy", "openvino", "opencv-python-headless", "simplejpeg")
    return {name: version(name) for name in names}
