from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from saccade.graph.cost import Cost, cost_of
from saccade.graph.reading import read_model

Write = Callable[..., Path]
MIB = 1 << 20


def cost(path: Path, **kwargs: int) -> Cost:
    return cost_of(read_model(path), **kwargs)


@pytest.mark.parametrize("batch", [1, 8])
def test_concat_to_640x640x256_is_400_mib(write_onnx: Write, batch: int) -> None:
    """Figure of an article on the memory of detectors, which says 256 MB."""
    weight = numpy_helper.from_array(np.zeros((128, 3, 1, 1), np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Conv", ["x", "w"], ["b"]),
        helper.make_node("Concat", ["a", "b"], ["joined"], axis=1, name="join"),
        helper.make_node("GlobalAveragePool", ["joined"], ["out"]),
    ]
    picture = {"x": ["n", 3, 640, 640]}
    found = cost(write_onnx(nodes, picture, {"out": ["n", 256, 1, 1]}, [weight]), batch=batch)
    largest = found.largest_tensors[0]
    assert (largest.name, largest.shape) == ("joined", (batch, 256, 640, 640))
    assert largest.num_bytes == batch * 400 * MIB
    assert found.peak_activation_bytes == batch * 800 * MIB
    assert found.peak_node == "Concat node 'join'"


def test_lifetimes_by_hand(write_onnx: Write) -> None:
    """1 KiB each; a skip connection keeps `a` until the Add: x a | a b | a b c | a c y."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Concat", ["b", "b"], ["c"], axis=2),
        helper.make_node("Slice", ["c", "from", "to"], ["d"], name="cut"),
        helper.make_node("Add", ["a", "d"], ["y"]),
    ]
    weights = [
        numpy_helper.from_array(np.array([0, 0, 0]), "from"),
        numpy_helper.from_array(np.array([1, 1, 16]), "to"),
    ]
    shape = [1, 1, 16, 16]
    found = cost(write_onnx(nodes, {"x": shape}, {"y": shape}, weights))
    assert found.peak_activation_bytes == 4 * 1024
    assert {t.name: t.num_bytes for t in found.largest_tensors} in (
        {"a": 1024, "b": 1024, "c": 2048},
        {"a": 1024, "c": 2048, "d": 1024},
    )


def test_views_share_memory_and_keep_it_alive(write_onnx: Write) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Reshape", ["a", "flat"], ["v"]),
        helper.make_node("Identity", ["v"], ["u"]),
        helper.make_node("Neg", ["u"], ["y"]),
    ]
    flat = numpy_helper.from_array(np.array([1, -1]), "flat")
    found = cost(write_onnx(nodes, {"x": [1, 1, 16, 16]}, {"y": [1, 256]}, [flat]))
    assert found.peak_activation_bytes == 2 * 1024
    assert all(tensor.name not in ("v", "u") for tensor in found.largest_tensors)


def test_outputs_stay_to_the_end(write_onnx: Write) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["early"]),
        helper.make_node("Neg", ["x"], ["a"]),
        helper.make_node("Neg", ["a"], ["late"]),
    ]
    shape = [1, 1, 16, 16]
    found = cost(write_onnx(nodes, {"x": shape}, {"early": shape, "late": shape}))
    assert found.peak_activation_bytes == 3 * 1024


def test_output_that_is_a_view_of_an_input(write_onnx: Write) -> None:
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    shape = [1, 1, 16, 16]
    assert cost(write_onnx(nodes, {"x": shape}, {"y": shape})).peak_activation_bytes == 1024


def test_what_follows_from_weights_alone_is_no_activation(write_onnx: Write) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale"], ["w"]),
        helper.make_node("Conv", ["x", "w"], ["y"]),
    ]
    weights = [
        numpy_helper.from_array(np.zeros((1, 1, 64, 64), np.int8), "q"),
        numpy_helper.from_array(np.array(1, np.float32), "scale"),
    ]
    found = cost(write_onnx(nodes, {"x": [1, 1, 64, 64]}, {"y": [1, 1, 1, 1]}, weights))
    assert found.peak_activation_bytes == 64 * 64 * 4 + 4
    assert found.multiply_adds == 64 * 64
    assert found.weight_bytes == 64 * 64 + 4


def test_element_sizes(write_onnx: Write) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 1, 16, 16])
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT16)]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT16, [1, 1, 16, 16])
    assert cost(write_onnx(nodes, [value], [out])).peak_activation_bytes == 256 + 512


def test_body_adds_its_own_peak(write_onnx: Write) -> None:
    inner = [helper.make_node("Relu", ["x"], ["i"]), helper.make_node("Neg", ["i"], ["o"])]
    value = helper.make_tensor_value_info("o", TensorProto.FLOAT, [1, 1, 16, 16])
    long = helper.make_graph(inner, "long", [], [value])
    short = helper.make_graph([helper.make_node("Relu", ["x"], ["o"])], "short", [], [value])
    node = helper.make_node("If", ["flag"], ["y"], then_branch=long, else_branch=short)
    flag = numpy_helper.from_array(np.array(True), "flag")
    shape = [1, 1, 16, 16]
    found = cost(write_onnx([node], {"x": shape}, {"y": shape}, [flag]))
    assert found.peak_activation_bytes == 4 * 1024
    assert found.num_operators == {"If": 1, "Relu": 2, "Neg": 1}
    assert any("If" in note for note in found.notes)


def test_unknown_sizes_are_noted(write_onnx: Write) -> None:
    node = helper.make_node("NonZero", ["x"], ["hits"])
    value = helper.make_tensor_value_info("hits", TensorProto.INT64, [4, "n"])
    found = cost(write_onnx([node], {"x": [1, 1, 16, 16]}, [value]))
    assert found.peak_activation_bytes == 1024
    assert found.notes == ("not in the memory, size unknown: hits",)


@pytest.mark.shared
def test_peak_grows_with_the_batch(shared: Path) -> None:
    model = read_model(shared / "models" / "cells_640.onnx")
    one, eight = cost_of(model), cost_of(model, batch=8)
    assert one.peak_activation_bytes == 3 * 16 * 320 * 320 * 4
    assert eight.peak_activation_bytes == 8 * one.peak_activation_bytes
    assert eight.multiply_adds == one.multiply_adds
