"""Shuffled channels without copies, and channels rounded up: the same answers, fewer steps."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from saccade.native.drafting import drafted
from saccade.native.memory import placed
from saccade.native.ops import Conv, Copy, Gather
from saccade.native.reference import interpret

SIZE = 6


class Net:
    """A shuffled network in the making."""

    def __init__(self, batch):
        self.batch = batch
        self.rng = np.random.default_rng(3)
        self.nodes, self.weights = [], []

    def add(self, op, *inputs, num=1, **attributes):
        made = [f"t{len(self.nodes)}_{i}" for i in range(num)]
        self.nodes.append(helper.make_node(op, inputs, made, **attributes))
        return made if num > 1 else made[0]

    def store(self, array):
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def conv(self, x, c, k, size=1, groups=1):
        weight = self.rng.normal(0, 0.5, (k, c // groups, size, size)).astype(np.float32)
        bias = self.rng.normal(0, 0.5, k).astype(np.float32)
        made = self.add("Conv", x, self.store(weight), self.store(bias), group=groups,
                        kernel_shape=[size, size], pads=[size // 2] * 4)  # fmt: skip
        return made

    def shaped(self, x, *shape):
        return self.add("Reshape", x, self.store(np.array(shape, np.int64)))

    def shuffled(self, x, c, *, by_pixels):
        """Two groups dealt out in turn, as exporters write it: five axes, or three."""
        n, side = self.batch, SIZE
        if by_pixels:
            x = self.shaped(x, n * c // 2, 2, side * side)
            x = self.shaped(self.add("Transpose", x, perm=[1, 0, 2]), 2, n, c // 2, side, side)
            return [self.add("Gather", x, self.store(np.array(i)), axis=0) for i in range(2)]
        x = self.shaped(x, n, 2, c // 2, side, side)
        x = self.shaped(self.add("Transpose", x, perm=[0, 2, 1, 3, 4]), n, c, side, side)
        return self.add("Split", x, num=2, axis=1)

    def model(self, *outputs):
        shape = (self.batch, 3, SIZE, SIZE)
        graph = helper.make_graph(
            self.nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [onnx.ValueInfoProto(name=name) for name in outputs], self.weights,
        )  # fmt: skip
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        inferred = onnx.shape_inference.infer_shapes(made)
        del made.graph.output[:]
        made.graph.output.extend(inferred.graph.output)
        return made


def shuffle_net(half, batch, *, by_pixels, units=4):
    """A stage of ShuffleNetV2, and what may follow: depthwise, 1x1, and a pooling."""
    net = Net(batch)
    c = 2 * half
    x = net.add("Relu", net.conv("x", 3, 8))
    first = net.add("Relu", net.conv(x, 8, half))
    second = net.add("LeakyRelu", net.conv(x, 8, half), alpha=0.1)
    x = net.add("Concat", first, second, axis=1)
    for _ in range(units):
        kept, branch = net.shuffled(x, c, by_pixels=by_pixels)
        y = net.add("Relu", net.conv(branch, half, half))
        y = net.conv(y, half, half, 3, groups=half)
        y = net.add("LeakyRelu", net.conv(y, half, half), alpha=0.1)
        x = net.add("Concat", kept, y, axis=1)
    kept, branch = net.shuffled(x, c, by_pixels=by_pixels)
    whole = net.add("Concat", kept, branch, axis=1)
    deep = net.conv(net.conv(whole, c, c, 3, groups=c), c, 10)
    wide = net.conv(whole, c, 12, 3)
    pooled = net.add("AveragePool", whole, kernel_shape=[2, 2], strides=[2, 2])
    return net.model(deep, wide, pooled)


@pytest.mark.parametrize("by_pixels", [False, True])
@pytest.mark.parametrize(("half", "batch"), [(29, 1), (29, 3), (16, 2)])
def test_a_shuffled_stage_is_routed_and_computes_the_same(half, batch, by_pixels):
    ort = pytest.importorskip("onnxruntime")
    proto = shuffle_net(half, batch, by_pixels=by_pixels)
    x = np.random.default_rng(5).normal(size=(batch, 3, SIZE, SIZE)).astype(np.float32)
    session = ort.InferenceSession(proto.SerializeToString())
    wanted = dict(
        zip([o.name for o in proto.graph.output], session.run(None, {"x": x}), strict=True)
    )
    draft = drafted(proto, {"x": x.shape}, "fp32")
    # Copies are left at the ends of the network alone.
    between = [step for step in draft.steps if isinstance(step, Copy | Gather)]
    assert len(between) <= 4
    for share in (True, False):
        found = interpret(placed(draft, share=share), {"x": x})
        for name, want in wanted.items():
            np.testing.assert_allclose(found[name], want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_uneven_channels_between_convolutions_are_rounded_up():
    ort = pytest.importorskip("onnxruntime")
    net = Net(2)
    x = net.add("Sigmoid", net.conv("x", 3, 58))
    x = net.add("Sigmoid", net.conv(x, 58, 58, 3, groups=58))
    y = net.conv(x, 58, 20)
    proto = net.model(y)
    draft = drafted(proto, {"x": (2, 3, SIZE, SIZE)}, "fp32")
    convs = [step for step in draft.steps if isinstance(step, Conv)]
    assert [step.y.c for step in convs] == [64, 64, 20]
    assert [step.groups for step in convs] == [1, 64, 1]
    fed = np.random.default_rng(5).normal(size=(2, 3, SIZE, SIZE)).astype(np.float32)
    (want,) = ort.InferenceSession(proto.SerializeToString()).run(None, {"x": fed})
    found = interpret(placed(draft), {"x": fed})[y]
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_few_channels_and_outputs_stay_as_they_are():
    net = Net(1)
    y = net.conv(net.add("Relu", net.conv("x", 3, 10)), 10, 58)
    draft = drafted(net.model(y), {"x": (1, 3, SIZE, SIZE)}, "fp32")
    assert [step.y.c for step in draft.steps if isinstance(step, Conv)] == [10, 58]
