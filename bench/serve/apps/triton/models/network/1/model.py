"""Triton's Python back end: the network alone, tensor in, tensor out."""

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
        import triton_python_backend_utils as pb_utils

        responses = []
        for request in requests:
            tensor = pb_utils.get_input_tensor_by_name(request, "images").as_numpy()
            output = pb_utils.Tensor("output", self.pipeline.infer(tensor))
            responses.append(pb_utils.InferenceResponse(output_tensors=[output]))
        return responses
