"""From a model to a bundle: interrupted, resumed, refused, and for real."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest

import saccade
import saccade.backends
from builder import build_quickly, colours
from builder.slow_net import slow_detector
from bundles import made
from nets import mean_color_detector
from saccade import registry
from saccade.builder.again import from_bundle
from saccade.builder.build import BuildOptions, build
from saccade.builder.candidates import key_of
from saccade.builder.records import Candidate, Recipe, Row
from saccade.builder.task import Outcome
from saccade.builder.wording import notes
from saccade.cli.build import build as command_line
from saccade.errors import InputError
from saccade.pipeline.detector import load
from saccade.types import Plan

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def wrong_backends():
    before = list(saccade.backends.__path__)
    registry.names.cache_clear()
    yield
    saccade.backends.__path__[:] = before
    registry.names.cache_clear()


@pytest.fixture
def folder(tmp_path):
    colours.draw(tmp_path / "pictures")
    slow_detector(tmp_path / "net.onnx")
    return tmp_path


def test_a_build_gives_a_bundle_with_its_evidence(folder):
    built = build_quickly.run(folder)
    record = built.record
    chosen = record.rows[record.chosen]
    assert chosen.candidate.plan.backend == "right_quick"
    assert "times FP32 ONNX Runtime" in record.verdict
    assert "AP 1.0000 against AP 1.0000" in record.verdict
    assert not (folder / "out.build").exists()
    names = {path.name for path in (folder / "out").iterdir()}
    assert {"model.onnx", "contract.toml", "manifest.json", "report.html", "report.json"} <= names
    with saccade.load(folder / "out") as detector:
        assert detector.backend == "right_quick"
        red = np.zeros((32, 32, 3), np.uint8)
        red[..., 0] = 255
        assert detector(red).classes.tolist() == [0]
    again = from_bundle(folder / "out", None, {"budget_s": 30.0})
    assert again.options.only == chosen.candidate
    assert again.options.data == folder / "pictures" / "annotations.json"
    moved = (folder / "net.onnx").rename(folder / "elsewhere.onnx")
    with pytest.raises(InputError, match="name it: saccade build MODEL --from"):
        from_bundle(folder / "out", None, {})
    with pytest.raises(InputError, match="is another"):
        from_bundle(folder / "out", mean_color_detector(folder / "other.onnx"), {})
    again = from_bundle(folder / "out", moved, {})
    options = dataclasses.replace(again.options, command=build_quickly.WRONG)
    with load(again.model, contract=again.contract) as detector:
        rebuilt = build(detector.model, detector.contract, folder / "second", options)
    assert rebuilt.record.rows[rebuilt.record.chosen].candidate == chosen.candidate
    assert len(rebuilt.record.rows) == 2
    first, second = ((folder / n / "model.onnx").read_bytes() for n in ("out", "second"))
    assert first == second


def test_a_killed_build_is_resumed_and_nothing_is_done_twice(folder):
    paths = filter(None, (str(TESTS), os.environ.get("PYTHONPATH")))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, str(TESTS / "builder" / "build_quickly.py"), str(folder)]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if line.startswith("gate:"):
                break
        workers = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
    assert workers
    gone, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []
    assert len(gone) == len(workers)
    assert any(line.startswith("probe:") for line in lines)
    saved = msgspec.json.decode((folder / "out.build" / "state.json").read_bytes())
    before = {key: row["speed"]["pictures_per_s"][0] for key, row in saved["rows"].items()}

    with pytest.raises(InputError, match=r"was interrupted.*--resume"):
        build_quickly.run(folder)
    with pytest.raises(InputError, match="only the same build can be resumed; option batches"):
        build_quickly.run(folder, resume=True, batches=(2,))
    told: list[str] = []
    built = build_quickly.run(folder, told.append, resume=True)
    assert not any(text.startswith(("probe:", "reference:")) for text in told)
    after = {key_of(row.candidate): row.speed for row in built.record.rows if row.speed}
    for key, rate in before.items():
        assert after[key].pictures_per_s[0] == rate
    assert sum(saved["spent_s"].values()) < built.record.seconds


def test_without_labels_it_is_judged_by_agreement(folder):
    built = build_quickly.run(folder, data=None)
    verdict = built.record.rows[built.record.chosen].verdict
    assert verdict.judged_by == "agreement"
    assert "agreement 1.0000" in built.record.verdict
    assert "AP" not in built.record.verdict


@pytest.mark.parametrize(("size_hw", "num_rows"), [((32, 32), 21), ((64, 96), 126)])
def test_every_batch_size_is_judged_at_the_input_size_that_will_serve(folder, size_hw, num_rows):
    mean_color_detector(folder / "net.onnx", size_hw=("height", "width"), num_rows=num_rows)
    built = build_quickly.run(folder, batches=(4,), size_hw=size_hw, data=None)
    where = f"{size_hw[1]}x{size_hw[0]}"
    for row in built.record.rows:
        if row.status == "passed" and row.verdict:
            batches = sorted({1, row.candidate.plan.batch})
            assert row.verdict.checked[-1] == f"batch {batches[-1]} at {where}"
    chosen = built.record.rows[built.record.chosen]
    batches = sorted({1, chosen.candidate.plan.batch})
    assert chosen.verdict.checked == tuple(f"batch {batch} at {where}" for batch in batches)
    with saccade.load(folder / "out") as detector:
        assert detector.contract.input.size_hw == size_hw
        assert len(detector(np.full((20, 20, 3), 255, np.uint8))) > 0


def test_scaled_decoding_is_tried_only_when_asked_and_judged_like_any_other(tmp_path):
    colours.draw(tmp_path / "pictures", side=512)
    mean_color_detector(tmp_path / "net.onnx")
    plain = build_quickly.run(tmp_path, backends=("onnxruntime",))
    assert not any(row.candidate.scaled_decode for row in plain.record.rows)
    asked = build_quickly.run(
        tmp_path, backends=("onnxruntime",), scaled_decode=True, overwrite=True
    )
    scaled = [row for row in asked.record.rows if row.candidate.scaled_decode and row.verdict]
    assert scaled
    assert asked.bundle.manifest.scaled_decode == (
        asked.record.rows[asked.record.chosen].candidate.scaled_decode
    )
    assert {row.verdict.judged_by for row in scaled} == {"AP"}


def test_the_latency_objective_chooses_by_single_pictures(folder):
    built = build_quickly.run(folder, objective="latency")
    chosen = built.record.rows[built.record.chosen]
    assert chosen.candidate.plan.backend == "right_quick"
    assert chosen.candidate.plan.streams == 1
    assert chosen.speed.latency_p99_ms >= chosen.speed.latency_p50_ms > 0
    assert "ms a picture" in built.record.verdict
    limited = build_quickly.run(folder, latency_ms=1e-6, overwrite=True)
    assert "does NOT keep the limit of 1e-06 ms" in limited.record.verdict


def test_wrong_calls_are_refused_before_any_work(folder, tmp_path):
    with pytest.raises(InputError, match="must be judged on pictures"):
        build_quickly.run(folder, data=None, images=None)
    with pytest.raises(InputError, match="there are no labels"):
        build_quickly.run(folder, data=None, max_drop="AP=0.1")
    with pytest.raises(InputError, match="did you mean 'blue'"):
        build_quickly.run(folder, max_drop="class:Blue=0.1")
    with pytest.raises(InputError, match="must come with --calibration-images"):
        build_quickly.run(folder, calibration_data=folder / "pictures" / "annotations.json")
    with pytest.raises(InputError, match=r"24 of 24 are the same: 00\.jpg"):
        build_quickly.run(folder, calibration_images=folder / "pictures")
    other = tmp_path / "copies"
    other.mkdir()
    shutil.copy(folder / "pictures" / "07.jpg", other / "renamed.jpg")
    with pytest.raises(InputError, match=r"1 of 1 are the same: 07\.jpg is"):
        build_quickly.run(folder, calibration_images=other)
    with pytest.raises(InputError, match="must be in a folder"):
        build_quickly.run(folder, data=None, images=folder / "nothing")
    (folder / "out").mkdir()
    (folder / "out" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="must be a new folder"):
        build_quickly.run(folder)
    assert not (folder / "out.build").exists()
    with pytest.raises(InputError, match="--batch must be numbers from 1"):
        BuildOptions(batches=(0,))


def test_what_a_bundle_decided_cannot_be_said_again_with_from(tmp_path):
    with pytest.raises(InputError, match="--max-drop, --batch must be left out with --from"):
        command_line(output=tmp_path / "o", from_=tmp_path, max_drop="AP=0.1", batch="2")
    with pytest.raises(InputError, match=r"must name one with --from.*got openvino, tensorrt"):
        command_line(output=tmp_path / "o", from_=tmp_path, backends="openvino,tensorrt")
    with pytest.raises(InputError, match="name the model to build from"):
        command_line(output=tmp_path / "o")


def test_a_kind_that_was_never_judged_is_not_said_not_to_pay():
    fp32 = Row(
        Candidate(Recipe(), Plan("onnxruntime"), 2), "passed", made.verdict(0.5), made.speed(9)
    )
    fast = Row(
        Candidate(Recipe("fp16"), Plan("openvino"), 2),
        "dropped",
        speed=made.speed(20.0),
        error="time was up before it was judged",
    )
    told = " ".join(notes(Outcome((fp32, fast), 0, 0, 1.0), "throughput", {}))
    assert "FP16 was not judged in time" in told
    slow = dataclasses.replace(fast, speed=made.speed(5.0))
    told = " ".join(notes(Outcome((fp32, slow), 0, 0, 1.0), "throughput", {}))
    assert "FP16 does not pay here" in told


def test_too_few_calibration_pictures_are_refused_with_the_way_out(folder, tmp_path):
    colours.draw(tmp_path / "more", num=5, seed=1)
    with pytest.raises(
        InputError, match=r"at least 100 pictures, there are 5.*--min-calibration 5"
    ):
        build_quickly.run(folder, calibration_images=tmp_path / "more")


@pytest.mark.shared
@pytest.mark.slow
def test_a_real_build_by_the_command_line(shared, tmp_path):
    data = shared / "datasets" / "coco_ccby"
    command = [
        *(sys.executable, "-m", "saccade", "build", shared / "models" / "light_person_192.onnx"),
        *("-o", tmp_path / "bundle", "--preset", "yolox", "--labels", tmp_path / "labels.txt"),
        *("--data", data / "annotations" / "person.json", "--images", data / "images"),
        *("--budget", "12s", "--backends", "onnxruntime", "--batch", "1", "--json"),
    ]
    (tmp_path / "labels.txt").write_text("person\n")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = msgspec.json.decode(done.stdout)
    assert told["bundle"] == str(tmp_path / "bundle")
    chosen = told["rows"][told["chosen"]]
    assert chosen["status"] == "passed"
    assert chosen["verdict"]["judged_by"] == "AP"
    shown = subprocess.run(
        [sys.executable, "-m", "saccade", "inspect", tmp_path / "bundle"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert "fits this machine" in shown.stdout
