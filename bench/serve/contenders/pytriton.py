"""PyTriton: Python functions behind a real Triton server."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from bench.cases import Case
from bench.serve.http import Boxes, kserve_request, read_kserve
from bench.serve.server import Launch, free_port, peer
from bench.serve.versions import versions_in

LABEL = "PyTriton"
NOTE = "one inference function per core; the picture as a binary BYTES tensor"
HOLD = True


def launch(case: Case, port: int, folder: Path) -> Launch:
    grpc_port = free_port()
    argv = [peer("triton"), "-m", "bench.serve.apps.pytriton_app", str(port), str(grpc_port)]
    environment = {"CASE": case.name, "PYTRITON_HOME": str(folder)}
    return Launch(argv, environment, {"grpc": grpc_port})


def request(case: Case, jpeg: bytes) -> bytes:
    del case
    data = struct.pack("<I", len(jpeg)) + jpeg
    return kserve_request("/v2/models/detector/infer", {"image": ("BYTES", [1], data)})


def read(body: bytes) -> Boxes:
    outputs = read_kserve(body)
    num = int(outputs["num"][0])
    return outputs["boxes"][:num], outputs["scores"][:num], outputs["classes"][:num]


def versions() -> dict[str, Any]:
    found = versions_in("triton", "nvidia-pytriton", "onnxruntime", "simplejpeg", "numpy")
    return {"triton": "2.51.0", **found}
