"""The runner: same answers in the same order, however it is arranged, and nothing left behind."""

from __future__ import annotations

import threading

import cv2
import numpy as np
import pytest

import saccade
from nets import SIZE_HW, mean_color_detector
from saccade.errors import EngineError, InputError, PictureError
from saccade.pipeline.overlap import Overlapped
from saccade.pipeline.sources import SourceItem
from saccade.types import Plan
from saccade.vision.draw import encode_jpeg

NUM_PICTURES = 60
BROKEN = {0, 7, 8, 9, 31, 59}
ARRANGEMENTS = [
    {"is_overlapped": False},
    {"is_overlapped": False, "batch": 4},
    {"workers": 1, "streams": 1},
    {"workers": 1, "streams": 3, "batch": 4},
    {"workers": 4, "streams": 2},
    {"workers": 5, "streams": 1, "batch": 3},
    {"workers": 3, "streams": 4, "batch": 7},
    {"workers": 2, "streams": 2, "batch": 64},
]


@pytest.fixture
def detector(tmp_path):
    with saccade.load(mean_color_detector(tmp_path / "net.onnx")) as made:
        yield made


@pytest.fixture(scope="module")
def pictures():
    """Encoded pictures of many sizes; some are broken."""
    rng = np.random.default_rng(5)
    made = []
    for index in range(NUM_PICTURES):
        height, width = rng.integers(8, 90, 2)
        color = rng.integers(90, 255, 3, dtype=np.uint8)
        data = encode_jpeg(np.broadcast_to(color, (height, width, 3)).copy())
        made.append(data[:40] if index in BROKEN else data)
    return made


def outcome(result):
    if result.error is not None:
        return (result.index, str(result.error))
    found = result.detections
    return (
        result.index,
        result.size_wh,
        found.boxes_xyxy.round(3).tolist(),
        found.scores.round(5).tolist(),
        found.classes.tolist(),
    )


@pytest.fixture
def expected(detector, pictures):
    return [outcome(r) for r in saccade.run(detector, pictures, is_overlapped=False)]


def workers_alive():
    return [t.name for t in threading.enumerate() if t.name.startswith("saccade-")]


def test_the_reference_finds_what_is_there(detector, pictures, expected):
    assert [one[0] for one in expected] == list(range(NUM_PICTURES))
    assert {one[0] for one in expected if isinstance(one[1], str)} == BROKEN
    good = next(one for one in expected if not isinstance(one[1], str))
    (width, height), boxes = good[1], good[2]
    scale = min(SIZE_HW[1] / width, SIZE_HW[0] / height)
    x1, y1, x2, y2 = boxes[0]
    assert (x1 + x2) / 2 == pytest.approx(width / 2, abs=1 / scale)
    assert (y1 + y2) / 2 == pytest.approx(height / 2, abs=1 / scale)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS, ids=str)
def test_every_arrangement_gives_the_same_answers_in_order(
    detector, pictures, expected, arrangement
):
    got = [outcome(r) for r in saccade.run(detector, pictures, **arrangement)]
    assert got == expected
    assert workers_alive() == []


@pytest.mark.parametrize("arrangement", ARRANGEMENTS, ids=str)
def test_a_job_of_broken_pictures_ends(detector, arrangement):
    results = list(saccade.run(detector, [b"no picture"] * 300, **arrangement))
    assert len(results) == 300
    assert all(isinstance(r.error, PictureError) for r in results)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS, ids=str)
def test_broken_pictures_among_good_ones_do_not_stall_a_batch(detector, pictures, arrangement):
    good = pictures[1]
    job = ([good] + [b"broken"] * 150) * 3
    results = list(saccade.run(detector, job, **arrangement))
    assert [r.error is None for r in results] == ([True] + [False] * 150) * 3


def test_leaving_early_ends_the_threads(detector, pictures):
    run = saccade.run(detector, pictures * 20, workers=4)
    next(run)
    run.close()
    run.close()
    assert workers_alive() == []
    assert list(run) == []


def test_leaving_the_block_ends_the_threads(detector, pictures):
    with saccade.run(detector, pictures * 20, workers=4) as run:
        for result in run:
            if result.index == 5:
                break
    assert workers_alive() == []


def test_a_forgotten_run_ends_its_threads(detector, pictures):
    run = saccade.run(detector, pictures * 20, workers=4)
    next(run)
    del run
    assert workers_alive() == []


def test_strict_raises_the_first_error_after_the_results_before_it(detector, pictures):
    run = saccade.run(detector, pictures[1:], is_strict=True, workers=3)
    got = []
    with pytest.raises(PictureError):
        got.extend(result.index for result in run)
    assert got == list(range(6))
    assert workers_alive() == []


def test_what_is_in_flight_is_bounded(detector, pictures):
    """The source is not read further ahead than the window while nobody takes results."""
    pulled = []

    def source():
        for index in range(10_000):
            pulled.append(index)
            yield SourceItem(index, f"<{index}>", "bytes", pictures[1])

    run = saccade.run(detector, source(), workers=2, streams=2)
    for _ in range(200):
        next(run)
        assert len(pulled) <= 200 + 2 * (2 + 2) + 2
    run.close()


def test_an_error_in_the_source_comes_after_the_results_before_it(detector, pictures):
    def source():
        for index in range(10):
            yield SourceItem(index, f"<{index}>", "bytes", pictures[1])
        raise OSError("the list is gone")

    run = saccade.run(detector, source(), workers=3)
    got = []
    with pytest.raises(OSError, match="the list is gone"):
        got.extend(result.index for result in run)
    assert got == list(range(10))
    assert workers_alive() == []


class _FailingSlot:
    """A slot whose third run fails, as a runtime would."""

    def __init__(self, slot):
        self.inputs = slot.inputs
        self._slot = slot
        self._num = 0

    def run(self, num):
        self._num += 1
        if self._num == 3:
            raise EngineError("the device is gone")
        return self._slot.run(num)


def test_a_failing_engine_ends_the_run_with_its_error(detector, pictures):
    engine = detector.engine(Plan("onnxruntime"))
    slots = [_FailingSlot(engine.open_slot(SIZE_HW))]
    source = (SourceItem(i, f"<{i}>", "bytes", pictures[1]) for i in range(100))
    stages = detector.stages(detector.contract.detect)
    run = Overlapped(stages, slots, source, batch=1, streams=1, workers=3)
    got = []
    with pytest.raises(EngineError, match="the device is gone"):
        got.extend(result.index for result in run)
    assert got == list(range(len(got)))
    assert workers_alive() == []


def test_stage_times_are_kept(detector, pictures):
    run = saccade.run(detector, pictures, workers=2)
    list(run)
    assert set(run.times.wall_s) == {"decode", "prepare", "infer", "suppress"}
    assert all(seconds > 0 for seconds in run.times.wall_s.values())


def test_two_runs_at_the_same_time_do_not_mix(detector, pictures, expected):
    runs = [saccade.run(detector, pictures, workers=2) for _ in range(3)]
    mixed = [[outcome(r) for r in several] for several in zip(*runs, strict=True)]
    assert mixed == [[one] * 3 for one in expected]


def test_opencv_gets_its_threads_back_in_whatever_order_runs_end(detector, pictures):
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        first = saccade.run(detector, pictures)
        second = saccade.run(detector, pictures)
        assert cv2.getNumThreads() == 1
        first.close()
        assert cv2.getNumThreads() == 1
        second.close()
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)


@pytest.mark.parametrize("name", ["batch", "streams", "threads", "workers", "max_pixels"])
def test_options_below_one_are_refused(detector, name):
    with pytest.raises(InputError, match=f"{name} must be at least 1, got 0"):
        saccade.run(detector, [b""], **{name: 0})


def test_options_are_given_once(detector):
    with pytest.raises(InputError, match="not both"):
        saccade.run(detector, [b""], options=saccade.RunOptions(), batch=2)
