"""BentoML, one worker per core."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.cases import Case
from bench.serve.http import Boxes, post, read_plain
from bench.serve.server import Launch, peer
from bench.serve.versions import versions_in

LABEL = "BentoML"
NOTE = "one worker per core; the picture is the body"
HOLD = True


def launch(case: Case, port: int, folder: Path) -> Launch:
    argv = [peer("bentoml", "bentoml"), "serve", "bench.serve.apps.bentoml_app:Detector"]
    argv += ["--host", "127.0.0.1", "--port", str(port)]
    environment = {"BENTOML_HOME": str(folder), "BENTOML_DO_NOT_TRACK": "True"}
    return Launch(argv, {"CASE": case.name, **environment})


def request(case: Case, jpeg: bytes) -> bytes:
    del case
    return post("/detect", jpeg, Content_Type="image/jpeg")


def read(body: bytes) -> Boxes:
    return read_plain(json.loads(body))


def versions() -> dict[str, Any]:
    return versions_in("bentoml", "bentoml", "onnxruntime", "simplejpeg", "numpy")
