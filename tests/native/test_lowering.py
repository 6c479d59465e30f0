"""Each rule against ONNX Runtime, on small graphs; plans run in NumPy, in one poisoned arena."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from saccade.errors import BuildError
from saccade.graph.passes.tidy import tidy
from saccade.native.drafting import drafted
from saccade.native.memory import placed
from saccade.native.ops import Attention, Boxes, Conv, Copy, Fill, Norm, Pointwise, PoolChain
from saccade.native.reference import interpret

RNG = np.random.default_rng(3)


def weights(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def net(nodes, inputs, stored=(), outputs=("y",), opset=17):
    """A model from (op, inputs, outputs, attributes) rows."""
    graph = helper.make_graph(
        [helper.make_node(op, i.split(" "), o.split(" "), **a) for op, i, o, a in nodes],
        "net",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in inputs.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in dict(stored).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    inferred = onnx.shape_inference.infer_shapes(model)
    types = {v.name: v.type for v in inferred.graph.output}
    for output in model.graph.output:
        output.type.CopyFrom(types[output.name])
    return model


def both(model, inputs):
    """Outputs of the plan and of ONNX Runtime, and the draft."""
    ort = pytest.importorskip("onnxruntime")
    draft = drafted(tidy(model), {n: a.shape for n, a in inputs.items()}, "fp32")
    found = interpret(placed(draft), inputs)
    names = [output.name for output in model.graph.output]
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return found, dict(zip(names, session.run(names, inputs), strict=True)), draft


def agree(model, inputs, atol=2e-5):
    found, wanted, draft = both(model, inputs)
    for name, want in wanted.items():
        assert found[name].shape == want.shape
        assert found[name].dtype == want.dtype
        np.testing.assert_allclose(found[name], want, rtol=1e-5, atol=atol)
    return draft


X = RNG.normal(size=(2, 6, 9, 11)).astype(np.float32)

# Name: nodes from x to y, stored tensors.
CASES = {
    "conv_pads": (
        [("Conv", "x w b", "y", {"pads": [0, 1, 2, 1], "strides": [2, 1]})],
        {"w": weights(4, 6, 3, 3), "b": weights(4)},
    ),
    "conv_same_upper": (
        [("Conv", "x w", "y", {"auto_pad": "SAME_UPPER", "strides": [2, 2]})],
        {"w": weights(4, 6, 3, 3)},
    ),
    "conv_same_lower": (
        [("Conv", "x w", "y", {"auto_pad": "SAME_LOWER", "strides": [2, 2]})],
        {"w": weights(4, 6, 4, 4)},
    ),
    "conv_dilated": (
        [("Conv", "x w", "y", {"dilations": [2, 3], "pads": [2, 3, 2, 3]})],
        {"w": weights(4, 6, 3, 3)},
    ),
    "conv_groups": (
        [("Conv", "x w", "y", {"group": 2, "pads": [1, 1, 1, 1]})],
        {"w": weights(8, 3, 3, 3)},
    ),
    "conv_depthwise": (
        [("Conv", "x w", "y", {"group": 6, "pads": [1, 1, 1, 1]})],
        {"w": weights(12, 1, 3, 3)},
    ),
    "quantised": (
        [("QuantizeLinear", "x s z", "q", {}), ("MaxPool", "q", "p", {"kernel_shape": [2, 2]}),
         ("DequantizeLinear", "p s z", "d", {}), ("DequantizeLinear", "w t k", "v", {"axis": 0}),
         ("Conv", "d v", "c", {}), ("QuantizeLinear", "c t8 k8", "e", {"axis": 1}),
         ("DequantizeLinear", "e t8 k8", "y", {"axis": 1})],
        {"s": np.float32(0.05), "z": np.uint8(60),
         "w": RNG.integers(-127, 128, (8, 6, 1, 1)).astype(np.int8),
         "t": np.abs(weights(8)) / 64, "k": np.zeros(8, np.int8),
         "t8": np.abs(weights(8)) + np.float32(0.1), "k8": np.arange(8, dtype=np.int8)},
    ),
    "conv_transpose": (
        [("ConvTranspose", "x w b", "y", {"strides": [2, 3], "pads": [1, 0, 1, 2],
                                          "output_padding": [1, 0]})],
        {"w": weights(6, 4, 4, 3), "b": weights(4)},
    ),
    "conv_transpose_groups": (
        [("ConvTranspose", "x w", "y", {"group": 3, "dilations": [2, 1]})],
        {"w": weights(6, 2, 2, 2)},
    ),
    "max_pool_ceil": (
        [("MaxPool", "x", "y", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1})],
        {},
    ),
    "max_pool_dilated": (
        [("MaxPool", "x", "y", {"kernel_shape": [2, 3], "dilations": [2, 2],
                                "pads": [1, 1, 1, 1]})],
        {},
    ),
    "mean_pool": (
        [("AveragePool", "x", "y", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1],
                                    "strides": [2, 2]})],
        {},
    ),
    "mean_pool_counts": (
        [("AveragePool", "x", "y", {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1],
                                    "count_include_pad": 1})],
        {},
    ),
    "global_pools": (
        [("GlobalAveragePool", "x", "a", {}), ("GlobalMaxPool", "x", "b", {}),
         ("Add", "a b", "y", {})],
        {},
    ),
    "resize_nearest": (
        [("Resize", "x  s", "y", {"mode": "nearest", "nearest_mode": "floor",
                                  "coordinate_transformation_mode": "asymmetric"})],
        {"s": np.array([1, 1, 2, 2], np.float32)},
    ),
    "resize_linear": (
        [("Resize", "x  s", "y", {"mode": "linear"})],
        {"s": np.array([1, 1, 1.5, 2], np.float32)},
    ),
    "resize_align_corners": (
        [("Resize", "x  s", "y", {"mode": "linear",
                                  "coordinate_transformation_mode": "align_corners"})],
        {"s": np.array([1, 1, 2, 2], np.float32)},
    ),
    "resize_sizes": (
        [("Resize", "x   t", "y", {"mode": "nearest"})],
        {"t": np.array([2, 6, 5, 30], np.int64)},
    ),
    "pad_and_conv": (
        [("Pad", "x p v", "a", {}), ("Conv", "a w", "y", {})],
        {"p": np.array([0, 0, 1, 2, 0, 0, 0, 1]), "v": np.float32(0.5), "w": weights(3, 6, 3, 3)},
    ),
    "pad_after_conv": (
        [("Conv", "x u", "t", {}), ("Pad", "t p v", "a", {}),
         ("MaxPool", "a", "y", {"kernel_shape": [3, 3]})],
        {"p": np.array([0, 0, 1, 2, 0, 0, 0, 1]), "v": np.float32(0.5), "u": weights(3, 6, 1, 1)},
    ),
    "pad_negative": (
        [("Pad", "x p", "y", {})],
        {"p": np.array([0, -1, 1, -2, 0, -1, 0, 1])},
    ),
    "shuffle": (
        [("Reshape", "x s", "a", {}), ("Transpose", "a", "b", {"perm": [0, 2, 1, 3, 4]}),
         ("Reshape", "b t", "c", {}), ("Split", "c", "d e", {"axis": 1}),
         ("Conv", "d w", "f", {}), ("Concat", "e f", "y", {"axis": 1})],
        {"s": np.array([2, 2, 3, 9, 11]), "t": np.array([0, 6, 9, -1]), "w": weights(3, 3, 1, 1)},
    ),
    "slices": (
        [("Slice", "x a b c d", "e", {}), ("Relu", "e", "y", {})],
        {"a": np.array([-1, 8]), "b": np.array([-99, 2]), "c": np.array([1, 3]),
         "d": np.array([-2, -1])},
    ),
    "gather_even": (
        [("Gather", "x i", "y", {"axis": 1})],
        {"i": np.array([4, 2, 0])},
    ),
    "gather_any": (
        [("Gather", "x i", "y", {"axis": 3})],
        {"i": np.array([[4, 2], [-1, 9]])},
    ),
    "expand_and_tile": (
        [("ReduceMean", "x", "a", {"axes": [2, 3]}), ("Expand", "a s", "b", {}),
         ("Tile", "b r", "c", {}), ("Mul", "c c", "y", {})],
        {"s": np.array([2, 6, 3, 1]), "r": np.array([1, 2, 1, 5])},
    ),
    "space_and_depth": (
        [("Slice", "x a b c", "d", {}), ("SpaceToDepth", "d", "e", {"blocksize": 2}),
         ("Conv", "e w", "f", {}), ("DepthToSpace", "f", "g", {"blocksize": 2}),
         ("DepthToSpace", "f", "h", {"blocksize": 2, "mode": "CRD"}), ("Sub", "g h", "y", {})],
        {"a": np.array([0, 0]), "b": np.array([8, 10]), "c": np.array([2, 3]),
         "w": weights(8, 24, 1, 1)},
    ),
    "silu_residual": (
        [("Conv", "x w", "t", {}), ("Conv", "t w", "a", {}), ("Sigmoid", "a", "s", {}),
         ("Mul", "a s", "b", {}), ("Add", "t b", "u", {}), ("Conv", "u w", "y", {})],
        {"w": weights(6, 6, 1, 1)},
    ),
    "residual_relu": (
        [("Conv", "x w", "t", {}), ("Conv", "t w", "a", {}), ("Add", "a t", "b", {}),
         ("Relu", "b", "u", {}), ("Conv", "u w", "y", {})],
        {"w": weights(6, 6, 1, 1)},
    ),
    "affine_twice": (
        [("Conv", "x w", "a", {}), ("Relu", "a", "b", {}), ("Mul", "b g", "c", {}),
         ("Add", "c h", "d", {}), ("Conv", "d w", "e", {}), ("Mul", "e k", "f", {}),
         ("Sub", "f k", "y", {})],
        {"w": weights(6, 6, 1, 1), "g": np.float32(0.7), "h": np.float32(-2),
         "k": weights(6, 1, 1)},
    ),
    "batch_norm_alone": (
        [("BatchNormalization", "x s t m v", "y", {})],
        {"s": weights(6), "t": weights(6), "m": weights(6), "v": np.abs(weights(6))},
    ),
    "hard_swish_spelled": (
        [("Conv", "x w", "a", {}), ("Add", "a three", "b", {}), ("Clip", "b zero six", "c", {}),
         ("Mul", "a c", "d", {}), ("Div", "d six", "y", {})],
        {"w": weights(6, 6, 1, 1), "three": np.float32(3), "zero": np.float32(0),
         "six": np.float32(6)},
    ),
    "gelu_spelled": (
        [("Div", "x r", "a", {}), ("Erf", "a", "b", {}), ("Add", "b one", "c", {}),
         ("Mul", "x c", "d", {}), ("Mul", "d half", "y", {})],
        {"r": np.float32(np.sqrt(2)), "one": np.float32(1), "half": np.float32(0.5)},
    ),
    "activations": (
        [("LeakyRelu", "x", "a", {"alpha": 0.1}), ("Elu", "a", "b", {"alpha": 0.5}),
         ("HardSigmoid", "b", "c", {}), ("Softplus", "c", "d", {}), ("Tanh", "d", "e", {}),
         ("HardSwish", "e", "f", {}), ("PRelu", "f p", "y", {})],
        {"p": weights(6, 1, 1)},
    ),
    "linear": (
        [("Transpose", "x", "a", {"perm": [0, 2, 3, 1]}), ("MatMul", "a w", "b", {}),
         ("Add", "b c", "d", {}), ("Relu", "d", "y", {})],
        {"w": weights(6, 5), "c": weights(5)},
    ),
    "gemm": (
        [("Flatten", "x", "a", {}), ("Gemm", "a w c", "y", {"transB": 1, "alpha": 0.5,
                                                             "beta": 2.0})],
        {"w": weights(7, 594) / 20, "c": weights(1, 7)},
    ),
    "products": (
        [("Reshape", "x s", "a", {}), ("Transpose", "a", "b", {"perm": [0, 2, 1]}),
         ("MatMul", "a b", "c", {}), ("Softmax", "c", "d", {"axis": -1}),
         ("MatMul", "d a", "y", {})],
        {"s": np.array([2, 6, 99])},
    ),
    "softmax_axis": (
        [("Softmax", "x", "a", {"axis": 1}), ("LogSoftmax", "a", "y", {"axis": 2})],
        {},
    ),
    "reductions": (
        [("ReduceMax", "x", "a", {"axes": [1], "keepdims": 0}),
         ("ReduceL2", "a", "b", {"axes": [2]}), ("ReduceSum", "b i", "c", {"keepdims": 0}),
         ("ReduceProd", "c", "y", {"keepdims": 0})],
        {"i": np.array([1])},
    ),
    "layer_norm": (
        [("Transpose", "x", "a", {"perm": [0, 2, 3, 1]}),
         ("LayerNormalization", "a g h", "y", {"axis": -1})],
        {"g": weights(6), "h": weights(6)},
    ),
    "instance_norm": (
        [("InstanceNormalization", "x g h", "y", {})],
        {"g": weights(6), "h": weights(6)},
    ),
    "whole_numbers": (
        [("ArgMax", "x", "a", {"axis": 1, "keepdims": 0}), ("Mul", "a three", "b", {}),
         ("Div", "b two", "c", {}), ("Mod", "c five", "d", {}), ("Cast", "d", "y", {"to": 1})],
        {"two": np.int64(2), "three": np.int64(-3), "five": np.int64(5)},
    ),
    "truth": (
        [("Greater", "x zero", "a", {}), ("Less", "x one", "b", {}), ("And", "a b", "c", {}),
         ("Not", "c", "d", {}), ("Where", "d x one", "y", {})],
        {"zero": np.float32(0), "one": np.float32(1)},
    ),
    "top_k": (
        [("TopK", "x k", "v i", {"axis": 2, "largest": 0}),
         ("GatherElements", "x i", "g", {"axis": 2}), ("Sub", "g v", "d", {}),
         ("Add", "d v", "y", {})],
        {"k": np.array([4])},
    ),
    "grid_sample": (
        [("Conv", "x w", "a", {}), ("Reshape", "a s", "b", {}),
         ("Transpose", "b", "g", {"perm": [0, 2, 3, 1]}), ("GridSample", "x g", "y", {})],
        {"w": weights(2, 6, 1, 1), "s": np.array([2, 2, 9, 11])},
    ),
    "grid_sample_border": (
        [("Slice", "x a b c", "d", {}), ("Transpose", "d", "g", {"perm": [0, 2, 3, 1]}),
         ("GridSample", "x g", "y", {"padding_mode": "border", "align_corners": 1})],
        {"a": np.array([0]), "b": np.array([2]), "c": np.array([1])},
    ),
    "roi_align": (
        [("RoiAlign", "x r i", "y", {"output_height": 3, "output_width": 2, "sampling_ratio": 2,
                                     "spatial_scale": 0.5})],
        {"r": np.array([[0, 0, 9, 9], [2, 3, 20, 16], [-4, -4, 1, 30]], np.float32),
         "i": np.array([0, 1, 1])},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_rule(name):
    nodes, stored = CASES[name]
    agree(net(nodes, {"x": X}, stored), {"x": X})


def test_gather_nd():
    inputs = {"x": X}
    stored = {"i": np.array([[[1, 2], [5, -1]], [[0, 0], [3, 8]]])}
    agree(net([("GatherND", "x i", "y", {"batch_dims": 1})], inputs, stored), inputs)


def test_what_follows_a_convolution_is_in_it():
    nodes, stored = CASES["silu_residual"]
    draft = agree(net(nodes, {"x": X}, stored), {"x": X})
    _, conv, _ = [step for step in draft.steps if isinstance(step, Conv)]
    assert conv.activation.kind == "silu"
    assert conv.residual is not None
    assert conv.residual_after
    nodes, stored = CASES["residual_relu"]
    draft = agree(net(nodes, {"x": X}, stored), {"x": X})
    _, conv, _ = [step for step in draft.steps if isinstance(step, Conv)]
    assert (conv.activation.kind, conv.residual_after) == ("relu", False)


def test_concatenation_and_split_cost_nothing():
    nodes = [
        ("Conv", "x v", "a", {}),
        ("Relu", "a", "b", {}),
        ("Split", "b", "c d", {"axis": 1}),
        ("Conv", "d w", "e", {}),
        ("Concat", "c d e", "f", {"axis": 1}),
        ("Conv", "f u", "y", {}),
    ]
    stored = {"v": weights(6, 6, 1, 1), "w": weights(3, 3, 1, 1), "u": weights(4, 9, 1, 1)}
    draft = agree(net(nodes, {"x": X}, stored), {"x": X})
    hidden = [step for step in draft.steps if not isinstance(step, Conv)]
    # What is left turns the output into planes, as the graph gives it.
    assert [type(step) for step in hidden] == [Copy]
    assert hidden[0].y.buffer in draft.output_buffers()


@pytest.mark.parametrize("sizes", [(5, 5, 5), (5, 9, 13)])
def test_pools_of_pools_are_one_step(sizes):
    reads = ["a", "p0", "p1"] if sizes[1] == 5 else ["a"] * 3
    nodes = [("Conv", "x w", "a", {})]
    nodes += [
        ("MaxPool", read, f"p{i}", {"kernel_shape": [k, k], "pads": [k // 2] * 4})
        for i, (read, k) in enumerate(zip(reads, sizes, strict=True))
    ]
    nodes += [("Concat", "a p0 p1 p2", "c", {"axis": 1}), ("Conv", "c v", "y", {})]
    stored = {"w": weights(4, 6, 1, 1), "v": weights(3, 16, 1, 1)}
    draft = agree(net(nodes, {"x": X}, stored), {"x": X})
    (chain,) = [step for step in draft.steps if isinstance(step, PoolChain)]
    assert (len(chain.ys), chain.size) == (3, 5)


def box_head(form, how):
    """Two levels, 4 bins per side, in the ways that exporters write them."""
    nodes, stored = [], {}
    for i, stride in enumerate((8, 16)):
        stored[f"w{i}"] = weights(16, 3, stride, stride) / stride
        stored["s"] = np.array([0, 16, -1])
        nodes += [
            ("Conv", f"x w{i}", f"l{i}", {"strides": [stride, stride]}),
            ("Reshape", f"l{i} s", f"r{i}", {}),
        ]
    rows = [
        (np.stack(np.meshgrid(np.arange(w), np.arange(h)), 0).reshape(2, -1) + 0.5, s)
        for h, w, s in ((4, 6, 8), (2, 3, 16))
    ]
    stored["anchors"] = np.concatenate([a for a, _ in rows], 1)[None].astype(np.float32)
    stored["strides"] = np.concatenate([np.full(a.shape[1], s) for a, s in rows])[None, None]
    stored["strides"] = stored["strides"].astype(np.float32)
    stored |= {"four": np.array([0, 4, 4, -1]), "two": np.float32(2)}
    nodes += [
        ("Concat", "r0 r1", "all", {"axis": 2}),
        ("Reshape", "all four", "b", {}),
    ]
    if how == "conv":
        stored["arange"] = np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1)
        stored["flat"] = np.array([0, 4, -1])
        nodes += [
            ("Transpose", "b", "c", {"perm": [0, 2, 1, 3]}),
            ("Softmax", "c", "d", {"axis": 1}),
            ("Conv", "d arange", "e", {}),
            ("Reshape", "e flat", "dist", {}),
        ]
    else:
        stored["arange"] = np.arange(4, dtype=np.float32).reshape(1, 1, 4, 1)
        stored["i"] = np.array([2])
        nodes += [
            ("Softmax", "b", "d", {"axis": 2}),
            ("Mul", "d arange", "e", {}),
            ("ReduceSum", "e i", "dist", {"keepdims": 0}),
        ]
    nodes += [
        ("Split", "dist", "lt rb", {"axis": 1}),
        ("Sub", "anchors lt", "low", {}),
        ("Add", "anchors rb", "high", {}),
    ]
    if form == "cxcywh":
        nodes += [
            ("Add", "low high", "sum", {}),
            ("Div", "sum two", "low2", {}),
            ("Sub", "high low", "high2", {}),
            ("Concat", "low2 high2", "boxes", {"axis": 1}),
        ]
    else:
        nodes.append(("Concat", "low high", "boxes", {"axis": 1}))
    return [*nodes, ("Mul", "boxes strides", "y", {})], stored


@pytest.mark.parametrize("form", ["cxcywh", "xyxy"])
@pytest.mark.parametrize("how", ["conv", "sum"])
def test_box_tails_are_one_step_however_they_are_written(form, how):
    inputs = {"x": RNG.normal(size=(2, 3, 32, 48)).astype(np.float32)}
    nodes, stored = box_head(form, how)
    draft = agree(net(nodes, inputs, stored), inputs, atol=1e-3)
    (boxes,) = [step for step in draft.steps if isinstance(step, Boxes)]
    assert boxes.form == form
    assert [level.stride for level in boxes.levels] == [8.0, 16.0]
    assert not [step for step in draft.steps if isinstance(step, Pointwise)]


def test_a_box_tail_that_means_something_else_stays():
    inputs = {"x": RNG.normal(size=(1, 3, 32, 48)).astype(np.float32)}
    nodes, stored = box_head("xyxy", "sum")
    stored["arange"] = stored["arange"] * 1.5
    draft = agree(net(nodes, inputs, stored), inputs, atol=1e-3)
    assert not [step for step in draft.steps if isinstance(step, Boxes)]


@pytest.mark.parametrize(
    ("op", "more"),
    [("Conv", {}), ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2]})],
)
def test_borders_of_zeros_are_padding(op, more):
    nodes = [
        ("Conv", "x u", "t", {}),
        ("Pad", "t p", "a", {}),
        (op, "a w" if op == "Conv" else "a", "b", more),
        ("Conv", "b u", "y", {}),
    ]
    stored = {"p": np.array([0, 0, 1, 2, 0, 0, 0, 1]), "w": weights(6, 6, 3, 3),
              "u": weights(6, 6, 1, 1)}  # fmt: skip
    draft = agree(net(nodes, {"x": X}, stored), {"x": X})
    assert not [step for step in draft.steps if isinstance(step, Fill)]
    # One of another value stays.
    nodes[1] = ("Pad", "t p v", "a", {})
    draft = agree(net(nodes, {"x": X}, stored | {"v": np.float32(0.5)}), {"x": X})
    assert [step for step in draft.steps if isinstance(step, Fill)]


def test_scores_softmax_and_values_are_one_step():
    nodes, stored = CASES["products"]
    draft = agree(net(nodes, {"x": X}, stored), {"x": X})
    assert [type(step) for step in draft.steps] == [Attention]


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norms_written_out_are_one_step(kind):
    x = RNG.normal(2, 3, size=(2, 7, 12)).astype(np.float32)
    nodes = [("MatMul", "x w", "m", {})]
    rows = "m"
    if kind == "layer":
        nodes += [("ReduceMean", "m", "a", {"axes": [-1]}), ("Sub", "m a", "d", {})]
        rows = "d"
    nodes += [
        ("Pow", f"{rows} two", "q", {}),
        ("ReduceMean", "q", "v", {"axes": [-1]}),
        ("Add", "v e", "u", {}),
        ("Sqrt", "u", "s", {}),
        ("Div", f"{rows} s", "n", {}),
        ("Mul", "n g", "o", {}),
    ]
    nodes += [("Add", "o h", "p", {})] if kind == "layer" else []
    nodes += [("MatMul", "p w" if kind == "layer" else "o w", "y", {})]
    stored = {"w": weights(12, 12), "two": np.float32(2), "e": np.float32(1e-5),
              "g": weights(12), "h": weights(12)}  # fmt: skip
    draft = agree(net(nodes, {"x": x}, stored), {"x": x}, atol=1e-4)
    (norm,) = [step for step in draft.steps if isinstance(step, Norm)]
    assert (norm.is_rms, norm.shift is None) == (kind == "rms", kind == "rms")
    assert norm.epsilon == pytest.approx(1e-5)
    assert len(draft.steps) == 3 + len([s for s in draft.steps if isinstance(s, Copy)])


def test_refusals_name_the_node_and_the_reason():
    inputs = {"x": X}
    model = net([("Resize", "x  s", "y", {"mode": "cubic"})], inputs,
                {"s": np.array([1, 1, 2, 2], np.float32)})  # fmt: skip
    with pytest.raises(BuildError, match=r"Resize.*mode 'cubic'.*choose another back end"):
        drafted(tidy(model), {"x": X.shape})
    model = net([("Conv", "x z", "y", {})], {"x": X, "z": weights(2, 6, 1, 1)})
    with pytest.raises(BuildError, match="weights must be stored"):
        drafted(tidy(model), {"x": X.shape, "z": (2, 6, 1, 1)})
    model = net([("Det", "m", "y", {})], {"m": weights(2, 3, 3)})
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    with pytest.raises(BuildError, match=r"no.* for Det node"):
        drafted(tidy(model), {"m": (2, 3, 3)})
