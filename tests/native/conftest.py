"""A GPU for the tests that need one, and a compiler for those that need that."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest

from conftest import skip_or_fail
from saccade.cuda.runtime import Device
from saccade.errors import BackendUnavailable


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
