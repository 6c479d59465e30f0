"""saccade serve, with the same engine and precision as the others."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from bench.cases import Case
from bench.serve.http import Boxes, post
from bench.serve.server import Launch, free_port

LABEL = "saccade serve"
NOTE = "defaults; the picture is the body"
HOLD = True


def launch(case: Case, port: int, folder: Path) -> Launch:
    del folder
    grpc_port = free_port()
    argv = [sys.executable, "-m", "saccade", "serve", case.model_path]
    argv += ["--port", str(port), "--grpc-port", str(grpc_port)]
    return Launch(argv, {}, {"grpc": grpc_port})


def request(case: Case, jpeg: bytes) -> bytes:
    name = Path(case.model).stem
    path = f"/v2/models/{name}/detect?score={case.score}&iou={case.iou}"
    return post(path, jpeg, Content_Type="image/jpeg")


def read(body: bytes) -> Boxes:
    found = json.loads(body)["detections"]
    boxes = np.reshape([item["box_xyxy"] for item in found], (-1, 4)).astype(np.float64)
    scores = np.array([item["score"] for item in found], np.float64)
    return boxes, scores, np.array([item["class"] for item in found], int)


def versions() -> dict[str, Any]:
    return {name: version(name) for name in ("saccade", "onnxruntime", "simplejpeg", "numpy")}
