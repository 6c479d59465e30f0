"""The runtime on a real device."""

from __future__ import annotations

import numpy as np
import pytest

from saccade.cuda.runtime import Device
from saccade.errors import BackendUnavailable, EngineError


def test_device_that_does_not_exist(device: Device) -> None:
    for index in (-1, 99):
        with pytest.raises(BackendUnavailable, match="cuda:0"):
            Device(index)


def test_copy_there_and_back_through_a_graph(device: Device, rng: np.random.Generator) -> None:
    one, two = device.pinned(1000), device.pinned(1000)
    arena = device.arena({"a": 1000})
    stream = device.stream()
    with stream.capture() as captured:
        stream.upload(arena.address("a"), one, 1000)
        stream.download(two, arena.address("a"), 1000)
    for _ in range(3):
        one.array[:] = rng.integers(0, 256, 1000, dtype=np.uint8)
        captured.graph.launch(stream)
        stream.synchronize()
        assert (one.array == two.array).all()
    captured.graph.close()


def test_arena_that_does_not_fit_says_how_much(device: Device) -> None:
    _, total = device.memory()
    with pytest.raises(EngineError, match="lower the batch"):
        device.arena({"huge": 2 * total})
    assert device.arena({"small": 10}).num_bytes == 256  # the device still works


def test_events_order_streams_and_measure(device: Device) -> None:
    start, stop = device.event(is_timed=True), device.event(is_timed=True)
    one, two = device.stream(), device.stream()
    arena = device.arena({"a": 4000})
    start.record(one)
    one.fill(arena.base, 7, 1000)
    stop.record(one)
    two.wait_for(stop)
    back = device.pinned(4000)
    two.download(back, arena.base, 4000)
    two.synchronize()
    assert (back.array.view(np.uint32) == 7).all()
    assert stop.is_done()
    assert stop.ms_since(start) >= 0


def test_capture_that_fails_leaves_the_stream_usable(device: Device) -> None:
    stream = device.stream()

    def spoil() -> None:
        with stream.capture():
            stream.synchronize()

    with pytest.raises(EngineError):
        spoil()
    stream.synchronize()
