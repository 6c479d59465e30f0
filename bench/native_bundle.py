"""A bundle with engines of our own: written, loaded, built again from the same times.

    python -m bench.native_bundle FOLDER --json FILE      needs a CUDA device

FOLDER is what `python -m bench.cuda_path prepare` wrote. The gate judges one candidate, FP16 with
batch 64, against FP32 ONNX Runtime on the CPU; then the bundle is loaded in a process of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.cuda_path import CELLS, case_of
from bench.torch_engine import environment
from saccade import backends
from saccade.builder.build import BuildOptions, build
from saccade.builder.records import Candidate, Recipe
from saccade.bundles import Bundle, fits
from saccade.cli.inspect import inspect
from saccade.cuda.compile import cache_dir
from saccade.cuda.runtime import Device
from saccade.errors import BuildError
from saccade.graph.reading import read_model
from saccade.native.build import loaded
from saccade.native.kernels.registry import KERNELS
from saccade.types import Plan

PLAN = Plan("native", "fp16", 64, 4, 1, "cuda:0", (("input", "plan"),))
# Run in a new process: what a user waits for from the bundle to an engine that is ready.
LOAD = """
import json, sys, time
import saccade
from saccade.cuda.runtime import Device
Device(0).close()
times = {}
began_s = time.perf_counter()
detector = saccade.load(sys.argv[1])
times["bundle_read_s"] = time.perf_counter() - began_s
for batch in (64, 1):
    began_s = time.perf_counter()
    with detector.session(detector.plan(batch=batch)):
        times[f"batch_{batch}_s"] = time.perf_counter() - began_s
detector.close()
print(json.dumps(times))
"""


def written(folder: Path, output: Path) -> tuple[Bundle, dict[str, Any]]:
    """A bundle of the one candidate, and what the gate said."""
    case = case_of(folder, CELLS)
    options = BuildOptions(
        data=folder / "bccd.json",
        images=folder / "bccd",
        budget_s=240.0,
        patience_s=120.0,
        backends=("onnxruntime", "native"),
        only=Candidate(Recipe(), PLAN, 4),
    )
    began_s = time.perf_counter()
    built = build(case.model, case.contract, output, options, lambda text: print(text, flush=True))
    row = built.record.rows[built.record.chosen]
    assert row.candidate.plan.backend == "native", built.record.verdict
    assert row.verdict is not None
    return built.bundle, {
        "build_s": time.perf_counter() - began_s,
        "verdict": built.record.verdict,
        "checked": row.verdict.checked,
        "ap": row.verdict.metrics["AP"],
        "reference_ap": row.verdict.reference["AP"],
        "engines": {
            target: {"bytes": path.stat().st_size, **built.bundle.manifest.engines[target]}
            for target, path in built.bundle.engine_paths.items()
        },
        "notes": built.record.notes,
    }


def load_times(bundle: Bundle) -> dict[str, float]:
    told = subprocess.run(
        [sys.executable, "-c", LOAD, str(bundle.path)], capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    found: dict[str, float] = json.loads(told.stdout.splitlines()[-1])
    return found


def again(bundle: Bundle) -> dict[str, Any]:
    """Each engine built once more with all times known: seconds, and whether bytes are equal."""
    runtime: Any = backends.get("native")
    model = read_model(bundle.model_path)
    rows = {}
    for target, path in bundle.engine_paths.items():
        for kept in (cache_dir().parent / "native-engines").iterdir():
            kept.unlink()
        batch = bundle.manifest.engines[target]["batch"]
        plan = Plan("native", "fp16", batch, device="cuda:0", options=PLAN.options)
        began_s = time.perf_counter()
        runtime.load_device(model, plan, (640, 640)).close()
        taken_s = time.perf_counter() - began_s
        stored = runtime.stored(model, plan, (640, 640))
        rows[target] = {
            "batch": batch,
            "again_s": taken_s,
            "is_same": hashlib.sha256(stored.data).digest()
            == hashlib.sha256(path.read_bytes()).digest(),
        }
    return rows


def refusals(bundle: Bundle) -> dict[str, str]:
    """What is said where an engine does not fit."""
    told = {}
    runtime: Any = backends.get("native")
    model = read_model(bundle.model_path)

    class Other:
        version = "another"

        def __getattr__(self, name: str) -> Any:
            return getattr(KERNELS, name)

    path = next(iter(bundle.engine_paths.values()))
    cases = {
        "other kernels": lambda: loaded(path.read_bytes(), PLAN, Other()),
        "another batch": lambda: runtime.load_device(
            model,
            Plan("native", "fp16", 8, device="cuda:0", options=bundle.plan.options),
            (640, 640),
        ),
    }
    for name, call in cases.items():
        try:
            call()
        except BuildError as exc:
            told[name] = str(exc)
    assert set(told) == set(cases)
    return told


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args()
    with Device(0), tempfile.TemporaryDirectory() as place:
        report: dict[str, Any] = {"environment": environment()}
        bundle, row = written(given.folder, Path(place) / "bundle")
        report |= row
        report["mismatches"] = [str(one) for one in fits(bundle)]
        report["load"] = load_times(bundle)
        report["refused"] = refusals(bundle)
        given.json.write_text(json.dumps(report, indent=1))
        assert inspect(bundle.path) == 0
        report["again"] = again(bundle)
    given.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
