"""A job on a GPU that is lost in the middle, in a process of its own, since nothing there works
afterwards.

python lost_device_job.py MODEL FOLDER NUM_PICTURES [lose | resume]

With lose, a kernel of this process writes where no memory is, once the first results are there.
"""

# ruff: noqa: T201

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import saccade
from saccade.cuda.compile import compile_kernels
from saccade.cuda.runtime import Device
from saccade.errors import SaccadeError
from saccade.pipeline.sinks import ResultSink
from saccade.pipeline.sources import SourceItem
from saccade.vision.draw import encode_jpeg

BATCH, BEFORE = 4, 40
FAULT = 'extern "C" __global__ void fault(int* at) { *at = 1; }'


def lose_the_device() -> None:
    with Device(0) as device:
        kernel = device.load(compile_kernels(FAULT, device.arch)).kernel("fault")
        kernel.launch(device.stream(), (1, 1, 1), 1, [ctypes.c_uint64(64)])


def pictures(num: int, seen: threading.Event | None) -> Iterator[SourceItem]:
    rng = np.random.default_rng(3)
    for index in range(num):
        if index == BEFORE and seen is not None:
            seen.wait(60)
            lose_the_device()
        color = rng.integers(0, 255, 3, dtype=np.uint8)
        data = encode_jpeg(np.ascontiguousarray(np.broadcast_to(color, (40, 48, 3))))
        yield SourceItem(index, f"<{index}>", "bytes", data)


def main(model: str, folder: str, num: str, what: str = "") -> None:
    seen = threading.Event() if what == "lose" else None
    try:
        with (
            saccade.load(Path(model), device="cuda:0") as detector,
            ResultSink(
                Path(folder),
                {"job": 1},
                output_formats=("jsonl",),
                resume=what == "resume",
            ) as sink,
        ):
            todo = (item for item in pictures(int(num), seen) if not sink.take(item.name))
            with saccade.run(detector, todo, batch=BATCH) as run:
                for result in run:
                    sink.send(result)
                    if seen is not None:
                        seen.set()
            print("resumed", sink.num_resumed, sink.finish().num_pictures)
    except SaccadeError as exc:
        print(type(exc).__name__, exc, *getattr(exc, "__notes__", []))
        sys.exit(3)


if __name__ == "__main__":
    main(*sys.argv[1:])
