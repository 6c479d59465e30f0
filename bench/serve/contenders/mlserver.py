"""MLServer with a custom runtime, one parallel worker per core."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from bench.cases import Case
from bench.serve.http import Boxes, post
from bench.serve.server import Launch, free_port, peer
from bench.serve.versions import versions_in

LABEL = "MLServer"
NOTE = "one parallel worker per core; the picture as a base64 BYTES tensor over REST, in JSON"
HOLD = True


def launch(case: Case, port: int, folder: Path) -> Launch:
    grpc_port = free_port()
    settings = {
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": grpc_port,
        "metrics_port": free_port(),
        "parallel_workers": len(os.sched_getaffinity(0)),
        "debug": False,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    for name, runtime in (("detector", "DetectorModel"), ("identity", "IdentityModel")):
        model = folder / name
        model.mkdir(exist_ok=True)
        text: dict[str, Any] = {"name": name}
        text["implementation"] = f"bench.serve.apps.mlserver_app.{runtime}"
        if name == "identity":
            tensor = {"datatype": "FP32", "shape": [1, 256]}
            text["inputs"] = [{"name": "INPUT0", **tensor}]
            text["outputs"] = [{"name": "OUTPUT0", **tensor}]
        (model / "model-settings.json").write_text(json.dumps(text))
    argv = [peer("mlserver", "mlserver"), "start", str(folder)]
    return Launch(argv, {"CASE": case.name}, {"grpc": grpc_port})


def request(case: Case, jpeg: bytes) -> bytes:
    del case
    tensor = {
        "name": "image",
        "datatype": "BYTES",
        "shape": [1],
        "parameters": {"content_type": "base64"},
        "data": [base64.b64encode(jpeg).decode()],
    }
    body = json.dumps({"inputs": [tensor]}).encode()
    return post("/v2/models/detector/infer", body, Content_Type="application/json")


def read(body: bytes) -> Boxes:
    outputs = {output["name"]: output["data"] for output in json.loads(body)["outputs"]}
    boxes = np.reshape(np.asarray(outputs["boxes"], np.float64), (-1, 4))
    return boxes, np.asarray(outputs["scores"], np.float64), np.asarray(outputs["classes"], int)


def versions() -> dict[str, Any]:
    return versions_in("mlserver", "mlserver", "onnxruntime", "simplejpeg", "numpy")
