"""What a plan computes on the CPU, against ONNX Runtime, for real models."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from saccade.errors import BuildError
from saccade.graph.passes.loading import load_tidy
from saccade.graph.reading import read_model
from saccade.native.drafting import drafted
from saccade.native.memory import placed
from saccade.native.ops import Boxes, Conv, Copy, Pointwise, PoolChain
from saccade.native.reference import interpret

MODELS = (
    "cells_640",
    "deimv2_atto_320",
    "fastestdet_352",
    "light_person_192",
    "nanodet_m_320",
    "ultraface_rfb_320",
    "yolox_nano_416",
    "yunet_n_320",
)


def networks():
    """bench/networks.py, which is not a package of ours."""
    path = Path(__file__).parents[2] / "bench" / "networks.py"
    spec = importlib.util.spec_from_file_location("networks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shapes_of(model, batch=1):
    free = {spec.name: [batch if isinstance(s, str) else s for s in spec.shape]
            for spec in model.inputs}  # fmt: skip
    if "orig_target_sizes" in free:
        free["orig_target_sizes"] = [batch, 2]
    return {name: tuple(shape) for name, shape in free.items()}


def feeds_of(model, shapes):
    rng = np.random.default_rng(1)
    return {
        spec.name: rng.random(shapes[spec.name], dtype=np.float32)
        if spec.dtype == "float32"
        else np.full(shapes[spec.name], 320, spec.dtype)
        for spec in model.inputs
    }


def run_ort(model, feeds):
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(str(model.path), options)
    names = [spec.name for spec in model.outputs]
    return dict(zip(names, session.run(names, feeds), strict=True))


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_fp32_plan_computes_what_onnxruntime_computes(shared, name):
    model = read_model(shared / "models" / f"{name}.onnx")
    shapes = shapes_of(model)
    feeds = feeds_of(model, shapes)
    plan = placed(drafted(load_tidy(model), shapes, "fp32"))
    found, wanted = interpret(plan, feeds), run_ort(model, feeds)
    for output, want in wanted.items():
        got = found[output]
        assert got.shape == want.shape
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=0, atol=max(1e-4 * np.abs(want).max(), 1e-6))


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_plan_is_near(shared, precision):
    model = read_model(shared / "models" / "cells_640.onnx")
    shapes = shapes_of(model, 2)
    feeds = feeds_of(model, shapes)
    plan = placed(drafted(load_tidy(model), shapes, precision))
    got, want = interpret(plan, feeds)["output0"], run_ort(model, feeds)["output0"]
    assert got.dtype == np.float32
    tolerance = {"fp16": 2e-3, "bf16": 2e-2}[precision]
    assert np.linalg.norm(got - want) <= tolerance * np.linalg.norm(want)


@pytest.mark.shared
@pytest.mark.slow
def test_pictures_fed_as_halves(shared):
    model = read_model(shared / "models" / "light_person_192.onnx")
    shapes = shapes_of(model)
    feeds = {"images": np.round(feeds_of(model, shapes)["images"] * 255)}
    proto = load_tidy(model)
    plain, half = (
        placed(drafted(proto, shapes, "fp16", half_inputs=is_half)) for is_half in (False, True)
    )
    assert [spec.dtype for spec in (*plain.inputs, *half.inputs)] == ["float32", "float16"]
    one, other = (interpret(plan, feeds)["output"] for plan in (plain, half))
    # Whole numbers up to 255 are the same as halves.
    np.testing.assert_array_equal(one, other)


@pytest.mark.shared
@pytest.mark.slow
def test_quantised_plan_is_as_near_as_onnxruntime_is_to_itself(shared):
    """Where a sum is almost between two steps of a grid, its order decides; so not closer."""
    ort = pytest.importorskip("onnxruntime")
    model = read_model(shared / "models" / "fastestdet_352_qdq_int8.onnx")
    shapes = shapes_of(model)
    feeds = {"input.1": feeds_of(model, shapes)["input.1"]}
    draft = drafted(load_tidy(model), shapes, "fp32")
    got = interpret(placed(draft), feeds)["758"]
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    (plain,) = ort.InferenceSession(str(model.path), options).run(None, feeds)
    optimised = run_ort(model, feeds)["758"]
    own = np.linalg.norm(plain - optimised)
    assert np.linalg.norm(got - plain) <= max(2 * own, 1e-3 * np.linalg.norm(plain))


@pytest.mark.shared
def test_a_yolov8_network_is_convolutions_and_four_kinds_more(shared):
    model = read_model(shared / "models" / "cells_640.onnx")
    draft = drafted(load_tidy(model), shapes_of(model), "fp16")
    kinds = [type(step) for step in draft.steps]
    # 63 in the graph; on each of 3 levels the head's branches begin with one for both.
    assert kinds.count(Conv) == 60
    assert (kinds.count(PoolChain), kinds.count(Boxes), kinds.count(Pointwise)) == (1, 1, 1)
    assert Copy not in kinds
    hidden = [s for s in draft.steps if isinstance(s, Conv) and s.activation.kind == "silu"]
    assert len(hidden) == 54
    (boxes,) = [step for step in draft.steps if isinstance(step, Boxes)]
    assert [(level.x.h, level.stride) for level in boxes.levels] == [(80, 8), (40, 16), (20, 32)]
    assert (boxes.bins, boxes.form, boxes.y.dtype) == (16, "cxcywh", "float32")


@pytest.mark.shared
def test_what_is_not_covered_is_named_before_anything_is_built(shared):
    model = read_model(shared / "models" / "fastestdet_352_nms.onnx")
    message = r"NonMaxSuppression node 'nms_sel'.*choose another back end"
    with pytest.raises(BuildError, match=message):
        drafted(load_tidy(model), shapes_of(model))


@pytest.mark.parametrize(
    ("name", "size"), [("resnet50", 64), ("yolov8s", 64), ("retinanet", 128), ("faster_rcnn", 64)]
)
@pytest.mark.slow
def test_networks_from_public_definitions(tmp_path, name, size):
    model = read_model(networks().write(name, size, 1, tmp_path / "net.onnx"))
    shapes = shapes_of(model)
    feeds = feeds_of(model, shapes)
    for key, array in feeds.items():
        if key.startswith("rois"):
            feeds[key] = np.sort(array.reshape(-1, 2, 2), axis=1).reshape(-1, 4) * size
    draft = drafted(load_tidy(model), shapes, "fp32")
    found, wanted = interpret(placed(draft), feeds), run_ort(model, feeds)
    for output, want in wanted.items():
        np.testing.assert_allclose(found[output], want, rtol=0, atol=1e-5 * np.abs(want).max())
    left = {type(step).__name__ for step in draft.steps} - {"Conv", "Pool", "Resize", "Reduce"}
    assert left <= {"RoiAlign", "Copy", "PoolChain", "Boxes", "Pointwise"}
