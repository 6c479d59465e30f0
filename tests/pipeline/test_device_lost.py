"""A GPU that is lost in the middle of a job, and a card without room; skipped without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import saccade
from conftest import skip_or_fail
from nets import mean_color_detector
from saccade import backends
from saccade.cuda.runtime import Device
from saccade.errors import BackendUnavailable, SaccadeError
from saccade.pipeline.devices import check_device
from saccade.vision.draw import encode_jpeg

SCRIPT = Path(__file__).resolve().parents[1] / "lost_device_job.py"
ROOM_BYTES = 256 << 20
# Takes what is free but for a little, says so, and holds it until its input ends.
GREEDY = f"""
import sys
from saccade.cuda.runtime import Device
with Device(0) as device:
    device.arena({{"all": device.memory()[0] - {ROOM_BYTES}}})
    print("full", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def gpu():
    try:
        check_device("cuda:0")
    except BackendUnavailable as exc:
        skip_or_fail("gpu", str(exc))
    found = backends.get("torch").probe()
    if not found.ok:
        skip_or_fail("torch", found.reason)
    return "cuda:0"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return mean_color_detector(tmp_path_factory.mktemp("model") / "net.onnx")


def job(*args):
    command = [sys.executable, str(SCRIPT), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_what_was_done_before_a_device_was_lost_is_kept(gpu, model, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = job(model, whole, 200)
    assert done.returncode == 0, done.stdout + done.stderr
    lost = job(model, broken, 200, "lose")
    assert lost.returncode == 3, lost.stdout + lost.stderr
    assert "EngineError" in lost.stdout
    assert "the device was lost (CUDA_ERROR_ILLEGAL_ADDRESS)" in lost.stdout
    assert "start the program again" in lost.stdout
    assert "Traceback" not in lost.stderr
    done = job(model, broken, 200, "resume")
    assert done.returncode == 0, done.stdout + done.stderr
    word, resumed, num = done.stdout.split()[-3:]
    assert (word, num) == ("resumed", "200")
    # At least the batch whose first result was seen; nothing behind what had been handed out.
    assert 1 <= int(resumed) <= 200
    lines = [
        [json.loads(line) for line in (folder / "detections.jsonl").read_text().splitlines()]
        for folder in (whole, broken)
    ]
    assert lines[0] == lines[1]


def test_a_process_that_finds_no_room_harms_no_other(gpu, model, tmp_path):
    """One job runs on; another program fills the card; a third job is refused with the reason."""
    data = encode_jpeg(np.full((40, 48, 3), 200, np.uint8))
    with (
        saccade.load(model, device=gpu) as detector,
        saccade.run(detector, [data] * 400, batch=4) as run,
    ):
        first = [next(run) for _ in range(20)]
        greedy = subprocess.Popen(
            [sys.executable, "-c", GREEDY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert greedy.stdout is not None
            assert greedy.stdout.readline() == "full\n"
            third = subprocess.run(
                [sys.executable, str(SCRIPT), str(model), str(tmp_path), "8"],
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )
            assert third.returncode == 3, third.stdout + third.stderr
            assert "memory" in third.stdout or "free on the card" in third.stdout
            with Device(0) as device, pytest.raises(SaccadeError, match=r"need.*free|memory"):
                device.arena({"too much": device.memory()[0] + (1 << 20)})
        finally:
            greedy.communicate()
        rest = list(run)
    assert len(first) + len(rest) == 400
    assert all(result.error is None for result in (*first, *rest))
