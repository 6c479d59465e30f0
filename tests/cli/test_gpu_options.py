"""Options for GPUs on a machine that may have none: what is told, and with which exit code."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from nets import mean_color_detector
from saccade.profiler.gpus import look_at_gpus
from saccade.vision.draw import encode_jpeg


def saccade(*args):
    command = [sys.executable, "-m", "saccade", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    model = mean_color_detector(folder / "net.onnx")
    picture = folder / "red.jpg"
    picture.write_bytes(encode_jpeg(np.full((20, 30, 3), (255, 0, 0), np.uint8)))
    return ["detect", model, picture, "-o", folder / "out", "--overwrite"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--device", "tpu"], "a device must be cpu or cuda:N"),
        (["--device", "cuda:0", "--devices", "0,1"], "give one of the two"),
        (["--devices", "0,x"], "a device must be cpu or cuda:N"),
        (["--gpu-memory", "a lot"], "4GiB or 512MiB"),
        (["--engine-options", "fast"], "NAME=VALUE"),
    ],
)
def test_wrong_options_are_told_in_one_line(job, options, told):
    done = saccade(*job, *options)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("options", [["--device", "cuda:99"], ["--devices", "98,99"]])
def test_the_cpu_does_not_step_in(job, options):
    done = saccade(*job, *options)
    assert done.returncode == 1
    assert any(word in done.stderr for word in ("install", "nvidia-smi", "update", "choose"))
    assert "Traceback" not in done.stderr
    assert not (job[4] / "detections.coco.json").exists()


def test_several_processes_on_the_cpu(job):
    done = saccade(*job, "--devices", "cpu,cpu", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["summary"]["num_pictures"] == 1
    assert told["devices"] == []


def test_doctor_tells_of_gpus_and_their_libraries():
    told = json.loads(saccade("doctor", "--json").stdout)["gpu"]
    assert {"NVRTC", "nvJPEG", "cuDNN", "NVML", "torch", "onnxruntime"} <= set(told["libraries"])
    for one in told["libraries"].values():
        assert one["reason"]
    found = look_at_gpus()
    assert told["problem"] == found.problem
    assert bool(found.gpus) or found.problem
    text = saccade("doctor", "--measure").stdout
    assert "GPU library" in text
    if not found.gpus:
        assert "nothing was measured" in text
        assert "no GPU that can be used" in text
