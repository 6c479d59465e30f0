"""A job that is killed is finished by --resume with every picture exactly once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from nets import mean_color_detector
from saccade.vision.draw import encode_jpeg

NUM_PICTURES = 400


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(3)
    for index in range(NUM_PICTURES):
        color = rng.integers(130, 255, 3, dtype=np.uint8)
        picture = np.broadcast_to(color, (40, 60, 3)).copy()
        (folder / f"{index:04d}.jpg").write_bytes(encode_jpeg(picture))
    (folder / "0100.jpg").write_bytes(b"broken")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return mean_color_detector(tmp_path_factory.mktemp("model") / "net.onnx")


def command(model, pictures, out, *more):
    return [sys.executable, "-m", "saccade", "detect", str(model), str(pictures), "-o", str(out),
            "--format", "jsonl,coco", *more]  # fmt: skip


def wait_for_lines(path, process, num):
    """Wait, without a clock, until the job has written so many lines."""
    while process.poll() is None:
        try:
            if path.read_bytes().count(b"\n") >= num:
                return
        except FileNotFoundError:
            continue


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_and_resumed_is_as_if_it_never_stopped(model, pictures, tmp_path, how):
    whole, out = tmp_path / "whole", tmp_path / "out"
    done = subprocess.run(command(model, pictures, whole), capture_output=True, check=False)
    assert done.returncode == 3
    num_kills = 0
    for wanted in (20, 120, 250):
        more = ["--resume"] if num_kills else []
        process = subprocess.Popen(
            command(model, pictures, out, *more), stderr=subprocess.PIPE, text=True
        )
        wait_for_lines(out / ".saccade-job.jsonl", process, wanted)
        if process.poll() is None:
            process.send_signal(how)
            num_kills += 1
        stderr = process.communicate()[1]
        assert "Traceback" not in stderr
        if process.returncode in (130, 143):
            assert "--resume" in stderr
    assert num_kills
    if (out / ".saccade-job.jsonl").exists():
        last = subprocess.run(
            command(model, pictures, out, "--resume"), capture_output=True, text=True, check=False
        )
        assert last.returncode == 3, last.stderr
    for name in ("detections.jsonl", "detections.coco.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    lines = [json.loads(line) for line in (out / "detections.jsonl").read_text().splitlines()]
    assert set(Counter(line["path"] for line in lines).values()) == {1}
    assert len(lines) == NUM_PICTURES


def test_another_model_does_not_resume_this_job(model, pictures, tmp_path, tmp_path_factory):
    out = tmp_path / "out"
    process = subprocess.Popen(command(model, pictures, out), stderr=subprocess.DEVNULL)
    wait_for_lines(out / ".saccade-job.jsonl", process, 5)
    process.kill()
    process.wait()
    if (out / "detections.jsonl").exists():
        pytest.fail("the job was done before it could be killed")
    other = mean_color_detector(tmp_path_factory.mktemp("other") / "net.onnx", batch=1)
    for more, what in (
        ((), "--resume"),
        (("--resume", "--score", "0.9"), "thresholds.score"),
    ):
        done = subprocess.run(
            command(model, pictures, out, *more), capture_output=True, text=True, check=False
        )
        assert done.returncode == 2, done.stderr
        assert what in done.stderr
    done = subprocess.run(
        command(other, pictures, out, "--resume"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "model" in done.stderr


def test_memory_is_bounded_by_the_queues_not_by_the_job(model, pictures, tmp_path):
    code = """
import sys, saccade, psutil
from saccade.pipeline.job import OutputOptions, detect_to_folder
process, sizes = psutil.Process(), []
def on_result(result):
    if result.index in (500, 9_999):
        sizes.append(process.memory_info().rss)
with saccade.load(sys.argv[1]) as detector:
    inputs = [sys.argv[2]] * 25
    detect_to_folder(detector, inputs, sys.argv[3], outputs=OutputOptions(), on_result=on_result)
print(sizes[1] - sizes[0], process.memory_info().rss - sizes[0])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(model), str(pictures), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
    )
    growth_bytes = [int(text) for text in done.stdout.split()]
    assert max(growth_bytes) < 50e6, growth_bytes
