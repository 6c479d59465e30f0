"""FP16 graphs: strongly typed, FP32 where FP16 would harm, casts only at borders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from conv_net import SIZE_HW, conv_net, run_openvino, run_ort
from saccade.errors import BuildError
from saccade.graph.passes.elements import elem_types
from saccade.graph.passes.fp16 import islands_of, to_fp16
from saccade.graph.passes.parts import parts_of
from saccade.graph.passes.tidy import tidy

FLOAT, FLOAT16, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64
HEAD = {"prob", "parts_of", "expect", "to_px", "to_scores", "head_join"}


@pytest.fixture
def net(tmp_path: Path) -> onnx.ModelProto:
    return tidy(onnx.load(conv_net(tmp_path / "net.onnx")))


def make(
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    outputs: dict[str, int],
    shape: tuple[int, ...] = (1, 3, 8, 8),
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return tidy(onnx.shape_inference.infer_shapes(made))


def kernel(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def check(model: onnx.ModelProto) -> dict[str, int]:
    """Check types strictly and return those of all tensors."""
    onnx.checker.check_model(model, full_check=True)
    return elem_types(model)


def test_parts(net: onnx.ModelProto) -> None:
    parts = parts_of(net.graph)
    assert parts.weighted == ("stem", "deep", "wide", "mixed", "last")
    assert parts.first == {"stem"}
    assert parts.head == HEAD
    assert parts.shapes == frozenset()


def test_body_is_half_and_head_is_not(net: onnx.ModelProto, rng: np.random.Generator) -> None:
    made = to_fp16(net)
    types = check(made)
    assert {types[name] for name in ("c0", "y0", "cat", "u2", "c4")} == {FLOAT16}
    assert {types[name] for name in ("images", "prob", "px", "scores", "output0")} == {FLOAT}
    assert types["twice"] == FLOAT, "Resize takes its scales in FP32"
    casts = [node for node in made.graph.node if node.op_type == "Cast"]
    assert len(casts) == 2
    x = rng.random((2, 3, *SIZE_HW), dtype=np.float32)
    (exact,) = run_ort(net, {"images": x})
    for run in (run_ort, run_openvino):
        (half,) = run(made, {"images": x})
        assert half.dtype == np.float32
        assert np.abs(exact - half)[:, 0].max() < 2, "pixels of 560"
        assert np.abs(exact - half)[:, 1:].max() < 5e-3


def test_kept_nodes_stay_float(net: onnx.ModelProto) -> None:
    made = to_fp16(net, kept=["deep", "mixed"])
    types = check(made)
    assert types["c1"] == types["c3"] == FLOAT
    assert types["c2"] == types["sum"] == FLOAT16
    kernels = {node.name: node.input[1] for node in made.graph.node if node.op_type == "Conv"}
    assert kernels["deep"] == "deep_w"
    assert kernels["wide"] == "wide_w:fp16"
    assert all(tensor.name != "wide_w" for tensor in made.graph.initializer)


def test_same_bytes_and_the_given_graph_is_left_alone(net: onnx.ModelProto) -> None:
    before = net.SerializeToString(deterministic=True)
    one, two = to_fp16(net, ["wide", "deep"]), to_fp16(net, {"deep", "wide"})
    assert one.SerializeToString(deterministic=True) == two.SerializeToString(deterministic=True)
    assert net.SerializeToString(deterministic=True) == before


def test_outputs_that_are_read_inside_too(rng: np.random.Generator) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], "one"),
        helper.make_node("Exp", ["a"], ["e"], "exp"),
        helper.make_node("Add", ["a", "e"], ["s"], "sum"),
        helper.make_node("Conv", ["s", "w1"], ["y"], "two"),
    ]
    weights = {"w0": kernel(rng, 4, 3, 1, 1), "w1": kernel(rng, 2, 4, 1, 1)}
    net = make(nodes, weights, {"a": FLOAT, "y": FLOAT})
    made = to_fp16(net)
    types = check(made)
    assert types["a"] == types["y"] == types["e"] == FLOAT
    assert types["a:fp16"] == types["s"] == FLOAT16
    x = rng.normal(size=(1, 3, 8, 8)).astype(np.float32)
    for exact, half in zip(run_ort(net, {"x": x}), run_ort(made, {"x": x}), strict=True):
        np.testing.assert_allclose(half, exact, atol=0.02)


@pytest.mark.parametrize("value", [1e5, np.inf, 1e-9])
def test_constants_that_fp16_cannot_hold(rng: np.random.Generator, value: float) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], "one"),
        helper.make_node("Min" if value > 1 else "Add", ["a", "k"], ["b"], "wide"),
        helper.make_node("Conv", ["b", "w1"], ["y"], "two"),
    ]
    weights = {
        "w0": kernel(rng, 4, 3, 1, 1),
        "w1": kernel(rng, 2, 4, 1, 1),
        "k": np.array(value, np.float32),
    }
    net = make(nodes, weights, {"y": FLOAT})
    assert "wide" in islands_of(net)
    assert check(to_fp16(net))["b"] == FLOAT


def test_ordering_and_suppression_stay_float(rng: np.random.Generator) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], "one"),
        helper.make_node("Reshape", ["a", "boxes_shape"], ["boxes"], "boxes"),
        helper.make_node("ReduceMax", ["boxes"], ["best"], "best", axes=[2], keepdims=1),
        helper.make_node("Transpose", ["best"], ["scores"], "turn", perm=[0, 2, 1]),
        helper.make_node(
            "NonMaxSuppression", ["boxes", "scores", "most", "iou", "score"], ["picked"], "nms"
        ),
        helper.make_node("TopK", ["scores", "three"], ["top", "where"], "topk"),
        helper.make_node("Mul", ["top", "top"], ["square"], "square"),
        helper.make_node("Gather", ["square", "zero"], ["y"], "take"),
    ]
    weights = {
        "w0": kernel(rng, 4, 3, 1, 1),
        "boxes_shape": np.array([1, 64, 4]),
        "most": np.array([10]),
        "iou": np.array([0.5], np.float32),
        "score": np.array([0.1], np.float32),
        "three": np.array([3]),
        "zero": np.array(0),
    }
    net = make(nodes, weights, {"picked": INT64, "where": INT64, "y": FLOAT})
    made = to_fp16(net)
    types = check(made)
    assert types["top"] == types["boxes"] == FLOAT
    x = rng.normal(size=(1, 3, 8, 8)).astype(np.float32)
    assert run_ort(made, {"x": x})[2].dtype == np.float32


def test_bodies_read_fp32(rng: np.random.Generator) -> None:
    """An If whose branches take a tensor of the graph around them."""
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node(kind, ["a", "a"], [f"{name}_out"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_out", FLOAT, None)],
        )
        for name, kind in (("then", "Add"), ("else", "Mul"))
    }
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], "one"),
        helper.make_node("If", ["yes"], ["b"], "if", **branches),
        helper.make_node("Conv", ["b", "w1"], ["y"], "two"),
    ]
    weights = {
        "w0": kernel(rng, 4, 3, 1, 1),
        "w1": kernel(rng, 2, 4, 1, 1),
        "yes": np.array(True),
    }
    net = make(nodes, weights, {"y": FLOAT})
    made = to_fp16(net)
    check(made)
    x = rng.normal(size=(1, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(run_ort(made, {"x": x})[0], run_ort(net, {"x": x})[0], atol=0.02)


def test_sizes_are_computed_in_fp32(rng: np.random.Generator) -> None:
    """A size of 2049 is none in FP16; what follows from shapes alone is left as it is."""
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], "one"),
        helper.make_node("Shape", ["a"], ["shape"], "shape"),
        helper.make_node("Cast", ["shape"], ["sizes"], "cast", to=FLOAT),
        helper.make_node("Cast", ["sizes"], ["back"], "back", to=INT64),
        helper.make_node("Reshape", ["a", "back"], ["b"], "same"),
        helper.make_node("Conv", ["b", "w1"], ["y"], "two"),
    ]
    weights = {"w0": kernel(rng, 4, 3, 1, 1), "w1": kernel(rng, 2, 4, 1, 1)}
    net = make(nodes, weights, {"y": FLOAT}, shape=(1, 3, 1, 2049))
    made = to_fp16(net)
    assert check(made)["sizes"] == FLOAT
    x = rng.normal(size=(1, 3, 1, 2049)).astype(np.float32)
    assert run_ort(made, {"x": x})[0].shape == (1, 2, 1, 2049)


def test_refusals(net: onnx.ModelProto) -> None:
    with pytest.raises(BuildError, match="nowhere are none"):
        to_fp16(net, ["nowhere"])
    with pytest.raises(BuildError, match="all stay in FP32"):
        to_fp16(net, [node.name for node in net.graph.node])
    unknown = onnx.ModelProto()
    unknown.CopyFrom(net)
    unknown.graph.node[3].domain = "somewhere.else"
    with pytest.raises(BuildError, match="element type"):
        to_fp16(unknown)
