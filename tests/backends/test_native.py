"""Our own engine behind the seams: what is refused anywhere, and on a GPU answers against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from conftest import skip_or_fail
from nets import mean_color_detector
from saccade import backends
from saccade.backends.native import _narrow
from saccade.errors import BackendUnavailable, BuildError, EngineError, InputError
from saccade.graph.passes.loading import load_tidy
from saccade.graph.reading import read_model
from saccade.native.drafting import drafted
from saccade.native.reference import interpret
from saccade.types import Plan

PLAN = Plan("native", "fp16", device="cuda:0")


@pytest.fixture
def native():
    return backends.get("native")


@pytest.fixture
def gpu(native, tmp_path, monkeypatch):
    """A card, and caches of our own."""
    found = native.probe()
    if not found.ok:
        skip_or_fail("gpu", found.reason)
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path))
    from saccade.cuda.runtime import Device

    with Device(0) as device:
        yield device


@pytest.fixture
def cells(shared):
    return read_model(shared / "models" / "cells_640.onnx")


def put(pointer, array):
    from saccade.native.launching import put

    put(array, pointer)


def get(buffer):
    from saccade.cuda import driver

    array = np.empty(buffer.shape, buffer.dtype)
    copy = driver.bindings().cuMemcpyDtoH
    driver.call("copying", copy, array.ctypes.data, buffer.pointer, buffer.num_bytes)
    return array


def poison(engine):
    for buffer in engine.outputs.values():
        put(buffer.pointer, np.full(buffer.num_bytes, 0xFF, np.uint8))


def test_without_a_card_it_says_so(native, cells):
    if native.probe().ok:
        pytest.skip("there is a card here")
    assert "driver" in native.probe().reason or "install" in native.probe().reason
    assert not native.supports(cells).ok
    with pytest.raises(BackendUnavailable, match="back end 'native' cannot be used"):
        native.load_device(cells, PLAN, (640, 640))


@pytest.mark.shared
def test_plans_it_does_not_take(gpu, native, cells):
    with pytest.raises(BuildError, match="computes on device 'cuda:N', got 'cpu'"):
        native.load(cells, Plan("native", "fp16"))
    with pytest.raises(InputError, match=r"libraries=0\|1, input=model\|plan; got fast=1"):
        native.load(cells, Plan("native", "fp16", device="cuda:0", options=(("fast", "1"),)))


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("batch", [1, 3])
def test_device_engine(gpu, native, cells, batch):
    assert native.supports(cells).ok
    plan = Plan("native", "fp16", batch, device="cuda:0")
    engine = native.load_device(cells, plan, (640, 640))
    rng = np.random.default_rng(batch)
    images = rng.random((1, 3, 40, 40), dtype=np.float32).repeat(16, 2).repeat(16, 3)
    images = np.concatenate([images] * batch)
    draft = drafted(load_tidy(cells), {"images": (1, 3, 640, 640)}, "fp32")
    (want,) = interpret(draft, {"images": images[:1]}).values()
    stream = gpu.stream()

    def check():
        (got,) = (get(buffer) for buffer in engine.outputs.values())
        for picture in got:
            assert np.linalg.norm(picture - want[0]) <= 2e-3 * np.linalg.norm(want)

    put(engine.inputs["images"].pointer, images)
    poison(engine)
    engine.enqueue(stream.handle)
    stream.synchronize()
    check()
    poison(engine)
    with stream.capture() as captured:
        engine.enqueue(stream.handle)
    captured.graph.launch(stream)
    stream.synchronize()
    check()
    captured.graph.close()
    assert engine.workspace_bytes > 0
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.enqueue(stream.handle)


def test_rounding_to_the_plans_type():
    given = np.array([1.0, -2.5, 1 + 2**-8, 1 + 3 * 2**-8, 3.1415927, 0.0], np.float32)
    into = np.empty(6, np.uint16)
    _narrow(given, into, "bfloat16")
    back = (into.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(back, np.float32([1, -2.5, 1, 1 + 2**-6, 3.140625, 0]))
    half = np.empty(6, np.float16)
    _narrow(given, half, "float16")
    np.testing.assert_array_equal(half, given.astype(np.float16))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_slots_take_the_graphs_type_whatever_the_engine_is_fed_with(
    gpu, native, tmp_path, precision
):
    model = read_model(mean_color_detector(tmp_path / "net.onnx"))
    picture = np.random.default_rng(0).random((2, 3, 32, 32), dtype=np.float32)
    found = []
    for options in ((), (("input", "plan"),)):
        engine = native.load(model, Plan("native", precision, 2, device="cuda:0", options=options))
        slot = engine.open_slot((32, 32))
        slot.inputs["images"][...] = picture
        found.append({name: array.copy() for name, array in slot.run(2).items()})
        engine.close()
    for name, want in found[0].items():
        np.testing.assert_allclose(found[1][name], want, rtol=2e-2, atol=2e-2)


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_slots_and_the_second_load(gpu, native, cells, tmp_path):
    engine = native.load(cells, Plan("native", "fp16", 2, device="cuda:0"))
    slots = [engine.open_slot((640, 640)) for _ in range(2)]
    rng = np.random.default_rng(0)
    images = rng.random((2, 3, 640, 640), dtype=np.float32)
    for slot in slots:
        slot.inputs["images"][...] = images
    first = {n: a.copy() for n, a in slots[0].run(2).items()}
    second = slots[1].run(1)
    np.testing.assert_array_equal(first["output0"][:1], second["output0"])
    engine.close()
    (kept,) = (tmp_path / "native-engines").iterdir()
    stamp = kept.stat().st_mtime_ns
    again = native.load(cells, Plan("native", "fp16", 2, device="cuda:0"))
    slot = again.open_slot((640, 640))
    slot.inputs["images"][...] = images
    np.testing.assert_array_equal(slot.run(2)["output0"], first["output0"])
    assert kept.stat().st_mtime_ns == stamp
    again.close()
