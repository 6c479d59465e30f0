"""What can be said without a GPU: layouts, and what a missing driver means."""

from __future__ import annotations

import itertools

import pytest

from saccade.cuda import driver
from saccade.cuda.runtime import ALIGNMENT, Device, plan
from saccade.errors import BackendUnavailable


def test_regions_are_aligned_and_apart() -> None:
    regions, total = plan({"a": 1, "b": 0, "c": 257, "d": 256})
    spans = sorted((r.offset, r.offset + r.num_bytes) for r in regions.values())
    assert all(r.offset % ALIGNMENT == 0 for r in regions.values())
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    assert total == 256 + 256 + 512 + 256


def test_no_driver_or_no_package_is_a_clear_error() -> None:
    try:
        driver.start()
    except BackendUnavailable:
        with pytest.raises(BackendUnavailable, match=r"install|nvidia-smi|update"):
            Device(0)


def test_lost_device_and_lack_of_memory_are_told_apart() -> None:
    class Code:
        name = "CUDA_ERROR_ILLEGAL_ADDRESS"

    class Memory:
        name = "CUDA_ERROR_OUT_OF_MEMORY"

    assert "lost" in str(driver.error_of("copying", Code()))
    assert "lower the" in str(driver.error_of("reserving", Memory()))
