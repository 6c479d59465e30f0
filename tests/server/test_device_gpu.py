"""A server on a GPU, held against the detector on the CPU; skipped where there is none."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

import saccade
from conftest import skip_or_fail
from nets import mean_color_detector
from saccade import backends
from saccade.errors import BackendUnavailable, PictureError
from saccade.pipeline.devices import check_device
from server import live

PATIENCE_S = 60


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
def served(gpu, model):
    with live.server(model, "--device", gpu, "--batch", "8", "--fronts", "2") as running:
        yield running


@pytest.fixture(scope="module")
def on_cpu(gpu, model):
    with saccade.load(model, backend="torch") as made:
        yield made


def encoded(color, kind, size_wh=(48, 40), **more):
    """A picture of one colour: JPEG keeps it to a level."""
    file = io.BytesIO()
    Image.new("RGB", size_wh, color).save(file, kind, **more)
    return file.getvalue()


def pictures(rng, num):
    """JPEGs for the card's decoder, and others, in a mixture."""
    turned = Image.Exif()
    turned[0x0112] = 6
    made = []
    for i in range(num):
        color = tuple(int(c) for c in rng.choice([0, 20, 160, 200, 255], 3))
        size_wh = [(48, 40), (8, 8), (200, 31), (640, 480)][i % 4]
        kind = [
            ("JPEG", {"quality": 95}),
            ("JPEG", {"quality": 92}),
            ("PNG", {}),
            ("JPEG", {"quality": 95, "progressive": True}),
            ("JPEG", {"quality": 95, "exif": turned}),
            ("JPEG", {"quality": 95, "subsampling": 2}),
            ("WEBP", {"lossless": True}),
        ][i % 7]
        made.append(encoded(color, kind[0], size_wh, **kind[1]))
    return made


def assert_found(told, wanted, *, atol=3e-2):
    """An answer of the server against Detections."""
    rows = sorted(told["detections"], key=lambda row: row["class"])
    order = np.argsort(wanted.classes)
    assert [row["class"] for row in rows] == wanted.classes[order].tolist()
    np.testing.assert_allclose([row["score"] for row in rows], wanted.scores[order], atol=atol)
    if rows:
        boxes = [row["box_xyxy"] for row in rows]
        np.testing.assert_allclose(boxes, wanted.boxes_xyxy[order], atol=0.1)


def detect(served, picture, query=""):
    status, _, body = served.ask("POST", f"/v2/models/net/detect{query}", picture)
    return status, json.loads(body) if body[:1] in b"{[" else body


def test_many_clients_get_what_the_cpu_finds(served, on_cpu, rng):
    several = pictures(rng, 120)
    wanted = [on_cpu(picture) for picture in several]
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda picture: detect(served, picture), several))
    for (status, told), found in zip(answers, wanted, strict=True):
        assert status == 200, told
        assert_found(told, found)
    told = served.json("/v2/models/net/stats")["model_stats"][0]
    assert told["execution_count"] < told["inference_count"]  # batches have formed


def test_a_broken_picture_fails_alone(served, on_cpu, rng):
    good = encoded((200, 30, 90), "JPEG", (640, 480), quality=95)
    noise = rng.integers(0, 256, (480, 640, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG")
    whole = file.getvalue()
    short = whole[: len(whole) // 2]
    with pytest.raises(PictureError):
        on_cpu(short)
    # Its end is there, its middle is not: the card's decoder takes it, as in a job.
    damaged = short + b"\xff\xd9"
    sent = [good, short, b"no picture at all", damaged, good, good[:50]] * 8
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda picture: detect(served, picture), sent))
    wanted = on_cpu(good)
    for picture, (status, told) in zip(sent, answers, strict=True):
        if picture is good:
            assert status == 200, told
            assert_found(told, wanted)
        elif picture is damaged:
            assert status in (200, 400), told
        else:
            assert status == 400, told
            assert told["error"]


@pytest.mark.parametrize(
    ("query", "keys"),
    [
        ("?score=0.6", {"score": 0.6}),
        ("?score=0.01", {"score": 0.01}),
        ("?iou=0.2", {"iou": 0.2}),
        ("?max_detections=1", {"max_detections": 1}),
        ("?score=0.25&iou=0.7&max_detections=300", {}),
    ],
)
def test_thresholds_of_a_request(served, on_cpu, query, keys):
    picture = encoded((200, 30, 220), "JPEG", quality=95)
    status, told = detect(served, picture, query)
    assert status == 200, told
    assert_found(told, on_cpu(picture, **keys))


def test_a_drawn_picture(served):
    status, headers, body = served.ask(
        "POST", "/v2/models/net/detect?format=jpeg", encoded((200, 30, 90), "JPEG")
    )
    assert status == 200
    assert headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(body)).size == (48, 40)


def infer(served, array, **parameters):
    """A tensor as JSON, or in shared memory; the outputs."""
    inputs = {"name": "images", "datatype": "FP32", "shape": list(array.shape)}
    if parameters:
        inputs["parameters"] = parameters["input"]
    else:
        inputs["data"] = array.ravel().tolist()
    asked = {"inputs": [inputs]}
    if parameters:
        asked["outputs"] = [{"name": "output0", "parameters": parameters["output"]}]
    status, _, body = served.ask("POST", "/v2/models/net/infer", json.dumps(asked).encode())
    assert status == 200, body
    return json.loads(body)["outputs"][0]


def expected(on_cpu, array):
    slot = on_cpu.engine(on_cpu.plan(batch=len(array))).open_slot(array.shape[2:])
    slot.inputs["images"][: len(array)] = array
    return np.array(slot.run(len(array))["output0"])


@pytest.mark.parametrize("num", [1, 3, 8, 11])
def test_tensors(served, on_cpu, rng, num):
    array = rng.random((num, 3, 32, 32)).astype(np.float32)
    told = infer(served, array)
    found = np.reshape(told["data"], told["shape"])
    np.testing.assert_allclose(found, expected(on_cpu, array), rtol=1e-3, atol=1e-3)


def test_tensors_and_pictures_at_the_same_time(served, on_cpu, rng):
    array = rng.random((2, 3, 32, 32)).astype(np.float32)
    wanted, picture = expected(on_cpu, array), encoded((200, 30, 90), "JPEG", quality=95)
    found = on_cpu(picture)

    def one(number):
        if number % 2:
            told = infer(served, array)
            values = np.reshape(told["data"], told["shape"])
            np.testing.assert_allclose(values, wanted, rtol=1e-3, atol=1e-3)
        else:
            status, told = detect(served, picture)
            assert status == 200, told
            assert_found(told, found)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(96)))


def test_memory_of_the_gpu_is_shared(served, on_cpu, rng):
    from saccade.cuda import driver
    from saccade.cuda.runtime import Device

    array = rng.random((2, 3, 32, 32)).astype(np.float32)
    wanted = expected(on_cpu, array)
    cuda = driver.bindings()
    with Device(0) as device:
        memory = device.arena({"input": array.nbytes, "output": wanted.nbytes})
        driver.call("copying", cuda.cuMemcpyHtoD, memory.base, array.ctypes.data, array.nbytes)
        handle = driver.call("sharing", cuda.cuIpcGetMemHandle, memory.base)
        body = {
            "raw_handle": {"b64": base64.b64encode(bytes(handle.reserved)).decode()},
            "device_id": 0,
            "byte_size": memory.num_bytes,
        }
        base = "/v2/cudasharedmemory"
        status, _, told = served.ask(
            "POST", f"{base}/region/card/register", json.dumps(body).encode()
        )
        assert status == 200, told
        assert served.json(f"{base}/status") == [
            {"name": "card", "device_id": 0, "byte_size": memory.num_bytes}
        ]
        at = memory.address("output") - memory.base
        where = {"shared_memory_region": "card"}
        told = infer(
            served,
            array,
            input={**where, "shared_memory_byte_size": array.nbytes},
            output={
                **where,
                "shared_memory_byte_size": wanted.nbytes,
                "shared_memory_offset": at,
            },
        )
        assert told["parameters"]["shared_memory_region"] == "card"
        found = np.empty_like(wanted)
        address = memory.address("output")
        driver.call("copying", cuda.cuMemcpyDtoH, found.ctypes.data, address, found.nbytes)
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)
        assert served.ask("POST", f"{base}/region/card/unregister", b"")[0] == 200
        assert served.json(f"{base}/status") == []
        body["raw_handle"]["b64"] = base64.b64encode(bytes(64)).decode()
        status, _, told = served.ask(
            "POST", f"{base}/region/other/register", json.dumps(body).encode()
        )
        assert status == 400, told
        assert served.json(f"{base}/status") == []


def test_what_is_told_is_true(served, gpu):
    assert "cuda_shared_memory" in served.json("/v2")["extensions"]
    group = served.json("/v2/models/net/config")["instance_group"][0]
    assert (group["kind"], group["gpus"]) == ("KIND_GPU", [0])
    _, _, text = served.get("/metrics")
    lines = text.decode().splitlines()
    assert any("saccade_model_info" in line and f'device="{gpu}"' in line for line in lines)
    deadline_s = time.monotonic() + PATIENCE_S
    while not any(line.startswith("saccade_engine") and gpu in line for line in lines):
        assert time.monotonic() < deadline_s, text
        lines = served.get("/metrics")[2].decode().splitlines()
    assert any("gpu_memory" in line for line in lines)
    decoded = [line for line in lines if line.startswith("saccade_engine_decoded_pictures_total")]
    assert {'decoder="gpu"', 'decoder="cpu"'} == {
        part for line in decoded for part in line.replace("}", ",").split(",") if "decoder" in part
    }


def test_the_model_is_loaded_anew_without_losing_a_request(served, on_cpu):
    picture = encoded((200, 30, 90), "JPEG", quality=95)
    wanted = on_cpu(picture)
    with ThreadPoolExecutor(9) as pool:
        loading = pool.submit(served.ask, "POST", "/v2/repository/models/net/load", b"")
        num = 0
        while not loading.done() or num < 50:
            answers = list(pool.map(lambda _: detect(served, picture), range(8)))
            assert all(status == 200 for status, _ in answers), answers
            num += len(answers)
        assert loading.result()[0] == 200, loading.result()
    for _, told in answers:
        assert_found(told, wanted)


def test_too_little_memory_is_refused(gpu, model):
    command = [sys.executable, "-m", "saccade", "serve", model, "--device", gpu]
    command += ["--gpu-memory", "64MiB", "--port", "0", "--grpc-port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert ended.returncode != 0
    assert "--gpu-memory 64 MiB" in ended.stderr or "allowed by --gpu-memory" in ended.stderr


def test_an_engine_process_that_ends_is_replaced(served, on_cpu):
    picture = encoded((200, 30, 90), "JPEG", quality=95)
    pid = served.json("/page/live")["engines"][0]["pid"]
    os.kill(pid, signal.SIGKILL)
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        status, told = detect(served, picture)
        if status == 200 and served.json("/page/live")["num_restarts"] == 1:
            break
        assert status in (200, 503), told
        assert time.monotonic() < deadline_s
    assert_found(told, on_cpu(picture))
