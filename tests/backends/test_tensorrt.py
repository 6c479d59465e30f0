"""TensorRT: shapes as text, and engines built ahead of time on a machine without a GPU."""

from __future__ import annotations

import importlib.util
import re

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from conftest import skip_or_fail
from nets import mean_color_detector, save
from saccade import backends
from saccade.backends._shape_ranges import (
    ShapeRange,
    derive_shapes,
    input_ranges,
    parse_shapes,
)
from saccade.backends._tensorrt_run import _DTYPES
from saccade.errors import BackendUnavailable, BuildError, InputError
from saccade.graph.reading import read_model
from saccade.types import Model, Plan, TensorSpec

BACKEND = backends.get("tensorrt")
PLAN = Plan("tensorrt", batch=2)


@pytest.fixture
def rtx():
    if importlib.util.find_spec("tensorrt_rtx") is None:
        skip_or_fail("tensorrt_rtx", "package tensorrt_rtx is not installed: saccade[trt-rtx]")


def model_of(*shapes):
    inputs = tuple(TensorSpec(f"in{i}", "float32", shape) for i, shape in enumerate(shapes))
    return Model("net.onnx", "", inputs, (), {}, 17)


def conv_net(path, *, size=32, quantised="", biased=False):
    """One convolution, with Q/DQ pairs of a type round its input and its weights."""
    rng = np.random.default_rng(3)
    weights = {"w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32)}
    nodes, x, w = [], "images", "w"
    if quantised:
        kind = getattr(TensorProto, quantised)
        weights["scale"] = np.array(0.05, np.float32)
        zero = helper.make_tensor("zero", kind, [], [0])
        for name in ("images", "w"):
            args = ["scale", "zero"]
            nodes.append(
                helper.make_node("QuantizeLinear", [name, *args], [f"{name}_q"], f"q_{name}")
            )
            nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", *args], [f"{name}_d"]))
        x, w = "images_d", "w_d"
    conv_inputs = [x, w]
    if biased:
        weights |= {"bias": np.zeros(4, np.int32)}
        nodes.append(helper.make_node("DequantizeLinear", ["bias", "scale"], ["b_d"], "dq_bias"))
        conv_inputs.append("b_d")
    nodes.append(helper.make_node("Conv", conv_inputs, ["output0"], pads=[1, 1, 1, 1]))
    args = (
        nodes,
        [helper.make_tensor_value_info("images", 1, ["n", 3, size, size])],
        [helper.make_tensor_value_info("output0", 1, ["n", 4, size, size])],
        weights,
    )
    if not quantised:
        return read_model(save(path, *args))
    arrays = [onnx.numpy_helper.from_array(v, k) for k, v in weights.items()]
    graph = helper.make_graph(*args[:1], "g", *args[1:3], [*arrays, zero])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), path
    )
    return read_model(path)


def test_shapes_as_text():
    text = "1x3x320x320:8x3x640x640:32x3x640x640"
    (one,) = parse_shapes(text)
    assert one == ShapeRange((1, 3, 320, 320), (8, 3, 640, 640), (32, 3, 640, 640))
    assert str(one) == text
    assert parse_shapes("1X3x8x8") == (ShapeRange(*[(1, 3, 8, 8)] * 3),)
    assert len(parse_shapes(f"{text}, 2x3x8x8 ,{text}")) == 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1x3x8",
        "0x3x8x8",
        "1x3x8x8:2x3x8x8",
        "1x3x8x8:",
        "-1x3x8x8",
        "axbxcxd",
        "1x3x8x8,",
        "٣x3x8x8",
    ],
)
def test_other_texts_are_refused(text):
    with pytest.raises(InputError, match="shapes must be LEAST:BEST:MOST"):
        parse_shapes(text)


def test_shapes_must_grow():
    with pytest.raises(InputError, match="must grow on every axis"):
        parse_shapes("8x3x64x64:1x3x64x64:8x3x64x64")


@given(st.lists(st.tuples(*[st.integers(1, 4096)] * 3), min_size=1, max_size=30))
def test_derived_shapes_hold_all_that_was_seen(seen):
    (made,) = derive_shapes(
        model_of(("n", 3, "h", "w")), [b for b, _, _ in seen], [(h, w) for _, h, w in seen]
    )
    for batch, height, width in seen:
        shape = (batch, 3, height, width)
        assert all(a <= s <= b for a, s, b in zip(made.least, shape, made.most, strict=True))
    assert made.best[2:] in {(h, w) for _, h, w in seen}
    assert parse_shapes(str(made)) == (made,)


def test_derived_shapes_keep_what_the_graph_fixes():
    assert derive_shapes(model_of((1, 3, 8, 8)), (4,), ((9, 9),)) == ()
    (made,) = derive_shapes(model_of(("n", 3, 8, 16)), (1, 4, 4), ((9, 9),))
    assert made == ShapeRange((1, 3, 8, 16), (4, 3, 8, 16), (4, 3, 8, 16))
    (nhwc,) = derive_shapes(model_of(("n", "h", "w", 3)), (2,), ((8, 16),))
    assert nhwc.best == (2, 8, 16, 3)
    with pytest.raises(InputError, match="none were given"):
        derive_shapes(model_of(("n", 3, 8, 8)), (), ())
    with pytest.raises(InputError, match="has 0 such"):
        derive_shapes(model_of(("n", 3)), (1,), ((8, 8),))


def test_other_inputs_follow_the_batch():
    (shapes,) = parse_shapes("1x3x8x8:2x3x8x8:4x3x8x8")
    ranges = input_ranges(model_of(("n", 3, 8, 8), ("n", 2), (7,)), shapes)
    assert ranges == {"in0": shapes, "in1": ShapeRange((1, 2), (2, 2), (4, 2))}
    with pytest.raises(BuildError, match="only the first axis"):
        input_ranges(model_of(("n", 3, 8, 8), ("n", "k")), shapes)
    with pytest.raises(BuildError, match="must keep what the graph fixes"):
        input_ranges(model_of(("n", 3, 8, 9)), shapes)


def test_probe_promises_no_run_without_a_card():
    found = BACKEND.probe()
    if importlib.util.find_spec("tensorrt_rtx") is None:
        assert "saccade[trt-rtx]" in found.reason
        assert not BACKEND.can_build().ok
    elif not found.ok:
        assert re.match(r"tensorrt_rtx \d.* builds engines here, but none can run: ", found.reason)
        assert BACKEND.can_build().ok


def test_loading_without_a_card_or_a_package_says_so(tmp_path):
    if BACKEND.probe().ok:
        return
    model = read_model(mean_color_detector(tmp_path / "net.onnx"))
    plan = Plan("tensorrt", device="cuda:0")
    for load in (
        lambda: BACKEND.load(model, plan),
        lambda: BACKEND.load_device(model, plan, (32, 32)),
    ):
        with pytest.raises(BackendUnavailable, match=r"install|driver"):
            load()
    with pytest.raises(BuildError, match="device of back end 'tensorrt' must be cuda:N"):
        BACKEND.load(model, Plan("tensorrt"))
    assert not BACKEND.supports(model).ok


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"precision": "bf16"}, BuildError, "precision of back end 'tensorrt'"),
        ({"options": (("warp", "9"),)}, InputError, "options of back end 'tensorrt' are"),
        ({"options": (("package", "numpy"),)}, InputError, "option package must be one of"),
    ],
    ids=str,
)
def test_plans_it_cannot_follow_are_refused(tmp_path, changes, error, told):
    model = read_model(mean_color_detector(tmp_path / "net.onnx"))
    with pytest.raises(error, match=told):
        BACKEND.build(model, Plan("tensorrt", **changes), ["sm89"])


@pytest.mark.usefixtures("rtx")
def test_the_interface_for_running_is_there():
    """Running needs a card; that the names which it uses exist does not."""
    import tensorrt_rtx

    used = {
        "Runtime": ("deserialize_cuda_engine",),
        "ICudaEngine": (
            "create_execution_context",
            "get_device_memory_size_for_profile_v2",
            "get_tensor_dtype",
            "get_tensor_profile_shape",
            "get_tensor_shape",
            "num_optimization_profiles",
        ),
        "IExecutionContext": (
            "execute_async_v3",
            "get_tensor_shape",
            "set_input_shape",
            "set_optimization_profile_async",
            "set_tensor_address",
        ),
    }
    for owner, names in used.items():
        for name in names:
            assert hasattr(getattr(tensorrt_rtx, owner), name), f"{owner}.{name}"
    assert tensorrt_rtx.DataType.HALF.itemsize == 2
    assert set(_DTYPES) <= set(tensorrt_rtx.DataType.__members__)


@pytest.mark.usefixtures("rtx")
class TestBuilding:
    def build(self, model, target="sm89", plan=PLAN, **more):
        return BACKEND.build(model, plan, [target], **more)[target]

    @pytest.mark.parametrize("target", ["sm86", "sm89", "sm120", "sm86+sm89+sm120"])
    def test_an_engine_for_each_target(self, tmp_path, target):
        built = self.build(conv_net(tmp_path / "net.onnx"), target)
        assert len(built.data) > 1000
        assert built.target == target
        assert built.package.startswith("tensorrt_rtx ")
        assert built.shapes[0].most == (2, 3, 32, 32)
        assert any("Engine generation completed" in line for line in built.messages)
        assert not any(line.startswith("VERBOSE") for line in built.messages)

    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    def test_types_are_those_of_the_graph(self, tmp_path, dtype):
        model = read_model(mean_color_detector(tmp_path / "net.onnx", dtype=dtype))
        assert self.build(model).data

    def test_int8_pairs(self, tmp_path):
        assert self.build(conv_net(tmp_path / "net.onnx", quantised="INT8"), "sm86").data

    def test_several_ranges(self, tmp_path):
        model = conv_net(tmp_path / "net.onnx")
        options = (("shapes", "1x3x32x32,8x3x32x32:8x3x32x32:32x3x32x32"),)
        built = self.build(model, plan=Plan("tensorrt", options=options))
        assert [s.most[0] for s in built.shapes] == [1, 32]
        given = parse_shapes("4x3x32x32")
        assert self.build(model, shapes=given).shapes == given

    def test_free_sizes_need_shapes(self, tmp_path):
        model = conv_net(tmp_path / "net.onnx", size="s")
        with pytest.raises(BuildError, match="shapes must be given where a graph leaves height"):
            self.build(model)
        shapes = derive_shapes(model, (1, 8), ((32, 32), (64, 96)))
        assert self.build(model, shapes=shapes).shapes == shapes

    def test_fp8_is_refused_where_the_card_has_none(self, tmp_path):
        model = conv_net(tmp_path / "net.onnx", quantised="FLOAT8E4M3FN")
        with pytest.raises(
            BuildError, match=r"cannot build net.onnx for sm86 .FP8 needs sm89 or newer"
        ):
            self.build(model, "sm86")
        assert self.build(model, "sm89").data

    def test_32_bit_biases_are_refused_in_words(self, tmp_path):
        model = conv_net(tmp_path / "net.onnx", quantised="INT8", biased=True)
        with pytest.raises(BuildError, match=r"quantise without biases.*dq_bias"):
            self.build(model)

    def test_a_target_that_is_none(self, tmp_path):
        model = conv_net(tmp_path / "net.onnx")
        for target in ("sm90", "", "sm89+", "rtx4090"):
            with pytest.raises(InputError, match=r"targets of tensorrt_rtx .* are sm75, .*; got"):
                self.build(model, target)

    def test_workspace_is_a_number(self, tmp_path):
        model = conv_net(tmp_path / "net.onnx")
        for text in ("0", "much", "-1"):
            with pytest.raises(InputError, match="workspace_mib must be a number"):
                self.build(model, plan=Plan("tensorrt", options=(("workspace_mib", text),)))

    @pytest.mark.shared
    def test_a_workspace_too_small_says_so(self, shared):
        model = read_model(shared / "models" / "cells_640.onnx")
        plan = Plan("tensorrt", options=(("workspace_mib", "1"),))
        with pytest.raises(BuildError, match="it needs more workspace"):
            self.build(model, plan=plan)
        plan = Plan("tensorrt", options=(("workspace_mib", "2048"),))
        assert self.build(model, plan=plan).data

    @pytest.mark.shared
    @pytest.mark.parametrize("name", ["cells_640", "yolox_nano_416", "deimv2_atto_320"])
    def test_real_networks(self, shared, name):
        built = self.build(read_model(shared / "models" / f"{name}.onnx"), plan=Plan("tensorrt"))
        assert len(built.data) > 1_000_000

    @pytest.mark.shared
    @pytest.mark.parametrize(
        ("path", "told"),
        [
            ("odd/onnx_trt_plugin_efficientnms.onnx", "no such plug-in.*EfficientNMS_TRT"),
            ("models/fastestdet_352_nms.onnx", "export without suppression"),
            ("models/fastestdet_352_qdq_int8.onnx", "quantise without biases"),
        ],
    )
    def test_what_it_cannot_build_is_told_in_one_line(self, shared, path, told):
        with pytest.raises(BuildError, match=told) as caught:
            self.build(read_model(shared / path), plan=Plan("tensorrt"))
        assert "\n" not in str(caught.value)


def test_unsigned_zero_points_are_refused(tmp_path):
    if not BACKEND.can_build().ok:
        skip_or_fail("tensorrt_rtx", "package tensorrt_rtx is not installed: saccade[trt-rtx]")
    model = conv_net(tmp_path / "net.onnx", quantised="UINT8")
    with pytest.raises(BuildError, match=r"must be signed \(INT8\).*'q_images'"):
        BACKEND.build(model, PLAN, ["sm86"])
