"""The torch back end: every rule against ONNX Runtime, refusals before building, FP32 islands."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from conftest import skip_or_fail
from nets import SIZE_HW, mean_color_detector, score_of
from saccade import backends
from saccade.errors import BackendUnavailable, BuildError, InputError
from saccade.graph.reading import read_model
from saccade.types import Plan

SHARED = (
    "cells_640",
    "deimv2_atto_320",
    "fastestdet_352",
    "light_person_192",
    "nanodet_m_320",
    "ultraface_rfb_320",
    "yolox_nano_416",
    "yunet_n_320",
)


@pytest.fixture
def torch():
    found = backends.get("torch").probe()
    if not found.ok:
        skip_or_fail("torch", found.reason)
    return importlib.import_module("torch")


@pytest.fixture
def cuda(torch):
    if not torch.cuda.is_available():
        skip_or_fail("gpu", "torch sees no CUDA device")
    return torch


def save_net(path, nodes, inputs, outputs, weights, opset):
    graph = helper.make_graph(
        nodes,
        "net",
        inputs,
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return read_model(path)


def by_onnxruntime(model, feeds):
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(model.path), options, providers=["CPUExecutionProvider"]
    )
    return session.run([spec.name for spec in model.outputs], feeds)


def by_torch(model, feeds, half=None):
    import torch

    from saccade.backends._torch_ops.program import lower, read_source

    program = lower(read_source(model), {n: a.shape for n, a in feeds.items()}, half=half)
    with torch.inference_mode():
        outputs = program(*[torch.from_numpy(feeds[spec.name]) for spec in model.inputs])
    return [output.numpy() for output in outputs]


def test_asking_whether_it_is_there_does_not_import_it():
    code = (
        "import sys; from saccade import backends; found = backends.get('torch').probe()\n"
        "assert found.reason; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_torch_it_says_what_to_install(tmp_path):
    if importlib.util.find_spec("torch") is not None:
        pytest.skip("torch is installed")
    model = read_model(mean_color_detector(tmp_path / "net.onnx"))
    with pytest.raises(BackendUnavailable, match=r"pip install 'saccade\[torch\]'"):
        backends.get("torch").load(model, Plan("torch"))


# Operator, opset, shape of x, other operands by name, attributes. Each is run by both.
I64, F32 = np.int64, np.float32
CASES = [
    ("Slice", 9, (2, 5, 6), {}, {"starts": [1, -3], "ends": [99, -1], "axes": [1, 2]}),
    ("Slice", 13, (2, 9), {"s": I64([-1]), "e": I64([-999]), "a": I64([1]), "t": I64([-2])}, {}),
    ("Slice", 13, (2, 9), {"s": I64([7]), "e": I64([3]), "a": I64([1])}, {}),
    ("Softmax", 9, (2, 3, 4), {}, {"axis": 1}),
    ("Softmax", 13, (2, 3, 4), {}, {"axis": 1}),
    ("LogSoftmax", 11, (2, 3, 4), {}, {}),
    ("Squeeze", 11, (1, 3, 1), {}, {"axes": [-1]}),
    ("Squeeze", 13, (1, 3, 1), {}, {}),
    ("Unsqueeze", 13, (3, 2), {"a": I64([0, -1])}, {}),
    ("ReduceSum", 11, (2, 3, 4), {}, {"axes": [-1], "keepdims": 0}),
    ("ReduceSum", 13, (2, 3, 4), {"a": I64([0, 2])}, {}),
    ("ReduceMean", 17, (2, 3, 4), {}, {}),
    ("ReduceL2", 17, (2, 3, 4), {}, {"axes": [1]}),
    ("ReduceProd", 17, (2, 3, 4), {}, {"axes": [1, 2], "keepdims": 0}),
    ("ReduceLogSumExp", 17, (2, 3, 4), {}, {"axes": [1]}),
    ("ArgMax", 13, (2, 5), {}, {"axis": 1, "keepdims": 0}),
    ("Clip", 6, (3, 4), {}, {"min": 0.2, "max": 0.5}),
    ("Clip", 13, (3, 4), {"lo": F32(0.7), "hi": F32(0.2)}, {}),
    ("Clip", 13, (3, 4), {"": None, "hi": F32(0.2)}, {}),
    ("PRelu", 9, (2, 3, 2, 2), {"slope": F32([[[0.1]], [[0.2]], [[-0.3]]])}, {}),
    ("Pow", 13, (3, 4), {"p": I64([3])}, {}),
    ("Div", 14, (3, 4), {"d": F32(3)}, {}),
    ("Sub", 14, (4,), {"d": F32([[1], [2]])}, {}),
    ("HardSigmoid", 6, (3, 4), {}, {}),
    ("Gelu", 20, (3, 4), {}, {"approximate": "tanh"}),
    ("Pad", 9, (2, 3), {}, {"pads": [0, 1, 2, 0], "value": 1.5}),
    ("Pad", 13, (2, 3), {"p": I64([0, 1, 0, -1]), "v": F32(2)}, {}),
    ("Pad", 13, (1, 1, 4, 5), {"p": I64([0, 0, 3, 1, 0, 0, 2, 4])}, {"mode": "reflect"}),
    ("Pad", 13, (3, 4), {"p": I64([2, 0, 1, 3])}, {"mode": "edge"}),
    ("Gather", 13, (3, 4), {"i": I64([[-1, 0], [2, 2]])}, {"axis": 1}),
    ("Gather", 13, (3, 4), {"i": I64(-2)}, {}),
    ("GatherElements", 13, (2, 3), {"i": I64([[0, -1], [2, 1]])}, {"axis": 1}),
    ("GatherND", 13, (2, 3, 4), {"i": I64([[0, -1], [1, 2]])}, {}),
    ("Split", 11, (2, 7), {}, {"axis": 1, "split": [3, 4]}),
    ("Split", 18, (2, 7), {}, {"axis": -1, "num_outputs": 2}),
    ("Tile", 13, (2, 3), {"r": I64([2, 1])}, {}),
    ("Expand", 13, (3, 1), {"s": I64([2, 1, 4])}, {}),
    ("Flatten", 13, (2, 3, 4), {}, {"axis": -1}),
    ("Reshape", 13, (2, 3, 4), {"s": I64([0, -1])}, {}),
    ("Transpose", 13, (2, 3, 4), {}, {}),
    ("DepthToSpace", 13, (1, 8, 2, 3), {}, {"blocksize": 2}),
    ("DepthToSpace", 13, (1, 8, 2, 3), {}, {"blocksize": 2, "mode": "CRD"}),
    ("SpaceToDepth", 13, (1, 2, 4, 6), {}, {"blocksize": 2}),
    ("CumSum", 13, (2, 5), {"a": np.array(1)}, {"reverse": 1}),
    ("TopK", 13, (2, 6), {"k": I64([4])}, {"axis": -1}),
    ("TopK", 11, (2, 6), {"k": I64([3])}, {"axis": 0 + 1, "largest": 0}),
    ("MatMul", 13, (2, 3, 4), {"b": np.ones((4, 2), F32)}, {}),
    ("Gemm", 13, (4, 3), {"b": np.ones((2, 4), F32), "c": np.ones((3, 1), F32)},
     {"alpha": 0.5, "beta": 2.0, "transA": 1, "transB": 1}),
    ("Gemm", 13, (3, 4), {"b": np.ones((4, 2), F32), "c": np.ones(2, F32)}, {}),
    ("Einsum", 13, (3, 4), {"b": np.ones((4, 2), F32)}, {"equation": "ij,jk->ki"}),
    ("BatchNormalization", 9, (2, 3, 4), {n: F32([0.5, 1, 2]) for n in "smbv"}, {"epsilon": 1e-3}),
    ("InstanceNormalization", 13, (2, 3, 4, 4), {n: F32([0.5, 1, 2]) for n in "sb"}, {}),
    ("LayerNormalization", 17, (2, 3, 4), {n: np.ones((3, 4), F32) for n in "sb"}, {"axis": 1}),
    ("Conv", 13, (1, 2, 7, 8), {"w": np.ones((4, 1, 3, 3), F32), "b": np.ones(4, F32)},
     {"group": 2, "pads": [0, 1, 2, 1], "strides": [2, 1], "dilations": [1, 2]}),
    ("Conv", 13, (1, 2, 7, 8), {"w": np.ones((3, 2, 3, 3), F32)},
     {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", 13, (1, 2, 7, 8), {"w": np.ones((3, 2, 2, 2), F32)}, {"auto_pad": "SAME_LOWER"}),
    ("Conv", 13, (1, 2, 9), {"w": np.ones((3, 2, 3), F32)}, {"pads": [1, 1]}),
    ("ConvTranspose", 13, (1, 2, 4, 5), {"w": np.ones((2, 3, 3, 3), F32)},
     {"pads": [1, 0, 0, 0], "strides": [2, 2], "output_padding": [0, 1]}),
    ("MaxPool", 13, (1, 2, 7, 8), {}, {"kernel_shape": [3, 3], "pads": [0, 0, 1, 1]}),
    ("MaxPool", 13, (1, 2, 7, 8), {}, {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    ("MaxPool", 13, (1, 2, 9, 9), {}, {"kernel_shape": [2, 2], "dilations": [2, 3]}),
    ("AveragePool", 13, (1, 2, 6, 6), {}, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ("AveragePool", 13, (1, 2, 6, 6), {}, {"kernel_shape": [3, 3], "pads": [0, 0, 1, 2]}),
    ("AveragePool", 13, (1, 2, 6, 6), {},
     {"kernel_shape": [3, 3], "pads": [1, 0, 0, 0], "count_include_pad": 1}),
    ("GlobalMaxPool", 13, (1, 2, 5, 6), {}, {}),
    ("Upsample", 9, (1, 1, 3, 4), {"s": F32([1, 1, 2, 3])}, {"mode": "nearest"}),
    ("Resize", 10, (1, 1, 3, 4), {"s": F32([1, 1, 2, 1.5])}, {"mode": "linear"}),
    ("LpNormalization", 13, (2, 3), {}, {"axis": 1}),
    ("Mod", 13, (3, 4), {"m": F32(0.3)}, {"fmod": 1}),
    ("Sum", 13, (3, 4), {"b": np.ones((4,), F32), "c": np.ones((3, 1), F32)}, {}),
    ("Max", 13, (3, 4), {"b": F32(0.1)}, {}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_rules_against_onnxruntime(torch, tmp_path, rng, case):
    kind, opset, shape, others, attributes = case
    num_outputs = {"Split": 2, "TopK": 2}.get(kind, 1)
    # Few different values, so that sorting meets ties.
    x = (rng.integers(-4, 5, shape) / 4).astype(np.float32)
    outputs = [f"y{i}" for i in range(num_outputs)]
    model = save_net(
        tmp_path / "net.onnx",
        [helper.make_node(kind, ["x", *others], outputs, **attributes)],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        outputs,
        {name: array for name, array in others.items() if array is not None},
        opset,
    )
    wanted, got = by_onnxruntime(model, {"x": x}), by_torch(model, {"x": x})
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(
    "coordinates", ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]
)
@pytest.mark.parametrize("sizes", [(6, 8), (5, 3), (2, 9), (1, 4)])
def test_resize_reads_the_pixels_that_onnxruntime_reads(
    torch, tmp_path, rng, mode, coordinates, sizes
):
    for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
        node = helper.make_node(
            "Resize", ["x", "", "", "sizes"], ["y"], mode=mode, nearest_mode=rounding,
            coordinate_transformation_mode=coordinates,
        )  # fmt: skip
        model = save_net(
            tmp_path / "net.onnx",
            [node],
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 2, 3, 4))],
            ["y"],
            {"sizes": np.array([1, 2, *sizes])},
            13,
        )
        x = rng.random((1, 2, 3, 4), np.float32)
        (wanted,), (got,) = by_onnxruntime(model, {"x": x}), by_torch(model, {"x": x})
        np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("aligned", [0, 1])
def test_grid_sample(torch, tmp_path, rng, padding, aligned):
    node = helper.make_node(
        "GridSample", ["x", "grid"], ["y"], padding_mode=padding, align_corners=aligned
    )
    shapes = {"x": (1, 2, 4, 5), "grid": (1, 3, 3, 2)}
    model = save_net(
        tmp_path / "net.onnx",
        [node],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()],
        ["y"],
        {},
        17,
    )
    feeds = {n: (rng.random(s, np.float32) * 3 - 1.5) for n, s in shapes.items()}
    (wanted,), (got,) = by_onnxruntime(model, feeds), by_torch(model, feeds)
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_quantised_nodes_round_as_onnxruntime_does(torch, tmp_path, rng):
    weights = {"scale": np.float32([0.02, 0.05]), "zero": np.array([3, -7], np.int8)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], axis=1),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], axis=1),
    ]
    model = save_net(
        tmp_path / "net.onnx",
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 2, 50))],
        ["q", "y"],
        weights,
        13,
    )
    x = rng.normal(0, 3, (1, 2, 50)).astype(np.float32)
    for got, wanted in zip(by_torch(model, {"x": x}), by_onnxruntime(model, {"x": x}), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_what_follows_from_the_size_is_computed_once(torch, tmp_path):
    """Shape, Gather, Mul and Concat leave nothing in the program but the reshape they feed."""
    from saccade.backends._torch_ops.program import lower, read_source

    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "first"], ["n"], axis=0),
        helper.make_node("Concat", ["n", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    ]
    model = save_net(
        tmp_path / "net.onnx",
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 3, 4))],
        ["y"],
        {"first": np.array([0]), "rest": np.array([-1])},
        13,
    )
    program = lower(read_source(model), {"x": (5, 3, 4)})
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    assert [call.target for call in calls] == [torch.reshape]
    assert list(calls[0].args[1]) == [5, -1]


@pytest.mark.shared
@pytest.mark.parametrize("name", SHARED)
def test_real_models_answer_as_onnxruntime_does(torch, shared, rng, name):
    torch.set_num_threads(1)
    model = read_model(shared / "models" / f"{name}.onnx")
    feeds = {}
    for spec in model.inputs:
        shape = [size if isinstance(size, int) else 1 for size in spec.shape]
        if spec.dtype == "int64":
            feeds[spec.name] = np.array([[640, 480]])
            continue
        coarse = rng.random((1, 3, shape[2] // 16, shape[3] // 16), np.float32)
        feeds[spec.name] = np.kron(coarse, np.ones((1, 1, 16, 16), np.float32))
        if name.startswith(("yolox", "yunet", "light")):
            feeds[spec.name] *= 255
    for got, wanted in zip(by_torch(model, feeds), by_onnxruntime(model, feeds), strict=True):
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, atol=1e-4 * max(np.abs(wanted).max(), 1))


@pytest.mark.shared
def test_suppression_inside_the_graph_is_refused_by_name(torch, shared):
    found = backends.get("torch").supports(read_model(shared / "models/fastestdet_352_nms.onnx"))
    assert not found.ok
    assert "NonMaxSuppression node 'nms_sel' (opset 13)" in found.reason


@pytest.mark.parametrize(
    ("node", "opset", "what"),
    [
        (helper.make_node("Det", ["x"], ["y"], name="d"), 13, r"Det node 'd' \(opset 13\)"),
        (helper.make_node("MaxPool", ["x"], ["y", "i"], kernel_shape=[2, 2]), 13, "output 1 of"),
        (helper.make_node("Resize", ["x", "", "s"], ["y"], mode="cubic"), 13, "mode='cubic' of"),
        (helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], dilations=[2, 2]), 19,
         "dilations of"),
        (helper.make_node("Reshape", ["x", "z"], ["y"]), 13, "input 1 must not depend"),
    ],
)  # fmt: skip
def test_what_it_lacks_is_named(torch, tmp_path, node, opset, what):
    # Written without inference, which would stop at some of these.
    graph = helper.make_graph(
        [node],
        "net",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 1, 4, 4)),
            helper.make_tensor_value_info("z", TensorProto.INT64, (1,)),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 1, 2, 2))],
        [numpy_helper.from_array(np.float32([1, 1, 2, 2]), "s")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(proto, tmp_path / "net.onnx")
    with pytest.raises(BuildError, match=f"torch cannot load this model.*{what}"):
        backends.get("torch").load(read_model(tmp_path / "net.onnx"), Plan("torch"))


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_boxes_are_decoded_in_fp32(torch, tmp_path, rng, half):
    """600 + x has steps of half a pixel in FP16 and of four in BF16; the answer has not."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Sigmoid", ["c"], ["s"]),
        helper.make_node("Add", ["s", "grid"], ["y"]),
    ]
    model = save_net(
        tmp_path / "net.onnx",
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 8, 8))],
        ["y"],
        {"w": rng.random((32, 3, 3, 3), np.float32) - 0.5, "grid": np.full((1, 1), 600, F32)},
        13,
    )
    feeds = {"x": rng.random((1, 3, 8, 8), np.float32)}
    (wanted,) = by_onnxruntime(model, feeds)
    (got,) = by_torch(model, feeds, getattr(torch, half))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, atol=0.02)
    assert np.abs(got - wanted).max() > 0  # the convolution did run in half


def test_numbers_that_half_cannot_hold_keep_their_node_in_fp32(torch, tmp_path):
    """log(max(x * 1e-6, 1e-9)) between two convolutions: in FP16 both numbers are gone."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Mul", ["c", "tiny"], ["t"]),
        helper.make_node("Max", ["t", "floor"], ["m"]),
        helper.make_node("Log", ["m"], ["l"]),
        helper.make_node("Conv", ["l", "w"], ["y"]),
    ]
    weights = {
        "w": np.eye(20, dtype=F32).reshape(20, 20, 1, 1),
        "tiny": np.full((1,), 1e-6, F32),
        "floor": np.full((1,), 1e-9, F32),
    }
    model = save_net(
        tmp_path / "net.onnx",
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 20, 2, 2))],
        ["y"],
        weights,
        13,
    )
    feeds = {"x": np.linspace(0, 1, 80, dtype=F32).reshape(1, 20, 2, 2)}
    (wanted,) = by_onnxruntime(model, feeds)
    (got,) = by_torch(model, feeds, torch.float16)
    np.testing.assert_allclose(got, wanted, atol=0.02)


def test_height_and_width_may_be_free(torch, tmp_path, rng):
    model = save_net(
        tmp_path / "net.onnx",
        [helper.make_node("GlobalAveragePool", ["x"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 3, "h", "w"))],
        ["y"],
        {},
        13,
    )
    engine = backends.get("torch").load(model, Plan("torch", batch=2))
    for size_hw in ((4, 6), (8, 2)):
        slot = engine.open_slot(size_hw)
        slot.inputs["x"][:] = rng.random((2, 3, *size_hw), np.float32)
        want = slot.inputs["x"].mean(axis=(2, 3), keepdims=True)
        np.testing.assert_allclose(slot.run(2)["y"], want, rtol=1e-5)


def test_the_cpu_computes_in_fp32_alone(torch, tmp_path):
    model = read_model(mean_color_detector(tmp_path / "net.onnx"))
    with pytest.raises(BuildError, match=r"precision 'fp16'.*cuda:N"):
        backends.get("torch").load(model, Plan("torch", "fp16"))


def test_a_gpu_is_not_replaced_by_the_cpu(torch, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("torch sees a CUDA device")
    model = read_model(mean_color_detector(tmp_path / "net.onnx"))
    with pytest.raises(BackendUnavailable, match=r"driver|CUDA"):
        backends.get("torch").load(model, Plan("torch", device="cuda:0"))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_arrays_go_to_a_gpu_and_back(cuda, tmp_path, rng, precision):
    model = read_model(mean_color_detector(tmp_path / "net.onnx"))
    engine = backends.get("torch").load(model, Plan("torch", precision, 3, device="cuda:0"))
    slots = [engine.open_slot(SIZE_HW) for _ in range(2)]
    for slot in slots:
        slot.inputs["images"][:] = rng.random((3, 3, *SIZE_HW), np.float32)
    for slot in slots:
        for num in (3, 1):
            scores = slot.run(num)["output0"][:, 4, 0]
            means = slot.inputs["images"][:num].mean(axis=(2, 3))[:, 0]
            np.testing.assert_allclose(scores, score_of(means), atol=5e-3)
    engine.close()
    engine.close()


def test_device_options_and_devices_are_checked(torch, tmp_path):
    model, found = read_model(mean_color_detector(tmp_path / "net.onnx")), backends.get("torch")
    with pytest.raises(InputError, match=r"compile=none\|inductor.*got compile=warp"):
        found.load_device(model, Plan("torch", options=(("compile", "warp"),)), SIZE_HW)
    with pytest.raises(BackendUnavailable, match="cuda:99"):
        found.load_device(model, Plan("torch", device="cuda:99"), SIZE_HW)


class OnDevice:
    """A DeviceBuffer for torch.as_tensor."""

    def __init__(self, buffer):
        self.__cuda_array_interface__ = {
            "shape": buffer.shape,
            "typestr": np.dtype(buffer.dtype).str,
            "data": (buffer.pointer, False),
            "version": 3,
        }


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("layout", ["model", "channels_last"])
def test_device_engine_on_a_stream_and_in_a_captured_graph(cuda, tmp_path, rng, precision, layout):
    model = read_model(mean_color_detector(tmp_path / "net.onnx"))
    plan = Plan("torch", precision, 3, device="cuda:0", options=(("input", layout),))
    engine = backends.get("torch").load_device(model, plan, SIZE_HW)
    fed = cuda.as_tensor(OnDevice(engine.inputs["images"]), device="cuda")
    given = cuda.as_tensor(OnDevice(engine.outputs["output0"]), device="cuda")
    assert engine.inputs["images"].pointer % 256 == 0
    stream, graph = cuda.cuda.Stream(), cuda.cuda.CUDAGraph()
    with cuda.cuda.graph(graph, stream=stream):
        engine.enqueue(stream.cuda_stream)
    reserved = cuda.cuda.memory_reserved()
    for launch in (lambda: engine.enqueue(stream.cuda_stream), graph.replay):
        pictures = rng.random((3, 3, *SIZE_HW), np.float32)
        axes = (0, 2, 3, 1) if layout == "channels_last" else (0, 1, 2, 3)
        fed.copy_(cuda.from_numpy(np.ascontiguousarray(pictures.transpose(axes))))
        given.fill_(float("nan"))
        cuda.cuda.synchronize()
        launch()
        cuda.cuda.synchronize()
        wanted = score_of(pictures.mean(axis=(2, 3))[:, 0])
        np.testing.assert_allclose(given.cpu().numpy()[:, 4, 0], wanted, atol=5e-3)
    assert cuda.cuda.memory_reserved() == reserved
    engine.close()
    engine.close()
