"""An exported repository in a real Triton server, where bench/serve/peers.sh has put one."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

import saccade
from bundles import made
from nets import mean_color_detector
from saccade.bundles import write_bundle
from saccade.export import TritonOptions, export_triton
from saccade.types import Plan

PEERS = Path(os.environ.get("SACCADE_PEERS") or Path(tempfile.gettempdir()) / "peers")
PACKAGES = next(iter((PEERS / "serve_triton").glob("lib/python3.*/site-packages")), None)
START_S = 60.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PACKAGES is None, reason="no Triton; run bench/serve/peers.sh triton"),
]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def triton(repository, folder):
    """A server over HTTP; its address."""
    server = PACKAGES / "pytriton" / "tritonserver"
    backends = folder / "backends"
    shutil.copytree(server / "backends", backends)
    stub = server / "python_backend_stubs" / "3.11" / "triton_python_backend_stub"
    shutil.copy(stub, backends / "python")
    (backends / "onnxruntime").mkdir()
    shutil.copy(
        Path(__file__).with_name("triton_backend.py"), backends / "onnxruntime" / "model.py"
    )
    port = free_port()
    log = folder / "triton.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                str(server / "bin" / "tritonserver"),
                f"--model-repository={repository}",
                f"--backend-directory={backends}",
                *("--http-address=127.0.0.1", f"--http-port={port}"),
                *("--allow-grpc=false", "--allow-metrics=false"),
            ],
            env={
                **os.environ,
                "MODEL_PYTHONPATH": str(PACKAGES),
                "LD_LIBRARY_PATH": str(PACKAGES / "nvidia_pytriton.libs"),
            },
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        end_s = time.monotonic() + START_S
        while not is_ready(port):
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < end_s, log.read_text()[-4000:]
            os.sched_yield()
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def is_ready(port):
    import tritonclient.http as client_module

    with (
        contextlib.suppress(OSError, client_module.InferenceServerException),
        client_module.InferenceServerClient(f"127.0.0.1:{port}") as client,
    ):
        return client.is_server_ready()
    return False


def test_triton_loads_it_batches_and_answers_as_onnxruntime_does(tmp_path):
    import onnxruntime
    import tritonclient.http as client_module

    path = mean_color_detector(tmp_path / "colours.onnx", batch="batch")
    with saccade.load(path, labels=["red", "green"]) as detector:
        contract = detector.contract
    record = made.record(Plan("onnxruntime", batch=4, streams=1, threads=1), name="colours.onnx")
    bundle = write_bundle(tmp_path / "made", model_path=path, contract=contract, record=record)
    done = export_triton(bundle.path, tmp_path / "repo", options=TritonOptions(name="colours"))
    session = onnxruntime.InferenceSession(str(path))
    (spec,) = session.get_inputs()
    height, width = contract.input.size_hw
    with triton(tmp_path / "repo", tmp_path) as address:
        with client_module.InferenceServerClient(address, concurrency=8) as client:
            config = client.get_model_config("colours")
            assert config["max_batch_size"] == done.max_batch == 4
            assert "dynamic_batching" in config
            assert [group["count"] for group in config["instance_group"]] == [1]

        def ask(number):
            rng = np.random.default_rng(number)
            pictures = rng.uniform(0, 255, (1 + number % 2, 3, height, width)).astype(np.float32)
            with client_module.InferenceServerClient(address) as client:
                tensor = client_module.InferInput(spec.name, list(pictures.shape), "FP32")
                tensor.set_data_from_numpy(pictures)
                answer = client.infer("colours", [tensor])
            wanted = session.run(None, {spec.name: pictures})
            for one, values in zip(session.get_outputs(), wanted, strict=True):
                assert np.allclose(answer.as_numpy(one.name), values, atol=1e-4)
            return len(pictures)

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            total = sum(pool.map(ask, range(24)))
        with client_module.InferenceServerClient(address) as client:
            (stats,) = client.get_inference_statistics("colours")["model_stats"]
    # The warm-up that the configuration asks for is one full batch.
    assert stats["inference_count"] == total + done.max_batch
    assert stats["inference_stats"]["fail"]["count"] == 0
