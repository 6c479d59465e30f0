"""Engines built ahead of time, into a bundle and out again."""

from __future__ import annotations

import dataclasses

import pytest

import saccade
import saccade.backends
from builder import build_quickly, colours
from bundles import made
from conftest import skip_or_fail
from nets import mean_color_detector
from saccade import registry
from saccade.backends.tensorrt import BACKEND
from saccade.builder.again import from_bundle
from saccade.builder.build import build
from saccade.builder.engines import build_engines, carried, without_engines
from saccade.bundles import BundleExtras, EngineFile, write_bundle
from saccade.errors import BackendUnavailable, InputError
from saccade.graph.reading import read_model
from saccade.pipeline.detector import load
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


@pytest.fixture
def folder(tmp_path):
    colours.draw(tmp_path / "pictures")
    before = list(saccade.backends.__path__)
    mean_color_detector(tmp_path / "net.onnx")
    registry.names.cache_clear()
    yield tmp_path
    saccade.backends.__path__[:] = before
    registry.names.cache_clear()


def test_a_build_puts_engines_into_the_bundle_and_says_they_were_not_run(folder):
    if not BACKEND.can_build().ok:
        skip_or_fail("tensorrt_rtx", BACKEND.can_build().reason)
    told: list[str] = []
    built = build_quickly.run(folder, told.append, targets=("sm86", "sm89+sm120"), budget_s=10.0)
    manifest = built.bundle.manifest
    assert sorted(manifest.engines) == ["sm86", "sm89+sm120"]
    assert "engine for sm86: built, not run by the gate" in told
    batch = built.record.rows[built.record.chosen].candidate.plan.batch
    (shapes,) = manifest.engines["sm86"]["shapes"]
    assert shapes == f"1x3x32x32:{batch}x3x32x32:4x3x32x32"
    assert not any(engine["is_verified"] for engine in manifest.engines.values())
    assert all(manifest.created["engines"].values()), "what the builder said is kept"
    assert any("NOT run" in note and "--backends tensorrt" in note for note in built.record.notes)
    assert built.record.engines == {"sm86": "", "sm89+sm120": ""}
    with saccade.load(folder / "out") as detector:  # they do not touch what is loaded
        assert detector.backend != "tensorrt"
    given = build_quickly.run(
        folder, targets=("sm89",), shapes="1x3x32x32:2x3x32x32:8x3x32x32", overwrite=True
    )
    assert given.bundle.manifest.engines["sm89"]["shapes"] == ["1x3x32x32:2x3x32x32:8x3x32x32"]


def test_an_engine_that_is_refused_loses_neither_the_bundle_nor_the_others(folder):
    if not BACKEND.can_build().ok:
        skip_or_fail("tensorrt_rtx", BACKEND.can_build().reason)
    # A range over channels that the graph does not have: only the library sees it.
    built = build_quickly.run(
        folder, targets=("sm86",), shapes="1x4x32x32:1x4x32x32:4x4x32x32", budget_s=10.0
    )
    assert built.bundle.manifest.engines == {}
    assert "shapes must keep what the graph fixes" in built.record.engines["sm86"]
    assert any("there is no TensorRT engine for sm86" in note for note in built.record.notes)


def test_engines_are_judged_where_their_card_is_and_only_then_verified(net, tmp_path):
    """What the gate ran is carried over as verified; the other engines stay as they were."""
    engines = {
        "sm86": EngineFile(b"one", "tensorrt", "tensorrt_rtx 1.7", facts={"shapes": ["x"]}),
        "sm89+sm120": EngineFile(b"two", "tensorrt", "tensorrt_rtx 1.7", messages=["INFO: 3 s"]),
    }
    with saccade.load(net) as detector:
        contract = detector.contract
    settings = {"model": str(net), "images": str(tmp_path)}
    bundle = write_bundle(
        tmp_path / "b",
        model_path=net,
        contract=contract,
        record=made.record(Plan("onnxruntime", batch=4), digest=read_model(net).digest),
        extras=BundleExtras(engines=engines, settings=settings),
    )
    assert dict(from_bundle(bundle.path, None, {}).options.only.plan.options) == {}
    again = from_bundle(bundle.path, None, {}, "tensorrt")
    plan = again.options.only.plan
    assert (plan.backend, plan.batch, plan.device) == ("tensorrt", 4, "cuda:0")
    assert dict(plan.options) == {"engines": str(bundle.path / "engines")}
    assert without_engines(plan).options == ()
    ran = carried(plan, "sm120")
    assert {target: one.is_verified for target, one in ran.items()} == {
        "sm86": False,
        "sm89+sm120": True,
    }
    assert ran["sm89+sm120"].data == b"two"
    assert ran["sm89+sm120"].messages == ["INFO: 3 s"]
    assert ran["sm86"].facts == {"shapes": ["x"]}
    assert carried(Plan("tensorrt"), "sm86") == {}
    if BACKEND.probe().ok:
        return
    with load(again.model, contract=again.contract) as detector:
        model, rule = detector.model, detector.contract
    colours.draw(tmp_path / "pictures")
    options = dataclasses.replace(again.options, images=tmp_path / "pictures")
    with pytest.raises(BackendUnavailable, match="tensorrt must work here to build again"):
        build(model, rule, tmp_path / "second", options)


def test_wrong_targets_and_shapes_are_told_before_the_work(folder):
    with pytest.raises(InputError, match="--shapes must come with --targets"):
        build_quickly.run(folder, shapes="1x3x32x32")
    if not BACKEND.can_build().ok:
        with pytest.raises(BackendUnavailable, match="pip install"):
            build_quickly.run(folder, targets=("sm89",))
        return
    with pytest.raises(InputError, match=r"--targets must be among .*sm89.*; got sm999"):
        build_quickly.run(folder, targets=("sm89", "sm999"))
    with pytest.raises(InputError, match="--targets must be among"):
        build_quickly.run(folder, targets=("current",))
    with pytest.raises(InputError, match="shapes must be LEAST:BEST:MOST"):
        build_quickly.run(folder, targets=("sm89",), shapes="big")
    with pytest.raises(InputError, match="must have the size that is judged, 32x32"):
        build_quickly.run(folder, targets=("sm89",), shapes="1x3x64x64:1x3x64x64:1x3x64x64")
    assert not (folder / "out.build").exists()


def test_without_the_package_the_fix_is_named(net):
    if BACKEND.can_build().ok:
        return
    with pytest.raises(BackendUnavailable, match="pip install"):
        build_engines(read_model(net), ("sm86",))
