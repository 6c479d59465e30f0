from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from heads import tails_b as tails
from saccade.errors import ContractError
from saccade.heads.yunet import HEAD
from saccade.types import Thresholds

SIZE = (96, 128)
SOME = Thresholds(score=0.7)


def plain_decode(outputs, index, size_hw, threshold):
    """Cell by cell in float64, straight from the definition; boxes and key points in pixels."""
    found, keypoints = [], []
    for stride in (8, 16, 32):
        row = 0
        for y in range(-(-size_hw[0] // stride)):
            for x in range(-(-size_hw[1] // stride)):
                part = {
                    role: np.float64(outputs[f"{role}_{stride}"][index, row])
                    for role in ("cls", "obj", "bbox", "kps")
                }
                score = np.sqrt(part["cls"][0] * part["obj"][0])
                if score > threshold:
                    cx, cy = (part["bbox"][0] + x) * stride, (part["bbox"][1] + y) * stride
                    bw, bh = np.exp(part["bbox"][2:]) * stride
                    box = np.array([cx - bw / 2, cy - bh / 2, cx + bw / 2, cy + bh / 2])
                    found.append((box, 0, score))
                    points = part["kps"].reshape(-1, 2)
                    keypoints.append((points + np.array([x, y])) * stride)
                row += 1
    return found, np.array(keypoints)


def rule_of(path):
    return HEAD.recognise(tails.signature(path)).head


@pytest.mark.parametrize("size_hw", [SIZE, (64, 160)])
def test_equals_the_plain_decode(tmp_path, size_hw):
    path = tails.yunet(tmp_path / "y.onnx", size_hw)
    outputs = tails.run(path, tails.images(size_hw, 2) / 2)
    got = HEAD.decode(outputs, rule_of(path), size_hw, SOME)
    for index, candidates in enumerate(got):
        found, keypoints = plain_decode(outputs, index, size_hw, 0.7)
        limit = 1e-6 * max(np.abs(box).max() for box, _, _ in found)
        tails.assert_close(candidates, found, box_px=max(limit, 0.01))
        np.testing.assert_allclose(candidates.keypoints_xy, keypoints, atol=0.01)
        assert candidates.keypoints_xy.dtype == np.float32


def test_a_batch_equals_its_pictures(tmp_path):
    path = tails.yunet(tmp_path / "y.onnx")
    outputs = tails.run(path, tails.images(SIZE, 3))
    batch = HEAD.decode(outputs, rule_of(path), SIZE, SOME)
    assert len(batch) == 3
    for index, candidates in enumerate(batch):
        (single,) = HEAD.decode(tails.one(outputs, index), rule_of(path), SIZE, SOME)
        tails.assert_same(candidates, single)


def test_nothing_above_the_threshold(tmp_path):
    path = tails.yunet(tmp_path / "y.onnx")
    outputs = tails.run(path, tails.images(SIZE, 2))
    for candidates in HEAD.decode(outputs, rule_of(path), SIZE, Thresholds(score=1.0)):
        tails.assert_empty(candidates, num_keypoints=5)


@pytest.mark.parametrize("role", ["cls", "obj", "bbox", "kps"])
def test_nan_never_passes(tmp_path, role):
    path = tails.yunet(tmp_path / "y.onnx")
    outputs = tails.run(path, tails.images(SIZE, 1))
    for stride in (8, 16, 32):
        outputs[f"{role}_{stride}"][:] = np.nan
    (got,) = HEAD.decode(outputs, rule_of(path), SIZE, Thresholds(score=0.0))
    tails.assert_empty(got, num_keypoints=5)


def test_garbage_sizes_do_not_overflow(tmp_path):
    path = tails.yunet(tmp_path / "y.onnx")
    outputs = tails.run(path, tails.images(SIZE, 1))
    outputs["bbox_8"][..., 2:] = 1e4
    (got,) = HEAD.decode(outputs, rule_of(path), SIZE, SOME)
    assert np.isfinite(got.boxes_xyxy).all()


def test_float16_outputs(tmp_path):
    path = tails.yunet(tmp_path / "y.onnx")
    outputs = tails.run(path, tails.images(SIZE, 1) / 4)
    half = {n: a.astype(np.float16) for n, a in outputs.items()}
    (got,) = HEAD.decode(half, rule_of(path), SIZE, Thresholds(score=0.5))
    found, keypoints = plain_decode(half, 0, SIZE, 0.5)
    tails.assert_close(got, found)
    np.testing.assert_allclose(got.keypoints_xy, keypoints, atol=0.01)


def test_wrong_contract_is_named(tmp_path):
    path = tails.yunet(tmp_path / "y.onnx")
    outputs = tails.run(path, tails.images(SIZE, 1))
    rule = rule_of(path)
    with pytest.raises(ContractError, match="strides"):
        HEAD.decode(outputs, rule, (128, 128), SOME)
    roles = {k: v for k, v in rule.outputs.items() if k != "kps_16"}
    with pytest.raises(ContractError, match="kps_16"):
        HEAD.decode(outputs, dataclasses.replace(rule, outputs=roles), SIZE, SOME)


@pytest.mark.shared
@pytest.mark.parametrize("picture", ["people_group_1200x800.jpeg", "astronaut.png"])
def test_real_model(shared, picture):
    path, size_hw = shared / "models" / "yunet_n_320.onnx", (320, 320)
    recognition = HEAD.recognise(tails.signature(path))
    assert recognition.labels == ("face",)
    assert set(recognition.head.outputs.items()) == {(n, n) for n in recognition.head.outputs}
    pixels = tails.real_input(shared, picture, size_hw)[..., ::-1]
    batch = tails.as_batch(pixels, recognition.input["mean"], recognition.input["std"])
    outputs = tails.run(path, batch)
    (got,) = HEAD.decode(outputs, recognition.head, size_hw, recognition.detect)
    found, keypoints = plain_decode(outputs, 0, size_hw, recognition.detect.score)
    tails.assert_close(got, found, box_px=0.5)
    np.testing.assert_allclose(got.keypoints_xy, keypoints, atol=0.5)
    # Eyes and nose of a face are inside its box.
    best = got.scores.argmax()
    x1, y1, x2, y2 = got.boxes_xyxy[best]
    assert ((got.keypoints_xy[best] > [x1, y1]) & (got.keypoints_xy[best] < [x2, y2])).all()


@pytest.mark.shared
def test_real_model_agrees_with_opencv(shared):
    """OpenCV has its own reader of these outputs; its faces must be among our candidates."""
    import cv2

    path, size_hw = shared / "models" / "yunet_n_320.onnx", (320, 320)
    recognition = HEAD.recognise(tails.signature(path))
    pixels = tails.real_input(shared, "people_group_1200x800.jpeg", size_hw)[..., ::-1]
    pixels = np.ascontiguousarray(pixels)
    _, faces = cv2.FaceDetectorYN.create(str(path), "", size_hw[::-1], 0.6, 0.3).detect(pixels)
    outputs = tails.run(path, tails.as_batch(pixels, (0, 0, 0), (1, 1, 1)))
    (got,) = HEAD.decode(outputs, recognition.head, size_hw, recognition.detect)
    assert len(faces) >= 5
    for face in faces:
        corners = np.concatenate([face[:2], face[:2] + face[2:4]])
        far = np.abs(got.boxes_xyxy - corners).max(axis=1)
        nearest = int(far.argmin())
        assert far[nearest] < 0.5
        assert got.scores[nearest] == pytest.approx(face[14], abs=1e-3)
        np.testing.assert_allclose(
            got.keypoints_xy[nearest], face[4:14].reshape(5, 2), atol=0.5, rtol=0
        )
