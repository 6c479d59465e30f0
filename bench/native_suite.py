"""Many networks beside all contenders in one run: built side by side, timed one at a time.

    python -m bench.native_suite --models FOLDER --json FILE [--only resnet50_224-256 ...]
                                 [options of bench.native_engine]

Every case is a process of `bench.native_engine`. While they build, whoever measures holds the
card's lock; when all are built (or their time is over), each checks and times its contenders while
the others stand still.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["CASES", "Case"]


@dataclass(frozen=True, slots=True)
class Case:
    """A network as `bench.native_engine` names it, and the pictures at a time."""

    network: str
    batch: int

    @property
    def stem(self) -> str:
        """As the rows and files name it."""
        return f"{self.network.removesuffix('.onnx').replace(':', '_')}-{self.batch}"


CASES = (
    Case("cells_640.onnx", 32), Case("cells_640.onnx", 1),
    Case("yolox_nano_416.onnx", 32), Case("yolox_nano_416.onnx", 1),
    Case("nanodet_m_320.onnx", 32), Case("nanodet_m_320.onnx", 1),
    Case("fastestdet_352.onnx", 32), Case("fastestdet_352.onnx", 1),
    Case("deimv2_atto_320.onnx", 32), Case("deimv2_atto_320.onnx", 1),
    Case("yolov8s:640", 32), Case("yolov8m:640", 32), Case("resnet50:224", 256),
    Case("retinanet:800", 32), Case("faster_rcnn:800", 4),
)  # fmt: skip
# The longest first: the machine's cores are shared.
LONGEST = ("retinanet", "yolov8m", "faster", "yolov8s", "deimv2", "resnet50", "cells")
CORES_EACH = 6
# Networks for which a compiler searches at the same time, and seconds to end one that is late.
MOST_TUNING = 5
GRACE_S = 40


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True, help="folder of the files")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="cases by name, e.g. cells_640-32")
    parser.add_argument("--build-s", type=float, default=300, help="for building, all together")
    parser.add_argument("--logs", type=Path, help="folder for what the processes print")
    args, others = parser.parse_known_args()
    cases = [case for case in CASES if not args.only or case.stem in args.only]
    cases.sort(key=lambda case: _rank(case.network))
    with tempfile.TemporaryDirectory() as name:
        turns = Path(name)
        logs = args.logs or turns
        logs.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        workers = {
            case: _start(index, case, args, turns, logs, others) for index, case in enumerate(cases)
        }
        late = _built(cases, workers, turns, started + args.build_s)
        print(f"built in {time.monotonic() - started:.0f} s; late: {[c.stem for c in late]}",
              flush=True)  # fmt: skip
        for case in late:
            workers[case].kill()
        found: list[dict[str, Any]] = []
        head: dict[str, Any] = {}
        for case in sorted(set(cases) - late, key=CASES.index):
            (turns / f"{case.stem}.may.time").touch()
            workers[case].wait()
            file = turns / f"{case.stem}.json"
            if not file.exists():
                print(f"{case.stem}: ended with {workers[case].returncode}", flush=True)
                continue
            made = json.loads(file.read_text())
            found += made.pop("rows")
            head = made
            args.json.write_text(json.dumps({**head, "rows": found}, separators=(",", ":")))
            print(_line(found[-1]), f"at {time.monotonic() - started:.0f} s", flush=True)


def _rank(network: str) -> int:
    return next((i for i, name in enumerate(LONGEST) if network.startswith(name)), len(LONGEST))


def _start(
    index: int, case: Case, args: argparse.Namespace, turns: Path, logs: Path, others: list[str]
) -> subprocess.Popen[bytes]:
    network = case.network
    if network.endswith(".onnx"):
        network = str(args.models / network)
    command = [
        sys.executable, "-m", "bench.native_engine", network, "--batch", str(case.batch),
        "--json", str(turns / f"{case.stem}.json"), "--turns", str(turns),
        "--budget-s", str(args.build_s), *others,
    ]  # fmt: skip
    cores = sorted(os.sched_getaffinity(0))
    own = {cores[(index * CORES_EACH + i) % len(cores)] for i in range(min(CORES_EACH, len(cores)))}
    with (logs / f"{case.stem}.log").open("wb") as log:
        worker = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    os.sched_setaffinity(worker.pid, own)
    return worker


def _built(
    cases: list[Case], workers: dict[Case, subprocess.Popen[bytes]], turns: Path, deadline: float
) -> set[Case]:
    """Wait until all are built, and hand out turns to search, the first cases first.

    Returns:
        Those that were not built in the end.
    """
    waiting, tuning, tuned = set(cases), set[Case](), set[Case]()
    while waiting and time.monotonic() < deadline + GRACE_S:
        for case in list(waiting):
            if (turns / f"{case.stem}.wants.time").exists() or workers[case].poll() is not None:
                waiting.discard(case)
                tuning.discard(case)
        is_over = time.monotonic() > deadline
        for case in sorted(waiting - tuned, key=CASES.index):
            if not (turns / f"{case.stem}.wants.tune").exists():
                continue
            if not is_over and len(tuning) >= MOST_TUNING:
                break
            (turns / f"{case.stem}.{'no' if is_over else 'may'}.tune").touch()
            tuned.add(case)
            if not is_over:
                tuning.add(case)
        time.sleep(0.1)
    return waiting


def _line(row: dict[str, Any]) -> str:
    if "times" not in row:
        return f"{row['model']} b{row['batch']} FAILED {row.get('failed', '')[:300]}"
    own = row["times"]["native"]["ms"]
    others = ", ".join(
        f"{name} {t['ms'] / own:.2f}" for name, t in row["times"].items() if name != "native"
    )
    worst = max(e for name, e in row["errors"]["native"].items() if name != "agreement")
    return (
        f"{row['model']} b{row['batch']}: {own:.4f} ms, error {worst:.1e} "
        f"{row['errors']['native'].get('agreement', '')}; {others}; {row['not_built']}"
    )


if __name__ == "__main__":
    main()
