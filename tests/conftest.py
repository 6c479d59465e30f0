"""Fixtures that every test may use, and the switch that turns skips into failures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

KNOWN_NEEDS = (
    "shared",
    "openvino",
    "torch",
    "root",
    "chromium",
    "tensorrt_rtx",
    "nvrtc",
    "gpu",
    "deploy",
    "prometheus",
    "triton",
)
REQUIRED = tuple(filter(None, os.environ.get("SACCADE_REQUIRE", "").split(",")))


def pytest_configure() -> None:
    unknown = sorted(set(REQUIRED) - set(KNOWN_NEEDS))
    if unknown:
        raise pytest.UsageError(
            f"SACCADE_REQUIRE may name {', '.join(KNOWN_NEEDS)}; it names {', '.join(unknown)}"
        )


def skip_or_fail(need: str, reason: str) -> NoReturn:
    """Skip this test for want of something, or fail it where SACCADE_REQUIRE lists that."""
    if need in REQUIRED:
        pytest.fail(f"SACCADE_REQUIRE lists {need!r}, but {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the real models, labelled pictures and broken inputs."""
    here = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SACCADE_SHARED", here))
    if not (folder / "MODELS.md").is_file():
        skip_or_fail("shared", f"the test material is not in {folder}; set SACCADE_SHARED")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261120)
