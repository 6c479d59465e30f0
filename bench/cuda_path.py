"""JPEG bytes to boxes on one GPU: check the answers, then time them.

    python -m bench.cuda_path prepare FOLDER                 models, pictures and the CPU's answers
    python -m bench.cuda_path run FOLDER --json FILE [SECTION ...]      needs a CUDA device

Answers come first: AP on the labelled pictures and agreement with ONNX Runtime in FP32 on the CPU,
computed by `prepare`. A path whose boxes do not agree is not timed. `run` may be called several
times with one file; each section replaces its rows.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import itertools
import json
import os
import pickle
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.torch_engine import MODELS, environment
from saccade import backends
from saccade.builder import agreement, evidence
from saccade.builder.bootstrap import figures
from saccade.contracts import resolve
from saccade.cuda.frames import FrameCall
from saccade.cuda.nvjpeg import JpegDecoder
from saccade.cuda.path import DevicePath, PathOptions
from saccade.cuda.runtime import Device
from saccade.evaluation.annotations import read_annotations
from saccade.graph.reading import read_model
from saccade.graph.signature import signature_of
from saccade.pipeline.device import device_model
from saccade.types import Contract, Detections, DeviceEngine, Model, Plan, Thresholds

CELLS, OTHERS = (
    "cells_640",
    ("yolox_nano_416", "nanodet_m_320", "fastestdet_352", "deimv2_atto_320"),
)
MIN_AGREEMENT = 0.97
ROUNDS = 3
SOAK_S, SAMPLE_S = float(os.environ.get("SACCADE_SOAK_S", "300")), 5
STANDS_STILL_S = 60
PICTURES = {CELLS: "bccd"}


# --- on any machine -------------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    """Write what `run` needs: models that take any batch, pictures, and the CPU's answers."""
    import saccade
    from bench.cases import SHARED, list_1080p, list_bccd_test, list_coco
    from bench.torch_engine import _freed

    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(SHARED / "datasets/bccd/annotations/test.json", folder / "bccd.json")
    lists = {"bccd": list_bccd_test(), "coco": list_coco(), "full_hd": list_1080p()}
    for name, paths in lists.items():
        (folder / name).mkdir(exist_ok=True)
        for path in paths:
            shutil.copy(path, folder / name)
    for name in (CELLS, *OTHERS):
        source = SHARED / f"models/{name}.onnx"
        shutil.copy(_freed(read_model(source)).path, folder / f"{name}.onnx")
        pictures = sorted((folder / PICTURES.get(name, "coco")).glob("*.jpg"))
        with saccade.load(source, preset=MODELS[name], backend="onnxruntime") as detector:
            found = [detector(path) for path in pictures]
            truth = [(d.boxes_xyxy, d.scores, d.classes) for d in found]
        (folder / f"{name}.truth").write_bytes(pickle.dumps(truth))
        print(name, len(truth), sum(len(row[1]) for row in truth), flush=True)


# --- on the GPU -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A model with its contract, pictures and what the CPU says of them."""

    name: str
    model: Model
    contract: Contract
    files: Sequence[bytes]
    truth: Sequence[Detections]
    folder: Path


def case_of(folder: Path, name: str) -> Case:
    model = read_model(folder / f"{name}.onnx")
    contract = resolve(signature_of(model), preset=MODELS[name])
    files = pictures_of(folder / PICTURES.get(name, "coco"))
    truth = [Detections(*row) for row in pickle.loads((folder / f"{name}.truth").read_bytes())]
    return Case(name, model, contract, files, truth, folder)


def pictures_of(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]


@contextmanager
def loaded(
    case: Case, batch: int, compile_: str, input_: str, device: str = "cuda:0"
) -> Iterator[tuple[Any, DeviceEngine]]:
    """An engine of torch, and what a row says of it."""
    with engine_of(case, "torch", batch, device, compile=compile_, input=input_) as made:
        yield made


@contextmanager
def engine_of(
    case: Case, backend: str, batch: int, device: str = "cuda:0", **options: str
) -> Iterator[tuple[Any, DeviceEngine]]:
    """An engine in FP16, and what a row says of it."""
    plan = Plan(backend, "fp16", batch, device=device, options=tuple(sorted(options.items())))
    started_s = time.perf_counter()
    with device_model(case.model, plan) as file:
        runtime: Any = backends.get(backend)
        engine = runtime.load_device(file.model, file.plan, case.contract.input.size_hw)
        row = {"model": case.name, "backend": backend, "batch": batch, "precision": "fp16"}
        row |= options | {"load_s": time.perf_counter() - started_s}
        try:
            yield row, engine
        finally:
            engine.close()


def engine_time_us(device: Device, engine: DeviceEngine) -> float:
    """Median microseconds of one bare inference inside a graph of ours."""
    stream = device.stream()
    engine.enqueue(stream.handle)
    stream.synchronize()
    with stream.capture() as captured:
        engine.enqueue(stream.handle)
    start, stop = device.event(is_timed=True), device.event(is_timed=True)
    times = []
    for _ in range(60):
        start.record(stream)
        for _ in range(4):
            captured.graph.launch(stream)
        stop.record(stream)
        stream.synchronize()
        times.append(stop.ms_since(start) * 250)
    captured.graph.close()
    return statistics.median(times[10:])


def answers(
    device: Device, engine: DeviceEngine, case: Case, options: PathOptions | None = None
) -> dict[str, float]:
    """AP of agreement with the CPU, and AP where people drew boxes, at thresholds for measuring."""
    looks = replace(case.contract.detect, score=0.01)
    if case.name == CELLS:
        looks = Thresholds(score=0.01, iou=0.6, max_detections=300, multi_label=True)
    found: list[Detections | None] = []
    with DevicePath(device, engine, case.contract, thresholds=looks, options=options) as path:
        for result in path.run(case.files):
            assert result.detections is not None, result.error
            found.append(result.detections)
        on_gpu = path.stats.decoded_on_gpu
    held = agreement.from_reference(case.truth, case.contract)
    row = {
        "agreement": figures(evidence.score(held, found))["AP"],
        "reference_boxes": sum(len(one) for one in case.truth),
        "decoded_on_gpu": on_gpu / len(case.files),
    }
    if case.name == CELLS:
        annotations = read_annotations(case.folder / "bccd.json")
        images = sorted(annotations.images, key=lambda image: image.id)
        names = sorted(image.file_name for image in images)
        in_order = [found[names.index(image.file_name)] for image in images]
        labels = evidence.from_labels(annotations, case.contract)
        row["ap"] = figures(evidence.score(labels, in_order))["AP"]
    return row


COUNTERS = ("feeding", "launching", "decoding", "reading", "gpu_busy")


def sustained(
    device: Device, path: DevicePath, pictures: Sequence[bytes], num: int, rounds: int = ROUNDS
) -> dict[str, Any]:
    """Pictures per second over a long job, and where the time went."""
    list(path.run(itertools.islice(itertools.cycle(pictures), 8 * path.batch)))
    rows = []
    for _ in range(rounds):
        before, batches = counted(path), path.stats.num_batches
        allocations, free = path.num_allocations, device.memory()[0]
        start_s = time.perf_counter()
        boxes = 0
        for result in path.run(itertools.islice(itertools.cycle(pictures), num)):
            assert result.detections is not None, result.error
            boxes += len(result.detections)
        wall_s = time.perf_counter() - start_s
        batches = path.stats.num_batches - batches
        spent_s = {name: value - before[name] for name, value in counted(path).items()}
        rows.append(
            {
                "pictures_per_s": num / wall_s,
                "wall_s": wall_s,
                "boxes": boxes,
                "batches": batches,
                **{f"{name}_us": spent_s[name] / batches * 1e6 for name in COUNTERS},
                "gpu_busy": spent_s["gpu_busy"] / wall_s,
                "allocations": path.num_allocations - allocations,
                "device_bytes_lost": free - device.memory()[0],
            }
        )
    rows.sort(key=lambda r: r["pictures_per_s"])
    return {"median": rows[len(rows) // 2], "rounds": rows}


def counted(path: DevicePath) -> dict[str, float]:
    return {name: getattr(path.stats, f"{name}_s") for name in COUNTERS}


Write = Callable[[str, Any], None]


def rates(device: Device, folder: Path, write: Write) -> None:
    """The whole path by number of slots, and with large pictures."""
    case = case_of(folder, CELLS)
    with loaded(case, 32, "inductor", "plan") as (row, engine):
        row["engine_us"] = engine_time_us(device, engine)
        row |= answers(device, engine, case)
        for slots in (2, 4, 8):
            write("rates", row | rate(device, case, engine, slots))
        full_hd(device, case, row, engine, write)


def best(device: Device, folder: Path, write: Write) -> None:
    """The whole path with the fastest engine at its best batch, which takes channels last."""
    case = case_of(folder, CELLS)
    with loaded(case, 64, "tuned", "channels_last") as (row, engine):
        row["engine_us"] = engine_time_us(device, engine)
        row |= answers(device, engine, case)
        write("best", row | rate(device, case, engine, 4))


def rate(device: Device, case: Case, engine: DeviceEngine, slots: int) -> dict[str, Any]:
    """Pictures per second of one path, and the memory it takes."""
    free = device.memory()[0]
    options = PathOptions(num_slots=slots, source_bytes=engine.plan.batch << 20)
    with DevicePath(device, engine, case.contract, options=options) as path:
        return {
            "slots": slots,
            "sustained": sustained(device, path, case.files, 16000),
            "memory_bytes": dict(path.memory_bytes),
            "memory_measured_bytes": free - device.memory()[0],
            "decoder": path.decoder.engine.name if path.decoder else "CPU",
        }


def full_hd(device: Device, case: Case, row: Any, engine: DeviceEngine, write: Write) -> None:
    """Large pictures: the path beside nvJPEG alone, turn by turn."""
    files = pictures_of(case.folder / "full_hd")
    with DevicePath(device, engine, case.contract) as path:
        turns = []
        for _ in range(ROUNDS):
            alone = decoding_alone(device, files, path.batch)
            turns.append((alone, sustained(device, path, files, 6400, rounds=1)["median"]))
        write(
            "full_hd",
            {
                **row,
                "bytes_per_picture": statistics.mean(map(len, files)),
                "decoded_on_gpu": path.stats.decoded_on_gpu / path.stats.num_pictures,
                "rounds": [{"nvjpeg_pictures_per_s": alone, **path} for alone, path in turns],
            },
        )


def decoding_alone(
    device: Device, files: Sequence[bytes], batch: int, seconds: float = 1.0
) -> float:
    """Pictures per second of nvJPEG on an idle card."""
    own = device.share()
    try:
        size = 1920 * 1080 * 3 + 256
        base = np.uint64(own.arena({"pixels": batch * size}).base)
        targets = base + np.arange(batch, dtype=np.uint64) * np.uint64(size)
        pitches = np.full(batch, 1920 * 3, np.uint64)
        decoder, stream = JpegDecoder(own, batch), own.stream(is_urgent=True)
        source = itertools.cycle(files)
        num, start_s = -3, 0.0
        while num <= 0 or time.perf_counter() - start_s < seconds:
            if num == 0:
                start_s = time.perf_counter()
            decoder.decode(stream, list(itertools.islice(source, batch)), targets, pitches)
            num += 1
        wall_s = time.perf_counter() - start_s
        decoder.close()
        return num * batch / wall_s
    finally:
        own.close()


def others(device: Device, folder: Path, write: Write) -> None:
    """The other models through the path."""
    for name in OTHERS:
        case = case_of(folder, name)
        with loaded(case, 32, "inductor", "plan") as (row, engine):
            row["engine_us"] = engine_time_us(device, engine)
            row |= answers(device, engine, case)
            if row["agreement"] >= MIN_AGREEMENT:
                options = PathOptions(source_bytes=32 << 20)
                row["nvjpeg_pictures_per_s"] = decoding_alone(device, case.files, 32)
                with DevicePath(device, engine, case.contract, options=options) as path:
                    row["sustained"] = sustained(device, path, case.files, 16000)
            write("others", row)


def engines(device: Device, folder: Path, write: Write) -> None:
    """ONNX Runtime's CUDA provider and an exported program as engines of the path."""
    case = case_of(folder, CELLS)
    for layout in ("nhwc", "nchw"):
        with engine_of(case, "onnxruntime", 32, layout=layout) as (row, engine):
            write("engines", row | through(device, case, engine))
    with tempfile.TemporaryDirectory() as place:
        exported = exported_of(case, Path(place), 32)
        with engine_of(exported, "torch", 32, compile="inductor", input="model") as (row, engine):
            row["from"] = ".pt2"
            write("engines", row | through(device, exported, engine))


def through(device: Device, case: Case, engine: DeviceEngine) -> dict[str, Any]:
    """Of one engine: its own time, its answers, and the path with it."""
    row: dict[str, Any] = {"engine_us": engine_time_us(device, engine)}
    row["workspace_bytes"] = engine.workspace_bytes
    row |= answers(device, engine, case)
    if row["agreement"] < MIN_AGREEMENT:
        return row
    return row | rate(device, case, engine, 4)


def exported_of(case: Case, folder: Path, batch: int) -> Case:
    """The same network as a program that torch.export wrote."""
    import torch

    from saccade.backends._torch_device import module_for
    from saccade.backends._torch_ops.program import read_source
    from saccade.backends.torch import input_shapes

    source, size_hw = read_source(case.model), case.contract.input.size_hw
    shapes = input_shapes(case.model, Plan("torch", batch=batch), size_hw)
    module = module_for(source, shapes, "cpu")
    feeds = tuple(torch.zeros(shape) for shape in shapes.values())
    path = folder / f"{case.name}.pt2"
    torch.export.save(torch.export.export(module, feeds), path)
    runtime: Any = backends.get("torch")
    model, signature = runtime.read_program(path, size_hw)
    contract = resolve(signature, preset="yolov8", labels=case.contract.labels)
    return replace(case, model=model, contract=contract)


QUANTILES = (50, 90, 99, 99.9)


def latencies(path: DevicePath, pictures: Sequence[Any], num: int) -> dict[str, float]:
    """Milliseconds of single calls, and of the graph inside of them."""
    times, inside = np.empty(num), np.empty(num)
    source = itertools.cycle(pictures)
    for _ in range(300):
        path.detect(next(source))
    for i in range(num):
        picture, before_s = next(source), path.stats.gpu_busy_s
        start_s = time.perf_counter()
        path.detect(picture)
        times[i] = time.perf_counter() - start_s
        inside[i] = path.stats.gpu_busy_s - before_s
    host = times - inside
    found: dict[str, float] = {"calls": num, "max_ms": float(times.max() * 1000)}
    for name, values in (("", times), ("gpu_", inside), ("host_", host)):
        found |= {f"{name}p{q}_ms": float(np.percentile(values, q)) * 1000 for q in QUANTILES}
    return found


def idle_latencies(num: int, length_s: float) -> dict[str, float]:
    """What the machine itself does to a loop of that length on this thread."""
    times = np.empty(num)
    for i in range(num):
        start_s = now_s = time.perf_counter()
        while now_s - start_s < length_s:
            now_s = time.perf_counter()
        times[i] = now_s - start_s
    return {f"p{q}_ms": float(np.percentile(times, q)) * 1000 for q in QUANTILES}


def graph_alone(device: Device, call: FrameCall, num: int) -> dict[str, float]:
    """Milliseconds of the graph that a call launches, by the device's own clock."""
    start, stop = device.event(is_timed=True), device.event(is_timed=True)
    times = np.empty(num)
    for i in range(num):
        start.record(call.stream)
        call.graph.launch(call.stream)
        stop.record(call.stream)
        call.stream.synchronize()
        times[i] = stop.ms_since(start)
    return {f"gpu_p{q}_ms": float(np.percentile(times, q)) for q in QUANTILES}


def latency(device: Device, folder: Path, write: Write, calls: int = 20000) -> None:
    """One picture at a time: decoded frames and JPEG."""
    import simplejpeg

    case = case_of(folder, CELLS)
    with loaded(case, 1, "inductor", "plan") as (row, engine):
        row["engine_us"] = engine_time_us(device, engine)
        row |= answers(device, engine, case)
        frames = [simplejpeg.decode_jpeg(file) for file in case.files]
        with DevicePath(device, engine, case.contract) as path:
            pinned = path.pinned_frame(frames[0].shape[:2])
            pinned[:] = frames[0]
            row["pinned_frame"] = latencies(path, [pinned], calls)
            row["pinned_frame"] |= graph_alone(device, path.frame_call(pinned.shape[:2]), calls)
            row["frame"] = latencies(path, frames, calls // 4)
            row["jpeg"] = latencies(path, case.files, calls)
            length_s = row["pinned_frame"]["p50_ms"] / 1000
            row["a loop without any work"] = idle_latencies(calls // 4, length_s)
            gc.collect()
            gc.freeze()
            gc.disable()
            row["no garbage collection"] = latencies(path, [pinned], calls // 4)
            gc.enable()
            gc.unfreeze()
    write("latency", row)


def soak(device: Device, folder: Path, write: Write) -> None:
    """Five minutes of work: memory by NVML and the driver, and everything that was reserved."""
    import pynvml
    import torch

    pynvml.nvmlInit()
    card = pynvml.nvmlDeviceGetHandleByIndex(0)
    case = case_of(folder, CELLS)
    with (
        loaded(case, 32, "inductor", "plan") as (row, engine),
        DevicePath(device, engine, case.contract) as path,
    ):
        list(path.run(itertools.islice(itertools.cycle(case.files), 256)))
        allocations, samples, done = path.num_allocations, [], 0
        start_s = sampled_s = time.perf_counter()

        def pictures() -> Iterator[bytes]:
            for file in itertools.cycle(case.files):
                if time.perf_counter() - start_s > SOAK_S:
                    return
                yield file

        for result in path.run(pictures()):
            assert result.detections is not None, result.error
            done += 1
            now_s = time.perf_counter()
            if now_s - sampled_s > SAMPLE_S:
                faulthandler.dump_traceback_later(STANDS_STILL_S, exit=True)
                samples.append(
                    {
                        "at_s": now_s - start_s,
                        "pictures": done,
                        "nvml_used_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(card).used),
                        "nvml_own_bytes": own_bytes(card),
                        "torch_reserved_bytes": torch.cuda.memory_reserved(),
                        "torch_blocks": torch.cuda.memory_stats()["num_device_alloc"],
                        "nvjpeg_bytes": path.decoder.allocated_bytes if path.decoder else 0,
                        "host_bytes": resident_bytes(),
                        "allocations": path.num_allocations - allocations,
                        "sm_mhz": pynvml.nvmlDeviceGetClockInfo(card, pynvml.NVML_CLOCK_SM),
                    }
                )
                sampled_s = now_s
        row["seconds"] = time.perf_counter() - start_s
        row["pictures_per_s"] = done / row["seconds"]
        row["neighbours"] = os.environ.get("SACCADE_SOAK_NEIGHBOURS", "")
        row["samples"] = samples
    write("soak", row)


def own_bytes(card: Any) -> int | None:
    """Device memory of this process, where NVML tells."""
    import pynvml

    for one in pynvml.nvmlDeviceGetComputeRunningProcesses(card):
        if one.pid == os.getpid():
            return int(one.usedGpuMemory) if one.usedGpuMemory else None
    return None


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


SECTIONS: dict[str, Callable[[Device, Path, Write], None]] = {
    "rates": rates,
    "best": best,
    "others": others,
    "engines": engines,
    "latency": latency,
    "soak": soak,
}


def run(folder: Path, file: Path, sections: Sequence[str]) -> None:
    """Measure sections and write after each row; one that fails is told and does not end others."""
    report = json.loads(file.read_text()) if file.is_file() else {"sections": {}}
    failures = []
    with Device(0) as device:
        # After the device was opened: what opens it first decides how many queues there are.
        report["environment"] = environment()
        for section in sections:
            rows: dict[str, list[Any]] = {}

            def write(name: str, row: Any, rows: dict[str, list[Any]] = rows) -> None:
                rows.setdefault(name, []).append(row)
                report["sections"][name] = rows[name]
                file.write_text(json.dumps(report, indent=1))
                print(name, json.dumps(row)[:1500], flush=True)
                faulthandler.dump_traceback_later(3 * STANDS_STILL_S, exit=True)

            faulthandler.dump_traceback_later(3 * STANDS_STILL_S, exit=True)
            try:
                SECTIONS[section](device, folder, write)
            except Exception as exc:
                import traceback

                traceback.print_exc()
                failures.append(f"{section}: {exc}")
    faulthandler.cancel_dump_traceback_later()
    print(f"threads left: {threading.active_count()}, failures: {failures}", flush=True)


def main() -> None:
    """Prepare or run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("prepare", "run"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("sections", nargs="*", default=[], metavar="SECTION")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.what == "prepare":
        prepare(given.folder)
    else:
        if given.json is None:
            parser.error("run needs --json FILE")
        run(given.folder, given.json, given.sections or list(SECTIONS))


if __name__ == "__main__":
    main()
