"""Triton itself: a model repository with its Python back end, one instance per core."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

from bench.cases import ROOT, Case
from bench.child import PEERS
from bench.serve.http import Boxes, kserve_request, read_kserve
from bench.serve.server import Launch, free_port, peer
from bench.serve.versions import versions_in

LABEL = "Triton, Python back end"
NOTE = "one instance (process) per core; the picture as a binary BYTES tensor"
HOLD = True

APP = Path(__file__).resolve().parents[1] / "apps" / "triton"


def launch(case: Case, port: int, folder: Path) -> Launch:
    peer("triton")
    (packages,) = (PEERS / "serve_triton").glob("lib/python3.*/site-packages")
    server = packages / "pytriton" / "tritonserver"
    grpc_port = free_port()
    argv = [str(server / "bin" / "tritonserver")]
    argv += [f"--model-repository={copy_models(folder)}"]
    argv += [f"--backend-directory={make_backends(server, folder)}"]
    argv += ["--http-address=127.0.0.1", f"--http-port={port}"]
    argv += ["--grpc-address=127.0.0.1", f"--grpc-port={grpc_port}"]
    argv += ["--allow-metrics=false", "--log-info=false"]
    environment = {
        "CASE": case.name,
        "MODEL_PYTHONPATH": f"{ROOT}{os.pathsep}{packages}",
        "LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs"),
    }
    return Launch(argv, environment, {"grpc": grpc_port})


def copy_models(folder: Path) -> Path:
    repository = folder / "models"
    shutil.rmtree(repository, ignore_errors=True)
    shutil.copytree(APP / "models", repository)
    (repository / "identity" / "1").mkdir()
    return repository


def make_backends(server: Path, folder: Path) -> Path:
    """Triton's own Python back end with the stub for this Python, and the echo."""
    backends = folder / "backends"
    shutil.rmtree(backends, ignore_errors=True)
    shutil.copytree(server / "backends", backends)
    stub = server / "python_backend_stubs" / "3.11" / "triton_python_backend_stub"
    shutil.copy(stub, backends / "python")
    (backends / "echo").mkdir()
    target = backends / "echo" / "libtriton_echo.so"
    command = ["gcc", "-O2", "-shared", "-fPIC", "-o", target, APP / "echo.c"]
    subprocess.run(command, check=True)
    return backends


def request(case: Case, jpeg: bytes) -> bytes:
    del case
    data = struct.pack("<I", len(jpeg)) + jpeg
    return kserve_request("/v2/models/detector/infer", {"image": ("BYTES", [1], data)})


def read(body: bytes) -> Boxes:
    outputs = read_kserve(body)
    return outputs["boxes"], outputs["scores"], outputs["classes"]


def versions() -> dict[str, Any]:
    found = versions_in("triton", "onnxruntime", "simplejpeg", "numpy")
    return {"triton": "2.51.0", **found}
