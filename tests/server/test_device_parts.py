"""Serving on a GPU, as far as it can be tested without one."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from saccade.errors import BackendUnavailable, InputError
from saccade.pipeline.devices import check_device
from saccade.server.answers import answers_of
from saccade.server.device_pictures import cut, is_cut
from saccade.server.memory import SharedMemory
from saccade.server.options import ServeOptions
from saccade.server.problems import Problem
from saccade.server.regions import Regions, check_key, device_key, is_on_device
from saccade.server.wire import Region
from saccade.types import Candidates, Detections, Placement, Thresholds
from saccade.vision.suppress import finish

KEPT = Thresholds(score=0.25, iou=0.7, max_detections=300)
WHOLE = Placement((640, 480), (1.0, 1.0), (0.0, 0.0))


def candidates(seed, num, score):
    """Overlapping boxes, some of them outside of the picture, with scores above a threshold."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-80, 600, (num, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(10, 120, (num, 2))], axis=1)
    scores = np.float32(rng.uniform(0.05, 1, num))
    scores[:4] = np.float32(0.5)  # at a threshold, which is not above it
    classes = rng.integers(0, 3, num)
    is_in = scores > np.float32(score)
    return Candidates(
        np.float32(boxes[is_in]), scores[is_in], np.int32(classes[is_in]), frame="source"
    )


@pytest.mark.parametrize("score", [0.25, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("most", [300, 25])
@pytest.mark.parametrize("seed", range(4))
def test_a_higher_score_cuts_what_a_run_with_it_would_have_kept(score, most, seed):
    kept = Thresholds(score=0.25, iou=0.5, max_detections=most)
    all_found = finish(candidates(seed, 400, kept.score), WHOLE, kept)
    wanted = finish(candidates(seed, 400, score), WHOLE, kept)
    assert is_cut((score, None, None), kept)
    found = cut(all_found, (score, None, None))
    np.testing.assert_array_equal(found.boxes_xyxy, wanted.boxes_xyxy)
    np.testing.assert_array_equal(found.scores, wanted.scores)
    np.testing.assert_array_equal(found.classes, wanted.classes)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((None, None, None), True),
        ((0.25, 0.7, 300), True),
        ((0.6, None, None), True),
        ((0.2, None, None), False),
        ((None, 0.5, None), False),
        ((None, None, 100), False),  # boxes that lie outside are dropped after the best are taken
        ((None, None, 400), False),
    ],
)
def test_thresholds_that_can_be_cut(given, expected):
    assert is_cut(given, KEPT) is expected


def detections(num, num_points=0):
    rng = np.random.default_rng(num)
    points = rng.random((num, num_points, 2), np.float32) * 99 if num_points else None
    boxes, scores = rng.random((num, 4), np.float32) * 600, rng.random(num, np.float32)
    return Detections(boxes, scores, np.arange(num, dtype=np.int32), points)


class _Labels:
    labels = ("red", "white")


def test_answers_of_a_batch_are_those_of_each_alone():
    several = [detections(3), detections(0), detections(2, num_points=5), detections(7)]
    sizes = [(10 * i + 1, 20 * i + 1) for i in range(4)]
    forms = ["json", "arrays and json", "json", "arrays"]
    together = answers_of(forms, several, sizes, _Labels)
    assert together == [
        answers_of([form], [found], [size], _Labels)[0]
        for form, found, size in zip(forms, several, sizes, strict=True)
    ]
    told = json.loads(together[2])
    assert (told["width"], told["height"]) == sizes[2]
    for row, box, points in zip(
        told["detections"], several[2].boxes_xyxy, several[2].keypoints_xy, strict=True
    ):
        np.testing.assert_array_equal(np.float32(row["box_xyxy"]), box)
        np.testing.assert_array_equal(np.float32(row["keypoints_xy"]), points)
    assert [row["label"] for row in told["detections"]] == ["red", "white"]
    assert (
        json.loads(answers_of(["json"], [several[3]], [(1, 1)], _Labels)[0])["detections"][5][
            "label"
        ]
        == "class_5"
    )


def test_regions_on_gpus_are_kept_apart_from_those_of_the_system():
    memory = SharedMemory()
    region = memory.register_on_device("card", bytes(range(64)), 1, 4096)
    assert is_on_device(region.key)
    assert region.key == device_key(1, bytes(range(64)))
    with pytest.raises(InputError):
        check_key(region.key)  # so no client can name it as system memory
    assert memory.status() == []
    assert memory.status(on_device=True) == [{"name": "card", "device_id": 1, "byte_size": 4096}]
    assert memory.find("card", 16, 64) == Region(region.key, 16, 64, "card")
    with pytest.raises(Problem, match="4096"):
        memory.find("card", 4000, 200)
    with pytest.raises(Problem, match="once"):
        memory.register_on_device("card", bytes(64), 0, 1)
    assert memory.unregister() == []
    assert memory.unregister("card", on_device=True) == [region.key]
    with pytest.raises(Problem, match="registered"):
        memory.status("card", on_device=True)


@pytest.mark.parametrize(
    ("handle", "device", "num_bytes"), [(b"short", 0, 64), (bytes(64), -1, 64), (bytes(64), 0, 0)]
)
def test_a_region_on_a_gpu_that_makes_no_sense_is_refused(handle, device, num_bytes):
    with pytest.raises(Problem, match="raw_handle"):
        SharedMemory().register_on_device("card", handle, device, num_bytes)


@pytest.fixture
def no_gpu():
    try:
        check_device("cuda:0")
    except BackendUnavailable as exc:
        return str(exc)
    pytest.skip("there is a GPU here")


def test_without_a_gpu_its_memory_cannot_be_opened(no_gpu):
    with pytest.raises(InputError, match="memory of a GPU"):
        Regions().view(Region(device_key(0, bytes(64)), 0, 16, "card"))


def test_without_a_gpu_serving_on_one_is_refused_in_words(no_gpu, networks):
    command = [sys.executable, "-m", "saccade", "serve", networks["colours"], "--device", "cuda:0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert no_gpu in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--gpu-memory", "1GiB"], "--gpu-memory"),
        (["--device", "tpu"], "cuda:N"),
        (["--device", "cuda:0", "--devices", "0,1"], "one of the two"),
    ],
)
def test_options_of_devices_that_contradict_each_other(networks, arguments, match):
    command = [sys.executable, "-m", "saccade", "serve", networks["colours"], *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode != 0
    assert match in ended.stderr


def test_engines_and_devices_are_not_both_given():
    with pytest.raises(InputError, match="each device has one"):
        ServeOptions(devices=("cuda:0",), engines=2)
