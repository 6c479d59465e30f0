"""Several processes share a job: same answers, same order, and a death that is told. On the CPU."""

from __future__ import annotations

import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest

import saccade
from nets import mean_color_detector
from saccade.errors import BackendUnavailable, EngineError, InputError, PictureError
from saccade.pipeline.devices import check_device, device_name, parse_bytes
from saccade.pipeline.fleet_wire import packed, unpacked
from saccade.pipeline.sources import SourceItem
from saccade.types import Detections, Result
from saccade.vision.draw import encode_jpeg

NUM_PICTURES = 150
BROKEN = {0, 31, 32, 149}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return mean_color_detector(tmp_path_factory.mktemp("model") / "net.onnx")


@pytest.fixture
def detector(model):
    with saccade.load(model) as made:
        yield made


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(11)
    made = []
    for index in range(NUM_PICTURES):
        color = rng.integers(90, 255, 3, dtype=np.uint8)
        data = encode_jpeg(np.broadcast_to(color, (40, 50, 3)).copy())
        made.append(data[:40] if index in BROKEN else data)
    return made


def outcome(result):
    if result.error is not None:
        return (result.index, result.path, type(result.error).__name__, str(result.error))
    found = result.detections
    return (
        result.index,
        result.path,
        result.size_wh,
        found.boxes_xyxy.round(3).tolist(),
        found.scores.round(5).tolist(),
        found.classes.tolist(),
    )


def workers():
    here = psutil.Process()
    return [p for p in here.children() if "fleet_worker" in " ".join(p.cmdline())]


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_two_processes_give_what_one_gives(detector, pictures, batch):
    want = [outcome(r) for r in saccade.run(detector, pictures)]
    got = [outcome(r) for r in saccade.run(detector, pictures, devices=("cpu", "cpu"), batch=batch)]
    assert got == want
    assert [row[0] for row in got] == list(range(NUM_PICTURES))
    assert not workers()


def test_times_of_all_processes_are_summed(detector, pictures):
    with saccade.run(detector, pictures, devices=("cpu", "cpu")) as run:
        list(run)
        assert all(seconds > 0 for seconds in run.times.cpu_s.values())


def test_a_killed_process_is_told_after_the_results_before_it(detector, pictures):
    run = saccade.run(detector, (pictures * 40), devices=("cpu", "cpu"), batch=1)
    got = [next(run)]
    victim = workers()[0]
    victim.send_signal(signal.SIGKILL)
    with pytest.raises(EngineError, match=r"process for cpu.*SIGKILL.*--resume"):
        got.extend(run)
    assert [r.index for r in got] == list(range(len(got)))
    assert not workers()


def test_leaving_early_leaves_no_process(detector, pictures):
    with saccade.run(detector, pictures, devices=("cpu",)) as run:
        next(run)
        assert len(workers()) == 1
    assert not workers()


def test_a_source_that_fails_is_told_after_what_came_before(detector, pictures):
    def source():
        for index, data in enumerate(pictures[:70]):
            yield SourceItem(index, f"<{index}>", "bytes", data)
        raise OSError("the disk is gone")

    run = saccade.run(detector, source(), devices=("cpu", "cpu"))
    got = []
    with pytest.raises(OSError, match="disk"):
        got.extend(run)
    assert [r.index for r in got] == list(range(70))


def test_an_error_of_loading_keeps_its_kind(detector, pictures):
    with pytest.raises(BackendUnavailable):
        saccade.run(detector, pictures, devices=("cpu", "cuda:77"))
    assert not workers()


def test_strictness_holds_across_processes(detector, pictures):
    with pytest.raises(PictureError):
        list(saccade.run(detector, pictures, devices=("cpu", "cpu"), is_strict=True))


def test_wrong_devices(detector, pictures):
    with pytest.raises(InputError, match="cpu or cuda:N"):
        saccade.run(detector, pictures, devices=("tpu",))
    with pytest.raises(InputError, match="each GPU once"):
        saccade.run(detector, pictures, devices=("cuda:0", "0"))


def test_a_dead_parent_leaves_no_process(model):
    code = f"""
import sys, saccade, numpy as np, psutil
def source():
    while True: yield np.zeros((9, 9, 3), np.uint8)
from saccade.pipeline.sources import SourceItem
items = (SourceItem(i, str(i), "array", p) for i, p in enumerate(source()))
run = saccade.run(saccade.load({str(model)!r}), items, devices=("cpu", "cpu"))
next(run)
print(*[p.pid for p in psutil.Process().children()], flush=True)
import os, signal; os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False)
    assert done.returncode == -signal.SIGKILL
    for pid in map(int, done.stdout.split()):
        try:
            psutil.Process(pid).wait(30)
        except psutil.NoSuchProcess:
            continue


@pytest.mark.parametrize("with_points", [False, True])
def test_results_survive_the_wire(with_points, rng):
    results = []
    for index, k in enumerate([3, 0, 2]):
        points = rng.random((k, 5, 2), np.float32) if with_points else None
        found = Detections(
            rng.random((k, 4), np.float32),
            rng.random(k, np.float32),
            np.arange(k, dtype=np.int32),
            points,
        )
        results.append(Result(index, f"p{index}", (7, 9), found))
    results.insert(1, Result(9, "bad", error=PictureError("no")))
    items = [SourceItem(r.index, r.path, "path") for r in results]
    back = unpacked(packed(results), items)
    for want, got in zip(results, back, strict=True):
        assert (got.index, got.path, got.size_wh) == (want.index, want.path, want.size_wh)
        assert (got.error is None) == (want.error is None)
        if want.detections is not None:
            for name in ("boxes_xyxy", "scores", "classes"):
                np.testing.assert_array_equal(
                    getattr(got.detections, name), getattr(want.detections, name)
                )
            assert (got.detections.keypoints_xy is None) == (not with_points)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("cpu", "cpu"),
        ("cuda", "cuda:0"),
        ("cuda:", "cuda:0"),
        ("CUDA:3", "cuda:3"),
        (" 1", "cuda:1"),
    ],
)
def test_names_of_devices(text, name):
    assert device_name(text) == name


@pytest.mark.parametrize("text", ["", "cuda:-1", "cuda:x", "gpu", "cuda:1:2", "-1"])
def test_names_that_are_none(text):
    with pytest.raises(InputError, match="cpu or cuda:N"):
        device_name(text)


@pytest.mark.parametrize(
    ("text", "num"),
    [("4GiB", 4 << 30), ("512 MiB", 512 << 20), ("1.5g", 3 << 29), ("1000", 1000), ("2KB", 2048)],
)
def test_sizes_of_memory(text, num):
    assert parse_bytes(text) == num


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "0", "4 parsecs", "1e400g", "nan"])
def test_sizes_that_are_none(text):
    with pytest.raises(InputError, match="4GiB or 512MiB"):
        parse_bytes(text)


def test_without_a_gpu_the_reason_and_the_fix_are_told(model):
    """What this machine lacks is told as it is; where it has a GPU, a number too high is."""
    with pytest.raises(BackendUnavailable, match=r"install|nvidia-smi|update|choose another"):
        check_device("cuda:99")
    with pytest.raises(BackendUnavailable, match=r"install|nvidia-smi|update|choose another"):
        saccade.load(model, device="cuda:99")
    check_device("cpu")
