"""What every back end promises; a new file in saccade/backends is tested without an edit."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from conftest import skip_or_fail
from nets import SIZE_HW, mean_color_detector, score_of
from saccade import backends
from saccade.errors import BuildError, EngineError, InputError, SaccadeError
from saccade.graph.reading import read_model
from saccade.processor import cuts_off_int8_sums
from saccade.types import Plan


@pytest.fixture(params=backends.names())
def backend(request):
    found = backends.get(request.param)
    availability = found.probe()
    if not availability.ok:
        skip_or_fail(request.param, availability.reason)
    return found


@pytest.fixture
def model(tmp_path):
    return read_model(mean_color_detector(tmp_path / "net.onnx"))


def is_null(backend):
    return backend.name == "null"


def fill(slot, rng):
    array = slot.inputs["images"]
    array[:] = rng.random(array.shape, np.float32)
    return array.mean(axis=(2, 3))


def test_probe_says_ok_and_which_version(backend):
    found = backend.probe()
    assert found.ok
    assert found.reason


@pytest.mark.parametrize("batch", [1, 3])
def test_answers_have_the_right_shape_and_value(backend, model, rng, batch):
    engine = backend.load(model, Plan(backend.name, batch=batch))
    slot = engine.open_slot(SIZE_HW)
    means = fill(slot, rng)
    out = slot.run(batch)["output0"]
    assert out.shape == (batch, 6, 21)
    assert out.dtype == np.float32
    if not is_null(backend):
        np.testing.assert_allclose(out[:, 4, 0], score_of(means[:, 0]), rtol=1e-5)
        np.testing.assert_allclose(out[:, 5, 0], score_of(means[:, 2]), rtol=1e-5)
        np.testing.assert_array_equal(out[:, :4, 0], [[16, 16, 16, 16]] * batch)
    engine.close()


def test_a_part_filled_batch_gives_the_answers_of_its_items(backend, model, rng):
    engine = backend.load(model, Plan(backend.name, batch=4))
    slot = engine.open_slot(SIZE_HW)
    fill(slot, rng)
    whole = slot.run(4)["output0"].copy()
    for num in (1, 3, 4):
        np.testing.assert_allclose(slot.run(num)["output0"][:num], whole[:num], rtol=1e-5)


def test_slots_do_not_share_answers(backend, model):
    engine = backend.load(model, Plan(backend.name, streams=2))
    slots = [engine.open_slot(SIZE_HW) for _ in range(2)]
    for value, slot in enumerate(slots):
        slot.inputs["images"][:] = value
    outs = [slot.run(1)["output0"] for slot in slots]
    if not is_null(backend):
        np.testing.assert_allclose([out[0, 4, 0] for out in outs], score_of([0, 1]), rtol=1e-5)


def test_slots_run_at_the_same_time(backend, model, rng):
    engine = backend.load(model, Plan(backend.name, streams=4))
    wrong = []

    def work(seed):
        slot = engine.open_slot(SIZE_HW)
        own = np.random.default_rng(seed)
        for _ in range(50):
            means = fill(slot, own)
            got = slot.run(1)["output0"][0, 4, 0]
            if not is_null(backend) and abs(got - score_of(means[0, 0])) > 1e-5:
                wrong.append((seed, got))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_fixed_batch_is_not_changed_in_silence(backend, tmp_path):
    model = read_model(mean_color_detector(tmp_path / "fixed.onnx", batch=2))
    with pytest.raises(BuildError, match=r"batch must be 2.*got 3"):
        backend.load(model, Plan(backend.name, batch=3))
    slot = backend.load(model, Plan(backend.name, batch=2)).open_slot(SIZE_HW)
    slot.inputs["images"][:] = 0.5
    out = slot.run(1)["output0"]
    assert out.shape[0] == 2
    assert backend.supports(model).ok


def test_float16_inputs_and_outputs(backend, tmp_path):
    model = read_model(mean_color_detector(tmp_path / "half.onnx", dtype="float16"))
    slot = backend.load(model, Plan(backend.name)).open_slot(SIZE_HW)
    slot.inputs["images"][:] = 0.5
    assert slot.inputs["images"].dtype == np.float16
    out = slot.run(1)["output0"]
    assert out.dtype == np.float16
    if not is_null(backend):
        assert float(out[0, 4, 0]) == pytest.approx(0.5, abs=1e-3)


def test_precision_is_explicit(backend, model):
    for precision in ("fp32", "fp16", "bf16"):
        plan = Plan(backend.name, precision=precision)
        if precision in backend.precisions:
            continue
        with pytest.raises(SaccadeError, match="precision"):
            backend.load(model, plan)
    engine = backend.load(model, Plan(backend.name))
    assert engine.fallbacks == ()
    assert engine.plan.precision == "fp32"


def test_fp32_is_fp32(backend, rng, tmp_path):
    """A sum that needs more than BF16's eight bits comes out right."""
    if is_null(backend):
        return
    model = read_model(mean_color_detector(tmp_path / "net.onnx"))
    slot = backend.load(model, Plan(backend.name)).open_slot(SIZE_HW)
    slot.inputs["images"][:] = 1 / 3
    got = float(slot.run(1)["output0"][0, 4, 0])
    assert got == pytest.approx(float(score_of(1 / 3)), abs=1e-6)


def test_a_closed_engine_says_so(backend, model):
    engine = backend.load(model, Plan(backend.name))
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.open_slot(SIZE_HW)


def test_unknown_options_are_errors(backend, model):
    with pytest.raises(InputError, match="option"):
        backend.load(model, Plan(backend.name, options=(("warp", "9"),)))


@pytest.mark.shared
@pytest.mark.parametrize(
    "name",
    [
        "onnx_unknown_op_default_domain.onnx",
        "onnx_custom_op_unknown_domain.onnx",
        "onnx_trt_plugin_efficientnms.onnx",
    ],
)
def test_models_it_cannot_run_are_refused_in_words(backend, shared, name):
    if is_null(backend):
        return
    model = read_model(shared / "odd" / name)
    found = backend.supports(model)
    assert not found.ok
    assert found.reason.startswith(f"{backend.name} cannot load this model: ")
    assert "\n" not in found.reason


@pytest.mark.shared
def test_bf16_is_a_plan_of_its_own(shared):
    """OpenVINO picks BF16 by itself on some processors; asked for FP32 it must not."""
    found = backends.get("openvino")
    if not found.probe().ok:
        skip_or_fail("openvino", found.probe().reason)
    model = read_model(shared / "models" / "fastestdet_352.onnx")
    reference = backends.get("onnxruntime")
    plans = {"reference": (reference, "fp32"), "fp32": (found, "fp32")}
    outs = {}
    for label, (one, precision) in plans.items():
        slot = one.load(model, Plan(one.name, precision)).open_slot((352, 352))
        slot.inputs["input.1"][:] = np.random.default_rng(1).random((1, 3, 352, 352), np.float32)
        outs[label] = slot.run(1)["758"].copy()
    np.testing.assert_allclose(outs["fp32"], outs["reference"], atol=2e-4)


@pytest.mark.shared
def test_int8_sums_are_whole_on_every_processor(shared):
    """Without VNNI, ONNX Runtime cuts off sums of 8-bit products unless kept from it."""
    import onnxruntime

    model = read_model(shared / "models" / "fastestdet_352_qdq_int8.onnx")
    size_hw = (352, 352)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    one_by_one = onnxruntime.InferenceSession(str(model.path), options)
    with_engine = backends.get("onnxruntime").load(model, Plan("onnxruntime"))
    slot = with_engine.open_slot(size_hw)
    name, pictures = next(iter(slot.inputs.items()))
    pictures[:] = np.random.default_rng(5).random(pictures.shape, np.float32)
    (exact,) = one_by_one.run(None, {name: pictures})
    (found,) = slot.run(1).values()
    # Rounding gives .4 of the spread in this deep network, sums that are cut off 1.5.
    assert np.sqrt(np.mean((found - exact) ** 2)) < 0.7 * exact.std()
    with_engine.close()


@pytest.mark.shared
def test_openvino_refuses_int8_where_it_would_be_wrong(shared):
    found = backends.get("openvino")
    if not found.probe().ok:
        skip_or_fail("openvino", found.probe().reason)
    model = read_model(shared / "models" / "fastestdet_352_qdq_int8.onnx")
    if cuts_off_int8_sums():
        with pytest.raises(BuildError, match=r"need a processor with VNNI.*'onnxruntime'"):
            found.load(model, Plan("openvino"))
        assert "VNNI" in found.supports(model).reason
    else:
        found.load(model, Plan("openvino")).close()
