"""Engines built ahead of time, into a bundle and out again."""

from __future__ import annotations

import pytest

import saccade
from bundles import made
from conftest import skip_or_fail
from nets import mean_color_detector
from saccade.backends.tensorrt import BACKEND
from saccade.builder.engines import build_engines
from saccade.bundles import BundleExtras, write_bundle
from saccade.errors import BackendUnavailable, InputError
from saccade.graph.reading import read_model
from saccade.types import Plan


@pytest.fixture
def net(tmp_path):
    return mean_color_detector(tmp_path / "net.onnx")


def test_engines_in_a_bundle_say_that_nobody_ran_them(net, tmp_path):
    if not BACKEND.can_build().ok:
        skip_or_fail("tensorrt_rtx", BACKEND.can_build().reason)
    engines = build_engines(read_model(net), ("sm86", "sm89+sm120"), batch=4)
    with saccade.load(net) as detector:
        contract = detector.contract
    bundle = write_bundle(
        tmp_path / "b",
        model_path=net,
        contract=contract,
        record=made.record(Plan("onnxruntime")),
        extras=BundleExtras(engines=engines),
    )
    assert sorted(bundle.engine_paths) == ["sm86", "sm89+sm120"]
    assert bundle.engine_paths["sm86"].read_bytes() == engines["sm86"].data
    told = bundle.manifest.engines["sm86"]
    assert told["is_verified"] is False
    assert told["shapes"] == ["1x3x32x32:4x3x32x32:4x3x32x32"]
    assert told["package"].startswith("tensorrt")
    with pytest.raises(InputError, match="shapes must be LEAST:BEST:MOST"):
        build_engines(read_model(net), ("sm86",), shapes="large")


def test_without_the_package_the_fix_is_named(net):
    if BACKEND.can_build().ok:
        return
    with pytest.raises(BackendUnavailable, match="pip install"):
        build_engines(read_model(net), ("sm86",))
