"""JPEG bytes to boxes with the engine of our own: check the answers, then time them.

    python -m bench.native_path FOLDER --json FILE [--models NAME ...] [--batches N ...]

FOLDER is what `python -m bench.cuda_path prepare` wrote. For each model and batch: the engine is
built or taken from the cache, loaded again from its bytes, checked (agreement with ONNX Runtime in
FP32 on the CPU, AP where people drew boxes), timed alone, and then inside the path for several
numbers of batches in flight. An engine whose boxes do not agree is not timed in the path.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.cuda_path import (
    CELLS,
    MIN_AGREEMENT,
    OTHERS,
    Case,
    answers,
    case_of,
    decoding_alone,
    engine_of,
    engine_time_us,
    rate,
)
from bench.torch_engine import environment
from saccade import backends
from saccade.cuda.runtime import Device
from saccade.types import Plan

BATCHES = {CELLS: (32, 64)}
SLOTS = {CELLS: (3, 4)}
SEARCHED_SLOTS = 4


def measure(device: Device, case: Case, batch: int, input_: str, slots: Sequence[int]) -> Any:
    """One engine: its answers, its own time, and the path with it."""
    with engine_of(case, "native", batch, input=input_) as (row, engine):
        row["stored_s"] = stored_s(case, batch, input_)
        row["engine_us"] = engine_time_us(device, engine)
        row |= answers(device, engine, case)
        row["paths"] = []
        if row["agreement"] >= MIN_AGREEMENT:
            row["nvjpeg_pictures_per_s"] = decoding_alone(device, case.files, batch)
            row["paths"] = [rate(device, case, engine, number) for number in slots]
            row["engine_us_after"] = engine_time_us(device, engine)
    return row


def stored_s(case: Case, batch: int, input_: str) -> float:
    """Seconds to load the engine once more, from its bytes."""
    plan = Plan("native", "fp16", batch, device="cuda:0", options=(("input", input_),))
    runtime: Any = backends.get("native")
    started_s = time.perf_counter()
    engine = runtime.load_device(case.model, plan, case.contract.input.size_hw)
    taken_s = time.perf_counter() - started_s
    engine.close()
    return taken_s


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=[CELLS, *OTHERS])
    parser.add_argument("--batches", nargs="+", type=int)
    given = parser.parse_args()
    report: Any = {"rows": []}
    if given.json.is_file():
        report = json.loads(given.json.read_text())
    with Device(0) as device:
        report["environment"] = environment()
        for name in given.models:
            case = case_of(given.folder, name)
            for batch in given.batches or BATCHES.get(name, (32,)):
                try:
                    slots = SLOTS.get(name, (SEARCHED_SLOTS,))
                    row = measure(device, case, batch, "plan", slots)
                except Exception as exc:  # the next engine may do better; the row says why
                    traceback.print_exc()
                    row = {"model": name, "batch": batch, "error": f"{type(exc).__name__}: {exc}"}
                same = (row["model"], row["batch"])
                report["rows"] = [r for r in report["rows"] if (r["model"], r["batch"]) != same]
                report["rows"].append(row)
                given.json.write_text(json.dumps(report, indent=1))
                print(json.dumps(row)[:1500], flush=True)


if __name__ == "__main__":
    main()
