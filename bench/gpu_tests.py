"""Runs the tests that need a GPU and records what passed; also memory, predicted against measured.

    python -m bench.gpu_tests tests --json FILE [--commit NAME] [--files FILE ...]
    python -m bench.gpu_tests memory FOLDER --json FILE             after `bench.cuda_path prepare`

Both need a CUDA device. Groups of tests run side by side, but those that look at the whole card's
memory, which come after. With --files only these run, and their record is added to that of before.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from bench.environment import without_paths
from saccade.profiler.machine import machine

SIDE_BY_SIDE = (
    ("tests/backends/test_torch.py", "tests/backends/test_torch_exported.py"),
    ("tests/native", "tests/backends/test_native.py"),
)
ALONE = (
    ("tests/cuda",),
    ("tests/pipeline/test_device_gpu.py",),
    ("tests/pipeline/test_device_lost.py",),
)
MIB = 1 << 20
# Model, back end, precision, batch, options.
PLANS: tuple[tuple[str, str, str, int, dict[str, str]], ...] = (
    ("cells_640", "torch", "fp16", 1, {}),
    ("cells_640", "torch", "fp16", 32, {"compile": "inductor", "input": "channels_last"}),
    ("cells_640", "torch", "fp32", 8, {}),
    ("yolox_nano_416", "torch", "fp16", 1, {}),
    ("cells_640", "onnxruntime", "fp16", 32, {}),
    ("cells_640", "native", "fp16", 32, {}),
    ("yolox_nano_416", "onnxruntime", "fp16", 8, {}),
    ("yolox_nano_416", "native", "fp16", 32, {}),
)


def pytest_of(group: tuple[str, ...], report: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", f"--junitxml={report}"]
    environment = {**os.environ, "SACCADE_REQUIRE": "gpu,torch"}
    return subprocess.Popen([*command, *group], env=environment)


def run_tests(commit: str, files: tuple[str, ...]) -> dict[str, Any]:
    """Counts by file, and each test that did not pass, with what it says."""
    started_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        reports = []
        for together in ((files,),) if files else (SIDE_BY_SIDE, *((one,) for one in ALONE)):
            members = []
            for group in together:
                reports.append(Path(folder) / f"{len(reports)}.xml")
                members.append(pytest_of(group, reports[-1]))
            for member in members:
                member.wait()
        cases = [case for path in reports for case in ET.parse(path).iter("testcase")]
    by_file: dict[str, dict[str, int]] = {}
    counts: dict[str, int] = {}
    not_passed = []
    for case in cases:
        file = case.get("classname", "").replace(".", "/") + ".py"
        outcome, says = outcome_of(case)
        own = by_file.setdefault(file, {})
        own[outcome] = own.get(outcome, 0) + 1
        counts[outcome] = counts.get(outcome, 0) + 1
        if outcome != "passed":
            not_passed.append({"test": f"{file}::{case.get('name')}", outcome: says})
    return {
        "commit": commit,
        "counts": counts,
        "by_file": by_file,
        "not_passed": not_passed,
        "wall_s": time.perf_counter() - started_s,
    }


def outcome_of(case: ET.Element) -> tuple[str, str]:
    for tag, outcome in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
        found = case.find(tag)
        if found is not None:
            return outcome, without_paths((found.get("message") or "").strip())[:600]
    return "passed", ""


def memory_row(folder: Path, plan: tuple[str, str, str, int, dict[str, str]]) -> dict[str, Any]:
    """Predicted and measured memory of one job; for a process of its own, alone on the card."""
    import saccade
    from bench.cuda_path import CELLS, PICTURES, pictures_of
    from bench.torch_engine import MODELS

    name, backend, precision, batch, options = plan
    files = pictures_of(folder / PICTURES.get(name, "coco"))
    with saccade.load(
        folder / f"{name}.onnx",
        preset=None if name == CELLS else MODELS[name],
        backend=backend,
        device="cuda:0",
        precision=precision,  # type: ignore[arg-type]
        engine_options=options,
    ) as detector:
        with saccade.run(detector, files * 4, batch=batch) as run:
            boxes = sum(len(result.detections or ()) for result in run)
        report = run.reports[0]
        with detector.session(detector.plan(batch=batch)) as session:
            context_bytes = session.memory.context_bytes
    rows = {part.name: (part.predicted_bytes, part.measured_bytes or 0) for part in report.memory}
    return {
        "model": f"{name}.onnx",
        "backend": backend,
        "precision": precision,
        "batch": batch,
        "options": ",".join(f"{key}={value}" for key, value in options.items()),
        "boxes": boxes,
        "context_mib": round(context_bytes / MIB, 1),
        "mib_predicted_measured": {
            part: [round(num / MIB, 1) for num in both] for part, both in rows.items()
        },
        "predicted_over_measured": round(rows["sum"][0] / rows["sum"][1], 3),
        "allocations_at_load_and_running": [
            report.allocations_at_load,
            report.allocations_while_running,
        ],
    }


def memory_rows(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for number in range(len(PLANS)):
        command = [sys.executable, "-m", "bench.gpu_tests", "row", str(folder), str(number)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(PLANS[number], done.stderr[-2000:], flush=True)
            continue
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), flush=True)
    return rows


def look() -> dict[str, Any]:
    """The machine and the card, with what can be measured of it in a moment."""
    command = [sys.executable, "-m", "saccade", "doctor", "--measure", "--json"]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return dict(told["gpu"])


def main() -> None:
    """Run and write; other parts of the file stay."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("tests", "memory", "row"))
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("number", type=int, nargs="?")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--commit", default="")
    parser.add_argument("--files", nargs="*", default=[])
    given = parser.parse_args()
    if given.what == "row":
        print(json.dumps(memory_row(given.folder, PLANS[given.number])))
        return
    report = json.loads(given.json.read_text()) if given.json.is_file() else {}
    report["what"] = "pytest on a machine with the card; doctor; memory, predicted and measured"
    if given.what == "tests":
        from dataclasses import asdict

        report |= {"machine": asdict(machine()), "gpu": look()}
        before = report.get("pytest", []) if given.files else []
        report["pytest"] = [*before, run_tests(given.commit, tuple(given.files))]
    else:
        report["memory"] = memory_rows(given.folder)
    given.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
