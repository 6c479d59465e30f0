from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from saccade.errors import InputError, ModelError
from saccade.graph.cost import cost_of
from saccade.graph.reading import read_model

Write = Callable[..., Path]


def zeros(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(np.zeros(shape, np.float32), name)


def macs(path: Path, **kwargs: object) -> int:
    return cost_of(read_model(path), **kwargs).multiply_adds  # type: ignore[arg-type]


def test_grouped_strided_convolution(write_onnx: Write) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=3, strides=[2, 2], pads=[1, 1, 1, 1])
    path = write_onnx([node], {"x": [1, 3, 8, 8]}, {"y": [1, 6, 4, 4]}, [zeros("w", 6, 1, 3, 3)])
    assert macs(path) == 6 * 4 * 4 * 9


def test_transposed_convolution(write_onnx: Write) -> None:
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])
    path = write_onnx([node], {"x": [1, 3, 8, 8]}, {"y": [1, 5, 16, 16]}, [zeros("w", 3, 5, 2, 2)])
    assert macs(path) == 3 * 8 * 8 * 5 * 2 * 2


@pytest.mark.parametrize("flip", [0, 1])
def test_gemm(write_onnx: Write, flip: int) -> None:
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"], axis=2),
        helper.make_node("Gemm", ["f", "w"], ["y"], transA=flip),
    ]
    weight = zeros("w", 3 if flip else 64, 10)
    path = write_onnx(nodes, {"x": [1, 3, 8, 8]}, {"y": ["?", 10]}, [weight])
    assert macs(path) == 3 * 64 * 10


def test_attention_product_is_counted_and_told_apart(write_onnx: Write) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["q"]),
        helper.make_node("Transpose", ["x"], ["k"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["q", "k"], ["y"]),
    ]
    path = write_onnx(nodes, {"x": ["b", 3, 8, 8]}, {"y": ["b", 3, 8, 8]}, [zeros("w", 8, 8)])
    cost = cost_of(read_model(path), (8, 8), batch=4)
    assert cost.multiply_adds == 2 * 3 * 8 * 8 * 8
    assert cost.weightless_multiply_adds == 3 * 8 * 8 * 8
    assert cost.multiply_adds_by_type == {"MatMul": cost.multiply_adds}


def test_quantised_convolution(write_onnx: Write) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("QLinearConv", ["q", "s", "z", "w", "s", "z", "s", "z"], ["y"]),
    ]
    weights = [
        numpy_helper.from_array(np.array(1, np.float32), "s"),
        numpy_helper.from_array(np.array(0, np.uint8), "z"),
        numpy_helper.from_array(np.zeros((5, 3, 1, 1), np.uint8), "w"),
    ]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
    out = helper.make_tensor_value_info("y", TensorProto.UINT8, [1, 5, 8, 8])
    assert macs(write_onnx(nodes, [value], [out], weights)) == 5 * 8 * 8 * 3


def test_weights_in_constant_nodes_have_bytes(write_onnx: Write) -> None:
    nodes = [
        helper.make_node("Constant", [], ["w"], value=zeros("", 6, 3, 1, 1)),
        helper.make_node("Conv", ["x", "w"], ["y"]),
    ]
    cost = cost_of(read_model(write_onnx(nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 6, 8, 8]})))
    assert cost.weight_bytes == 72
    assert cost.num_parameters == 18
    assert cost.multiply_adds == 6 * 8 * 8 * 3
    assert [tensor.name for tensor in cost.largest_tensors] == ["y", "x"]


def test_body_is_counted_once(write_onnx: Write) -> None:
    state = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Conv", ["v", "w"], ["v_out"]),
            helper.make_node("Identity", ["go"], ["go_out"]),
        ],
        "body",
        [state("i", 7, []), state("go", 9, []), state("v", 1, [1, 3, 8, 8])],
        [state("go_out", 9, []), state("v_out", 1, [1, 3, 8, 8])],
        [zeros("w", 3, 3, 1, 1)],
    )
    node = helper.make_node("Loop", ["times", "", "x"], ["y"], body=body)
    times = numpy_helper.from_array(np.array(10), "times")
    cost = cost_of(
        read_model(write_onnx([node], {"x": [1, 3, 8, 8]}, {"y": [1, 3, 8, 8]}, [times]))
    )
    assert cost.multiply_adds == 3 * 64 * 3
    assert cost.weightless_multiply_adds == 0
    assert cost.num_parameters == 9 + 1
    assert cost.notes[0] == "bodies counted once, whatever their number of rounds: Loop"


def test_unknown_operators_are_noted(write_onnx: Write) -> None:
    nodes = [
        helper.make_node("Warp", ["x"], ["a"], domain="com.acme"),
        helper.make_node("Conv", ["a", "w"], ["y"], name="after"),
    ]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.acme", 1)]
    picture, out = {"x": [1, 3, 8, 8]}, {"y": [1, 6, 8, 8]}
    path = write_onnx(nodes, picture, out, [zeros("w", 6, 3, 1, 1)], opset_imports=imports)
    cost = cost_of(read_model(path))
    assert cost.multiply_adds == 0
    assert cost.notes[0] == "operators not of the ONNX standard, not counted: com.acme:Warp"
    assert "after" in cost.notes[1]


def test_free_size_and_batch(write_onnx: Write) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    picture, out = {"x": ["b", 3, "h", "w"]}, {"y": ["b", 6, "h", "w"]}
    model = read_model(write_onnx([node], picture, out, [zeros("w", 6, 3, 1, 1)]))
    assert cost_of(model).size_hw == (640, 640)
    assert cost_of(model, (8, 16), batch=3).multiply_adds == 6 * 8 * 16 * 3
    with pytest.raises(InputError, match="at least 1, got 0"):
        cost_of(model, (8, 16), batch=0)


def test_batch_against_the_graph(write_onnx: Write) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    model = read_model(write_onnx([node], {"x": [1, 3, 8, 8]}, {"y": [1, 3, 8, 8]}))
    with pytest.raises(InputError, match="must be 1, which the graph fixes, got 2"):
        cost_of(model, batch=2)


def test_no_picture_input(write_onnx: Write) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    with pytest.raises(ModelError, match="one input with four axes"):
        cost_of(read_model(write_onnx([node], {"x": [1, 10]}, {"y": [1, 10]})))


@pytest.mark.shared
def test_shared_models_agree_with_their_table(shared: Path) -> None:
    """The table counts products with weights only; attention between activations is ours."""
    rows = {}
    for line in (shared / "MODELS.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 5 and cells[2].isdigit():
            rows[cells[1]] = (float(cells[3]), float(cells[4]))
    assert len(rows) == 9
    for name, (params_m, mmacs) in rows.items():
        cost = cost_of(read_model(shared / "models" / f"{name}.onnx"))
        assert cost.num_parameters / 1e6 == pytest.approx(params_m, rel=0.01), name
        weighted = cost.multiply_adds - cost.weightless_multiply_adds
        assert weighted / 1e6 == pytest.approx(mmacs, rel=0.001), name
        assert (cost.weightless_multiply_adds > 0) == (name == "deimv2_atto_320")


@pytest.mark.shared
def test_cells_model(shared: Path) -> None:
    cost = cost_of(read_model(shared / "models" / "cells_640.onnx"))
    assert cost.num_parameters / 1e6 == pytest.approx(3.01, rel=0.01)
    assert cost.notes == ()
