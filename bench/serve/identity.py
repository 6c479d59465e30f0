"""What a server itself costs: 1 KB in, the same 1 KB out, through NVIDIA's perf_analyzer.

    python -m bench.serve.identity [--rounds 3] [--concurrency 16] [-o FILE]

Each server first hands a random tensor back over HTTP and over gRPC, bit by bit the same. Then
rounds in turns, all other servers stopped.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import os
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
from bench.serve.http import kserve_request, read_kserve
from bench.serve.server import Launch, Server, ServerError, exchange, free_port

SHAPE = [1, 256]  # of float32: 1 KB
NAMES = ("saccade", "triton", "pytriton", "mlserver")
LABELS = {
    "saccade": "saccade serve",
    "triton": "Triton's core (a back end in C that copies)",
    "pytriton": "PyTriton",
    "mlserver": "MLServer",
}
# MLServer reads and writes JSON over REST; it knows binary tensors over gRPC only.
JSON_ONLY = {"mlserver"}
INTERVAL_MS = 1500
TRIALS = 3


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
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)]), str(path))
    return path


def check_both(name: str, server: Server) -> None:
    """One random tensor, there and back over both protocols.

    Raises:
        ServerError: It did not come back as it went.
    """
    values = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    path = "/v2/models/identity/infer"
    request = kserve_request(path, {"INPUT0": ("FP32", SHAPE, values.tobytes())})
    if name in JSON_ONLY:
        request = json_request(path, values)
    server.wait_ready(request)
    over_http = read_kserve(exchange(server.port, request)[1])["OUTPUT0"]
    if not np.array_equal(over_http.reshape(SHAPE), values):
        raise ServerError(f"{name}: another tensor came back over HTTP")
    if not np.array_equal(over_grpc(server.extra["grpc"], values), values):
        raise ServerError(f"{name}: another tensor came back over gRPC")


def json_request(path: str, values: np.ndarray) -> bytes:
    from bench.serve.http import post

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
    for protocol, port in (("http", server.port), ("grpc", server.extra["grpc"])):
        result = analyze(name, server, protocol, port, concurrency)
        entry.setdefault(protocol, {}).setdefault("rounds", []).append(result)
        say(f"{name} {protocol}: {result['rate_per_s']:.0f}/s, server {result['cpu_us']:.0f} us")


def analyze(
    name: str, server: Server, protocol: str, port: int, concurrency: int
) -> dict[str, Any]:
    """One call of perf_analyzer."""
    folder = PEERS / "serve_perf_analyzer"
    report = WORK / f"perf_{name}_{protocol}.csv"
    report.unlink(missing_ok=True)
    command = [str(folder / "perf_analyzer"), "-m", "identity", "-u", f"127.0.0.1:{port}"]
    command += ["-i", protocol, "-b", "1", "--concurrency-range", str(concurrency)]
    command += ["-p", str(INTERVAL_MS), "-r", str(TRIALS), "-s", "50", "-f", str(report)]
    if protocol == "http" and name in JSON_ONLY:
        command += ["--input-tensor-format", "json", "--output-tensor-format", "json"]
    environ = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    before_s, own_before_s = server.cpu_s(), children_s()
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    server_s, own_s = server.cpu_s() - before_s, children_s() - own_before_s
    if done.returncode or not report.is_file():
        raise ServerError(f"perf_analyzer failed on {name} {protocol}: {done.stdout[-1500:]}")
    (row,) = list(csv.DictReader(report.open()))
    num = count_of(done.stdout)
    return {
        "rate_per_s": float(row["Inferences/Second"]),
        "p50_us": float(row["p50 latency"]),
        "p99_us": float(row["p99 latency"]),
        "cpu_us": round(1e6 * server_s / num, 2),
        "client_cpu_us": round(1e6 * own_s / num, 2),
    }


def count_of(text: str) -> int:
    """Requests in all measurement windows; the warm-up before them is not told and not counted."""
    lines = [line for line in text.splitlines() if "Request count:" in line]
    return sum(int(line.rpartition(":")[2]) for line in lines) or 1


def children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def summarize(entry: dict[str, Any]) -> None:
    for protocol in ("http", "grpc"):
        rounds = entry.get(protocol, {}).get("rounds", [])
        for key in rounds[0] if rounds else ():
            entry[protocol][key] = spread([row[key] for row in rounds])


if __name__ == "__main__":
    sys.exit(main())
