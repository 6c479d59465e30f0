from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from heads import tails_b as tails
from saccade.errors import ContractError
from saccade.heads.nanodet import HEAD
from saccade.types import Thresholds

SIZE = (96, 128)
LOW = Thresholds(score=0.9)


def plain_decode(scores, logits, *, strides, centre, size_hw, threshold):
    """Cell by cell in float64, straight from the definition."""
    found, row = [], 0
    for stride in strides:
        for y in range(-(-size_hw[0] // stride)):
            for x in range(-(-size_hw[1] // stride)):
                best = int(np.argmax(scores[row]))
                if scores[row, best] > threshold:
                    parts = logits[row].astype(np.float64).reshape(4, -1)
                    weights = np.exp(parts) / np.exp(parts).sum(axis=1, keepdims=True)
                    far = (weights * np.arange(parts.shape[1])).sum(axis=1) * stride
                    px, py = (x + centre) * stride, (y + centre) * stride
                    box = [px - far[0], py - far[1], px + far[2], py + far[3]]
                    h, w = size_hw
                    box = np.clip(box, 0, [w, h, w, h])
                    found.append((box, best, float(scores[row, best])))
                row += 1
    return found


def joined(outputs, rule, index):
    """Scores and logits of one picture, all levels one after another."""
    if "rows" in rule.outputs:
        rows = outputs[rule.outputs["rows"]][index]
        return rows[:, : rule.num_classes], rows[:, rule.num_classes :]
    strides = rule.options["strides"]
    return tuple(
        np.concatenate([outputs[rule.outputs[f"{role}_{s}"]][index] for s in strides])
        for role in ("cls", "dis")
    )


def check(path, images, size_hw, threshold, **tolerances):
    rule = HEAD.recognise(tails.signature(path)).head
    outputs = tails.run(path, images)
    got = HEAD.decode(outputs, rule, size_hw, Thresholds(score=threshold))
    for index, candidates in enumerate(got):
        scores, logits = joined(outputs, rule, index)
        plain = plain_decode(
            scores,
            logits,
            strides=rule.options["strides"],
            centre=rule.options["centre"],
            size_hw=size_hw,
            threshold=threshold,
        )
        tails.assert_close(candidates, plain, **tolerances)
    return outputs, rule, got


@pytest.mark.parametrize("reg_max", [7, 10])
@pytest.mark.parametrize("size_hw", [SIZE, (100, 68)])
def test_pairs_equal_the_plain_decode(tmp_path, size_hw, reg_max):
    path = tails.nanodet(tmp_path / "n.onnx", size_hw, reg_max=reg_max)
    _, rule, _ = check(path, tails.images(size_hw, 2), size_hw, 0.9)
    assert rule.options == {"reg_max": reg_max, "strides": [8, 16, 32], "centre": 0.5}


@pytest.mark.parametrize("size_hw", [SIZE, (100, 68)])
def test_plus_equals_the_plain_decode(tmp_path, size_hw):
    path = tails.nanodet_plus(tmp_path / "n.onnx", size_hw)
    _, rule, _ = check(path, tails.images(size_hw, 2), size_hw, 0.9)
    assert rule.options == {"reg_max": 7, "strides": [8, 16, 32, 64], "centre": 0.0}
    assert rule.num_classes == 5


@pytest.mark.parametrize("build", [tails.nanodet, tails.nanodet_plus])
def test_a_batch_equals_its_pictures(tmp_path, build):
    path = build(tmp_path / "n.onnx")
    rule = HEAD.recognise(tails.signature(path)).head
    outputs = tails.run(path, tails.images(SIZE, 3))
    batch = HEAD.decode(outputs, rule, SIZE, LOW)
    assert len(batch) == 3
    for index, candidates in enumerate(batch):
        (single,) = HEAD.decode(tails.one(outputs, index), rule, SIZE, LOW)
        tails.assert_same(candidates, single)


def test_names_may_be_numbers_and_in_any_order(tmp_path):
    path = tails.nanodet(tmp_path / "n.onnx", numeric_names=True)
    signature = tails.signature(path)
    shuffled = dataclasses.replace(signature, outputs=signature.outputs[::-1])
    recognition = HEAD.recognise(shuffled)
    assert recognition is not None
    assert recognition.head.outputs["cls_16"] == "703"
    assert recognition.head.outputs["dis_16"] == "704"


def test_as_many_classes_as_logits_is_no_riddle(tmp_path):
    rule = HEAD.recognise(tails.signature(tails.nanodet(tmp_path / "n.onnx", num_classes=32))).head
    assert rule.outputs["cls_8"] == "cls_pred_stride_8"
    assert rule.num_classes == 32


@pytest.mark.parametrize("build", [tails.nanodet, tails.nanodet_plus])
def test_nothing_above_the_threshold(tmp_path, build):
    path = build(tmp_path / "n.onnx")
    rule = HEAD.recognise(tails.signature(path)).head
    for candidates in HEAD.decode(
        tails.run(path, tails.images(SIZE, 2)), rule, SIZE, Thresholds(score=1.0)
    ):
        tails.assert_empty(candidates)


def test_nan_never_passes(tmp_path):
    path = tails.nanodet(tmp_path / "n.onnx")
    rule = HEAD.recognise(tails.signature(path)).head
    outputs = tails.run(path, tails.images(SIZE, 1))
    for stride in (8, 16, 32):
        outputs[f"cls_pred_stride_{stride}"][:] = np.nan
    (got,) = HEAD.decode(outputs, rule, SIZE, Thresholds(score=0.0))
    tails.assert_empty(got)


def test_nan_in_a_box_drops_the_box_alone(tmp_path):
    path = tails.nanodet(tmp_path / "n.onnx")
    rule = HEAD.recognise(tails.signature(path)).head
    outputs = tails.run(path, tails.images(SIZE, 1))
    (before,) = HEAD.decode(outputs, rule, SIZE, Thresholds(score=0.0))
    outputs["dis_pred_stride_8"][0, 3, 0] = np.nan
    (after,) = HEAD.decode(outputs, rule, SIZE, Thresholds(score=0.0))
    assert len(after.scores) == len(before.scores) - 1


def test_float16_outputs(tmp_path):
    path = tails.nanodet(tmp_path / "n.onnx")
    rule = HEAD.recognise(tails.signature(path)).head
    outputs = tails.run(path, tails.images(SIZE, 1))
    half = {name: array.astype(np.float16) for name, array in outputs.items()}
    (got,) = HEAD.decode(half, rule, SIZE, LOW)
    scores, logits = joined(half, rule, 0)
    plain = plain_decode(
        scores, logits, strides=(8, 16, 32), centre=0.5, size_hw=SIZE, threshold=0.9
    )
    tails.assert_close(got, plain)


def test_several_classes_per_cell(tmp_path):
    path = tails.nanodet(tmp_path / "n.onnx")
    rule = HEAD.recognise(tails.signature(path)).head
    outputs = tails.run(path, tails.images(SIZE, 1))
    (got,) = HEAD.decode(outputs, rule, SIZE, Thresholds(score=0.5, multi_label=True))
    scores, _ = joined(outputs, rule, 0)
    assert len(got.scores) == (scores > 0.5).sum()
    # Every class of a cell has the cell's box.
    (best,) = HEAD.decode(outputs, rule, SIZE, Thresholds(score=0.5))
    cells, classes = np.nonzero(scores > 0.5)
    np.testing.assert_array_equal(got.classes, classes)
    _, which = np.unique(cells, return_inverse=True)
    np.testing.assert_array_equal(got.boxes_xyxy, best.boxes_xyxy[which])


def test_wrong_contract_is_named(tmp_path):
    path = tails.nanodet_plus(tmp_path / "n.onnx")
    rule = HEAD.recognise(tails.signature(path)).head
    outputs = tails.run(path, tails.images(SIZE, 1))
    with pytest.raises(ContractError, match="reg_max"):
        HEAD.decode(outputs, dataclasses.replace(rule, num_classes=4), SIZE, LOW)
    with pytest.raises(ContractError, match="strides"):
        HEAD.decode(outputs, rule, (128, 128), LOW)


def test_recognises_what_to_feed(tmp_path):
    recognition = HEAD.recognise(tails.signature(tails.nanodet(tmp_path / "n.onnx")))
    assert recognition.input["color"] == "bgr"
    assert recognition.input["resize"] == "stretch"
    assert recognition.labels == ()
    assert recognition.detect == Thresholds(score=0.35, iou=0.6)


@pytest.mark.shared
@pytest.mark.parametrize("picture", ["people_group_1200x800.jpeg", "road_cars_progressive.jpg"])
def test_real_model(shared, picture):
    path = shared / "models" / "nanodet_m_320.onnx"
    size_hw = (320, 320)
    pixels = tails.real_input(shared, picture, size_hw)[..., ::-1]
    recognition = HEAD.recognise(tails.signature(path))
    assert recognition.labels[0] == "person"
    batch = tails.as_batch(pixels, recognition.input["mean"], recognition.input["std"])
    for threshold in (0.35, 0.01):
        _, _, (got,) = check(path, batch, size_hw, threshold)
    best = got.scores.argmax()
    assert got.scores[best] > 0.5
    assert recognition.labels[got.classes[best]] in ("person", "car")
