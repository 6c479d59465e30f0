"""Writing and reading bundles: whole, changed, swapped, and on machines they do not fit."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import threading

import msgspec
import numpy as np
import onnx
import pytest

import saccade
from bundles import made
from nets import SIZE_HW, mean_color_detector, score_of
from saccade import backends, bundles
from saccade.bundles import BundleExtras, EngineFile, fits, read_bundle, write_bundle, writing
from saccade.bundles.fitting import needs_of
from saccade.bundles.manifest import check_name, decode, encode
from saccade.cli import inspect as inspect_cli
from saccade.errors import BackendUnavailable, BuildError, InputError, ModelError
from saccade.types import Plan

PLAN = Plan("onnxruntime", batch=4, streams=2, threads=1)


@pytest.fixture
def net(tmp_path):
    path = mean_color_detector(tmp_path / "net.onnx")
    with saccade.load(path, labels=["red", "blue"]) as detector:
        return path, detector.contract


@pytest.fixture
def write(net, tmp_path):
    def work(name="bundle", plan=PLAN, **more):
        path, contract = net
        return write_bundle(
            tmp_path / name, model_path=path, contract=contract, record=made.record(plan), **more
        )

    return work


def edited(bundle, **changes):
    """Rewrite the manifest with a digest that is right, as a careful stranger would."""
    changed = msgspec.structs.replace(bundle.manifest, **changes)
    (bundle.path / "manifest.json").write_bytes(encode(changed))
    return bundle.path


def test_a_bundle_is_loaded_and_run_as_it_was_built(write, net):
    bundle = write(extras=BundleExtras(source_metadata={"license": "MIT"}))
    assert bundle.manifest.model["licence"] == "MIT"
    assert (bundle.path / "labels.txt").read_text() == "red\nblue\n"
    assert not list(bundle.path.parent.glob(".*partial*"))
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 255
    with saccade.load(bundle.path) as detector, saccade.load(net[0]) as plain:
        assert detector.mismatches == ()
        assert detector.contract.labels == ("red", "blue")
        assert detector.contract.input == net[1].input
        assert detector.contract.head == net[1].head
        assert detector.contract.evaluate == net[1].evaluate
        assert detector(red).scores[0] == pytest.approx(float(score_of(1)), abs=1e-4)
        run = saccade.run(detector, [red] * 9)
        assert run.plan == PLAN
        wanted = [r.detections for r in saccade.run(plain, [red] * 9)]
        for want, got in zip(wanted, run, strict=True):
            np.testing.assert_array_equal(got.detections.boxes_xyxy, want.boxes_xyxy)


def test_what_is_said_explicitly_wins_over_the_bundle(write):
    record = made.record(PLAN)
    with saccade.load(write().path) as detector:
        suggested = detector.suggested
        assert (suggested.batch, suggested.workers) == (4, record.rows[1].candidate.workers)
        run = saccade.run(detector, [np.zeros((9, 9, 3), np.uint8)], batch=1, streams=1, threads=2)
        assert (run.plan.batch, run.plan.streams, run.plan.threads) == (1, 1, 2)
        settled = saccade.RunOptions(workers=7).settled(suggested)
        assert (settled.workers, settled.batch, settled.scaled_decode) == (7, 4, False)
        on = dataclasses.replace(suggested, scaled_decode=True)
        assert saccade.RunOptions().settled(on).scaled_decode
        assert not saccade.RunOptions(scaled_decode=False).settled(on).scaled_decode


@pytest.mark.parametrize(
    "given",
    [
        {"backend": "openvino"},
        {"precision": "fp32"},
        {"preset": "yolov8"},
        {"contract": "x.toml"},
        {"labels": ["a", "b"]},
        {"size_hw": (32, 32)},
    ],
    ids=str,
)
def test_what_the_bundle_says_cannot_be_said_again(write, given):
    with pytest.raises(
        InputError, match=f"{next(iter(given))} must be left out for a bundle.*--from"
    ):
        saccade.load(write().path, **given)


def test_the_plain_network_must_be_asked_for(write):
    bundle = write()
    with saccade.load(bundle.model_path, contract=bundle.contract_path) as detector:
        assert detector.suggested is None
        assert detector.contract.labels == ("red", "blue")


def test_weights_beside_the_network_come_along(write, net, tmp_path):
    folder = tmp_path / "external"
    (folder / "sub").mkdir(parents=True)
    onnx.save_model(
        onnx.load(net[0]),
        folder / "net.onnx",
        save_as_external_data=True,
        location="sub/weights.bin",
        size_threshold=64,
    )
    bundle = write_bundle(
        tmp_path / "b", model_path=folder / "net.onnx", contract=net[1], record=made.record(PLAN)
    )
    assert "sub/weights.bin" in bundle.manifest.files
    shutil.rmtree(folder)
    with saccade.load(bundle.path) as detector:
        assert len(detector(np.full((32, 32, 3), 255, np.uint8))) == 1
    weights = bundle.path / "sub" / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"sub/weights.bin must have sha256 .* is truncated to"):
        saccade.load(bundle.path)


def test_two_equal_builds_differ_in_created_only(write):
    one, other = write("one").manifest, write("other").manifest
    blank = {"created": {}, "digest": ""}
    assert msgspec.structs.replace(one, **blank) == msgspec.structs.replace(other, **blank)
    assert one.digest != "" == msgspec.structs.replace(one, **blank).digest


def test_every_figure_of_the_gate_is_inside(write):
    manifest = write().manifest
    verdict = made.record(PLAN).rows[1].verdict
    assert manifest.gate["verdict"]["metrics"] == dict(verdict.metrics)
    assert manifest.gate["verdict"]["drops"]["AP"]["low"] == verdict.drops["AP"].low
    assert manifest.gate["limits"]["max_drop"]["AP"] == 0.005
    assert manifest.recipe["kept"] == ["/head"]
    assert manifest.created["speed"]["pictures_per_s"][1] == 52.8


def change(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["model.onnx", "contract.toml", "labels.txt", "report.html"])
@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (change, "was changed"),
        (lambda p: p.write_bytes(p.read_bytes()[:-3]), "is truncated to"),
        (lambda p: p.write_bytes(b""), "is truncated to 0"),
        (lambda p: p.write_bytes(p.read_bytes() + b"x"), "has grown"),
        (lambda p: p.unlink(), "is missing"),
    ],
    ids=["changed", "truncated", "emptied", "grown", "removed"],
)
def test_a_file_that_is_not_as_written_is_named(write, name, harm, told):
    bundle = write(extras=BundleExtras(files={"report.html": b"<p>fine</p>"}))
    digest = bundle.manifest.files[name].sha256
    harm(bundle.path / name)
    with pytest.raises(ModelError, match=name) as caught:
        saccade.load(bundle.path)
    assert told in str(caught.value)
    assert digest in str(caught.value)


def test_a_file_too_many_is_named(write):
    bundle = write()
    (bundle.path / "engines").mkdir()
    (bundle.path / "engines" / "evil.engine").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"engines/evil.engine is not in it"):
        read_bundle(bundle.path)


@pytest.mark.parametrize("kind", ["file", "folder", "manifest", "pipe"])
def test_links_and_devices_are_refused(write, tmp_path, kind):
    bundle = write()
    if kind == "pipe":
        os.mkfifo(bundle.path / "pipe")
    elif kind == "folder":
        (bundle.path / "more").symlink_to(tmp_path)
    else:
        path = bundle.path / ("manifest.json" if kind == "manifest" else "model.onnx")
        outside = tmp_path / "outside"
        shutil.move(path, outside)
        path.symlink_to(outside)
    with pytest.raises(ModelError, match="plain file"):
        read_bundle(bundle.path)


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/etc/passwd",
        "a/../../x",
        "a//b",
        "./a",
        "",
        ".",
        "C:\\x",
        "C:x",
        "a\\b",
        "a\nb",
        "a/",
    ],
)
def test_paths_that_could_leave_the_folder_are_refused(write, name):
    with pytest.raises(ModelError, match="plain relative paths"):
        check_name(name)
    bundle = write()
    edited(bundle, files={**bundle.manifest.files, name: bundle.manifest.files["model.onnx"]})
    with pytest.raises(ModelError, match="plain relative paths"):
        read_bundle(bundle.path)


def test_a_manifest_that_is_none_is_refused(write, tmp_path):
    bundle = write()
    path = bundle.path / "manifest.json"
    whole = path.read_bytes()
    with pytest.raises(ModelError, match="holds none"):
        read_bundle(tmp_path)
    with pytest.raises(ModelError, match="must be a folder"):
        read_bundle(tmp_path / "nothing")
    for num in (0, 1, 100, len(whole) - 3):
        path.write_bytes(whole[:num])
        with pytest.raises(ModelError, match="truncated or changed"):
            read_bundle(bundle.path)
    raw = json.loads(whole)
    for changes, told in (
        ({"schema": 2}, "schema 1, it has 2"),
        ({"schema": None}, "schema 1"),
        ({"format": "zip"}, "format"),
        ({"workers": 99}, "digest that it names"),
        ({"digest": 7}, "digest that it names"),
    ):
        path.write_text(json.dumps(raw | changes))
        with pytest.raises(ModelError, match=told):
            read_bundle(bundle.path)
    for data in (b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b"{}"):
        with pytest.raises(ModelError):
            decode(data)


def test_engines_are_kept_by_target(write):
    engine = EngineFile(b"engine", "onnxruntime", "made up 1.7", True, facts={"shapes": []})
    bundle = write(extras=BundleExtras(engines={"sm89": engine}))
    assert bundle.engine_paths["sm89"].read_bytes() == b"engine"
    assert dict(bundle.plan.options)["engines"] == str(bundle.path / "engines")
    assert bundle.manifest.engines["sm89"]["package"] == "made up 1.7"
    assert bundle.manifest.engines["sm89"]["is_verified"] is True


def test_engines_that_the_gate_did_not_run_are_not_taken(write):
    engine = EngineFile(b"engine", "onnxruntime", "made up 1.7", messages=["INFO: took 3 s"])
    bundle = write(extras=BundleExtras(engines={"sm89": engine}))
    assert bundle.plan == PLAN
    assert bundle.manifest.engines["sm89"]["is_verified"] is False
    assert bundle.manifest.created["engines"] == {"sm89": ["INFO: took 3 s"]}


def test_engines_of_another_back_end_do_not_touch_the_plan(write):
    """Built for cards elsewhere, beside a plan for the processor here."""
    engine = EngineFile(b"engine", "tensorrt", "tensorrt_rtx 1.7")
    bundle = write(extras=BundleExtras(engines={"sm86+sm89": engine}))
    assert bundle.plan == PLAN
    with saccade.load(bundle.path) as detector:
        detector(np.zeros((32, 32, 3), np.uint8))
    assert (bundle.path / "engines" / "sm86+sm89.engine").read_bytes() == b"engine"


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json", "contract.toml", "../x"])
def test_further_files_take_no_others_place(write, tmp_path, name):
    with pytest.raises((InputError, ModelError), match="files of a bundle"):
        write(extras=BundleExtras(files={name: b"x"}))
    assert not (tmp_path / "bundle").exists()


def test_an_old_bundle_is_replaced_only_when_asked(write, tmp_path):
    write(extras=BundleExtras(files={"old": b"1"}))
    with pytest.raises(InputError, match="--overwrite"):
        write()
    assert (tmp_path / "bundle" / "old").exists()
    write(overwrite=True)
    assert not (tmp_path / "bundle" / "old").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "net.onnx"]


def test_what_is_no_bundle_is_never_replaced(write, tmp_path):
    (tmp_path / "bundle").mkdir()
    write()  # an empty folder is a place
    shutil.rmtree(tmp_path / "bundle")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds something else"):
        write(overwrite=True)
    assert (tmp_path / "bundle" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "link").symlink_to(tmp_path / "bundle")
    with pytest.raises(InputError, match="a file or a link"):
        write("link", overwrite=True)


def test_a_file_system_that_cannot_swap_gets_two_renames(write, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "_EXCHANGE", 1 << 20)  # a flag that no kernel knows
    write(extras=BundleExtras(files={"old": b"1"}))
    write(overwrite=True)
    assert not (tmp_path / "bundle" / "old").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "net.onnx"]


def test_readers_see_the_old_or_the_new_bundle_never_none(write):
    """While it is being replaced, the folder is always there and always has a manifest."""
    path = write().path / "manifest.json"
    gone, done = [], threading.Event()

    def watch():
        while not done.is_set():
            try:
                decode(path.read_bytes())
            except (OSError, ModelError) as exc:
                gone.append(exc)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(20):
        write(overwrite=True)
    done.set()
    watcher.join()
    assert not gone


def test_another_machine_is_told_by_field(write):
    bundle = write()
    here = needs_of("onnxruntime", "cpu")
    assert fits(bundle) == []
    cases = {
        "back end": msgspec.structs.replace(here, backend_version="onnxruntime 0.1"),
        "architecture": msgspec.structs.replace(here, architecture="riscv64"),
        "instruction sets": msgspec.structs.replace(here, instruction_sets=()),
        "cores": msgspec.structs.replace(here, num_cores=999),
        "package numpy": msgspec.structs.replace(here, packages={**here.packages, "numpy": "0.1"}),
        "package saccade": msgspec.structs.replace(here, saccade="0.0.1"),
    }
    for field, needs in cases.items():
        (found,) = fits(bundle, needs)
        assert found.field == field
        assert found.matters == (field in ("back end", "architecture", "instruction sets"))
    more = (*here.instruction_sets, "avx1024")
    assert fits(bundle, msgspec.structs.replace(here, instruction_sets=more)) == []


def test_a_bundle_of_another_version_is_not_loaded(write):
    bundle = write()
    needs = msgspec.structs.replace(bundle.manifest.needs, backend_version="onnxruntime 0.1")
    edited(bundle, needs=needs)
    told = r"back end must be onnxruntime 0.1, it is onnxruntime .*saccade build --from"
    with pytest.raises(BuildError, match=told):
        saccade.load(bundle.path)


def test_a_bundle_for_a_back_end_that_is_not_there_is_not_loaded(write):
    bundle = write()
    needs = msgspec.structs.replace(
        bundle.manifest.needs, backend="tensorrt", backend_version="tensorrt 11"
    )
    edited(bundle, needs=needs, plan=Plan("tensorrt", device="cuda:0"))
    if "tensorrt" in backends.names() and backends.get("tensorrt").probe().ok:
        return
    with pytest.raises(BackendUnavailable, match="back end must be tensorrt 11, it is"):
        saccade.load(bundle.path)


def test_other_cores_are_a_note(write, capsys):
    bundle = write()
    edited(bundle, needs=msgspec.structs.replace(bundle.manifest.needs, num_cores=999))
    with saccade.load(bundle.path) as detector:
        (mismatch,) = detector.mismatches
        assert str(mismatch).startswith("cores must be 999, it is ")
    assert inspect_cli.inspect(bundle.path) == 0
    assert "note: cores must be 999" in capsys.readouterr().out


def test_inspect_tells_the_evidence(write, capsys):
    bundle = write(
        extras=BundleExtras(engines={"sm89": EngineFile(b"x", "tensorrt", "tensorrt_rtx 1.7")})
    )
    assert inspect_cli.inspect(bundle.path) == 0
    out = capsys.readouterr().out
    for text in ("2.1 times as fast", "AP_small", "0.5790", "fits this machine", "never run"):
        assert text in out
    assert inspect_cli.inspect(bundle.path, json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["fits"] is True
    assert told["plan"]["batch"] == 4
    assert inspect_cli.inspect(bundle.path, toml=True) == 0
    assert capsys.readouterr().out == bundle.contract_path.read_text()
    edited(bundle, needs=msgspec.structs.replace(bundle.manifest.needs, architecture="riscv64"))
    assert inspect_cli.inspect(bundle.path) == 1
    out = capsys.readouterr().out
    assert "does not fit: architecture must be riscv64" in out
    assert "saccade build --from" in out


def test_labels_of_any_kind_survive(net, tmp_path):
    labels = ('two\nlines "quoted" \\ ', "<b>ü\u2028é</b>")
    contract = dataclasses.replace(net[1], labels=labels)
    bundle = write_bundle(
        tmp_path / "b", model_path=net[0], contract=contract, record=made.record(PLAN)
    )
    with saccade.load(bundle.path) as detector:
        assert detector.contract.labels == labels
    assert len((bundle.path / "labels.txt").read_text().split("\n")) == 3


@pytest.mark.shared
@pytest.mark.slow
def test_a_real_network_answers_from_its_bundle_as_before(shared, tmp_path):
    net = shared / "models" / "cells_640.onnx"
    pictures = sorted((shared / "datasets/bccd/images").glob("*.jpg"))[:3]
    with saccade.load(net) as plain:
        wanted = [one.detections for one in saccade.run(plain, pictures)]
        contract = plain.contract
    plan = Plan("onnxruntime", batch=2, streams=1, threads=2)
    bundle = write_bundle(
        tmp_path / "b", model_path=net, contract=contract, record=made.record(plan)
    )
    with saccade.load(bundle.path) as detector:
        for want, got in zip(wanted, saccade.run(detector, pictures), strict=True):
            np.testing.assert_allclose(got.detections.boxes_xyxy, want.boxes_xyxy, atol=0.01)
            np.testing.assert_array_equal(got.detections.classes, want.classes)


def test_a_broken_network_is_no_bundle(net, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelError, match=r"bad\.onnx"):
        write_bundle(
            tmp_path / "b",
            model_path=tmp_path / "bad.onnx",
            contract=net[1],
            record=made.record(PLAN),
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.onnx", "net.onnx"]
    assert bundles.is_bundle(tmp_path)
    assert SIZE_HW == (32, 32)
