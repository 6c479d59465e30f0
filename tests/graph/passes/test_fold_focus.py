"""A stem of four slices becomes one convolution with the same sums."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from saccade.graph.passes.fold_focus import fold_focus, runtime_source
from saccade.graph.reading import read_model

CHANNELS = 3
BIGGEST = np.iinfo(np.int64).max


def weight(name, values, dtype=np.int64):
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def focus(
    rng, *, size_hw=(16, 20), order=((0, 0), (1, 0), (0, 1), (1, 1)), kernel_hw=(3, 3),
    pads=(1, 1, 1, 1), strides=(1, 1), is_one_slice=False, step=2, axis=1, extra_output=False,
):  # fmt: skip
    """Focus and a convolution, with rows and columns cut in two slices or in one."""
    nodes, weights, cut = [], [], []
    for index, (row, column) in enumerate(order):
        starts, axes = [row, column], [2, 3]
        steps = [((starts, axes), "x", f"p{index}")]
        if not is_one_slice:
            steps = [(([row], [2]), "x", f"r{index}"), (([column], [-1]), f"r{index}", f"p{index}")]
        for (begin, along), source, made in steps:
            names = [f"{made}:{kind}" for kind in ("starts", "ends", "axes", "steps")]
            values = (begin, [BIGGEST] * len(begin), along, [step] * len(begin))
            weights += [weight(n, v) for n, v in zip(names, values, strict=True)]
            nodes.append(helper.make_node("Slice", [source, *names], [made]))
        cut.append(f"p{index}")
    nodes.append(helper.make_node("Concat", cut, ["joined"], axis=axis))
    num = len(order) * CHANNELS
    weights.append(weight("w", rng.normal(size=(5, num, *kernel_hw)), np.float32))
    weights.append(weight("b", rng.normal(size=5), np.float32))
    nodes.append(
        helper.make_node(
            "Conv", ["joined", "w", "b"], ["y"], pads=pads, strides=strides, kernel_shape=kernel_hw
        )
    )
    outputs = ["y", "joined"] if extra_output else ["y"]
    graph = helper.make_graph(
        nodes,
        "focus",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, CHANNELS, *size_hw])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in outputs],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def answers(proto, x):
    import onnxruntime

    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"is_one_slice": True},
        {"order": ((1, 1), (0, 1), (0, 0), (1, 0))},
        {"kernel_hw": (1, 5), "pads": (0, 2, 0, 2)},
        {"pads": (1, 0, 2, 1)},
        {"strides": (2, 1), "pads": (0, 0, 1, 1)},
        {"size_hw": (2, 4)},
    ],
    ids=str,
)
def test_same_sums(rng, how):
    proto = focus(rng, **how)
    height, width = how.get("size_hw", (16, 20))
    x = rng.normal(size=(1, CHANNELS, height, width)).astype(np.float32)
    before = answers(proto, x)
    assert fold_focus(proto) == 1
    assert [node.op_type for node in proto.graph.node] == ["Conv"]
    after = answers(proto, x)
    assert after.shape == before.shape
    np.testing.assert_allclose(after, before, rtol=0, atol=2e-5 * np.abs(before).max())


@pytest.mark.parametrize(
    "how",
    [
        {"order": ((0, 0), (1, 0), (0, 1))},
        {"order": ((0, 0), (1, 0), (0, 1), (0, 1))},
        {"step": 1},
        {"axis": 0},
        {"extra_output": True},
        {"size_hw": (15, 20)},
        {"size_hw": ("h", "w")},
    ],
    ids=str,
)
def test_anything_else_stays(rng, how):
    proto = focus(rng, **how)
    before = proto.SerializeToString(deterministic=True)
    assert fold_focus(proto) == 0
    assert proto.SerializeToString(deterministic=True) == before


def test_yolox_is_folded_and_answers_the_same(rng, shared):
    path = shared / "models" / "yolox_nano_416.onnx"
    source = runtime_source(read_model(path))
    assert isinstance(source, bytes)
    folded = onnx.load_from_string(source)
    assert not [node for node in folded.graph.node if node.op_type == "Slice"]
    x = rng.uniform(0, 255, (1, 3, 416, 416)).astype(np.float32)
    folded.graph.input[0].name, original = "x", onnx.load(path)
    folded.graph.node[0].input[0] = "x"
    for node in original.graph.node:
        node.input[:] = ["x" if name == "images" else name for name in node.input]
    original.graph.input[0].name = "x"
    before = answers(original, x)
    np.testing.assert_allclose(answers(folded, x), before, rtol=0, atol=1e-4)


def test_a_model_without_that_stem_is_given_by_its_path(shared):
    path = shared / "models" / "fastestdet_352.onnx"
    assert runtime_source(read_model(path)) == str(path)
