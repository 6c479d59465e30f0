"""Ray Serve, one replica per core."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.cases import Case
from bench.serve.http import Boxes, post, read_plain
from bench.serve.server import Launch, peer
from bench.serve.versions import versions_in

LABEL = "Ray Serve"
NOTE = "one replica per core; the picture is the body; started anew for each round"
HOLD = False


def launch(case: Case, port: int, folder: Path) -> Launch:
    del folder
    argv = [peer("ray_serve"), "-m", "bench.serve.apps.ray_serve_app", str(port)]
    return Launch(argv, {"CASE": case.name, "RAY_USAGE_STATS_ENABLED": "0"})


def request(case: Case, jpeg: bytes) -> bytes:
    del case
    return post("/detect", jpeg, Content_Type="image/jpeg")


def read(body: bytes) -> Boxes:
    return read_plain(json.loads(body))


def versions() -> dict[str, Any]:
    return versions_in("ray_serve", "ray", "onnxruntime", "simplejpeg", "numpy")
