"""The standard infer call over HTTP: a float tensor in, the network's output back, no picture.

    python -m bench.serve.tensor [--rounds 3] [--seconds 3] [-o FILE]

The network of light_person_192 in all; 442 KB there and 18 KB back, binary. Each output is compared
with ONNX Runtime's in this process.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench import environment
from bench.cases import ROOT, WORK
from bench.serve.cases import CASES
from bench.serve.harness import say, spread
from bench.serve.http import kserve_request, read_kserve
from bench.serve.load import Requests, run_load
from bench.serve.server import Server, ServerError, exchange, free_port

# Those that take binary tensors over HTTP, and what they call the model.
MODELS = {"saccade": "light_person_192", "triton": "network", "pytriton": "network"}
CONNECTIONS = 16
NUM_TENSORS = 4
MAX_ERROR = 1e-3
CASE = CASES["light_person_192"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.serve.tensor", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args(arguments)
    report = compare(args.rounds, args.seconds)
    target = args.output or ROOT / "bench" / "results" / "serve" / "tensor.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(environment.without_paths(report), indent=1, ensure_ascii=False)
    target.write_text(text + "\n")
    return 1 if any("error" in entry for entry in report["contenders"].values()) else 0


def compare(rounds: int, seconds: float) -> dict[str, Any]:
    from bench.serve.apps.pipeline import Pipeline

    machine = environment.describe()
    rng = np.random.default_rng(20261121)
    shape = [1, 3, *CASE.size_hw]
    tensors = [rng.uniform(0, 255, shape).astype(np.float32) for _ in range(NUM_TENSORS)]
    network = Pipeline(CASE)
    wanted = [network.infer(tensor).copy() for tensor in tensors]
    entries: dict[str, dict[str, Any]] = {}
    servers: dict[str, Server] = {}
    requests: dict[str, Requests] = {}
    bare: list[float] = []
    try:
        for name in MODELS:
            module = importlib.import_module(f"bench.serve.contenders.{name}")
            entries[name] = {"label": module.LABEL, "versions": module.versions(), "rounds": []}
            raw = [tensor_request(name, tensor) for tensor in tensors]
            requests[name] = Requests(f"tensor_{name}", raw)
            folder = WORK / "serve" / f"tensor_{name}"
            folder.mkdir(parents=True, exist_ok=True)
            port = free_port()
            servers[name] = Server(f"tensor_{name}", module.launch(CASE, port, folder), port)
            servers[name].wait_ready(raw[0])
            for request, output in zip(raw, wanted, strict=True):
                check(name, exchange(servers[name].port, request)[1], output)
            servers[name].hold()
        for _ in range(rounds):
            bare.append(bare_ms(network, tensors))
            for name, server in servers.items():
                server.release()
                row = timed(name, server, requests[name], seconds, wanted)
                server.hold()
                entries[name]["rounds"].append(row)
                say(f"{name}: {row['rate_per_s']:.0f}/s, {row['cpu_ms']:.2f} ms")
    finally:
        for server in servers.values():
            server.close()
    for entry in entries.values():
        keys = entry["rounds"][0]
        entry["closed"] = {key: spread([row[key] for row in entry["rounds"]]) for key in keys}
    return {
        "schema": 1,
        "connections": CONNECTIONS,
        "kilobytes": round(tensors[0].nbytes / 1e3, 1),
        "bare_cpu_ms": spread(bare),
        "environment": machine,
        "contenders": entries,
    }


def tensor_request(name: str, tensor: np.ndarray) -> bytes:
    path = f"/v2/models/{MODELS[name]}/infer"
    return kserve_request(path, {"images": ("FP32", list(tensor.shape), tensor.tobytes())})


def check(name: str, body: bytes, wanted: np.ndarray) -> None:
    """Raises ServerError if the output is not the network's."""
    output = read_kserve(body)["output"]
    if output.shape != wanted.shape or not np.allclose(output, wanted, atol=MAX_ERROR):
        raise ServerError(f"{name}: another output than the network's")


def timed(
    name: str, server: Server, requests: Requests, seconds: float, wanted: list[np.ndarray]
) -> dict[str, float]:
    run_load(requests, server.port, connections=CONNECTIONS, seconds=0.5)
    before_s = server.cpu_s()
    load = run_load(requests, server.port, connections=CONNECTIONS, seconds=seconds)
    server_s, good = server.cpu_s() - before_s, load.good()
    if len(good) != len(load.answers):
        raise ServerError(f"{name}: {len(load.answers) - len(good)} answers missing")
    for index, body in {(answer.index, answer.body) for answer in good}:
        check(name, body, wanted[index])
    return {
        "rate_per_s": load.rate(),
        "cpu_ms": 1e3 * server_s / len(good),
        "load_cpu_ms": 1e3 * load.cpu_s / len(good),
        "p50_ms": load.latency_ms(50),
        "p99_ms": load.latency_ms(99),
    }


def bare_ms(network: Any, tensors: list[np.ndarray], seconds: float = 1.0) -> float:
    """CPU milliseconds of the network alone."""
    network.infer(tensors[0])
    began_s, end_s, num = time.process_time(), time.monotonic() + seconds, 0
    while time.monotonic() < end_s:
        network.infer(tensors[num % len(tensors)])
        num += 1
    return 1e3 * (time.process_time() - began_s) / num


if __name__ == "__main__":
    sys.exit(main())
