"""A job in a process of its own, for tests that kill it, starve it or let two of them meet.

python pipeline_sink_job.py FOLDER SEED NUM_PICTURES [FLAG ...]

Flags: resume, finish, hold, stdout, rss, limit=BYTES
"""

# ruff: noqa: T201

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from saccade.errors import PictureError, SaccadeError
from saccade.pipeline.sinks import ResultSink
from saccade.types import Detections, Result

FORMATS = ("coco", "jsonl", "npz")
LABELS = ("cat", "dög")


def results(seed: int, num: int, *, max_boxes: int = 12, num_points: int = 2) -> Iterator[Result]:
    """Results as a detector gives them: none to many boxes, some errors, names of all kinds."""
    rng = np.random.default_rng(seed)
    for index in range(num):
        path = f"d/{index // 2 if index % 7 == 0 else index}-\u00e9\udcff\n.jpg"
        if rng.random() < 0.1:
            yield Result(index, path, error=PictureError(f'{path} is "broken"\\'))
            continue
        k = int(rng.integers(0, max_boxes))
        size_wh = (int(rng.integers(1, 5000)), int(rng.integers(1, 5000)))
        corners = np.sort(rng.random((k, 2, 2)) * size_wh, axis=1)
        points = rng.random((k, num_points, 2)) * size_wh
        yield Result(
            index,
            path,
            size_wh,
            Detections(
                corners.reshape(k, 4).astype(np.float32),
                rng.random(k).astype(np.float32),
                rng.integers(0, 4, k).astype(np.int32),
                points.astype(np.float32) if num_points else None,
            ),
        )


def main(folder: str, seed: str, num: str, *flags: str) -> None:
    for flag in flags:
        if flag.startswith("limit="):
            size = int(flag.removeprefix("limit="))
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    options = {"labels": LABELS, "output_formats": FORMATS, "resume": "resume" in flags}
    try:
        with ResultSink(Path(folder), {"seed": int(seed)}, **options) as sink:
            if "hold" in flags:
                print("ready", flush=True)
                sys.stdin.readline()
            before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for result in results(int(seed), int(num)):
                if not sink.take(result.path):
                    sink.send(result)
                    if "stdout" in flags:
                        print(result.index, flush=True)
            if "finish" in flags:
                sink.finish()
            if "rss" in flags:
                print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib)
    except SaccadeError as exc:
        print(type(exc).__name__, exc, *getattr(exc, "__notes__", []))
        sys.exit(3)


if __name__ == "__main__":
    main(*sys.argv[1:])
