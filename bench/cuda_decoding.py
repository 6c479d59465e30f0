"""nvJPEG beside a busy network: how long its call takes, and what either costs the other.

Run on the machine with the GPU from the repository's root:

    python -m bench.cuda_decoding MODEL --images FOLDER --json FILE

One thread keeps two inferences in flight, another decodes batch after batch into a ring of
buffers. Each variant is decoded and compared with libjpeg-turbo first. Where the driver's queues
are shared is decided by CUDA_DEVICE_MAX_CONNECTIONS before the process starts, so one process
measures one setting.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.cuda_path import engine_time_us
from saccade import backends
from saccade.contracts import resolve
from saccade.cuda.driver import has_own_queues
from saccade.cuda.nvjpeg import INTERPOLATE, NO_PIPELINE, JpegDecoder
from saccade.cuda.runtime import Device, Event, Graph, Stream
from saccade.graph.reading import read_model
from saccade.graph.signature import signature_of
from saccade.types import Plan

RING = 8


@dataclass(frozen=True)
class Variant:
    """One way to call nvJPEG.

    Attributes:
        batch: Pictures per call.
        flags: nvJPEG's.
    """

    batch: int = 32
    flags: int = INTERPOLATE


VARIANTS = (
    Variant(),
    Variant(flags=INTERPOLATE | NO_PIPELINE),
    Variant(flags=0),
    Variant(batch=1),
    Variant(batch=8),
    Variant(batch=16),
    Variant(batch=64),
    Variant(batch=128),
)


class Network:
    """A graph that is launched again and again, two of it in flight."""

    def __init__(self, device: Device, graph: Graph, stream: Stream) -> None:
        self._device, self._graph, self._stream = device, graph, stream
        self._stop = threading.Event()
        self._events: list[Event] = [device.event() for _ in range(2)]
        self.times_s: list[float] = []

    def __enter__(self) -> Network:
        self._thread = threading.Thread(target=self._work)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._stream.synchronize()

    def _work(self) -> None:
        self._device.make_current()
        for i, event in enumerate(self._alternating()):
            if i >= 2:
                event.wait()
                self.times_s.append(time.perf_counter())
            self._graph.launch(self._stream)
            event.record(self._stream)

    def _alternating(self) -> Iterator[Event]:
        while not self._stop.is_set():
            yield from self._events

    def per_s(self, start_s: float, stop_s: float) -> float:
        """Launches per second within a stretch of time."""
        inside = [t for t in self.times_s if start_s <= t <= stop_s]
        return (len(inside) - 1) / (inside[-1] - inside[0])


def measure(
    device: Device,
    graph: Graph,
    batch: int,
    pictures: list[bytes],
    variant: Variant,
    seconds: float,
) -> dict[str, Any]:
    """One variant, alone and beside the network."""
    import simplejpeg

    device = device.share()
    try:
        want = simplejpeg.decode_jpeg(pictures[0]).astype(int)
        wh = want.shape[1], want.shape[0]
        size = variant.batch * (wh[0] * wh[1] * 3 + 256)
        arena = device.arena({f"ring {i}": size for i in range(RING)})
        offsets = np.arange(variant.batch, dtype=np.uint64) * np.uint64(wh[0] * wh[1] * 3 + 256)
        pitches = np.full(variant.batch, wh[0] * 3, np.uint64)
        targets = [(offsets + np.uint64(arena.address(f"ring {i}")), pitches) for i in range(RING)]
        files = [pictures[i % len(pictures)] for i in range(variant.batch)]
        decoder = JpegDecoder(device, variant.batch, flags=variant.flags)
        stream = device.stream(is_urgent=True)
        for i in range(RING):
            decoder.decode(stream, files, *targets[i])
        stream.synchronize()
        back = device.pinned(size)
        stream.download(back, arena.address("ring 0"), size)
        stream.synchronize()
        off = np.abs(back.array[: want.size].reshape(want.shape) - want)
        row: dict[str, Any] = {
            "picture": f"{wh[0]}x{wh[1]}",
            "batch": variant.batch,
            "flags": variant.flags,
            "engine": decoder.engine.name,
            "mean_level_off": float(off.mean()),
            "worst_level_off": float(off.max()),
        }
        assert row["mean_level_off"] < 3, row
        row["alone"] = timed(decoder, stream, files, targets, seconds)
        with Network(device, graph, device.stream()) as network:
            time.sleep(0.05)
            start_s = time.perf_counter()
            row["beside"] = timed(decoder, stream, files, targets, seconds)
            row["network_pictures_per_s"] = batch * network.per_s(start_s, time.perf_counter())
        decoder.close()
        return row
    finally:
        device.close()


def timed(
    decoder: JpegDecoder,
    stream: Stream,
    files: list[bytes],
    targets: Any,
    seconds: float,
) -> dict[str, float]:
    """Pictures per second and the time of single calls."""
    calls: list[float] = []
    start_s = time.perf_counter()
    while (now_s := time.perf_counter()) - start_s < seconds:
        decoder.decode(stream, files, *targets[len(calls) % RING])
        calls.append(time.perf_counter() - now_s)
    stream.synchronize()
    wall_s = time.perf_counter() - start_s
    return {
        "pictures_per_s": len(calls) * len(files) / wall_s,
        "call_us": statistics.median(calls) * 1e6,
        "call_p90_us": float(np.percentile(calls, 90)) * 1e6,
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--compile", default="inductor")
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--variants", type=int, default=len(VARIANTS))
    parser.add_argument(
        "--first",
        choices=("saccade", "torch looks", "torch allocates"),
        default="saccade",
        help="who starts the driver",
    )
    given = parser.parse_args()
    if given.first != "saccade":
        import torch

        assert torch.cuda.is_available()
        if given.first == "torch allocates":
            torch.zeros(1, device="cuda")
    pictures = [p.read_bytes() for p in sorted(given.images.glob("*.jpg"))]
    model = read_model(given.model)
    contract = resolve(signature_of(model))
    report: dict[str, Any] = {
        "model": given.model.name,
        "batch": given.batch,
        "first": given.first,
        "given_connections": os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS"),
        "rows": [],
    }
    with Device(0) as device:
        report["device"] = device.name
        report["has_own_queues"] = has_own_queues()
        options = tuple(sorted({"compile": given.compile, "input": "plan"}.items()))
        plan = Plan("torch", "fp16", given.batch, device="cuda:0", options=options)
        engine = backends.get("torch").load_device(model, plan, contract.input.size_hw)  # type: ignore[attr-defined]
        report["engine_us"] = engine_time_us(device, engine)
        stream = device.stream()
        with stream.capture() as captured:
            engine.enqueue(stream.handle)
        for variant in VARIANTS[: given.variants]:
            faulthandler.dump_traceback_later(15, exit=True)
            row = measure(device, captured.graph, given.batch, pictures, variant, given.seconds)
            faulthandler.cancel_dump_traceback_later()
            report["rows"].append(row)
            print(
                given.first, report["given_connections"], row["batch"], row["flags"],
                "alone", round(row["alone"]["pictures_per_s"]), round(row["alone"]["call_us"]),
                "beside", round(row["beside"]["pictures_per_s"]), round(row["beside"]["call_us"]),
                "network", round(row["network_pictures_per_s"]), flush=True,
            )  # fmt: skip
            given.json.write_text(json.dumps(report, indent=1))
        captured.graph.close()
        engine.close()


if __name__ == "__main__":
    main()
