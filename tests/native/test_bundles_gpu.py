"""Engines in bundles, on a card: written by a build, loaded as they are, refused where wrong."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import saccade
from bundles import made
from native.made_engines import with_determinant
from nets import mean_color_detector
from saccade import backends
from saccade.builder.native_engines import kept_engines
from saccade.builder.records import Candidate, Recipe, Row
from saccade.bundles import BundleExtras, write_bundle
from saccade.cli._options import ModelOptions
from saccade.cli.detect import detect
from saccade.cli.inspect import inspect
from saccade.errors import BuildError
from saccade.graph.reading import read_model
from saccade.native.kernels.registry import KERNELS
from saccade.types import Plan
from saccade.vision.draw import encode_jpeg

PLAN = Plan("native", "fp16", 4, 2, 1, "cuda:0", (("input", "plan"),))
CHECKED = ("batch 1 at 32x32", "batch 4 at 32x32")


@pytest.fixture
def cache(device, tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("SACCADE_CACHE", str(folder))
    return folder


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(encode_jpeg(np.full((32, 32, 3), (200, 0, 0), np.uint8), 95))
    return path


@pytest.fixture
def bundle(cache, tmp_path):
    """What a build writes whose gate ran batches of 1 and 4."""
    net = mean_color_detector(tmp_path / "net.onnx")
    with saccade.load(net) as detector:
        model, contract = detector.model, detector.contract
    for batch in (1, 4):
        plan = dataclasses.replace(PLAN, batch=batch)
        backends.get("native").load_device(model, plan, (32, 32)).close()
    verdict = dataclasses.replace(made.verdict(0.58), checked=CHECKED)
    row = Row(Candidate(Recipe(), PLAN, 2), "passed", verdict, made.speed(50.0))
    record = made.record(PLAN)
    record = dataclasses.replace(record, rows=(record.rows[0], row))
    extras = BundleExtras(engines=kept_engines(row, model, (32, 32)).files)
    folder = tmp_path / "bundle"
    return write_bundle(folder, model_path=net, contract=contract, record=record, extras=extras)


def engines(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("engines/*.engine")}


@pytest.mark.timeout(300)
def test_engines_that_the_gate_ran_are_loaded_as_they_are(bundle, cache, picture, capsys):
    told = bundle.manifest.engines
    assert sorted(one["batch"] for one in told.values()) == [1, 4]
    assert all(one["is_verified"] for one in told.values())
    # Nothing but the bundle is left to load from.
    kept = list((cache / "native-engines").iterdir())
    for path in kept:
        path.unlink()
    with saccade.load(bundle.path) as detector:
        assert len(detector(picture)) == 1
        (result,) = saccade.run(detector, [picture], batch=4)
        assert result.detections is not None
    assert not list((cache / "native-engines").glob("*.native"))
    assert inspect(bundle.path, json=True) == 0
    found = json.loads(capsys.readouterr().out)["native"]
    for one in found.values():
        assert sum(row["share"] for row in one["kernels"]) == pytest.approx(1.0)


@pytest.mark.timeout(300)
def test_the_same_times_give_the_same_bytes(bundle, cache):
    native = backends.get("native")
    model = read_model(bundle.model_path)
    for path in (cache / "native-engines").iterdir():
        path.unlink()
    before = engines(bundle.path)
    assert before
    for batch in (1, 4):
        plan = Plan("native", "fp16", batch, device="cuda:0", options=PLAN.options)
        native.load_device(model, plan, (32, 32)).close()
        stored = native.stored(model, plan, (32, 32))
        assert stored.data == before[f"{stored.target}.engine"]


@pytest.mark.timeout(300)
def test_an_engine_of_other_kernels_is_refused_with_what_to_do(bundle, monkeypatch):
    native = backends.get("native")
    model = read_model(bundle.model_path)
    monkeypatch.setitem(vars(KERNELS), "version", "another")
    plan = dataclasses.replace(bundle.plan, batch=4)
    with pytest.raises(BuildError, match=r"here is another; build again .*: saccade build --from"):
        native.load_device(model, plan, (32, 32))
    with pytest.raises(BuildError, match=r"does not fit here: back end must be kernels .* another"):
        saccade.load(bundle.path)


@pytest.mark.timeout(300)
def test_what_a_bundle_does_not_hold_is_refused(bundle):
    native = backends.get("native")
    model = read_model(bundle.model_path)
    plan = Plan("native", "fp16", 3, device="cuda:0", options=bundle.plan.options)
    with pytest.raises(BuildError, match=r"holds sm_\d+-batch1, sm_\d+-batch4, none for .*\[3, "):
        native.load_device(model, plan, (32, 32))


def test_a_node_that_is_not_covered_is_named_with_who_can_run_it(cache, tmp_path, picture):
    with pytest.raises(BuildError, match=r"Det node 'volume'.* run this model here: .*onnxruntime"):
        detect(
            with_determinant(tmp_path / "det.onnx"),
            str(picture),
            output=tmp_path / "out",
            how=ModelOptions(backend="native", device="cuda:0"),
        )
    assert not list(cache.rglob("*.engine"))
