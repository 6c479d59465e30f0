"""PyTriton: inference functions, one per core, bound to a model of a real Triton server."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig, TritonSecurityConfig

from bench.serve.apps.pipeline import Pipeline, case_of_environment, num_instances


class Detector:
    def __init__(self) -> None:
        self.pipeline = Pipeline(case_of_environment())

    def __call__(self, requests: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        return [self.answer(request["image"]) for request in requests]

    def answer(self, image: np.ndarray) -> dict[str, np.ndarray]:
        boxes_xyxy, scores, classes = self.pipeline.find(image.item())
        return {
            "num": np.array([len(scores)], np.int32),
            "boxes": pad(boxes_xyxy.astype(np.float32)),
            "scores": pad(scores.astype(np.float32)),
            "classes": pad(classes.astype(np.int32)),
        }


def pad(values: np.ndarray) -> np.ndarray:
    """At least one row: PyTriton fails on an output without any."""
    return values if len(values) else np.zeros((1, *values.shape[1:]), values.dtype)


class Network:
    def __init__(self) -> None:
        self.pipeline = Pipeline(case_of_environment())

    def __call__(self, requests: list[Any]) -> list[dict[str, np.ndarray]]:
        return [{"output": self.pipeline.infer(request["images"])} for request in requests]


def identity(requests: list[Any]) -> list[dict[str, np.ndarray]]:
    return [{"OUTPUT0": request["INPUT0"]} for request in requests]


def main(http_port: int, grpc_port: int) -> None:
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=http_port,
        grpc_address="127.0.0.1",
        grpc_port=grpc_port,
        allow_metrics=False,
    )
    plain = ModelConfig(batching=False)
    # perf_analyzer reads statistics, which are closed by default.
    security = TritonSecurityConfig(restricted_endpoints=[])
    with Triton(config=config, security_config=security) as triton:
        triton.bind(
            "detector",
            [Detector() for _ in range(num_instances())],
            inputs=[Tensor(name="image", dtype=bytes, shape=(1,))],
            outputs=[
                Tensor(name="num", dtype=np.int32, shape=(1,)),
                Tensor(name="boxes", dtype=np.float32, shape=(-1, 4)),
                Tensor(name="scores", dtype=np.float32, shape=(-1,)),
                Tensor(name="classes", dtype=np.int32, shape=(-1,)),
            ],
            config=plain,
        )
        triton.bind(
            "identity",
            identity,
            inputs=[Tensor(name="INPUT0", dtype=np.float32, shape=(1, 256))],
            outputs=[Tensor(name="OUTPUT0", dtype=np.float32, shape=(1, 256))],
            config=plain,
        )
        triton.bind(
            "network",
            [Network() for _ in range(num_instances())],
            inputs=[Tensor(name="images", dtype=np.float32, shape=(-1, -1, -1, -1))],
            outputs=[Tensor(name="output", dtype=np.float32, shape=(-1, -1, -1))],
            config=plain,
        )
        triton.serve()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
