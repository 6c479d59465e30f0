"""Servers, clients and networks that the tests of the server share."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from nets import mean_color_detector
from server import live

ROOT = Path(__file__).resolve().parents[2]
CELLS = ROOT / "models" / "cells_640.onnx"


def save_network(path, nodes, inputs, outputs):
    """A network of few nodes; inputs and outputs as (name, type, shape)."""
    made = [helper.make_tensor_value_info(*one) for one in (*inputs, *outputs)]
    graph = helper.make_graph(nodes, path.stem, made[: len(inputs)], made[len(inputs) :])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


def identity(path, kind=TensorProto.FLOAT, shape=("batch", 4)):
    node = helper.make_node("Identity", ["input"], ["output"])
    return save_network(path, [node], [("input", kind, shape)], [("output", kind, shape)])


def sum_and_difference(path):
    """Two inputs and two outputs, all (b, 16) int32: Triton's customary example."""
    nodes = [
        helper.make_node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"]),
        helper.make_node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"]),
    ]
    kind, shape = TensorProto.INT32, ("batch", 16)
    inputs = [(f"INPUT{i}", kind, shape) for i in range(2)]
    outputs = [(f"OUTPUT{i}", kind, shape) for i in range(2)]
    return save_network(path, nodes, inputs, outputs)


def jpeg(red=200, green=30, blue=90, size_wh=(48, 40)):
    """One colour as a JPEG."""
    width, height = size_wh
    picture = np.full((height, width, 3), (blue, green, red), np.uint8)
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


@pytest.fixture(scope="session")
def networks(tmp_path_factory):
    """Files by name."""
    folder = tmp_path_factory.mktemp("networks")
    return {
        "identity": identity(folder / "identity.onnx"),
        "simple": sum_and_difference(folder / "simple.onnx"),
        "colours": mean_color_detector(folder / "colours.onnx"),
        "wide": identity(folder / "wide.onnx", shape=("batch", 70_000)),
        "bools": identity(folder / "bools.onnx", TensorProto.BOOL),
        "halves": identity(folder / "halves.onnx", TensorProto.FLOAT16),
    }


@pytest.fixture(scope="session")
def served(networks):
    """A server with all networks, batches of up to four and short patience."""
    arguments = [f"{name}={path}" for name, path in networks.items()]
    with live.server(*arguments, "--batch", "4", "--max-body-mb", "4") as running:
        yield running
