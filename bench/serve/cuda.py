"""JPEG to boxes over HTTP with the network on one GPU, clients on the same machine.

    python -m bench.serve.cuda prepare FOLDER      pictures, the CPU's answers, the load generator
    python -m bench.serve.cuda run FOLDER --json FILE [--seconds 5] [-- ARGUMENTS OF saccade serve]

First the same pictures as a job without a server (`saccade.run` on the device): that rate is what
the server is held against. Then closed loops of more and more connections, and open loops at parts
of the most that they gave. Answers are compared with the CPU's; where the network computes in half
precision or the GPU decodes, by agreement of boxes, as in the other benchmarks.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.agreement import Answers, check
from bench.serve.cases import CASES
from bench.serve.load import SOURCE, Load, Requests, run_load
from bench.serve.server import Launch, Server, free_port

CASE = CASES["cells_640"]
MODEL = "cells_640"
CONNECTIONS = (16, 64, 256, 512)
PARTS = (0.25, 0.5, 0.7, 0.85, 0.95)
MIN_AGREEMENT = 0.97
STANDS_STILL_S = 100


def prepare(folder: Path) -> None:
    """Write what `run` needs on a machine without a network, a compiler or ONNX Runtime."""
    from bench import reference

    folder.mkdir(parents=True, exist_ok=True)
    paths = list(dict.fromkeys(CASE.round_paths()))
    rows = reference.run(reference.setup(CASE), paths)
    found = {Path(path).name: (boxes, scores, classes) for path, boxes, scores, classes in rows}
    (folder / "answers.pickle").write_bytes(pickle.dumps(found))
    (folder / "pictures").mkdir(exist_ok=True)
    for path in paths:
        shutil.copy(path, folder / "pictures")
    shutil.copy(CASE.model_path, folder / "cells_640.onnx")
    command = ["gcc", "-O2", "-static", "-o", folder / "load", SOURCE, "-lm"]
    subprocess.run(command, check=True)


def offline(model: Path, pictures: list[Path], keys: dict[str, Any]) -> dict[str, float]:
    """Pictures per second of the same network as a job on the same device, without a server."""
    import saccade

    detector = saccade.load(str(model), **keys)
    with detector:
        names = [str(path) for path in pictures]
        num = sum(item.error is None for item in saccade.run(detector, names * 10))  # warm
        rates = []
        for _ in range(3):
            began_s, cpu_s = time.perf_counter(), time.process_time()
            num = sum(item.error is None for item in saccade.run(detector, names * 120))
            wall_s = time.perf_counter() - began_s
            rates.append((num / wall_s, 1e3 * (time.process_time() - cpu_s) / num))
    best = max(rates)
    return {"rate_per_s": best[0], "cpu_ms": best[1], "rates": [r for r, _ in rates]}


def serve(folder: Path, extra: list[str], seconds: float) -> dict[str, Any]:
    from bench.serve.contenders import saccade

    pictures = sorted((folder / "pictures").iterdir())
    raw = [saccade.request(CASE, path.read_bytes()) for path in pictures]
    requests = Requests("cuda", raw)
    port, grpc_port = free_port(), free_port()
    argv = [sys.executable, "-m", "saccade", "serve", str(folder / "cells_640.onnx")]
    argv += ["--port", str(port), "--grpc-port", str(grpc_port), *extra]
    server = Server("cuda", Launch(argv), port)
    report: dict[str, Any] = {"arguments": extra}
    try:
        report["start_s"] = server.wait_ready(raw[0], limit_s=90)
        warm = run_load(requests, port, connections=64, seconds=2.0)
        report["check"] = verdict(folder, pictures, warm)
        report["closed"] = []
        for connections in CONNECTIONS:
            row = timed(server, requests, seconds, connections=connections)
            report["closed"].append({"connections": connections, **row})
            print(report["closed"][-1], flush=True)
        most = max(row["rate_per_s"] for row in report["closed"])
        report["open"] = []
        for part in PARTS:
            row = timed(server, requests, seconds, connections=1024, rate=part * most, seed=1)
            report["open"].append({"part": part, **row})
            print(report["open"][-1], flush=True)
        report["memory_mib"] = round(server.pss_bytes() / 2**20)
    finally:
        report["log_tail"] = server.log_tail()
        server.close()
    return report


def verdict(folder: Path, pictures: list[Path], load: Load) -> dict[str, Any]:
    """Every picture's boxes against the CPU's, and the same ones each time it was asked."""
    from bench.serve.contenders import saccade

    known = pickle.loads((folder / "answers.pickle").read_bytes())
    wanted: Answers = {path.name: known[path.name] for path in pictures}
    found = {pictures[a.index].name: saccade.read(a.body) for a in load.good()}
    result = check(CASE_WITHOUT_LABELS, "agreement", wanted, found)
    result["passed"] = result.get("agreement", 0.0) >= MIN_AGREEMENT
    statuses = {a.status for a in load.answers}
    return {**result, "statuses": sorted(statuses), "num": len(load.answers)}


def timed(server: Server, requests: Requests, seconds: float, **how: Any) -> dict[str, Any]:
    tree = {process.pid: process for process in server.tree()}
    before = {pid: sum(process.cpu_times()[:2]) for pid, process in tree.items()}
    load = run_load(requests, server.port, seconds=seconds, **how)
    used = {pid: sum(process.cpu_times()[:2]) - before[pid] for pid, process in tree.items()}
    good = load.good()
    return {
        "offered_per_s": how.get("rate"),
        "rate_per_s": round(load.rate(), 1),
        "num": len(good),
        "num_other": len(load.answers) - len(good),
        **{f"p{p:g}_ms": round(load.latency_ms(p), 3) for p in (50, 90, 99)},
        "cpu_ms": round(1e3 * sum(used.values()) / max(1, len(good)), 4),
        "front_cores": round(used[server.pid] / load.wall_s, 2),
        "engine_cores": round((sum(used.values()) - used[server.pid]) / load.wall_s, 2),
        "load_cores": round(load.cpu_s / load.wall_s, 2),
    }


CASE_WITHOUT_LABELS = type(CASE)(
    **{name: getattr(CASE, name) for name in CASE.__slots__ if name != "annotations"},
    annotations=None,
)


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    own, extra = given, []
    if "--" in given:
        at = given.index("--")
        own, extra = given[:at], given[at + 1 :]
    parser = argparse.ArgumentParser(prog="python -m bench.serve.cuda", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("do", choices=("prepare", "run"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--backend", default="torch")
    args = parser.parse_args(own)
    if args.do == "prepare":
        prepare(args.folder)
        return 0
    faulthandler.dump_traceback_later(STANDS_STILL_S, exit=True)
    os.environ["SACCADE_LOAD"] = str(args.folder / "load")
    where = {"device": "cuda:0", "backend": args.backend, "precision": args.precision}
    pictures = sorted((args.folder / "pictures").iterdir())
    report: dict[str, Any] = {"schema": 1, "environment": describe(), **where}
    report["offline"] = offline(args.folder / "cells_640.onnx", pictures, where)
    print(report["offline"], flush=True)
    args.json.write_text(json.dumps(report, indent=1))
    flags = [text for key, value in where.items() for text in (f"--{key}", value)]
    report["server"] = serve(args.folder, [*flags, *extra], args.seconds)
    most = max(row["rate_per_s"] for row in report["server"]["closed"])
    report["part_of_offline"] = round(most / report["offline"]["rate_per_s"], 4)
    args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(report["part_of_offline"], report["server"]["check"])
    return 0


def describe() -> dict[str, Any]:
    from bench.torch_engine import environment

    return {**environment(), "cores": len(os.sched_getaffinity(0)), "numpy": np.__version__}


if __name__ == "__main__":
    sys.exit(main())
