"""A tidy graph means what the graph meant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from conv_net import conv_net, run_ort
from saccade.errors import BuildError
from saccade.graph.passes.tidy import MIN_OPSET, opset_of, tidy

FLOAT = TensorProto.FLOAT


def make(
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    *,
    opset: int = 17,
    shape: tuple[int, ...] = (1, 3, 8, 8),
    are_inputs: bool = False,
) -> onnx.ModelProto:
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    inputs = [helper.make_tensor_value_info("x", FLOAT, shape)]
    if are_inputs:
        inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in stored]
    output = helper.make_tensor_value_info("y", FLOAT, None)
    graph = helper.make_graph(nodes, "toy", inputs, [output], stored)
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=3 if are_inputs else 8
    )
    known = all(not node.domain for node in nodes)
    return onnx.shape_inference.infer_shapes(made) if known else made


def conv_and_norm(rng: np.random.Generator, bias: bool) -> tuple[list, dict[str, np.ndarray]]:
    weights = {
        "w": rng.normal(size=(4, 3, 3, 3)),
        "s": rng.normal(size=4),
        "t": rng.normal(size=4),
        "m": rng.normal(size=4),
        "v": rng.random(4) + 0.1,
    }
    if bias:
        weights["b"] = rng.normal(size=4)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"][: 2 + bias], ["c"], pads=[1] * 4),
        helper.make_node("BatchNormalization", ["c", "s", "t", "m", "v"], ["n"], epsilon=1e-3),
        helper.make_node("Relu", ["n"], ["y"]),
    ]
    return nodes, {name: array.astype(np.float32) for name, array in weights.items()}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("opset", [9, 11, 17])
def test_old_exports(rng: np.random.Generator, bias: bool, opset: int) -> None:
    """Weights as inputs, nameless nodes, an old opset, batch norms: all of it, as before 2020."""
    model = make(*conv_and_norm(rng, bias), opset=opset, are_inputs=True)
    made = tidy(model)
    onnx.checker.check_model(made, full_check=True)
    assert [value.name for value in made.graph.input] == ["x"]
    assert [node.op_type for node in made.graph.node] == ["Conv", "Relu"]
    assert [node.name for node in made.graph.node] == ["Conv:c", "Relu:y"]
    assert opset_of(made) == max(opset, MIN_OPSET)
    x = rng.normal(size=(1, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(
        run_ort(made, {"x": x})[0], run_ort(model, {"x": x})[0], rtol=1e-4, atol=1e-5
    )


def test_a_norm_that_is_not_alone_stays(rng: np.random.Generator) -> None:
    nodes, weights = conv_and_norm(rng, True)
    nodes[2] = helper.make_node("Add", ["n", "c"], ["y"])
    made = tidy(make(nodes, weights))
    assert [node.op_type for node in made.graph.node] == ["Conv", "BatchNormalization", "Add"]


def test_order_names_and_constants(rng: np.random.Generator) -> None:
    nodes = [
        helper.make_node("Add", ["a", "two"], ["y"], "same"),
        helper.make_node("Mul", ["x", "three"], ["a"], "same"),
        helper.make_node("Constant", [], ["two"], value_float=2.0),
        helper.make_node(
            "Constant", [], ["three"], value=helper.make_tensor("", FLOAT, [1], [3.0])
        ),
    ]
    made = tidy(make(nodes, {"unread": np.zeros(9, np.float32)}))
    assert [node.name for node in made.graph.node] == ["same", "same#2"]
    assert [node.op_type for node in made.graph.node] == ["Mul", "Add"]
    assert sorted(tensor.name for tensor in made.graph.initializer) == ["three", "two"]
    x = rng.normal(size=(1, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(run_ort(made, {"x": x})[0], x * 3 + 2, rtol=1e-6)


def test_functions_are_written_out(rng: np.random.Generator) -> None:
    model = make([helper.make_node("Twice", ["x"], ["y"], domain="own")], {})
    model.opset_import.append(helper.make_opsetid("own", 1))
    body = [helper.make_node("Add", ["p", "p"], ["q"])]
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("own", "Twice", ["p"], ["q"], body, opsets))
    made = tidy(model)
    assert [node.op_type for node in made.graph.node] == ["Add"]
    x = rng.normal(size=(1, 3, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(run_ort(made, {"x": x})[0], x + x)


def test_an_opset_that_cannot_be_raised() -> None:
    model = make([helper.make_node("NoSuchThing", ["x"], ["y"])], {}, opset=9)
    with pytest.raises(BuildError, match=r"must be 13 or newer.*it is 9"):
        tidy(model)


def test_twice_is_once(tmp_path: Path) -> None:
    once = tidy(onnx.load(conv_net(tmp_path / "net.onnx")))
    assert tidy(once).SerializeToString(deterministic=True) == once.SerializeToString(
        deterministic=True
    )


@pytest.mark.shared
@pytest.mark.parametrize(
    "name", ["fastestdet_352", "ultraface_rfb_320", "yolox_nano_416", "deimv2_atto_320"]
)
def test_real_models(shared: Path, name: str, rng: np.random.Generator) -> None:
    model = onnx.load(shared / "models" / f"{name}.onnx")
    made = tidy(model)
    onnx.checker.check_model(made, full_check=True)
    names = [node.name for node in made.graph.node]
    assert len(set(names)) == len(names)
    assert "" not in names
    feeds = {}
    for value in made.graph.input:
        sizes = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
        if value.type.tensor_type.elem_type == FLOAT:
            feeds[value.name] = rng.random(sizes, dtype=np.float32)
        else:
            feeds[value.name] = np.array([[320, 320]])
    for before, after in zip(run_ort(model, feeds), run_ort(made, feeds), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
