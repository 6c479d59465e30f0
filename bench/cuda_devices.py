"""Two GPUs against one: a path in a process for each, and `saccade.run` on both.

    python -m bench.cuda_devices FOLDER --json FILE

`FOLDER` is what `bench.cuda_path prepare` wrote. Each process is timed alone, then both at once,
from the first picture given to the last boxes read. `saccade.run` reads files by name and hands
results to one process, in order; its time is counted after the first WARM results.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

from bench.cuda_path import CELLS, case_of, loaded, sustained
from bench.torch_engine import environment
from saccade.cuda.path import DevicePath, PathOptions
from saccade.cuda.runtime import Device

BATCH, ROUNDS, NUM = 32, 3, 24000
WARM, JOB = 6000, 36000
LIMIT_S = 120.0


def worker(index: int, folder: Path, barrier: Any, answers: Any) -> None:
    """One process: alone when it is its turn, then together."""
    with Device(index) as device:
        case = case_of(folder, CELLS)
        options = PathOptions(source_bytes=BATCH << 20)
        with (
            loaded(case, BATCH, "inductor", "plan", f"cuda:{index}") as (_, engine),
            DevicePath(device, engine, case.contract, options=options) as path,
        ):
            alone: list[float] = []
            for turn in range(2):
                barrier.wait(LIMIT_S)
                if turn == index:
                    rows = sustained(device, path, case.files, NUM, ROUNDS)["rounds"]
                    alone = [row["pictures_per_s"] for row in rows]
            together = []
            for _ in range(ROUNDS):
                barrier.wait(LIMIT_S)
                start_s = time.monotonic()
                sustained(device, path, case.files, NUM, 1)
                together.append((start_s, time.monotonic()))
            answers.put({"device": index, "alone": alone, "together": together})


def processes(folder: Path) -> dict[str, Any]:
    """Pictures per second of each process alone, and of both."""
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(2), context.Queue()
    members = [
        context.Process(target=worker, args=(i, folder, barrier, answers), daemon=True)
        for i in range(2)
    ]
    for member in members:
        member.start()
    rows = sorted((answers.get(timeout=LIMIT_S) for _ in members), key=lambda row: row["device"])
    for member in members:
        member.join(LIMIT_S)
    # What warms each round up is counted too: eight batches.
    num = 2 * (NUM + 8 * BATCH)
    both = [
        num / (max(end for _, end in turns) - min(start for start, _ in turns))
        for turns in zip(*(row["together"] for row in rows), strict=True)
    ]
    return {"alone": [row["alone"] for row in rows], "both": sorted(both)}


def job(folder: Path, devices: tuple[str, ...]) -> dict[str, Any]:
    """Pictures per second of a job by name."""
    import saccade

    files = [str(path) for path in sorted((folder / "bccd").glob("*.jpg"))]
    names = [files[i % len(files)] for i in range(JOB * len(devices) + WARM)]
    detector = saccade.load(
        folder / f"{CELLS}.onnx",
        device=devices[0],
        precision="fp16",
        engine_options={"compile": "inductor", "input": "plan"},
    )
    boxes, warm_s = 0, 0.0
    by_name: dict[str, int] = {}
    with saccade.run(detector, names, devices=devices, batch=BATCH) as results:
        for result in results:
            assert result.detections is not None, result.error
            assert result.path == names[result.index], "results come in the order of the names"
            boxes += len(result.detections)
            assert by_name.setdefault(result.path, len(result.detections)) == len(result.detections)
            if result.index == WARM - 1:
                warm_s = time.perf_counter()
        wall_s = time.perf_counter() - warm_s
    return {
        "devices": devices,
        "pictures_per_s": (len(names) - WARM) / wall_s,
        "boxes_per_picture": boxes / len(names),
        "boxes_by_name": [by_name[name] for name in files],
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("what", nargs="*", default=["processes", "jobs"])
    given = parser.parse_args()
    report = json.loads(given.json.read_text()) if given.json.is_file() else {}
    if "processes" in given.what:
        report["processes"] = processes(given.folder)
        print(report, flush=True)
        given.json.write_text(json.dumps(report, indent=1))
    if "jobs" in given.what:
        report["jobs"] = []
        for names in (("cuda:0",), ("cuda:1",), ("cuda:0", "cuda:1")):
            report["jobs"].append(job(given.folder, names))
            print(report["jobs"][-1], flush=True)
            given.json.write_text(json.dumps(report, indent=1))
        first, *others = (row["boxes_by_name"] for row in report["jobs"])
        assert all(first == other for other in others), "all cards give the same"
    report["environment"] = environment()
    given.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
