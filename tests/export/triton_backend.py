"""Stands in for Triton's onnxruntime back end, which no package brings: a back end in Python.

Copied to backends/onnxruntime/model.py. It takes from the configuration what the real one does.
"""

from __future__ import annotations

import json
import os
import sys

# Triton's Python does not look at PYTHONPATH, and needs NumPy before it calls anything here.
sys.path[:0] = os.environ["MODEL_PYTHONPATH"].split(os.pathsep)


class TritonPythonModel:
    """One instance of a model."""

    def initialize(self, args):
        import onnxruntime

        config = json.loads(args["model_config"])
        options = onnxruntime.SessionOptions()
        threads = config["parameters"]["intra_op_thread_count"]["string_value"]
        options.intra_op_num_threads = int(threads)
        name = config.get("default_model_filename") or "model.onnx"
        folder = args["model_repository"]
        path = os.path.join(folder, args["model_version"], name)
        self.session = onnxruntime.InferenceSession(path, options)
        self.inputs = [one["name"] for one in config["input"]]
        self.outputs = [one["name"] for one in config["output"]]

    def execute(self, requests):
        import numpy as np
        import triton_python_backend_utils as utils

        fed = [
            {name: utils.get_input_tensor_by_name(one, name).as_numpy() for name in self.inputs}
            for one in requests
        ]
        together = {name: np.concatenate([one[name] for one in fed]) for name in self.inputs}
        found = self.session.run(self.outputs, together)
        responses, at = [], 0
        for one in fed:
            end = at + len(one[self.inputs[0]])
            tensors = [
                utils.Tensor(name, np.ascontiguousarray(values[at:end]))
                for name, values in zip(self.outputs, found, strict=True)
            ]
            responses.append(utils.InferenceResponse(output_tensors=tensors))
            at = end
        return responses
