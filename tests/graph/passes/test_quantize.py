"""INT8 graphs: where the rounding is, what is left alone, and what two runtimes make of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from conv_net import BODY, SIZE_HW, conv_net, run_openvino, run_ort
from saccade.errors import BuildError
from saccade.graph.passes.elements import elem_types
from saccade.graph.passes.qdq_writer import LEVELS, coded_weight
from saccade.graph.passes.quantize import (
    is_quantized,
    quantizable_nodes,
    quantized_tensors,
    to_qdq,
)
from saccade.graph.passes.tidy import tidy
from saccade.graph.topology import producers

INT8 = TensorProto.INT8


@pytest.fixture
def net(tmp_path: Path) -> onnx.ModelProto:
    return tidy(onnx.load(conv_net(tmp_path / "net.onnx")))


@pytest.fixture
def pictures(rng: np.random.Generator) -> np.ndarray:
    return rng.random((2, 3, *SIZE_HW), dtype=np.float32)


def ranges_of(
    net: onnx.ModelProto, pictures: np.ndarray, *, everything: bool = False
) -> dict[str, float]:
    names = quantized_tensors(net, everything=everything)
    inside = onnx.ModelProto()
    inside.CopyFrom(net)
    outputs = {value.name for value in net.graph.output}
    made = [name for name in names if name not in {"images", *outputs}]
    inside.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in made)
    values = run_ort(inside, {"images": pictures})
    found = dict(zip([*(v.name for v in net.graph.output), *made], values, strict=True))
    found["images"] = pictures
    return {name: float(np.abs(found[name]).max()) for name in names}


def check(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)


def inputs_of(model: onnx.ModelProto, name: str) -> list[str]:
    (node,) = (node for node in model.graph.node if node.name == name)
    makers = producers(model.graph)
    return [makers[i].op_type if i in makers else "stored or fed" for i in node.input if i]


def test_body_is_chosen_and_stem_and_head_are_not(net: onnx.ModelProto) -> None:
    assert quantizable_nodes(net.graph) == BODY


def test_where_the_rounding_is(net: onnx.ModelProto, pictures: np.ndarray) -> None:
    made = to_qdq(net, ranges_of(net, pictures))
    check(made)
    for name in BODY:
        assert inputs_of(made, name)[:2] == ["DequantizeLinear", "DequantizeLinear"]
    assert "DequantizeLinear" not in inputs_of(made, "stem")
    assert "DequantizeLinear" not in inputs_of(made, "expect")
    assert inputs_of(made, "stem_silu") == ["Conv", "Sigmoid"]
    types = elem_types(made)
    for name in ("cat", "cat2", "half", "p2", "u2"):
        assert types[f"{name}:int8"] == INT8, "moves move codes"
    assert all(node.input[2] for node in made.graph.node if node.op_type == "QuantizeLinear")
    assert not any(tensor.data_type == TensorProto.INT32 for tensor in made.graph.initializer)


def test_zero_points_are_zero_and_signed(net: onnx.ModelProto, pictures: np.ndarray) -> None:
    made = to_qdq(net, ranges_of(net, pictures))
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    for node in made.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = weights[node.input[2]]
            assert zero.dtype == np.int8
            assert not zero.any()
            assert (weights[node.input[1]] > 0).all()


def test_what_is_put_together_shares_a_scale(net: onnx.ModelProto, pictures: np.ndarray) -> None:
    made = to_qdq(net, ranges_of(net, pictures))
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    assert weights["y0:scale"] == weights["sum:scale"] == weights["cat:scale"]
    assert weights["c2:scale"] == weights["cat2:scale"]
    assert weights["c2:scale"] != weights["y0:scale"]


def test_answers_stay_near(net: onnx.ModelProto, pictures: np.ndarray) -> None:
    (exact,) = run_ort(net, {"images": pictures})
    (made,) = run_ort(to_qdq(net, ranges_of(net, pictures)), {"images": pictures})
    assert np.abs(exact - made)[:, 0].max() < 12, "pixels of 560"
    assert np.abs(exact - made)[:, 1:].max() < 0.05
    assert np.abs(exact - made).max() > 0


def test_same_meaning_in_onnxruntime_and_openvino(
    net: onnx.ModelProto, pictures: np.ndarray
) -> None:
    """A DequantizeLinear before Concat or Slice makes OpenVINO 2026.4 wrong by half the range."""
    made = to_qdq(net, ranges_of(net, pictures))
    (ours,) = run_ort(made, {"images": pictures}, exact=True)
    (fused,) = run_ort(made, {"images": pictures})
    (theirs,) = run_openvino(made, {"images": pictures})
    (exact,) = run_ort(net, {"images": pictures})
    rounding = np.sqrt(np.mean((exact - ours) ** 2))
    assert np.sqrt(np.mean((ours - theirs) ** 2)) < rounding
    assert np.sqrt(np.mean((ours - fused) ** 2)) < rounding


def test_kept_nodes_stay_float(net: onnx.ModelProto, pictures: np.ndarray) -> None:
    ranges = ranges_of(net, pictures)
    made = to_qdq(net, ranges, kept=["deep", "mixed"])
    check(made)
    assert inputs_of(made, "deep") == ["Slice", "stored or fed"]
    assert inputs_of(made, "mixed") == ["Concat", "stored or fed"]
    types = elem_types(made)
    assert types["half"] == TensorProto.FLOAT
    assert types["half:int8"] == INT8, "codes are moved beside the values"
    assert types["cat2"] == TensorProto.FLOAT
    assert "cat2:int8" not in types
    assert "DequantizeLinear" in inputs_of(made, "wide")


@pytest.mark.parametrize("kept", [(), ("deep",), ("wide",), ("mixed",), ("join", "join2")])
def test_quantisers_are_never_right_behind_a_move(
    net: onnx.ModelProto, pictures: np.ndarray, kept: tuple[str, ...]
) -> None:
    """OpenVINO 2026.4 reads them wrong there."""
    made = to_qdq(net, ranges_of(net, pictures), kept)
    check(made)
    makers = producers(made.graph)
    sources = [n.input[0] for n in made.graph.node if n.op_type == "QuantizeLinear"]
    assert {makers[name].op_type for name in sources} <= {"Mul", "Add", "LeakyRelu", "Conv"}
    (ours,) = run_ort(made, {"images": pictures}, exact=True)
    (theirs,) = run_openvino(made, {"images": pictures})
    (exact,) = run_ort(net, {"images": pictures})
    assert np.sqrt(np.mean((ours - theirs) ** 2)) < np.sqrt(np.mean((exact - ours) ** 2))


def test_stored_tensors_among_activations(rng: np.random.Generator) -> None:
    """A Concat with a stored map (coordinates, say) in front of a convolution."""
    weights = {
        "w0": rng.normal(size=(4, 3, 1, 1)),
        "w1": rng.normal(size=(5, 6, 1, 1)),
        "map": rng.normal(size=(1, 2, 8, 8)) * 3,
    }
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], "one"),
        helper.make_node("Concat", ["a", "map"], ["b"], "join", axis=1),
        helper.make_node("Conv", ["b", "w1"], ["y"], "two"),
    ]
    graph = helper.make_graph(
        nodes,
        "stored",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5, 8, 8])],
        [numpy_helper.from_array(v.astype(np.float32), name) for name, v in weights.items()],
    )
    net = tidy(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))
    assert quantized_tensors(net) == ("a",)
    x = rng.normal(size=(1, 3, 8, 8)).astype(np.float32)
    made = to_qdq(net, {"a": 6.0})
    check(made)
    (exact,) = run_ort(net, {"x": x})
    for run in (run_ort, run_openvino):
        assert np.abs(exact - run(made, {"x": x})[0]).max() < 0.05 * np.abs(exact).max()


def test_everything(net: onnx.ModelProto, pictures: np.ndarray) -> None:
    made = to_qdq(net, ranges_of(net, pictures, everything=True), everything=True)
    check(made)
    assert [value.name for value in made.graph.output] == ["output0"]
    for name in ("stem", "expect", "prob", "head_join"):
        assert "DequantizeLinear" in inputs_of(made, name)
    (exact,) = run_ort(net, {"images": pictures})
    (rounded,) = run_ort(made, {"images": pictures})
    # Pixels and scores on one scale: every score is rounded to a multiple of two pixels or so.
    assert np.unique(rounded[:, 1:]).size <= 2
    assert np.abs(exact - rounded)[:, 1:].max() > 0.3


def test_same_bytes_every_time(net: onnx.ModelProto, pictures: np.ndarray) -> None:
    ranges = ranges_of(net, pictures)
    shuffled = dict(reversed(ranges.items()))
    one, two = (to_qdq(net, given, kept=["deep"]) for given in (ranges, shuffled))
    assert one.SerializeToString(deterministic=True) == two.SerializeToString(deterministic=True)


def test_the_given_graph_is_left_alone(net: onnx.ModelProto, pictures: np.ndarray) -> None:
    before = net.SerializeToString(deterministic=True)
    assert is_quantized(to_qdq(net, ranges_of(net, pictures)))
    assert not is_quantized(net)
    assert net.SerializeToString(deterministic=True) == before


def test_refusals(net: onnx.ModelProto) -> None:
    with pytest.raises(BuildError, match="'c2' has none"):
        to_qdq(net, {"r3": 1.0, "sum": 1.0, "y0": 1.0})
    with pytest.raises(BuildError, match="nowhere are none"):
        to_qdq(net, {}, kept=["nowhere"])
    with pytest.raises(BuildError, match="none is left"):
        to_qdq(net, {}, kept=BODY)


def test_products_where_there_are_no_convolutions(rng: np.random.Generator) -> None:
    weights = [rng.normal(size=size).astype(np.float32) for size in ((8, 16), (16, 4), (4, 5))]
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Gemm", ["b", "w1"], ["c"], "gemm"),
        helper.make_node("MatMul", ["c", "w2"], ["y"], "second"),
    ]
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 5])],
        [numpy_helper.from_array(array, f"w{i}") for i, array in enumerate(weights)],
    )
    net = tidy(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))
    assert quantizable_nodes(net.graph) == ("gemm", "second")
    x = rng.normal(size=(2, 8)).astype(np.float32)
    made = to_qdq(net, {"b": 20.0, "c": 60.0})
    check(made)
    (exact,), (rounded,) = run_ort(net, {"x": x}), run_ort(made, {"x": x}, exact=True)
    assert np.abs(exact - rounded).max() < 0.05 * np.abs(exact).max()


def test_codes_of_weights(rng: np.random.Generator) -> None:
    weight = rng.normal(size=(4, 3, 2, 2)).astype(np.float32)
    weight[1] = 0
    weight[2] = 1e-42
    code, scale = coded_weight(weight, 0)
    assert code.dtype == np.int8
    assert np.abs(code).max() == LEVELS
    assert (scale > 0).all()
    error = np.abs(code * scale.reshape(-1, 1, 1, 1) - weight).max(axis=(1, 2, 3))
    assert (error <= scale / 2 * 1.0001).all()
    assert not code[1].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_must_be_finite(net: onnx.ModelProto, bad: float) -> None:
    for tensor in net.graph.initializer:
        if tensor.name == "deep_w":
            values = numpy_helper.to_array(tensor).copy()
            values[0, 0, 0, 0] = bad
            tensor.CopyFrom(numpy_helper.from_array(values, "deep_w"))
    with pytest.raises(BuildError, match="'deep_w' of node 'deep'"):
        to_qdq(net, dict.fromkeys(quantized_tensors(net), 1.0))
