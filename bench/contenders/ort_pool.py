"""The best FP32 script known: one one-thread ONNX Runtime session per core, whole pictures."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bench.cases import Case

LABEL = "best script: pool of one-thread ONNX Runtime sessions"
NOTE = "as many threads as cores, each takes a picture from file to boxes; simplejpeg; FP32"
CASES = None
VENV = None
CHECK = "agreement"


def setup(case: Case) -> tuple[Case, list[Any], ThreadPoolExecutor]:
    import cv2
    import onnxruntime

    cv2.setNumThreads(1)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    cores = len(os.sched_getaffinity(0))
    sessions = [
        onnxruntime.InferenceSession(case.model_path, options, providers=["CPUExecutionProvider"])
        for _ in range(cores)
    ]
    return case, sessions, ThreadPoolExecutor(cores)


def run(state: tuple[Case, list[Any], ThreadPoolExecutor], paths: list[str]) -> list[tuple]:
    import simplejpeg

    from bench import recipes

    case, sessions, pool = state
    name = sessions[0].get_inputs()[0].name
    free, own = list(sessions), threading.local()

    def detect(path: str) -> tuple:
        if not hasattr(own, "session"):
            own.session = free.pop()
        with open(path, "rb") as file:
            picture_bgr = simplejpeg.decode_jpeg(file.read(), colorspace="BGR")
        tensor, place = recipes.prepare(case, picture_bgr)
        output = own.session.run(None, {name: tensor})[0]
        found = recipes.finish(case, place, *recipes.read_kept(case, output))
        return (path, *found)

    return list(pool.map(detect, paths))


def close(state: tuple[Case, list[Any], ThreadPoolExecutor]) -> None:
    state[2].shutdown()


def versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("numpy", "onnxruntime", "opencv-python-headless", "simplejpeg")
    return {name: version(name) for name in names}
