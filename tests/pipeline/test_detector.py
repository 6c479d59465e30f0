"""Calling a detector on one picture, from any thread."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import saccade
from nets import mean_color_detector, score_of
from saccade.errors import (
    ContractError,
    EngineError,
    InputError,
    ModelError,
    PictureError,
)
from saccade.vision.draw import encode_jpeg


@pytest.fixture
def detector(tmp_path):
    with saccade.load(mean_color_detector(tmp_path / "net.onnx")) as made:
        yield made


@pytest.fixture
def red():
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[..., 0] = 255
    return picture


def test_arrays_bytes_and_paths_give_the_same(detector, red, tmp_path):
    data = encode_jpeg(red, 100)
    path = tmp_path / "red.jpg"
    path.write_bytes(data)
    found = [detector(red), detector(data), detector(path), detector(str(path))]
    for one in found:
        assert one.classes.tolist() == [0]
        assert one.scores[0] == pytest.approx(float(score_of(1)), abs=0.02)
        np.testing.assert_allclose(one.boxes_xyxy, [[8, 8, 24, 24]], atol=0.01)


def test_an_array_is_rgb(detector, red):
    assert detector(red[..., ::-1]).classes.tolist() == [1]


def test_thresholds_can_be_given(detector, red):
    dim = red // 2  # a mean just below one half
    assert len(detector(dim, score=0.4)) == 1
    assert len(detector(dim, score=0.6)) == 0
    with pytest.raises(InputError, match=r"score threshold must lie in 0 to 1, got 40"):
        detector(dim, score=40)
    with pytest.raises(InputError, match="max_detections must be at least 1"):
        detector(dim, max_detections=0)


@pytest.mark.parametrize(
    ("picture", "error"),
    [
        (b"", PictureError),
        ("/no/such/picture.jpg", PictureError),
        (np.zeros((8, 8), np.uint8), InputError),
        (np.zeros((8, 8, 4), np.uint8), InputError),
        (np.zeros((8, 8, 3), np.float32), InputError),
        (None, InputError),
        (7, InputError),
    ],
    ids=str,
)
def test_what_is_no_picture_is_refused(detector, red, picture, error):
    with pytest.raises(error):
        detector(picture)
    assert len(detector(red)) == 1


def test_many_threads_may_call_it(detector):
    wrong = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(40):
            level = int(rng.integers(130, 255))
            picture = np.zeros((32, 32, 3), np.uint8)
            picture[..., 2] = level
            found = detector(picture)
            if found.classes.tolist() != [1] or abs(found.scores[0] - score_of(level / 255)) > 0.01:
                wrong.append((level, found))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_closed_detector_says_so(detector, red):
    detector.close()
    detector.close()
    with pytest.raises(EngineError, match="closed"):
        detector(red)
    with pytest.raises(EngineError, match="closed"):
        saccade.run(detector, [red])


def test_repr_tells_the_essentials(detector):
    assert repr(detector) == "Detector(net.onnx, yolov8 head, 32x32, onnxruntime fp32)"


def test_wrong_names_are_answered_with_the_right_ones(tmp_path):
    path = mean_color_detector(tmp_path / "net.onnx")
    with pytest.raises(InputError, match="did you mean 'openvino'"):
        saccade.load(path, backend="openvin")
    with pytest.raises(InputError, match="did you mean 'yolov8'"):
        saccade.load(path, preset="yolo8")
    with pytest.raises(InputError, match=r"32x32 \(width x height\).*got 64x48"):
        saccade.load(path, size_hw=(48, 64))
    with pytest.raises(ContractError, match="labels must name 2 classes, they name 1"):
        saccade.load(path, labels=["one"])
    with pytest.raises(ModelError):
        saccade.load(tmp_path / "none.onnx")


# Model, its preset, and batch sizes that it can take.
REAL = [
    ("cells_640", "bccd", None, (1, 4)),
    ("yolox_nano_416", "coco_ccby", None, (1,)),
    ("nanodet_m_320", "coco_ccby", None, (1,)),
    ("fastestdet_352", "coco_ccby", None, (1,)),
    ("fastestdet_352_nms", "coco_ccby", "fastestdet_nms", (1,)),
    ("deimv2_atto_320", "coco_ccby", "rtdetr_coco", (1, 3)),
]


def assert_same(wanted, got):
    """Each box of one has its like in the other: half a pixel and a hundredth of a score. Boxes
    within a hundredth of the threshold may be in one only."""
    for want, have in zip(wanted, got, strict=True):
        edge = max(want.scores.min(initial=1), have.scores.min(initial=1)) + 0.01
        for one, other in ((want, have), (have, want)):
            for box, score, label in zip(one.boxes_xyxy, one.scores, one.classes, strict=True):
                if score < edge:
                    continue
                near = (
                    (np.abs(other.boxes_xyxy - box).max(axis=1) <= 0.5)
                    & (np.abs(other.scores - score) <= 0.01)
                    & (other.classes == label)
                )
                assert near.any(), (box, score, label)


@pytest.mark.shared
@pytest.mark.parametrize(("name", "data", "preset", "batches"), REAL)
def test_the_same_boxes_whatever_the_arrangement(shared, name, data, preset, batches):
    """Back end, batch size, serial or overlapped, one call at a time."""
    paths = sorted((shared / f"datasets/{data}/images").glob("*.jpg"))[:6]
    model = shared / f"models/{name}.onnx"
    with saccade.load(model, preset=preset) as detector:
        wanted = [r.detections for r in saccade.run(detector, paths, is_overlapped=False)]
        assert sum(map(len, wanted)) > 6
        assert_same(wanted, [detector(path) for path in paths])
    for backend in ("onnxruntime", "openvino"):
        with saccade.load(model, preset=preset, backend=backend) as detector:
            for batch in batches:
                run = saccade.run(detector, paths, batch=batch)
                assert_same(wanted, [r.detections for r in run])
