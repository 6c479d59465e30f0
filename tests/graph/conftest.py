"""Small graphs built in code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

Shape = list[int | str]


@pytest.fixture
def write_onnx(tmp_path: Path) -> Callable[..., Path]:
    """Write a graph to a new file.

    Inputs and outputs are {name: shape} (float32) or ready ValueInfoProtos.
    """
    count = 0

    def write(
        nodes: list[onnx.NodeProto],
        inputs: dict[str, Shape] | list[onnx.ValueInfoProto],
        outputs: dict[str, Shape] | list[onnx.ValueInfoProto],
        weights: list[onnx.TensorProto] | None = None,
        *,
        name: str = "",
        **kwargs: object,
    ) -> Path:
        nonlocal count
        count += 1
        graph = helper.make_graph(nodes, "toy", _values(inputs), _values(outputs), weights or [])
        options = {"opset_imports": [helper.make_opsetid("", 17)], "ir_version": 8, **kwargs}
        path = tmp_path / (name or f"toy{count}.onnx")
        path.write_bytes(helper.make_model(graph, **options).SerializeToString())
        return path

    return write


def _values(
    values: dict[str, Shape] | list[onnx.ValueInfoProto],
) -> list[onnx.ValueInfoProto]:
    if isinstance(values, list):
        return values
    return [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in values.items()
    ]
