"""Triton's Python back end: an encoded picture in, boxes, scores and classes out."""

from __future__ import annotations

import os
import sys

# Triton's Python does not look at PYTHONPATH, and needs NumPy before it calls anything here.
sys.path[:0] = os.environ["MODEL_PYTHONPATH"].split(os.pathsep)


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        del args
        from bench.serve.apps.pipeline import Pipeline, case_of_environment

        self.pipeline = Pipeline(case_of_environment())

    def execute(self, requests: list) -> list:
        import numpy as np
        import triton_python_backend_utils as pb_utils

        responses = []
        for request in requests:
            image = pb_utils.get_input_tensor_by_name(request, "image").as_numpy()
            boxes_xyxy, scores, classes = self.pipeline.find(image[0])
            tensors = [
                pb_utils.Tensor("boxes", boxes_xyxy.astype(np.float32)),
                pb_utils.Tensor("scores", scores.astype(np.float32)),
                pb_utils.Tensor("classes", classes.astype(np.int32)),
            ]
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
        return responses
