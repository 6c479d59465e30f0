from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from saccade.graph.reading import load_proto, read_model
from saccade.graph.shapes import Shapes, TensorShape, infer_shapes
from saccade.graph.signature import feed_shapes, size_of

Write = Callable[..., Path]


def shapes_of(path: Path, **feeds: tuple[int | str, ...]) -> Shapes:
    return infer_shapes(load_proto(read_model(path)), feeds, model_path=path)


@pytest.mark.parametrize("opset", [9, 11, 13, 18])
def test_computed_reshape_in_the_words_of_each_opset(write_onnx: Write, opset: int) -> None:
    """Unsqueeze and ReduceSum took their axes as attributes before opset 13."""
    axes = numpy_helper.from_array(np.array([0]), "axes")
    new = opset >= 13
    extra = {} if new else {"axes": [0]}
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "one"], ["c"]),
        helper.make_node("Unsqueeze", ["c", "axes"] if new else ["c"], ["c1"], **extra),
        helper.make_node("Concat", ["c1", "rest"], ["target"], axis=0),
        helper.make_node("Div", ["target", "half"], ["halved"]),
        helper.make_node("Reshape", ["x", "halved"], ["y"]),
    ]
    weights = [
        axes,
        numpy_helper.from_array(np.array(1), "one"),
        numpy_helper.from_array(np.array([-2]), "rest"),
        numpy_helper.from_array(np.array(2), "half"),
    ]
    imports = [helper.make_opsetid("", opset)]
    picture = {"x": ["b", 4, 8, 8]}
    path = write_onnx(nodes, picture, {"y": [2, "?"]}, weights, opset_imports=imports)
    shapes = shapes_of(path, x=(3, 4, 8, 8))
    assert shapes.tensors["y"].sizes == (2, 384)
    assert "target" in shapes.constants
    assert "y" not in shapes.constants
    assert shapes.complaint == ""


def test_results_that_would_be_huge_are_not_computed(write_onnx: Write) -> None:
    nodes = [
        helper.make_node("ConstantOfShape", ["sizes"], ["zeros"]),
        helper.make_node("Range", ["zero", "end", "one"], ["count"]),
    ]
    weights = [
        numpy_helper.from_array(np.array([1 << 20, 1 << 20]), "sizes"),
        numpy_helper.from_array(np.array(0), "zero"),
        numpy_helper.from_array(np.array(1 << 40), "end"),
        numpy_helper.from_array(np.array(1), "one"),
    ]
    path = write_onnx(nodes, {"x": [1, 3, 8, 8]}, {"zeros": ["?", "?"], "count": ["?"]}, weights)
    shapes = shapes_of(path)
    assert shapes.tensors["zeros"].sizes == (1 << 20, 1 << 20)
    assert not {"zeros", "count"} & shapes.constants


def test_nodes_that_cannot_run_are_left(write_onnx: Write) -> None:
    nodes = [
        helper.make_node("Div", ["one", "zero"], ["ratio"]),
        helper.make_node("Gather", ["ones", "nine"], ["beyond"]),
    ]
    weights = [
        numpy_helper.from_array(np.array(1), "one"),
        numpy_helper.from_array(np.array([1]), "ones"),
        numpy_helper.from_array(np.array(0), "zero"),
        numpy_helper.from_array(np.array(9), "nine"),
    ]
    path = write_onnx(nodes, {"x": [1, 3, 8, 8]}, {"ratio": [], "beyond": []}, weights)
    assert "beyond" not in shapes_of(path).constants


def test_complaint_is_kept(write_onnx: Write) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    wrong = helper.make_tensor_value_info("y", TensorProto.INT64, [1, 3, 8, 8])
    shapes = shapes_of(write_onnx([node], {"x": [1, 3, 8, 8]}, [wrong]))
    assert "elem type" in shapes.complaint
    assert shapes.tensors["x"].sizes == (1, 3, 8, 8)


def test_node_that_contradicts_its_input_is_left_unknown(write_onnx: Write) -> None:
    node = helper.make_node("Transpose", ["x"], ["y"], perm=[0, 7])
    assert "y" not in shapes_of(write_onnx([node], {"x": [1, 3, 8, 8]}, {"y": ["?"]})).tensors


def test_num_elements() -> None:
    assert TensorShape(1, (2, 3)).num_elements == 6
    assert TensorShape(1, ()).num_elements == 1
    assert TensorShape(1, (2, "?")).num_elements is None


MODELS = (
    "cells_640",
    "deimv2_atto_320",
    "fastestdet_352_nms",
    "fastestdet_352_qdq_int8",
    "nanodet_m_320",
    "ultraface_rfb_320",
    "yolox_nano_416",
)


@pytest.mark.shared
@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_has_the_shape_it_has_when_run(shared: Path, name: str) -> None:
    """ONNX Runtime with all optimisation off and every tensor made an output."""
    onnxruntime = pytest.importorskip("onnxruntime")
    model = read_model(shared / "models" / f"{name}.onnx")
    proto = load_proto(model)
    batch = 2 if isinstance(model.inputs[0].shape[0], str) else 1
    feeds = feed_shapes(model, size_of(model)[0], batch)
    shapes = infer_shapes(proto, feeds, model_path=model.path)

    names = [output for node in proto.graph.node for output in node.output if output]
    wanted = [output.name for output in proto.graph.output]
    extra = [helper.make_empty_tensor_value_info(n) for n in names if n not in wanted]
    proto.graph.output.extend(extra)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    arrays = {spec.name: np.full(tuple(feeds[spec.name]), 100, spec.dtype) for spec in model.inputs}
    real = dict(zip([o.name for o in proto.graph.output], session.run(None, arrays), strict=True))

    known = 0
    for tensor, array in real.items():
        shape = shapes.tensors.get(tensor)
        if shape is not None:
            pairs = list(zip(shape.sizes, array.shape, strict=True))
            assert all(size in ("?", actual) for size, actual in pairs), tensor
            known += shape.num_elements is not None
    data_dependent = 18 if name == "fastestdet_352_nms" else 0
    assert known == len(real) - data_dependent
