"""One frame at a time: where the time of a call goes, and what makes it spread.

    python -m bench.cuda_calls FOLDER --json FILE

`FOLDER` is what `bench.cuda_path prepare` wrote. Ways to make the same call, in turns, on one
engine; the boxes of all are compared first. The last row is the product's way over many calls.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench.cuda_path import (
    CELLS,
    MIN_AGREEMENT,
    QUANTILES,
    Case,
    answers,
    case_of,
    engine_of,
    engine_time_us,
    graph_alone,
    idle_latencies,
)
from bench.torch_engine import environment
from saccade.cuda.frames import FrameCall
from saccade.cuda.path import DevicePath
from saccade.cuda.runtime import Device
from saccade.types import DeviceEngine

TURNS, CALLS, MANY, WARM = 3, 3000, 20000, 300
ENGINES: dict[str, dict[str, str]] = {
    "torch": {"compile": "inductor", "input": "plan"},
    "native": {},
}


def percentiles(times_s: np.ndarray) -> dict[str, float]:
    """Microseconds."""
    return {f"p{q}_us": float(np.percentile(times_s, q)) * 1e6 for q in QUANTILES}


def timed(one: Callable[[], object], num: int) -> np.ndarray:
    """Seconds of each of `num` calls."""
    times, clock = np.empty(num), time.perf_counter
    for _ in range(WARM):
        one()
    for i in range(num):
        start_s = clock()
        one()
        times[i] = clock() - start_s
    return times


def polled(call: FrameCall) -> Callable[[], object]:
    """Looks at the number of boxes in pinned memory until the last kernel has written it."""
    heads = call._boxes._heads
    flag = heads[0].data
    launch, handle, stream = call._launch, call.graph.handle, call._handle

    def one() -> object:
        flag[0] = -1
        launch(handle, stream)
        while flag[0] < 0:
            pass
        return call.read()

    return one


def bare(call: FrameCall) -> Callable[[], object]:
    """Without the path's lock and the choice of what to do with a picture."""

    def one() -> object:
        call.run()
        return call.read()

    return one


@contextmanager
def as_is() -> Iterator[None]:
    yield


@contextmanager
def on_one_core() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(before)[-1]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def ways_of(path: DevicePath, frame: np.ndarray) -> dict[str, tuple[Any, Callable[[], object]]]:
    call = path.frame_call(frame.shape[:2])

    def general() -> object:
        with path.alone():
            return path._detect_any(frame).detections

    def product() -> object:
        return path.detect(frame).detections

    return {
        "described, uploaded and waited for apart": (as_is, general),
        "one graph (the product)": (as_is, product),
        "one graph, without the path around it": (as_is, bare(call)),
        "one graph, polled": (as_is, polled(call)),
        "one graph, thread kept on one core": (on_one_core, product),
        "one graph, no garbage collection": (without_garbage_collection, product),
    }


def of_engine(device: Device, case: Case, engine: DeviceEngine) -> dict[str, Any]:
    import simplejpeg

    row: dict[str, Any] = {"engine_us": engine_time_us(device, engine)}
    row |= answers(device, engine, case)
    if row["agreement"] < MIN_AGREEMENT:
        return row
    pixels = simplejpeg.decode_jpeg(case.files[0])
    with DevicePath(device, engine, case.contract) as path:
        frame = path.pinned_frame(pixels.shape[:2])
        frame[:] = pixels
        ways = ways_of(path, frame)
        check_alike(ways)
        turns: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        for _ in range(TURNS):
            for name, (around, one) in ways.items():
                with around():
                    turns[name].append(percentiles(timed(one, CALLS)))
        row["ways"] = turns
        row["graph"] = graph_alone(device, path.frame_call(pixels.shape[:2]), CALLS)
        row["product"] = percentiles(timed(ways["one graph (the product)"][1], MANY))
        length_s = row["product"]["p50_us"] / 1e6
        row["a loop without any work"] = idle_latencies(CALLS, length_s)
    return row


def check_alike(ways: dict[str, tuple[Any, Callable[[], object]]]) -> None:
    found: list[Any] = [one() for _, one in ways.values()]
    for other in found[1:]:
        np.testing.assert_array_equal(found[0].boxes_xyxy, other.boxes_xyxy)
        np.testing.assert_array_equal(found[0].scores, other.scores)


def main() -> None:
    """Measure and write after each engine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--engines", nargs="*", default=list(ENGINES))
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with Device(0) as device:
        report = {"environment": environment(), "rows": rows}
        case = case_of(given.folder, CELLS)
        for backend in given.engines:
            try:
                with engine_of(case, backend, 1, **ENGINES[backend]) as (row, engine):
                    rows.append(row | of_engine(device, case, engine))
            except Exception as exc:
                rows.append({"backend": backend, "failed": f"{type(exc).__name__}: {exc}"})
            print(json.dumps(rows[-1], indent=1), flush=True)
            given.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
