"""JPEG bytes to boxes on one GPU: check the answers, then time them.

Run on the machine with the GPU from the repository's root:

    python -m bench.cuda_path MODEL --images FOLDER --data ann.json --json FILE

Answers come first: AP on the labelled pictures and agreement with ONNX Runtime in FP32 on the CPU.
A path whose boxes do not agree is not timed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from saccade import backends
from saccade.contracts import resolve
from saccade.cuda.path import DevicePath, PathOptions
from saccade.cuda.runtime import Device
from saccade.graph.reading import read_model
from saccade.graph.signature import signature_of
from saccade.types import Contract, Detections, DeviceEngine, Model, Plan, Thresholds
from saccade.vision.boxes import iou_matrix

MIN_AGREEMENT = 0.9
ROUNDS = 3


def agreement(ours: list[Detections], theirs: list[Detections]) -> tuple[int, float]:
    """Boxes of the reference, and the share with a partner of the same class at IoU .9 and a score
    within .03; the lower share of both directions."""
    shares, num = [], 0
    for many, few in ((theirs, ours), (ours, theirs)):
        matched = count = 0
        for a, b in zip(many, few, strict=True):
            near = iou_matrix(a.boxes_xyxy, b.boxes_xyxy) >= 0.9
            near &= a.classes[:, None] == b.classes[None]
            near &= np.abs(a.scores[:, None] - b.scores[None]) <= 0.03
            matched, count = matched + int(near.any(axis=1).sum()), count + len(a)
        shares.append(matched / count if count else 1.0)
        num = num or count
    return num, min(shares)


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


def reference(model: Path, paths: list[Path]) -> list[Detections]:
    """ONNX Runtime on the CPU, one picture at a time."""
    import saccade

    with saccade.load(model) as detector:
        return [detector(path) for path in paths]


def average_precision(path: DevicePath, data: Path, images: Path) -> dict[str, float]:
    """AP of a path with thresholds for measuring, as the evaluation computes it."""
    from saccade.evaluation.annotations import read_annotations
    from saccade.evaluation.metrics import ImageDetections, evaluate

    annotations = read_annotations(data)
    files = [(images / image.file_name).read_bytes() for image in annotations.images]
    found = []
    for image, result in zip(annotations.images, path.run(files), strict=True):
        assert result.detections is not None, result.error
        best = slice(100)
        # The model's classes are the categories in order, counted from 1.
        found.append(
            ImageDetections(
                image.id,
                result.detections.boxes_xyxy[best],
                result.detections.scores[best],
                result.detections.classes[best].astype(np.int64) + 1,
            )
        )
    metrics = evaluate(annotations, [image.id for image in annotations.images], found)
    return {"ap": float(metrics.AP or 0), "ap50": float(metrics.AP50 or 0)}


def sustained(device: Device, path: DevicePath, pictures: list[bytes], num: int) -> dict[str, Any]:
    """Pictures per second over a long job, and where the time went."""
    list(path.run(itertools.islice(itertools.cycle(pictures), 8 * path.batch)))
    rounds = []
    for _ in range(ROUNDS):
        stats = path.stats
        before = (
            stats.num_batches,
            stats.feeding_s,
            stats.reading_s,
            stats.gpu_busy_s,
            stats.decoding_s,
        )
        allocations = path.num_allocations
        memory = device.memory()[0]
        start = time.perf_counter()
        boxes = 0
        for result in path.run(itertools.islice(itertools.cycle(pictures), num)):
            assert result.detections is not None, result.error
            boxes += len(result.detections)
        wall = time.perf_counter() - start
        batches = stats.num_batches - before[0]
        rounds.append(
            {
                "pictures_per_s": num / wall,
                "wall_s": wall,
                "boxes": boxes,
                "batches": batches,
                "feeding_us_per_batch": (stats.feeding_s - before[1]) / batches * 1e6,
                "decoding_us_per_batch": (stats.decoding_s - before[4]) / batches * 1e6,
                "reading_us_per_batch": (stats.reading_s - before[2]) / batches * 1e6,
                "gpu_us_per_batch": (stats.gpu_busy_s - before[3]) / batches * 1e6,
                "gpu_busy": (stats.gpu_busy_s - before[3]) / wall,
                "allocations": path.num_allocations - allocations,
                "device_bytes_lost": memory - device.memory()[0],
            }
        )
    rounds.sort(key=lambda r: r["pictures_per_s"])
    return {"median": rounds[len(rounds) // 2], "rounds": rounds}


def latencies(path: DevicePath, pictures: list[Any], num: int) -> dict[str, float]:
    """Milliseconds of single calls."""
    times = np.empty(num)
    source: Iterator[Any] = itertools.cycle(pictures)
    for _ in range(300):
        path.detect(next(source))
    for i in range(num):
        picture = next(source)
        start = time.perf_counter()
        path.detect(picture)
        times[i] = time.perf_counter() - start
    times *= 1000
    return {
        "calls": num,
        **{f"p{q}_ms": float(np.percentile(times, q)) for q in (50, 90, 99, 99.9)},
        "max_ms": float(times.max()),
    }


def measure(device: Device, model: Model, contract: Contract, batch: int, given: Any) -> Any:
    """Everything for one batch size."""
    import simplejpeg

    options = tuple(sorted({"compile": given.compile, "input": "plan"}.items()))
    plan = Plan("torch", "fp16", batch, device="cuda:0", options=options)
    started = time.perf_counter()
    engine = backends.get("torch").load_device(model, plan, contract.input.size_hw)  # type: ignore[attr-defined]
    row: dict[str, Any] = {"batch": batch, "plan": dict(options), "precision": "fp16"}
    row["load_s"] = time.perf_counter() - started
    row["engine_us"] = engine_time_us(device, engine)
    row["engine_pictures_per_s"] = batch / row["engine_us"] * 1e6
    paths = sorted(given.images.glob("*.jpg"))
    pictures = [p.read_bytes() for p in paths]
    if given.data:
        looks = Thresholds(score=0.01, iou=0.6, max_detections=300, multi_label=True)
        with DevicePath(device, engine, contract, thresholds=looks) as path:
            row |= average_precision(path, given.data, given.images)
    free = device.memory()[0]
    path_options = PathOptions(
        num_slots=given.slots,
        source_bytes=batch * (1 << 20),
    )
    with DevicePath(device, engine, contract, options=path_options) as path:
        got = [r.detections for r in path.run(pictures)]
        num_boxes, row["agreement"] = agreement(got, given.truth)
        with DevicePath(
            device, engine, contract, options=PathOptions(decodes_on_gpu=False, num_slots=1)
        ) as plain:
            same = [r.detections for r in plain.run(pictures)]
            row["agreement_decoded_on_cpu"] = agreement(same, given.truth)[1]
        for name, found in (("gpu", got), ("cpu", same), ("truth", given.truth)):
            arrays = {
                f"{part}_{i}": getattr(one, part)
                for i, one in enumerate(found)
                for part in ("boxes_xyxy", "scores", "classes")
            }
            np.savez(given.json.parent / f"boxes_{name}_{batch}.npz", **arrays)
        row["reference_boxes"] = num_boxes
        if row["agreement"] < MIN_AGREEMENT:
            return row
        row["sustained"] = sustained(device, path, pictures, given.pictures)
        row["memory_bytes"] = dict(path.memory_bytes)
        row["memory_measured_bytes"] = free - device.memory()[0]
        row["decoder"] = path.decoder.engine.name if path.decoder else "CPU"
        if batch == 1:
            frames = [simplejpeg.decode_jpeg(p) for p in pictures]
            row["frame_latency"] = latencies(path, frames, given.calls)
            pinned = path.pinned_frame(frames[0].shape[:2])
            pinned[:] = frames[0]
            row["pinned_frame_latency"] = latencies(path, [pinned], given.calls)
            row["jpeg_latency"] = latencies(path, pictures, given.calls)
    engine.close()
    return row


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--batches", default="32,1")
    parser.add_argument("--compile", default="inductor")
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--pictures", type=int, default=16000)
    parser.add_argument("--calls", type=int, default=10000)
    parser.add_argument("--preset")
    given = parser.parse_args()
    model = read_model(given.model)
    contract = resolve(signature_of(model), preset=given.preset)
    given.truth = reference(given.model, sorted(given.images.glob("*.jpg")))
    report: dict[str, Any] = {
        "model": given.model.name,
        "slots": given.slots,
        "rows": [],
    }
    with Device(0) as device:
        report["device"] = device.name
        for batch in map(int, given.batches.split(",")):
            report["rows"].append(measure(device, model, contract, batch, given))
            print(json.dumps(report["rows"][-1], default=str), flush=True)
            given.json.write_text(json.dumps(report, indent=1, default=str))


if __name__ == "__main__":
    main()
