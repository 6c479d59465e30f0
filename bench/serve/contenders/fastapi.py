"""A plain FastAPI script on uvicorn, one worker process per core."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.cases import Case
from bench.serve.http import Boxes, post, read_plain
from bench.serve.server import Launch, peer
from bench.serve.versions import versions_in

LABEL = "FastAPI script"
NOTE = "uvicorn with one worker per core; the job on the thread pool, one at a time per worker"
HOLD = True


def launch(case: Case, port: int, folder: Path) -> Launch:
    del folder
    argv = [peer("fastapi", "uvicorn"), "bench.serve.apps.fastapi_app:app", "--workers", "2"]
    argv += ["--port", str(port), "--log-level", "warning", "--no-access-log"]
    return Launch(argv, {"CASE": case.name})


def request(case: Case, jpeg: bytes) -> bytes:
    del case
    return post("/detect", jpeg, Content_Type="image/jpeg")


def read(body: bytes) -> Boxes:
    return read_plain(json.loads(body))


def versions() -> dict[str, Any]:
    return versions_in("fastapi", "fastapi", "uvicorn", "onnxruntime", "simplejpeg", "numpy")
