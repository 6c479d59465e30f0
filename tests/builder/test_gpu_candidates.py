"""What the search tries on a GPU; the plans can be made anywhere."""

from __future__ import annotations

import pytest

from nets import mean_color_detector
from saccade.builder.candidates import Space, families, gpu_backends, key_of, kind_of, variants
from saccade.builder.records import Recipe
from saccade.pipeline.detector import load
from saccade.profiler.gpus import look_at_gpus

USABLE = {"onnxruntime": ("fp32",), "openvino": ("fp32", "bf16"), "torch": ("fp32",)}
RECIPES = [Recipe(), Recipe("fp16"), Recipe("int8", "minmax")]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    with load(mean_color_detector(tmp_path_factory.mktemp("m") / "free.onnx")) as detector:
        return detector.model


def on_gpu(found):
    return [c for c in found if c.plan.device != "cpu"]


def test_without_a_gpu_nothing_is_tried_there(model):
    assert not on_gpu(families(model, RECIPES, USABLE, Space(4, (1, 8))))
    if look_at_gpus().problem:
        assert gpu_backends(USABLE) == ()


def test_engines_on_a_gpu_are_families_of_their_own(model):
    space = Space(4, (1, 8), on_gpu=("torch", "onnxruntime"))
    found = on_gpu(families(model, RECIPES, USABLE, space))
    assert {c.plan.device for c in found} == {"cuda:0"}
    assert {(c.plan.backend, c.plan.precision, c.recipe.precision) for c in found} == {
        ("torch", "fp32", "fp32"),
        ("torch", "fp16", "fp32"),
        ("torch", "bf16", "fp32"),
        ("onnxruntime", "fp32", "fp32"),
        ("onnxruntime", "fp32", "fp16"),
        ("onnxruntime", "fp32", "int8"),
    }
    assert len(set(map(kind_of, found))) == len(set(map(key_of, found))) == len(found)
    for one in found:
        # What a job on a GPU refuses is not asked of it.
        assert one.plan.threads == 1
        assert not one.scaled_decode
        assert one.plan.batch == 32


def test_variants_on_a_gpu_are_larger_batches(model):
    space = Space(4, (1, 4, 8), on_gpu=("torch",))
    base = on_gpu(families(model, [Recipe()], USABLE, space))[0]
    plans = variants(base, model, space)
    assert {c.plan.batch for c in plans} == {8, 32, 64}
    assert {c.plan.threads for c in plans} == {1}
    assert base not in plans


def test_latency_on_a_gpu_is_one_picture_at_a_time(model):
    space = Space(4, (1, 8), "latency", on_gpu=("torch",))
    (base, *_) = on_gpu(families(model, [Recipe()], USABLE, space))
    assert (base.plan.batch, base.plan.streams) == (1, 1)
    assert variants(base, model, space) == []


def test_a_fixed_batch_stays_on_a_gpu(tmp_path):
    with load(mean_color_detector(tmp_path / "fixed.onnx", batch=2)) as detector:
        model = detector.model
    space = Space(4, (1, 8), on_gpu=("torch",))
    found = on_gpu(families(model, [Recipe()], USABLE, space))
    assert {c.plan.batch for c in found} == {2}
    assert {c.plan.batch for c in variants(found[0], model, space)} == {2}
