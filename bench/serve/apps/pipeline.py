"""The job in every contender: the best plain script known, for one picture.

simplejpeg decodes, cv2 places, a one-thread ONNX Runtime session infers in FP32, NumPy suppresses:
the recipes that the scripts of the CPU benchmark use. A process holds one session per instance.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from bench import recipes
from bench.cases import Case
from bench.serve.cases import CASES

__all__ = ["Pipeline", "case_of_environment", "num_instances"]


def case_of_environment() -> Case:
    return CASES[os.environ["CASE"]]


def num_instances() -> int:
    """One per core, as every contender's guide says for work that fills a core."""
    return len(os.sched_getaffinity(0))


class Pipeline:
    """Not for two threads at once."""

    def __init__(self, case: Case) -> None:
        import cv2
        import onnxruntime

        cv2.setNumThreads(1)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._case = case
        self._session = onnxruntime.InferenceSession(
            case.model_path, options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name

    def find(self, jpeg: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes (k, 4) float32 xyxy in pixels, scores (k,) float32, classes (k,) int64."""
        import simplejpeg

        picture_bgr = simplejpeg.decode_jpeg(jpeg, colorspace="BGR")
        tensor, place = recipes.prepare(self._case, picture_bgr)
        output = self.infer(tensor)
        return recipes.finish(self._case, place, *recipes.read_kept(self._case, output))

    def infer(self, tensor: np.ndarray) -> np.ndarray:
        """The network's first output."""
        return self._session.run(None, {self._input: tensor})[0]

    def __call__(self, jpeg: bytes) -> dict[str, Any]:
        """The same as `find`, as what becomes JSON."""
        boxes_xyxy, scores, classes = self.find(jpeg)
        return {
            "boxes": boxes_xyxy.tolist(),
            "scores": scores.tolist(),
            "classes": classes.tolist(),
        }
