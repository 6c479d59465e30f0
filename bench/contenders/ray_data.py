"""Ray Data: files in batches through an actor pool, one one-thread session per core."""

from __future__ import annotations

import logging
import os
import time
from typing import Any

import numpy as np

from bench.cases import ROOT, WORK, Case

BATCH = 16
LABEL = "Ray Data map_batches, actor pool"
NOTE = (
    f"one actor per core, batches of {BATCH} paths, decode and inference in the actor (simplejpeg, "
    "one-thread ONNX Runtime); the clock starts when the first actor begins its first batch: the "
    "start of the actors, which every Ray Data job pays, counts only in the CPU time"
)
CASES = None
VENV = "ray"
CHECK = "agreement"
# Stopped for a minute, its control processes take half a minute to find each other again, and left
# idle they take 5 % of a core.
HOLD = False


class Detector:
    """The actor: a session, and files to boxes."""

    def __init__(self, case: dict[str, Any]) -> None:
        import cv2
        import onnxruntime

        cv2.setNumThreads(1)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.case = Case(**case)
        self.session = onnxruntime.InferenceSession(
            self.case.model_path, options, providers=["CPUExecutionProvider"]
        )
        self.name = self.session.get_inputs()[0].name

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        began_s = time.perf_counter()  # the same clock in all processes of a Linux machine
        found = [self._detect(str(path)) for path in batch["path"]]
        columns = ("boxes", "scores", "classes")
        answers = {
            name: [part.ravel().tolist() for part in parts]
            for name, parts in zip(columns, zip(*found, strict=True), strict=True)
        }
        return {"path": batch["path"], "began_s": [began_s] * len(found), **answers}

    def _detect(self, path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        import simplejpeg

        from bench import recipes

        with open(path, "rb") as file:
            picture_bgr = simplejpeg.decode_jpeg(file.read(), colorspace="BGR")
        tensor, place = recipes.prepare(self.case, picture_bgr)
        output = self.session.run(None, {self.name: tensor})[0]
        return recipes.finish(self.case, place, *recipes.read_kept(self.case, output))


def setup(case: Case) -> dict[str, Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    cores = len(os.sched_getaffinity(0))
    folder = WORK / "ray"
    folder.mkdir(parents=True, exist_ok=True)
    ray.init(
        address="local",
        num_cpus=cores,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=512 * 2**20,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    return {"case": case, "cores": cores}


def run(state: dict[str, Any], paths: list[str]) -> list[tuple]:
    import ray

    case = state["case"]
    plain = {name: getattr(case, name) for name in ("name", "title", "family", "model", "size_hw")}
    plain |= {"score": case.score, "iou": case.iou, "num_pictures": 0, "list_pictures": None}
    start_s = time.perf_counter()
    blocks = max(state["cores"], -(-len(paths) // BATCH))
    data = ray.data.from_items([{"path": path} for path in paths], override_num_blocks=blocks)
    data = data.map_batches(
        Detector,
        fn_constructor_args=(plain,),
        batch_size=BATCH,
        compute=ray.data.ActorPoolStrategy(size=state["cores"]),
        num_cpus=1,
    )
    answers: list[tuple] = []
    first_began_s = float("inf")
    for batch in data.iter_batches(batch_size=None):
        for path, boxes, scores, classes in zip(
            *(batch[name] for name in ("path", "boxes", "scores", "classes")), strict=True
        ):
            found = np.reshape(np.asarray(boxes, dtype=np.float32), (-1, 4))
            answers.append((str(path), found, np.asarray(scores), np.asarray(classes)))
        first_began_s = min(first_began_s, float(np.min(batch["began_s"])))
    state["start_up_s"] = first_began_s - start_s
    return answers


def close(state: dict[str, Any]) -> None:
    import ray

    del state
    ray.shutdown()


def versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("ray", "numpy", "pyarrow", "onnxruntime", "opencv-python-headless", "simplejpeg")
    return {name: version(name) for name in names}
