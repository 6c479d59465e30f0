"""What a server itself costs: 1 KB in, the same 1 KB out, through NVIDIA's perf_analyzer.

    python -m bench.serve.identity [--rounds 3] [--concurrency 16] [-o FILE]

Each server first hands a random tensor back over HTTP and over gRPC, bit by bit the same. Then
rounds in turns, all other servers stopped.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench import environment
from bench.cases import ROOT, WORK
from bench.child import PEERS
from bench.serve.cases import CASES
from bench.serve.harness import say, spread
from bench.serve.http import kserve_request, post, read_kserve
from bench.serve.load import Requests, run_load
from bench.serve.server import Launch, Server, ServerError, exchange, free_port

SHAPE = [1, 256]  # of float32: 1 KB
NAMES = ("saccade", "triton", "pytriton", "mlserver")
LABELS = {
    "saccade": "saccade serve",
    "triton": "Triton's core (a back end in C that copies)",
    "pytriton": "PyTriton",
    "mlserver": "MLServer",
}
# MLServer reads and writes JSON over REST, and lacks the configuration that perf_analyzer asks for.
JSON_ONLY = {"mlserver"}
INTERVAL_MS = 1500
TRIALS = 3
LOAD_S = 3.0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.serve.identity", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--contenders", default=",".join(NAMES))
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args(arguments)
    report = compare(args.contenders.split(","), args)
    target = args.output or ROOT / "bench" / "results" / "serve" / "identity.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(environment.without_paths(report), indent=1, ensure_ascii=False)
    target.write_text(text + "\n")
    return 1 if any("error" in entry for entry in report["contenders"].values()) else 0


def compare(names: list[str], args: argparse.Namespace) -> dict[str, Any]:
    machine = environment.describe()
    entries: dict[str, dict[str, Any]] = {}
    servers: dict[str, Server] = {}

    def guarded(name: str, do: Callable[[], None]) -> None:
        try:
            do()
        except ServerError as exc:
            entries[name]["error"] = str(exc)
            say(f"{name} failed: {exc}")
            servers.pop(name).close()
        finally:
            if name in servers:
                servers[name].hold()

    try:
        for name in names:
            entries[name] = {"label": LABELS[name]}
            servers[name] = start(name)
            guarded(name, lambda n=name: check_both(n, servers[n]))  # type: ignore[misc]
            entries[name]["versions"] = contender(name).versions()
        for _ in range(args.rounds):
            for name in [name for name in names if name in servers]:
                guarded(
                    name,
                    lambda n=name: one_round(entries[n], n, servers[n], args.concurrency),  # type: ignore[misc]
                )
    finally:
        for server in servers.values():
            server.close()
    for entry in entries.values():
        summarize(entry)
    return {
        "schema": 1,
        "bytes": int(np.prod(SHAPE)) * 4,
        "concurrency": args.concurrency,
        "perf_analyzer": "tritonclient 2.50.0",
        "environment": machine,
        "contenders": entries,
    }


def contender(name: str) -> Any:
    return importlib.import_module(f"bench.serve.contenders.{name}")


def start(name: str) -> Server:
    folder = WORK / "serve" / f"identity_{name}"
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    case = CASES["light_person_192"]
    launch: Launch
    if name == "saccade":
        grpc_port = free_port()
        argv = [sys.executable, "-m", "saccade", "serve", f"identity={make_model(folder)}"]
        argv += ["--port", str(port), "--grpc-port", str(grpc_port)]
        launch = Launch(argv, {}, {"grpc": grpc_port})
    else:
        launch = contender(name).launch(case, port, folder)
    return Server(f"identity_{name}", launch, port)


def make_model(folder: Path) -> Path:
    """An ONNX file with one Identity."""
    import onnx
    from onnx import TensorProto, helper

    made = helper.make_graph(
        [helper.make_node("Identity", ["INPUT0"], ["OUTPUT0"])],
        "identity",
        [helper.make_tensor_value_info("INPUT0", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("OUTPUT0", TensorProto.FLOAT, SHAPE)],
    )
    path = folder / "identity.onnx"
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(made, opset_imports=opset, ir_version=10), str(path))
    return path


def check_both(name: str, server: Server) -> None:
    """One random tensor, there and back over both protocols.

    Raises:
        ServerError: It did not come back as it went.
    """
    values = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    request = identity_request(name, values)
    server.wait_ready(request)
    if not is_same(exchange(server.port, request)[1], values):
        raise ServerError(f"{name}: another tensor came back over HTTP")
    if not np.array_equal(over_grpc(server.extra["grpc"], values), values):
        raise ServerError(f"{name}: another tensor came back over gRPC")


def identity_request(name: str, values: np.ndarray) -> bytes:
    path = "/v2/models/identity/infer"
    if name not in JSON_ONLY:
        return kserve_request(path, {"INPUT0": ("FP32", SHAPE, values.tobytes())})
    tensor = {"name": "INPUT0", "datatype": "FP32", "shape": SHAPE, "data": values.ravel().tolist()}
    body = json.dumps({"inputs": [tensor]}).encode()
    return post(path, body, Content_Type="application/json")


def over_grpc(port: int, values: np.ndarray) -> np.ndarray:
    from tritonclient import grpc

    client = grpc.InferenceServerClient(f"127.0.0.1:{port}")
    tensor = grpc.InferInput("INPUT0", SHAPE, "FP32")
    tensor.set_data_from_numpy(values)
    answer = client.infer("identity", [tensor]).as_numpy("OUTPUT0")
    client.close()
    return np.reshape(answer, SHAPE)


def one_round(entry: dict[str, Any], name: str, server: Server, concurrency: int) -> None:
    server.release()
    results = {"load": with_load(name, server, concurrency)}
    if name not in JSON_ONLY:
        results["http"] = analyze(name, server, "http", server.port, concurrency)
        results["grpc"] = analyze(name, server, "grpc", server.extra["grpc"], concurrency)
    for protocol, result in results.items():
        entry.setdefault(protocol, {}).setdefault("rounds", []).append(result)
        say(f"{name} {protocol}: {result['rate_per_s']:.0f}/s, server {result['cpu_us']:.0f} us")


def with_load(name: str, server: Server, concurrency: int) -> dict[str, Any]:
    """The load generator of our own over HTTP, every answer compared bit by bit."""
    values = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    requests = Requests(f"identity_{name}", [identity_request(name, values)])
    run_load(requests, server.port, connections=concurrency, seconds=0.5)
    before_s = server.cpu_s()
    load = run_load(requests, server.port, connections=concurrency, seconds=LOAD_S)
    server_s, num = server.cpu_s() - before_s, len(load.good())
    right = {body: is_same(body, values) for body in {answer.body for answer in load.good()}}
    if num != len(load.answers) or not all(right.values()):
        raise ServerError(f"{name}: {len(load.answers) - num} answers missing, or wrong ones")
    return {
        "rate_per_s": round(load.rate(), 1),
        "p50_us": round(1e3 * load.latency_ms(50), 1),
        "p99_us": round(1e3 * load.latency_ms(99), 1),
        "cpu_us": round(1e6 * server_s / num, 2),
        "client_cpu_us": round(1e6 * load.cpu_s / num, 2),
    }


def is_same(body: bytes, values: np.ndarray) -> bool:
    return np.array_equal(read_kserve(body)["OUTPUT0"].reshape(SHAPE), values)


def analyze(
    name: str, server: Server, protocol: str, port: int, concurrency: int
) -> dict[str, Any]:
    """One call of perf_analyzer."""
    folder = PEERS / "serve_perf_analyzer"
    command = [str(folder / "perf_analyzer"), "-m", "identity", "-u", f"127.0.0.1:{port}"]
    command += ["-i", protocol, "-b", "1", "--concurrency-range", str(concurrency)]
    command += ["-p", str(INTERVAL_MS), "-r", str(TRIALS), "-s", "999"]
    environ = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    before_s, own_before_s = server.cpu_s(), children_s()
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    server_s, own_s = server.cpu_s() - before_s, children_s() - own_before_s
    num = count_of(done.stdout)
    if not num:
        said = done.stdout[-1500:] + done.stderr[-1500:]
        raise ServerError(f"perf_analyzer failed on {name} {protocol}: {said}")
    return {
        "rate_per_s": last_number(r"Throughput: ([\d.]+)", done.stdout),
        "p50_us": last_number(r"p50 latency: (\d+)", done.stdout),
        "p99_us": last_number(r"p99 latency: (\d+)", done.stdout),
        "cpu_us": round(1e6 * server_s / num, 2),
        "client_cpu_us": round(1e6 * own_s / num, 2),
    }


def count_of(text: str) -> int:
    """Requests in all measurement windows; the warm-up before them is not told and not counted."""
    lines = [line for line in text.splitlines() if "Request count:" in line]
    return sum(int(line.rpartition(":")[2]) for line in lines)


def last_number(pattern: str, text: str) -> float:
    return float(re.findall(pattern, text)[-1])


def children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def summarize(entry: dict[str, Any]) -> None:
    for protocol in ("load", "http", "grpc"):
        rounds = entry.get(protocol, {}).get("rounds", [])
        for key in rounds[0] if rounds else ():
            entry[protocol][key] = spread([row[key] for row in rounds])


if __name__ == "__main__":
    sys.exit(main())
