"""JPEG to boxes over HTTP with the network on one GPU, clients on the same machine.

    python -m bench.serve.cuda prepare FOLDER      pictures, the CPU's answers, the load generator
    python -m bench.serve.cuda run FOLDER --json FILE [--seconds 4] [-- ARGUMENTS OF saccade serve]

First the same pictures as a job without a server (`saccade.run` on the device), in a process of its
own: that rate is what the server is held against. Then closed loops of more and more connections,
and open loops at parts of the most that they gave. Clients, server and what is between them share
all cores of the machine, and how much each takes is written down. Every answer is looked at:
the boxes of every picture are compared with the CPU's by agreement, as the GPU decodes and computes
in half precision, and every distinct answer of every run is compared so.

Requests ask for the thresholds of the contract, the same as the job keeps.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import faulthandler
import importlib.metadata
import json
import os
import pickle
import platform
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from bench.agreement import Answers, check
from bench.cases import ROOT, WORK
from bench.serve.cases import CASES
from bench.serve.http import post
from bench.serve.load import SOURCE, Load, Requests, run_load
from bench.serve.server import Launch, Server, exchange, free_port

# The thresholds of the model's contract; labelled pictures are not asked for here.
CASE = dataclasses.replace(CASES["cells_640"], score=0.25, iou=0.7, annotations=None)
CONNECTIONS = (1, 16, 64, 128, 256, 384)
PARTS = (0.25, 0.5, 0.7, 0.85, 0.95)
VARIANT_CONNECTIONS = (1, 16, 64, 256)
OPEN_CONNECTIONS = 1024
MIN_AGREEMENT = 0.97
STANDS_STILL_S = 280
BAR = 0.6
SERVER = "saccade serve"


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
        shutil.copyfile(path, folder / "pictures" / Path(path).name)
    shutil.copyfile(CASE.model_path, folder / "cells_640.onnx")
    command = ["gcc", "-O2", "-static", "-o", folder / "load", SOURCE, "-lm"]
    subprocess.run(command, check=True)


def pictures_in(folder: Path) -> list[Path]:
    return sorted((folder / "pictures").iterdir())


# Without a server.


def offline(folder: Path, how: dict[str, Any], num: int, rounds: int) -> dict[str, Any]:
    """Pictures per second of the same network as a job on the same device."""
    import saccade

    keys = {name: how[name] for name in ("device", "backend", "precision") if how[name]}
    options = dict(pair.split("=") for pair in (how["engine_options"] or "").split(",") if pair)
    detector = saccade.load(str(folder / CASE.model), engine_options=options or None, **keys)
    blobs = [path.read_bytes() for path in pictures_in(folder)]
    many = (blobs * (num // len(blobs) + 1))[:num]
    began_s = time.perf_counter()
    with detector:
        check_s = time.perf_counter()
        first = list(saccade.run(detector, many[: len(blobs)], batch=how["batch"]))
        load_s = time.perf_counter() - check_s
        answers = {
            path.name: (r.detections.boxes_xyxy, r.detections.scores, r.detections.classes)
            for path, r in zip(pictures_in(folder), first, strict=False)
        }
        rows = []
        for _ in range(rounds):
            began_s, cpu_s = time.perf_counter(), time.process_time()
            good = sum(r.error is None for r in saccade.run(detector, many, batch=how["batch"]))
            wall_s = time.perf_counter() - began_s
            cpu_ms = 1e3 * (time.process_time() - cpu_s) / good
            rows.append({"rate_per_s": round(good / wall_s, 1), "cpu_ms": round(cpu_ms, 4)})
    rates = sorted(row["rate_per_s"] for row in rows)
    return {
        "rate_per_s": rates[len(rates) // 2],
        "rounds": rows,
        "num": num,
        "load_s": round(load_s, 2),
        "check": agreement(folder, answers),
    }


# The server.


def request(jpeg: bytes) -> bytes:
    path = f"/v2/models/{Path(CASE.model).stem}/detect?score={CASE.score}&iou={CASE.iou}"
    return post(path, jpeg, Content_Type="image/jpeg")


def read(body: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = json.loads(body)["detections"]
    boxes = np.reshape([row["box_xyxy"] for row in rows], (-1, 4)).astype(np.float64)
    scores = np.array([row["score"] for row in rows], np.float64)
    return boxes, scores, np.array([row["class"] for row in rows], int)


def agreement(folder: Path, found: Answers) -> dict[str, Any]:
    known = pickle.loads((folder / "answers.pickle").read_bytes())
    wanted: Answers = {path.name: known[path.name] for path in pictures_in(folder)}
    result = check(CASE, "agreement", wanted, found)
    return {**result, "passed": result.get("agreement", 0.0) >= MIN_AGREEMENT}


class Checker:
    """Looks at every answer of every run; each distinct one is compared with the CPU's once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names = [path.name for path in pictures_in(folder)]
        self._seen: dict[str, set[bytes]] = {name: set() for name in self._names}
        self.num = 0

    def see(self, load: Load) -> int:
        """Take in the answers of a run; how many were not what was wanted."""
        for answer in load.good():
            self._seen[self._names[answer.index]].add(answer.body)
        self.num += len(load.good())
        return len(load.answers) - len(load.good())

    def verdict(self) -> dict[str, Any]:
        """The worst agreement of any set of distinct answers, one for each picture."""
        bodies = {name: sorted(seen) for name, seen in self._seen.items()}
        most = max(map(len, bodies.values()))
        layers = [
            {name: read(own[min(k, len(own) - 1)]) for name, own in bodies.items() if own}
            for k in range(most)
        ]
        found = [agreement(self._folder, layer) for layer in layers]
        worst = min(found, key=lambda one: one.get("agreement", 0.0))
        return {**worst, "num_answers": self.num, "most_distinct_of_one_picture": most}


def serve(
    folder: Path,
    flags: list[str],
    seconds: float,
    connections: tuple[int, ...],
    *,
    parts: tuple[float, ...] = PARTS,
    spy: str | None = None,
) -> dict[str, Any]:
    requests = Requests("cuda", [request(path.read_bytes()) for path in pictures_in(folder)])
    first = request(pictures_in(folder)[0].read_bytes())
    port = free_port()
    argv = [sys.executable, "-m", "saccade", "serve", str(folder / CASE.model)]
    argv += ["--port", str(port), "--grpc-port", str(free_port()), *flags]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    server = Server("cuda", Launch(argv, {"PYTHONPATH": path}), port)
    report: dict[str, Any] = {"arguments": flags}
    checker = Checker(folder)
    try:
        report["start_s"] = round(server.wait_ready(first, limit_s=200), 1)
        checker.see(run_load(requests, port, connections=64, seconds=2.0))
        report["check_before"] = checker.verdict()
        print(report["check_before"], flush=True)
        report["closed"] = []
        for number in connections:
            row = timed(server, requests, checker, seconds, connections=number)
            report["closed"].append({"connections": number, **row})
            print(report["closed"][-1], flush=True)
        best = max(report["closed"], key=lambda row: row["rate_per_s"])
        report["open"] = []
        for part in parts:
            rate = part * best["rate_per_s"]
            row = timed(server, requests, checker, seconds, connections=OPEN_CONNECTIONS, rate=rate)
            report["open"].append({"part": part, **row})
            print(report["open"][-1], flush=True)
        if spy:
            report["python"] = watched(server, requests, spy, best["connections"])
        report["check"] = checker.verdict()
        report["memory_mib"] = round(server.pss_bytes() / 2**20)
    except BaseException:
        print(server.log_tail(), flush=True)
        raise
    finally:
        server.close()
    return report


def details(port: int) -> dict[str, Any]:
    status, body = exchange(port, b"GET /v2/models/stats HTTP/1.1\r\nhost: a\r\n\r\n")
    return json.loads(body) if status == 200 else {"status": status}


def spent(port: int) -> dict[str, float]:
    """What the server says of its batches so far, in seconds and numbers."""
    rows = details(port).get("model_stats") or []
    if not rows:
        return {}
    stats = rows[0]["inference_stats"]
    return {
        "items": rows[0]["inference_count"],
        "batches": rows[0]["execution_count"],
        "decode_s": stats["compute_input"]["ns"] / 1e9,
        "gpu_s": stats["compute_infer"]["ns"] / 1e9,
        "writing_s": stats["compute_output"]["ns"] / 1e9,
    }


def role_of(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return "engine" if "saccade.server.worker" in process.cmdline() else "fronts"
    return "ended"


def timed(
    server: Server, requests: Requests, checker: Checker, seconds: float, **how: Any
) -> dict[str, Any]:
    """One run: rate, latency, and which part of the machine who took."""
    tree = {process.pid: process for process in server.tree()}
    roles = {pid: role_of(process) for pid, process in tree.items()}
    told = spent(server.port)
    before = {pid: sum(process.cpu_times()[:2]) for pid, process in tree.items()}
    machine = psutil.cpu_times()
    load = run_load(requests, server.port, seconds=seconds, **how)
    after = psutil.cpu_times()
    cores: Counter[str] = Counter()
    for pid, process in tree.items():
        with contextlib.suppress(psutil.Error):
            used_s = sum(process.cpu_times()[:2]) - before[pid]
            cores[roles[pid]] += used_s / load.wall_s  # type: ignore[assignment]
    now = {name: value - told.get(name, 0.0) for name, value in spent(server.port).items()}
    good, num_other = load.good(), checker.see(load)
    idle_s = after.idle + after.iowait - machine.idle - machine.iowait
    row: dict[str, Any] = {
        "offered_per_s": round(how["rate"], 1) if "rate" in how else None,
        "rate_per_s": round(load.rate(), 1),
        "num": len(good),
        "num_other": num_other,
        "statuses": dict(Counter(str(answer.status) for answer in load.answers)),
        **{f"p{p:g}_ms": round(load.latency_ms(p), 3) for p in (50, 90, 99)},
        **{f"{role}_cores": round(used, 2) for role, used in sorted(cores.items())},
        "load_cores": round(load.cpu_s / load.wall_s, 2),
        "idle_cores": round(idle_s / load.wall_s, 2),
        "server_cpu_ms": round(1e3 * sum(cores.values()) * load.wall_s / max(1, len(good)), 4),
    }
    if now.get("batches"):
        row |= {
            "mean_batch": round(now["items"] / now["batches"], 1),
            "gpu_busy": round(now["gpu_s"] / load.wall_s, 3),
            "decoder_busy": round(now["decode_s"] / load.wall_s, 3),
            "writing_busy": round(now["writing_s"] / load.wall_s, 3),
        }
    return row


def watched(
    server: Server, requests: Requests, spy: str, connections: int
) -> dict[str, list[list[Any]]]:
    """Where the Python time of an engine process and of one front goes: share by function."""
    by_role: dict[str, int] = {}
    for process in server.tree():
        role = role_of(process)
        if role == "engine" or (role == "fronts" and process.pid != server.pid):
            by_role.setdefault(role, process.pid)
    running = []

    def record() -> None:
        for role, pid in by_role.items():
            file = WORK / f"spy_{role}.txt"
            command = [spy, "record", "-p", str(pid), "-d", "3", "-r", "300", "-g", "-f", "raw"]
            out = subprocess.DEVNULL
            running.append(subprocess.Popen([*command, "-o", file], stdout=out, stderr=out))
        for process in running:
            process.wait()

    run_load(requests, server.port, connections=connections, seconds=5.0, during=record)
    return {role: shares(WORK / f"spy_{role}.txt") for role in by_role}


def shares(file: Path) -> list[list[Any]]:
    if not file.is_file():
        return []
    functions: Counter[str] = Counter()
    total = 0
    for line in file.read_text().splitlines():
        stack, _, num = line.rpartition(" ")
        total += int(num)
        functions.update(dict.fromkeys(stack.split(";"), int(num)))
    return [[name, round(num / total, 3)] for name, num in functions.most_common(60)]


def describe() -> dict[str, Any]:
    """The machine and the versions; the card's clock is that at rest."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    told = ""
    with contextlib.suppress(OSError):  # on the CPU, to try this program
        told = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    model = [s for s in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in s]
    return {
        "gpu": told.partition(",")[0],
        "nvidia_smi": told,
        "cpu": model[0].partition(": ")[2] if model else "",
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "numpy", "msgspec", "uvloop", "httptools")},
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def in_own_process(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The offline job, in a process that is gone before the server starts."""
    command = [sys.executable, "-m", "bench.serve.cuda", "offline", str(folder)]
    names = ("device", "backend", "precision", "engine_options", "batch", "num", "rounds")
    command += [f"--{name.replace('_', '-')}={getattr(arguments, name)}" for name in names]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    own, extra = given, []
    if "--" in given:
        at = given.index("--")
        own, extra = given[:at], given[at + 1 :]
    parser = argparse.ArgumentParser(prog="python -m bench.serve.cuda", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("do", choices=("prepare", "offline", "run"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--engine-options", default="compile=inductor,input=channels_last")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--num", type=int, default=20_000, help="pictures of the offline job")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", default=",".join(map(str, CONNECTIONS)))
    parser.add_argument("--variant", action="append", default=[], help="other arguments to try")
    parser.add_argument("--spy", help="py-spy, to see where Python's time goes")
    args = parser.parse_args(own)
    if args.do == "prepare":
        prepare(args.folder)
        return 0
    if args.do == "offline":
        print(json.dumps(offline(args.folder, vars(args), args.num, args.rounds)))
        return 0
    faulthandler.dump_traceback_later(STANDS_STILL_S, exit=True)
    os.environ["SACCADE_LOAD"] = str(args.folder / "load")
    names = ("device", "backend", "precision", "engine_options", "batch")
    how = {name: getattr(args, name) for name in names}
    report: dict[str, Any] = {"schema": 2, "environment": describe(), **how, "bar": BAR}
    report["offline"] = in_own_process(args.folder, args)
    print(report["offline"], flush=True)
    args.json.write_text(json.dumps(report, indent=1) + "\n")
    connections = tuple(map(int, args.connections.split(",")))

    def serving(extra: list[str]) -> list[str]:
        """The same choices as the job's, but for those that are made otherwise."""
        told = {f"--{name.replace('_', '-')}": str(how[name]) for name in names if how[name]}
        flags = [part for flag in told if flag not in extra for part in (flag, told[flag])]
        return [*flags, *extra]

    report["server"] = serve(args.folder, serving(extra), args.seconds, connections, spy=args.spy)
    args.json.write_text(json.dumps(report, indent=1) + "\n")
    # The same with other arguments in place of those behind "--": closed loops alone.
    report["variants"] = []
    for variant in args.variant:
        flags = serving(variant.split())
        one = serve(args.folder, flags, args.seconds, VARIANT_CONNECTIONS, parts=())
        report["variants"].append({"variant": variant, **one})
    most = max(row["rate_per_s"] for row in report["server"]["closed"])
    report["part_of_offline"] = round(most / report["offline"]["rate_per_s"], 4)
    args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(report["part_of_offline"], report["server"]["check"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
