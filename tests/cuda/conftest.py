"""A GPU for the tests that need one, and a compiler for those that need that."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from conftest import skip_or_fail
from saccade.cuda.runtime import Device
from saccade.errors import BackendUnavailable
from saccade.types import DeviceBuffer


@pytest.fixture(scope="session")
def nvrtc() -> None:
    """Skip where kernels cannot be compiled."""
    for name in ("cuda.bindings.nvrtc", "nvidia.cu13"):
        try:
            if importlib.util.find_spec(name) is None:
                skip_or_fail("nvrtc", f"{name} is not installed; install saccade[cuda]")
        except ModuleNotFoundError:
            skip_or_fail("nvrtc", f"{name} is not installed; install saccade[cuda]")


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    try:
        opened = Device(0)
    except BackendUnavailable as exc:
        skip_or_fail("gpu", str(exc))
    with opened:
        yield opened


Upload = Callable[[np.ndarray], DeviceBuffer]


@pytest.fixture
def upload(device: Device) -> Upload:
    """Put an array into device memory of its own; bfloat16 as its uint16 bits by `as_bf16`."""

    def put(array: np.ndarray, *, dtype: str | None = None, slack: int = 0) -> DeviceBuffer:
        array = np.ascontiguousarray(array)
        arena = device.arena({"array": array.nbytes + slack})
        pinned = device.pinned(max(array.nbytes, 1))
        ctypes.memmove(pinned.address, array.ctypes.data, array.nbytes)
        stream = device.stream()
        if array.nbytes:
            stream.upload(arena.base, pinned, array.nbytes)
        stream.synchronize()
        return DeviceBuffer(arena.base, array.shape, dtype or array.dtype.name, array.nbytes)

    return put
