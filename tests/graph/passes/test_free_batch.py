"""A freed graph answers for each picture of a batch as the original does for it alone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from saccade.errors import BuildError
from saccade.graph.passes.free_batch import FREE_AXIS, free_batch

SHARED = (
    "fastestdet_352",
    "light_person_192",
    "nanodet_m_320",
    "ultraface_rfb_320",
    "yolox_nano_416",
    "yunet_n_320",
)


def session_of(proto):
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def graph_of(nodes, shape, out_shape, weights, opset=13):
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out_shape)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def check_same(proto, path, rng, num=3, scale=1.0):
    freed = free_batch(proto, model_path=path)
    old, new = session_of(proto), session_of(freed)
    weights = {tensor.name for tensor in proto.graph.initializer}
    (fed,) = [value for value in old.get_inputs() if value.name not in weights]
    pictures = rng.random((num, *fed.shape[1:]), np.float32) * np.float32(scale)
    alone = [old.run(None, {fed.name: pictures[i : i + 1]}) for i in range(num)]
    for place, together in enumerate(new.run(None, {fed.name: pictures})):
        np.testing.assert_allclose(
            together, np.concatenate([one[place] for one in alone]), atol=1e-5 * scale
        )
    assert freed.graph.output[0].type.tensor_type.shape.dim[0].dim_param == FREE_AXIS


@pytest.mark.shared
@pytest.mark.parametrize("name", SHARED)
def test_real_models_answer_alike_alone_and_together(shared, rng, name):
    path = shared / "models" / f"{name}.onnx"
    check_same(onnx.load(path), path, rng, scale=255.0 if name.startswith("yolox") else 1.0)


def test_a_channel_shuffle_through_merged_axes(tmp_path, rng):
    """(1, 6, 2, 2) seen as (3, 2, 4), turned, and seen as halves: the batch lies inside an axis."""
    nodes = [
        helper.make_node("Reshape", ["x", "merged"], ["m"]),
        helper.make_node("Transpose", ["m"], ["t"], perm=[1, 0, 2]),
        helper.make_node("Reshape", ["t", "halves"], ["h"]),
        helper.make_node("Gather", ["h", "one"], ["y"], axis=0),
    ]
    weights = {
        "merged": np.array([3, 2, 4]),
        "halves": np.array([2, -1, 3, 2, 2]),
        "one": np.array(1),
    }
    check_same(graph_of(nodes, [1, 6, 2, 2], [1, 3, 2, 2], weights), tmp_path / "net.onnx", rng)


def test_a_minus_one_that_would_swallow_the_batch(tmp_path, rng):
    """(1, 6, -1) fits two pictures without an error, and would join them."""
    nodes = [helper.make_node("Reshape", ["x", "rows"], ["y"])]
    proto = graph_of(nodes, [1, 6, 2, 2], [1, 6, 4], {"rows": np.array([1, 6, -1])})
    check_same(proto, tmp_path / "net.onnx", rng)


@pytest.mark.parametrize(
    ("node", "out_shape", "what"),
    [
        (helper.make_node("Softmax", ["x"], ["y"], axis=0), [1, 4], "axis 0"),
        (helper.make_node("ReduceMax", ["x"], ["y"]), [1, 1], "axis 0"),
        (helper.make_node("MatMul", ["left", "x"], ["y"]), [1, 4], "sums over or joins"),
        (helper.make_node("CumSum", ["x", "zero"], ["y"]), [1, 4], "no rule"),
        (helper.make_node("Concat", ["x", "x"], ["y"], axis=0), [2, 4], "axis 0"),
        (helper.make_node("Transpose", ["x"], ["y"]), [4, 1], "first axis"),
    ],
)
def test_what_mixes_pictures_is_refused_by_name(tmp_path, node, out_shape, what):
    weights = {"left": np.ones((1, 1), np.float32), "zero": np.array(0)}
    proto = graph_of([node], [1, 4], out_shape, weights)
    with pytest.raises(BuildError, match=what):
        free_batch(proto, model_path=tmp_path / "net.onnx")


def test_a_free_or_larger_batch_is_refused(tmp_path):
    for first in ("n", 2):
        proto = graph_of([helper.make_node("Relu", ["x"], ["y"])], [first, 4], [first, 4], {})
        with pytest.raises(BuildError, match="for 1 picture"):
            free_batch(proto, model_path=tmp_path / "net.onnx")


def test_the_original_is_not_changed(tmp_path):
    proto = graph_of([helper.make_node("Relu", ["x"], ["y"])], [1, 4], [1, 4], {})
    before = proto.SerializeToString(deterministic=True)
    free_batch(proto, model_path=tmp_path / "net.onnx")
    assert proto.SerializeToString(deterministic=True) == before
