"""Time the prepare and suppression kernels against their floors, and JPEG decoding, on this GPU.

Run on the machine with the GPU from the repository's root:

    python -m bench.cuda_kernels --jpegs FOLDER --outputs cells_outputs.npy --json FILE

`--outputs` holds raw outputs of cells_640, (b, 7, 8400) float16. Each time is the median over
graph replays; inputs rotate over buffers that together are larger than the second-level cache.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from saccade.cuda.compile import compile_kernels
from saccade.cuda.head import read_head
from saccade.cuda.nvjpeg import Engine, JpegDecoder
from saccade.cuda.prepare import PICTURE, READ_PAST, Preparer, describe
from saccade.cuda.runtime import Device, Stream
from saccade.cuda.suppress import Suppressor
from saccade.types import DeviceBuffer, HeadRule, InputRule, Thresholds

ROUNDS = 30
COPY = """
extern "C" __global__ void copy(const uint4* from, uint4* to) {
    size_t at = blockIdx.x * (size_t)1024 + threadIdx.x;
    uint4 v[4];
    for (int i = 0; i < 4; i++) v[i] = from[at + i * 256];
    for (int i = 0; i < 4; i++) to[at + i * 256] = v[i];
}
extern "C" __global__ void fill(const uint4* from, uint4* to) {
    size_t at = blockIdx.x * (size_t)1024 + threadIdx.x;
    for (int i = 0; i < 4; i++) to[at + i * 256] = make_uint4(at, at, at, i);
}
"""


def put(device: Device, array: np.ndarray, slack: int = 0) -> DeviceBuffer:
    """Copy an array to device memory of its own."""
    arena = device.arena({"array": array.nbytes + slack})
    pinned = device.pinned(array.nbytes)
    ctypes.memmove(pinned.address, array.ctypes.data, array.nbytes)
    stream = device.stream()
    stream.upload(arena.base, pinned, array.nbytes)
    stream.synchronize()
    return DeviceBuffer(arena.base, array.shape, array.dtype.name, array.nbytes)


def time_us(device: Device, stream: Stream, works: list[Callable[[], None]]) -> dict[str, float]:
    """Median and spread of one work, from graphs that hold each of the works once."""
    with stream.capture() as captured:
        for work in works:
            work()
    start, stop = device.event(is_timed=True), device.event(is_timed=True)
    times = []
    for i in range(ROUNDS + 5):
        start.record(stream)
        captured.graph.launch(stream)
        stop.record(stream)
        stream.synchronize()
        if i >= 5:
            times.append(stop.ms_since(start) * 1000 / len(works))
    captured.graph.close()
    times.sort()
    return {"us": statistics.median(times), "low": times[1], "high": times[-2]}


def copy_bandwidth(device: Device, stream: Stream) -> float:
    """Bytes per second read and written by a large copy on the device."""
    size = 2 << 30
    arena = device.arena({"a": size, "b": size})
    cubin = compile_kernels(COPY, device.arch)
    kernel = device.load(cubin).kernel("copy")
    args = [ctypes.c_uint64(arena.address("a")), ctypes.c_uint64(arena.address("b"))]
    rows = {}
    for name, grid in (("copy", size // 16 // 1024), ("fill", size // 16 // 1024)):
        kernel = device.load(cubin).kernel(name)
        work = lambda k=kernel, g=grid: k.launch(stream, (g, 1, 1), 256, args)  # noqa: E731
        moved = 2 * size if name == "copy" else size
        rows[name] = moved / (time_us(device, stream, [work])["us"] * 1e-6)
    print(rows, flush=True)
    return rows["copy"]


VARIANTS = ((1, 1), (1, 4), (1, 6), (2, 1), (2, 4), (2, 5), (4, 1), (4, 3), (4, 4))


def prepare_times(device: Device, stream: Stream, bandwidth: float) -> list[dict[str, Any]]:
    """The prepare kernel for several sizes, batches and types, and ways to compile it."""
    rows = []
    rng = np.random.default_rng(1)
    for (w, h), batch, dtype in [
        ((640, 480), 1, "float16"), ((640, 480), 32, "float16"), ((640, 480), 32, "float32"),
        ((640, 480), 64, "float16"), ((1920, 1080), 32, "float16"), ((1280, 720), 1, "float16"),
        ((1000, 750), 32, "float16"),
    ]:  # fmt: skip
        rule = InputRule("images", (640, 640))
        copies = max(2, min(16, 256 // batch))
        works: dict[Any, list[Any]] = {variant: [] for variant in VARIANTS}
        for _ in range(copies):
            picture_bytes = -(-(w * h * 3 + READ_PAST) // 256) * 256
            noise = rng.integers(0, 256, (batch, picture_bytes), dtype=np.uint8)
            source = put(device, noise)
            item = 3 * 640 * 640 * np.dtype(dtype).itemsize
            target = device.arena({"x": batch * item}).base
            buffer = DeviceBuffer(target, (batch, 3, 640, 640), dtype, batch * item)
            table = np.zeros(batch, PICTURE)
            for i in range(batch):
                address = source.pointer + i * picture_bytes
                placement = describe(table[i : i + 1], rule, (w, h), address, w * 3)
            where = put(device, table.view(np.uint8)).pointer
            for num_rows, blocks in VARIANTS:
                preparer = Preparer(device, rule, buffer, rows=num_rows, min_blocks=blocks)
                works[num_rows, blocks].append(lambda p=preparer, t=where: p.enqueue(stream, t))
        moved = batch * (w * h * 3 + item)
        scale = placement.scale_xy[0]
        for variant, work in works.items():
            rows.append(
                {
                    "source": f"{w}x{h}", "batch": batch, "dtype": dtype, "scale": scale,
                    "rows": variant[0], "min_blocks": variant[1],
                    "bytes": moved, "floor_us": moved / bandwidth * 1e6,
                    **time_us(device, stream, work),
                }
            )  # fmt: skip
        print("prepare", w, h, batch, dtype, [(r["rows"], r["min_blocks"], round(r["us"], 1))
              for r in rows[-len(VARIANTS):]], flush=True)  # fmt: skip
    return rows


def suppress_times(device: Device, stream: Stream, outputs: np.ndarray, bandwidth: float) -> Any:
    """Head decode and suppression of real outputs of cells_640."""
    rows = []
    rule = HeadRule("yolov8", {"rows": "y"}, 3)
    for name, thresholds in (
        ("detect", Thresholds(score=0.25, iou=0.45)),
        ("evaluate", Thresholds(score=0.01, iou=0.6, multi_label=True)),
    ):
        for batch in (1, 8, 32):
            works = []
            for copy in range(8):
                part = np.roll(outputs, copy, axis=0)[:batch]
                buffers = {"y": put(device, np.ascontiguousarray(part))}
                head = read_head(rule, (640, 640), buffers, thresholds)
                kernels = Suppressor(device, head, buffers, thresholds, (640, 640))
                work = kernels.workspace
                arena = device.arena({"keys": work.keys_bytes, "counts": work.counts_bytes})
                results = device.pinned(work.results_bytes)
                table = np.zeros(batch, PICTURE)
                for i in range(batch):
                    describe(table[i : i + 1], InputRule("x", (640, 640)), (640, 480), 0, 0)
                where = put(device, table.view(np.uint8)).pointer
                args = (where, arena.address("keys"), arena.address("counts"), results.address)
                works.append(lambda k=kernels, a=args: k.enqueue(stream, *a))
            found = time_us(device, stream, works)
            final = kernels.final_boxes(results.array)
            boxes = sum(len(final.read(i)) for i in range(batch))
            # The whole scores are read once, and four numbers per candidate.
            moved = batch * 3 * 8400 * 2
            rows.append(
                {"thresholds": name, "batch": batch, "boxes": boxes,
                 "floor_us": moved / bandwidth * 1e6, **found}
            )  # fmt: skip
            print("suppress", rows[-1], flush=True)
    return rows


def decode_times(device: Device, pictures: list[bytes]) -> list[dict[str, Any]]:
    """Pictures per second of each way to decode, from memory."""
    from saccade.vision.jpeg import read_header

    rows: list[dict[str, Any]] = []
    sizes = [read_header(p).wh for p in pictures]
    for engine in (Engine.HARDWARE, Engine.CORES):
        for batch, num_decoders in (
            (1, 1),
            (16, 1),
            (32, 1),
            (48, 1),
            (64, 1),
            (16, 2),
            (32, 2),
            (32, 3),
        ):
            try:
                rows.append(decode_time(device, pictures, sizes, engine, batch, num_decoders))
            except Exception as exc:
                rows.append({"engine": engine.name, "batch": batch, "error": str(exc)})
            print("decode", rows[-1], flush=True)
    return rows


def decode_time(
    device: Device, pictures: list[bytes], sizes: Any, engine: Engine, batch: int, num: int
) -> dict[str, Any]:
    """One way to decode, by as many decoders side by side, each in a thread."""
    import simplejpeg

    chosen = [i % len(pictures) for i in range(batch)]
    offsets = np.cumsum([0] + [sizes[i][0] * sizes[i][1] * 3 + 256 for i in chosen])
    seconds: list[float] = []
    hosts: list[float] = []
    worst, mean, allocations = 0, 0.0, []
    barrier = threading.Barrier(num)
    errors: list[BaseException] = []

    def work(first: bool) -> None:
        nonlocal worst, mean
        try:
            device.make_current()
            decoder = JpegDecoder(device, batch, engine=engine)
            stream = device.stream()
            total = int(offsets[-1])
            arena = device.arena({"pixels": total})
            back = device.pinned(total)
            addresses = (arena.base + offsets[:-1]).astype(np.uint64)
            targets = addresses, np.array([sizes[i][0] * 3 for i in chosen], np.uint64)
            datas = [pictures[i] for i in chosen]
            for _ in range(4):
                decoder.decode(stream, datas, *targets)
                stream.synchronize()
            before = decoder.num_allocations
            rounds = max(4, 1000 // batch)
            barrier.wait(60)
            start = time.perf_counter()
            for _ in range(rounds):
                called = time.perf_counter()
                decoder.decode(stream, datas, *targets)
                hosts.append(time.perf_counter() - called)
                stream.synchronize()
            seconds.append((time.perf_counter() - start) / rounds)
            allocations.append(decoder.num_allocations - before)
            if first:
                stream.download(back, arena.base, total)
                stream.synchronize()
                for k, i in enumerate(chosen):
                    w, h = sizes[i]
                    got = back.array[int(offsets[k]) :][: w * h * 3].reshape(h, w, 3)
                    want = simplejpeg.decode_jpeg(pictures[i])
                    off = np.abs(got.astype(int) - want)
                    worst, mean = max(worst, int(off.max())), max(mean, float(off.mean()))
            decoder.close()
        except BaseException as exc:
            barrier.abort()
            errors.append(exc)

    threads = [threading.Thread(target=work, args=(i == 0,)) for i in range(num)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return {
        "engine": engine.name, "batch": batch, "decoders": num,
        "pictures_per_s": num * batch / max(seconds), "us_per_batch": max(seconds) * 1e6,
        "host_us_per_batch": statistics.median(hosts) * 1e6, "allocations": sum(allocations),
        "worst_level_off": worst, "worst_mean_off": mean,
    }  # fmt: skip


def torchvision_times(pictures: list[bytes]) -> list[dict[str, Any]]:
    """The same by torchvision."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    tensors = [torch.frombuffer(bytearray(p), dtype=torch.uint8) for p in pictures]
    rows = []
    for batch in (1, 32, 64):
        chosen = [tensors[i % len(tensors)] for i in range(batch)]
        for _ in range(4):
            decode_jpeg(chosen, mode=ImageReadMode.RGB, device="cuda")
        torch.cuda.synchronize()
        rounds = max(4, 1000 // batch)
        start = time.perf_counter()
        for _ in range(rounds):
            decode_jpeg(chosen, mode=ImageReadMode.RGB, device="cuda")
        torch.cuda.synchronize()
        seconds = (time.perf_counter() - start) / rounds
        rows.append({"batch": batch, "pictures_per_s": batch / seconds})
        print("torchvision", rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jpegs", type=Path, required=True)
    parser.add_argument("--outputs", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    pictures = [p.read_bytes() for p in sorted(options.jpegs.glob("*.jpg"))]
    with Device(0) as device:
        stream = device.stream()
        bandwidth = copy_bandwidth(device, stream)
        report: dict[str, Any] = {
            "device": device.name,
            "arch": device.arch,
            "copy_bytes_per_s": bandwidth,
            "jpeg_bytes_mean": statistics.mean(map(len, pictures)),
            "prepare": prepare_times(device, stream, bandwidth),
            "suppress": suppress_times(device, stream, np.load(options.outputs), bandwidth),
            "decode": decode_times(device, pictures),
        }
        options.json.write_text(json.dumps(report, indent=1))
        report["torchvision"] = torchvision_times(pictures)
    options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
