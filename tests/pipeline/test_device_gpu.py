"""Jobs and calls on a GPU, held against the same on the CPU; skipped where there is none."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest
from PIL import Image

import saccade
from conftest import skip_or_fail
from nets import mean_color_detector
from saccade import backends
from saccade.errors import BackendUnavailable, BuildError, EngineError, InputError, PictureError
from saccade.pipeline.devices import check_device
from saccade.pipeline.sources import SourceItem


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


@pytest.fixture(scope="module")
def on_gpu(gpu, model):
    with saccade.load(model, device=gpu) as made:
        yield made


@pytest.fixture(scope="module")
def on_cpu(model):
    with saccade.load(model) as made:
        yield made


def encoded(pixels, kind, **more):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **more)
    return file.getvalue()


def even(rng, w=48, h=40):
    """A picture of one colour, far from the threshold: JPEG keeps it to a level."""
    color = rng.choice(np.array([0, 20, 160, 200, 255], np.uint8), 3)
    return np.ascontiguousarray(np.broadcast_to(color, (h, w, 3)))


def pictures_of_all_kinds(rng, num):
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds = (
        lambda p: encoded(p, "JPEG", quality=95),
        lambda p: encoded(p, "PNG"),
        lambda p: p,
        lambda p: encoded(p, "JPEG", quality=95, progressive=True),
        lambda p: encoded(p, "WEBP", lossless=True),
        lambda p: encoded(p, "JPEG", quality=95, exif=turned),
        lambda p: encoded(p[:, :, 0], "JPEG", quality=95),
        lambda p: encoded(np.array(Image.fromarray(p).convert("CMYK")), "TIFF"),
        lambda p: b"no picture at all",
        lambda p: encoded(p, "JPEG")[:60],
    )
    sizes = ((48, 40), (8, 8), (200, 31), (640, 480))
    return [kinds[i % len(kinds)](even(rng, *sizes[i % len(sizes)])) for i in range(num)]


def assert_alike(got, want, *, atol=3e-2):
    assert (got.index, got.path, got.size_wh) == (want.index, want.path, want.size_wh)
    assert (got.error is None) == (want.error is None), (got.error, want.error)
    if want.error is not None:
        assert type(got.error) is type(want.error)
        assert str(got.error) == str(want.error)
        return
    a, b = got.detections, want.detections
    assert sorted(a.classes) == sorted(b.classes)
    order = np.argsort(a.classes), np.argsort(b.classes)
    np.testing.assert_allclose(a.scores[order[0]], b.scores[order[1]], atol=atol)
    np.testing.assert_allclose(a.boxes_xyxy[order[0]], b.boxes_xyxy[order[1]], atol=0.1)


def test_a_mixed_job_gives_what_the_cpu_gives(on_gpu, on_cpu, rng):
    pictures = pictures_of_all_kinds(rng, 173)
    with saccade.run(on_gpu, pictures) as run:
        got = list(run)
        report, fallbacks = run.reports[0], run.fallbacks
        assert run.plan.device == "cuda:0"
        assert run.plan.batch == 32
    want = list(saccade.run(on_cpu, pictures))
    for a, b in zip(got, want, strict=True):
        assert_alike(a, b)
    assert report.num_pictures == sum(r.error is None for r in want)
    assert report.decoded_on_gpu > 0
    assert {"PNG", "WebP", "TIFF"} <= set(report.decoded_on_cpu)
    assert any("PNG" in f.what and f.got == "on the CPU" for f in fallbacks)


@pytest.mark.parametrize("options", [{"batch": 1}, {"batch": 5, "streams": 1}, {"workers": 1}])
def test_other_arrangements_give_the_same(on_gpu, on_cpu, rng, options):
    pictures = pictures_of_all_kinds(rng, 57)
    want = list(saccade.run(on_cpu, pictures))
    for a, b in zip(saccade.run(on_gpu, pictures, **options), want, strict=True):
        assert_alike(a, b)


def test_serial_is_the_reference_with_the_network_on_the_gpu(on_gpu, on_cpu, rng):
    pictures = pictures_of_all_kinds(rng, 21)
    want = list(saccade.run(on_cpu, pictures))
    with saccade.run(on_gpu, pictures, is_overlapped=False, batch=4) as run:
        for a, b in zip(run, want, strict=True):
            assert_alike(a, b, atol=1e-3)
        assert run.times.wall_s["infer"] > 0


def test_calls(on_gpu, on_cpu, rng, tmp_path):
    path = tmp_path / "one.png"
    path.write_bytes(encoded(even(rng), "PNG"))
    for picture in (path, str(path), encoded(even(rng), "JPEG"), even(rng)):
        a, b = on_gpu(picture, score=0.3), on_cpu(picture, score=0.3)
        np.testing.assert_allclose(sorted(a.scores), sorted(b.scores), atol=3e-2)
    for bad in (b"nothing", tmp_path / "none.jpg"):
        with pytest.raises(PictureError):
            on_gpu(bad)
    timed = on_gpu.timed(path)
    assert set(timed.wall_s) == {"decode", "prepare", "infer", "suppress"}


def test_precisions(gpu, model, on_cpu, rng):
    pictures = [encoded(even(rng), "PNG") for _ in range(9)]
    want = list(saccade.run(on_cpu, pictures))
    for precision in ("fp16", "bf16"):
        with saccade.load(model, device=gpu, precision=precision) as detector:
            for a, b in zip(saccade.run(detector, pictures, batch=4), want, strict=True):
                assert_alike(a, b, atol=5e-2)


def test_pictures_larger_than_the_room_make_room(on_gpu, on_cpu, rng):
    small = encoded(even(rng), "JPEG", quality=95)
    large = encoded(even(rng, 4000, 3000), "JPEG", quality=95)
    pictures = [small, large, small, encoded(even(rng, 4100, 3100), "PNG"), small]
    want = list(saccade.run(on_cpu, pictures))
    with saccade.run(on_gpu, pictures, batch=1) as run:
        for a, b in zip(run, want, strict=True):
            assert_alike(a, b)
        assert run.reports[0].allocations_while_running > 0
    assert len(on_gpu(large)) == len(on_cpu(large))


def test_nothing_is_allocated_in_the_steady_state(on_gpu, rng):
    pictures = [encoded(even(rng), "JPEG") for _ in range(64)]
    with saccade.run(on_gpu, pictures * 8) as run:
        list(run)
        assert run.reports[0].allocations_at_load > 0
        assert run.reports[0].allocations_while_running == 0


def test_sources_that_fail_and_jobs_left_early(on_gpu, rng):
    data = encoded(even(rng), "JPEG")

    def source():
        for index in range(70):
            yield SourceItem(index, f"<{index}>", "bytes", data)
        raise OSError("the disk is gone")

    got = []
    with pytest.raises(OSError, match="disk"):
        got.extend(saccade.run(on_gpu, source()))
    assert [r.index for r in got] == list(range(70))
    with saccade.run(on_gpu, [data] * 500) as run:
        next(run)
    assert len(list(saccade.run(on_gpu, [data] * 5))) == 5


def test_two_jobs_at_once(on_gpu, rng):
    data = encoded(even(rng), "JPEG")
    with (
        saccade.run(on_gpu, [data] * 300, batch=8) as one,
        saccade.run(on_gpu, [data] * 200, batch=8) as two,
    ):
        pairs = [(next(one), next(two)) for _ in range(200)]
        assert all(a.error is None and b.error is None for a, b in pairs)
        assert len(list(one)) == 100


def test_memory_is_told_and_limited(gpu, model, rng):
    pictures = [encoded(even(rng), "JPEG") for _ in range(40)]
    with saccade.load(model, device=gpu) as detector, saccade.run(detector, pictures) as run:
        list(run)
        parts = {part.name: part for part in run.reports[0].memory}
    assert parts["slots"].predicted_bytes == parts["slots"].measured_bytes
    assert parts["buffers"].predicted_bytes == parts["buffers"].measured_bytes
    assert parts["sum"].measured_bytes > parts["slots"].measured_bytes
    needed = parts["sum"].predicted_bytes
    with (
        saccade.load(model, device=gpu, gpu_memory=needed // 3) as small,
        pytest.raises(BuildError, match=r"--gpu-memory|largest batch"),
    ):
        list(saccade.run(small, pictures))
    with (
        saccade.load(model, device=gpu, gpu_memory="1MiB") as tiny,
        pytest.raises(BuildError, match="not even a batch of 1"),
    ):
        list(saccade.run(tiny, pictures))


def test_too_little_memory_is_told_and_harms_nobody(gpu, model, on_gpu, rng):
    data = encoded(even(rng), "JPEG")
    with saccade.run(on_gpu, [data] * 200, batch=4) as other:
        first = [next(other) for _ in range(20)]
        with (
            saccade.load(model, device=gpu) as detector,
            pytest.raises((BuildError, EngineError), match=r"must fit|needs? |memory"),
        ):
            list(saccade.run(detector, [data], batch=1 << 20))
        rest = list(other)
    assert len(first) + len(rest) == 200
    assert all(r.error is None for r in (*first, *rest))


def test_wrong_calls(gpu, model, on_gpu):
    with pytest.raises(BackendUnavailable, match="cuda:99"):
        saccade.load(model, device="cuda:99")
    with pytest.raises(InputError, match="scaled_decode"):
        saccade.run(on_gpu, [b"x"], scaled_decode=True)
    with (
        saccade.load(model, device=gpu, backend="openvino") as other,
        pytest.raises(BackendUnavailable, match="must be one of"),
    ):
        saccade.run(other, [b"x"])
    with (
        saccade.load(model, device=gpu, engine_options={"compile": "warp"}) as other,
        pytest.raises(InputError, match="compile=none"),
    ):
        saccade.run(other, [b"x"])


def test_a_job_in_its_own_process(model, gpu, on_cpu, rng):
    pictures = pictures_of_all_kinds(rng, 90)
    want = list(saccade.run(on_cpu, pictures))
    with saccade.load(model, device=gpu) as detector:
        with saccade.run(detector, pictures, devices=("cuda:0",), batch=8) as run:
            for a, b in zip(run, want, strict=True):
                assert_alike(a, b)
            assert run.reports[0].device.startswith("cuda:0")
        run = saccade.run(detector, pictures * 400, devices=("cuda:0",), batch=8)
        got = [next(run)]
        (victim,) = [
            p for p in psutil.Process().children() if "fleet_worker" in " ".join(p.cmdline())
        ]
        victim.send_signal(signal.SIGKILL)
        with pytest.raises(EngineError, match=r"process for cuda:0.*SIGKILL"):
            got.extend(run)
        assert [r.index for r in got] == list(range(len(got)))


def saccade_command(*args):
    command = [sys.executable, "-m", "saccade", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_line(model, gpu, rng, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, data in enumerate(pictures_of_all_kinds(rng, 40)):
        if isinstance(data, bytes):
            (folder / f"{index:03d}.jpg").write_bytes(data)
    names = {}
    for device in ("cpu", gpu):
        out = tmp_path / device.replace(":", "")
        more = ["--device", device, "--format", "jsonl", "--draw"]
        done = saccade_command("detect", model, folder, "-o", out, *more)
        assert done.returncode == 3, done.stderr
        if device != "cpu":
            for word in ("cuda:0 (", "decoded on the GPU", "allocations", "predicted", "fallback"):
                assert word in done.stdout
        lines = [json.loads(one) for one in (out / "detections.jsonl").read_text().splitlines()]
        names[device] = [
            (one["path"], one.get("error") is not None, len(one.get("detections", ())))
            for one in lines
        ]
        assert len(os.listdir(out / "drawn")) > 10
    assert names["cpu"] == names[gpu]
    done = saccade_command("doctor", "--measure", "--json")
    told = json.loads(done.stdout)["gpu"]
    assert told["gpus"][0]["problem"] == ""
    assert told["rates"][0]["on_device_gb_s"] > told["rates"][0]["to_device_gb_s"] > 1
    assert told["rates"][0]["decodes_per_s"] > 100
