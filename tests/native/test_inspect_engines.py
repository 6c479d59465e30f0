"""`saccade inspect` of a bundle with engines of our own, and what is said of models not covered."""

from __future__ import annotations

import json

import pytest
from PIL import Image

import saccade
from bundles import made
from native.made_engines import engine_of, planned, timed, with_determinant
from nets import mean_color_detector
from saccade import backends
from saccade.bundles import BundleExtras, EngineFile, write_bundle
from saccade.cli.build import build
from saccade.cli.inspect import inspect
from saccade.errors import InputError
from saccade.graph.reading import read_model
from saccade.native.artefact import packed
from saccade.types import Plan

PLAN = Plan("native", "fp16", 2, 4, 1, "cuda:0", (("input", "plan"),))
TARGET = "sm_90-batch2-0123456789abcdef"


@pytest.fixture
def bundle(tmp_path):
    net = mean_color_detector(tmp_path / "net.onnx")
    with saccade.load(net) as detector:
        model, contract = detector.model, detector.contract
    times = timed(planned(model), tmp_path / "times.json", seed=0)
    engine = EngineFile(
        packed(engine_of(model, times)), "native", "saccade", is_verified=True, facts={"batch": 2}
    )
    return write_bundle(
        tmp_path / "bundle",
        model_path=net,
        contract=contract,
        record=made.record(PLAN),
        extras=BundleExtras(engines={TARGET: engine}),
    )


def test_every_kernel_of_a_bundle_is_listed_without_a_gpu(bundle, capsys):
    assert inspect(bundle.path, json=True) == 0
    told = json.loads(capsys.readouterr().out)["native"][TARGET]
    assert told["about"]["device"] == "NVIDIA H200"
    kernels = told["kernels"]
    assert len(kernels) == len(planned(read_model(bundle.model_path)).steps)
    assert sum(row["share"] for row in kernels) == pytest.approx(1.0)
    assert all(row["us"] > 0 and row["floor_us"] > 0 and row["fuses"] for row in kernels)
    assert inspect(bundle.path) == 0
    printed = capsys.readouterr().out
    assert f"engine {TARGET}, kernel by kernel" in printed
    for row in kernels:
        assert row["way"] in printed
        assert row["fuses"] in printed


def test_an_engine_that_another_version_wrote_is_told_beside_the_rest(tmp_path, capsys):
    net = mean_color_detector(tmp_path / "net.onnx")
    with saccade.load(net) as detector:
        contract = detector.contract
    engine = EngineFile(b"saccade-native-0\n...", "native", "saccade", is_verified=True)
    written = write_bundle(
        tmp_path / "bundle",
        model_path=net,
        contract=contract,
        record=made.record(PLAN),
        extras=BundleExtras(engines={TARGET: engine}),
    )
    assert inspect(written.path) == 0
    printed = capsys.readouterr().out
    assert "of another version; build again" in printed
    assert "judged by" in printed


def test_a_bundle_runs_the_engines_it_holds(bundle):
    assert dict(bundle.plan.options)["engines"] == str(bundle.path / "engines")
    assert bundle.manifest.plan == PLAN


@pytest.fixture
def uncovered(tmp_path):
    return with_determinant(tmp_path / "det.onnx")


def test_what_is_not_covered_is_named_before_anything_is_built(uncovered, tmp_path, capsys):
    inspect(uncovered, json=True)
    told = json.loads(capsys.readouterr().out)["backends"]
    assert not told["native"]["ok"]
    assert "there is none for Det node 'volume'; choose another" in told["native"]["reason"]
    assert told["onnxruntime"]["ok"]
    net = tmp_path / "net.onnx"
    mean_color_detector(net)
    assert backends.get("native").covers(read_model(net)).ok


def test_a_build_names_it_too(uncovered, tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "0.png")
    with pytest.raises(InputError, match=r"back end native was not tried: .*Det node 'volume'"):
        build(
            uncovered,
            output=tmp_path / "out",
            images=tmp_path / "pictures",
            backends="native",
            quiet=True,
        )
    assert not (tmp_path / "out").exists()
