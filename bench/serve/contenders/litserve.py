"""LitServe, one worker process per core."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from bench.cases import Case
from bench.serve.http import Boxes, post, read_plain
from bench.serve.server import Launch, peer
from bench.serve.versions import versions_in

LABEL = "LitServe"
NOTE = "one worker per core; the picture as base64 in JSON, as its guide sends it"
HOLD = True


def launch(case: Case, port: int, folder: Path) -> Launch:
    del folder
    argv = [peer("litserve"), "-m", "bench.serve.apps.litserve_app", str(port)]
    return Launch(argv, {"CASE": case.name})


def request(case: Case, jpeg: bytes) -> bytes:
    del case
    body = json.dumps({"image_data": base64.b64encode(jpeg).decode()}).encode()
    return post("/predict", body, Content_Type="application/json")


def read(body: bytes) -> Boxes:
    return read_plain(json.loads(body))


def versions() -> dict[str, Any]:
    return versions_in("litserve", "litserve", "fastapi", "onnxruntime", "simplejpeg", "numpy")
