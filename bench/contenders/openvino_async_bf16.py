"""The same script with the hint left at what OpenVINO picks by itself on this kind of CPU."""

from __future__ import annotations

from typing import Any

from bench.cases import Case
from bench.contenders import openvino_async
from bench.contenders.openvino_async import run, versions

__all__ = ["run", "setup", "versions"]

LABEL = "OpenVINO AsyncInferQueue, BF16"
NOTE = "PERFORMANCE_HINT THROUGHPUT, INFERENCE_PRECISION_HINT bf16; checked by AP"
CASES = ("cells_640", "yolox_nano", "fastestdet")
VENV = None
CHECK = "ap"


def setup(case: Case) -> tuple[Case, Any]:
    return openvino_async.start(case, "bf16")
