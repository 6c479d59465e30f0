from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from heads import tails_b as tails
from saccade.errors import ContractError
from saccade.heads.fastestdet import HEAD
from saccade.types import Thresholds

SIZE = (96, 128)


def plain_decode(values, size_hw, threshold):
    """Cell by cell in float64, straight from the definition; values (5 + c, rows, cols)."""
    values = np.float64(values)
    _, rows, cols = values.shape
    found = []
    for row in range(rows):
        for col in range(cols):
            obj, t0, t1, t2, t3 = values[:5, row, col]
            best = int(np.argmax(values[5:, row, col]))
            score = max(obj, 0) ** 0.6 * max(values[5 + best, row, col], 0) ** 0.4
            if score > threshold:
                cx, cy = (np.tanh(t0) + col) / cols, (np.tanh(t1) + row) / rows
                bw, bh = 1 / (1 + np.exp(-t2)), 1 / (1 + np.exp(-t3))
                box = np.array([cx - bw / 2, cy - bh / 2, cx + bw / 2, cy + bh / 2])
                found.append((box * np.tile([size_hw[1], size_hw[0]], 2), best, score))
    return found


def rule_of(path):
    return HEAD.recognise(tails.signature(path)).head


@pytest.mark.parametrize("threshold", [0.3, 0.01])
@pytest.mark.parametrize("size_hw", [SIZE, (64, 352)])
def test_equals_the_plain_decode(tmp_path, size_hw, threshold):
    path = tails.fastestdet(tmp_path / "f.onnx", size_hw)
    outputs = tails.run(path, tails.images(size_hw, 2))
    got = HEAD.decode(outputs, rule_of(path), size_hw, Thresholds(score=threshold))
    for values, candidates in zip(outputs["758"], got, strict=True):
        tails.assert_close(candidates, plain_decode(values, size_hw, threshold))


def test_a_batch_equals_its_pictures(tmp_path):
    path = tails.fastestdet(tmp_path / "f.onnx")
    outputs = tails.run(path, tails.images(SIZE, 3))
    batch = HEAD.decode(outputs, rule_of(path), SIZE, Thresholds(score=0.3))
    assert len(batch) == 3
    for index, candidates in enumerate(batch):
        one = tails.one(outputs, index)
        (single,) = HEAD.decode(one, rule_of(path), SIZE, Thresholds(score=0.3))
        tails.assert_same(candidates, single)


@pytest.mark.parametrize("multi_label", [False, True])
def test_nothing_above_the_threshold(tmp_path, multi_label):
    path = tails.fastestdet(tmp_path / "f.onnx")
    outputs = tails.run(path, tails.images(SIZE, 2))
    thresholds = Thresholds(score=1.0, multi_label=multi_label)
    for candidates in HEAD.decode(outputs, rule_of(path), SIZE, thresholds):
        tails.assert_empty(candidates)


@pytest.mark.parametrize("channel", [0, 5])
def test_nan_never_passes(tmp_path, channel):
    path = tails.fastestdet(tmp_path / "f.onnx")
    outputs = tails.run(path, tails.images(SIZE, 1))
    outputs["758"][:, channel] = np.nan
    for multi_label in (False, True):
        thresholds = Thresholds(score=0.0, multi_label=multi_label)
        (got,) = HEAD.decode(outputs, rule_of(path), SIZE, thresholds)
        if channel == 0 or not multi_label:
            tails.assert_empty(got)
        assert not np.isnan(got.scores).any()


def test_rounding_of_eight_bits_stays_within_limits(tmp_path):
    path = tails.fastestdet(tmp_path / "f.onnx")
    outputs = tails.run(path, tails.images(SIZE, 1))
    outputs["758"][:, 0] = 1.004
    outputs["758"][:, 5] = 1.004
    outputs["758"][:, 6] = -0.004
    for multi_label in (False, True):
        thresholds = Thresholds(score=0.5, multi_label=multi_label)
        (got,) = HEAD.decode(outputs, rule_of(path), SIZE, thresholds)
        assert got.scores.max() == 1.0


def test_one_class_or_several_give_the_same_best(tmp_path):
    path = tails.fastestdet(tmp_path / "f.onnx")
    outputs = tails.run(path, tails.images(SIZE, 1))
    (single,) = HEAD.decode(outputs, rule_of(path), SIZE, Thresholds(score=0.2))
    (several,) = HEAD.decode(outputs, rule_of(path), SIZE, Thresholds(score=0.2, multi_label=True))
    assert len(several.scores) > len(single.scores)
    assert np.isin(single.scores, several.scores).all()


def test_float16_outputs(tmp_path):
    path = tails.fastestdet(tmp_path / "f.onnx")
    half = {n: a.astype(np.float16) for n, a in tails.run(path, tails.images(SIZE, 1)).items()}
    (got,) = HEAD.decode(half, rule_of(path), SIZE, Thresholds(score=0.3))
    tails.assert_close(got, plain_decode(half["758"][0], SIZE, 0.3))


def test_wrong_contract_is_named(tmp_path):
    path = tails.fastestdet(tmp_path / "f.onnx")
    outputs = tails.run(path, tails.images(SIZE, 1))
    with pytest.raises(ContractError, match="num_classes"):
        HEAD.decode(outputs, dataclasses.replace(rule_of(path), num_classes=80), SIZE, Thresholds())
    with pytest.raises(ContractError, match="input size"):
        HEAD.decode(outputs, rule_of(path), (352, 352), Thresholds())


@pytest.mark.shared
@pytest.mark.parametrize("model", ["fastestdet_352", "fastestdet_352_qdq_int8"])
def test_real_model(shared, model):
    path, size_hw = shared / "models" / f"{model}.onnx", (352, 352)
    recognition = HEAD.recognise(tails.signature(path))
    assert recognition.head.num_classes == len(recognition.labels) == 80
    assert recognition.head.outputs == {"map": "758"}
    pixels = tails.real_input(shared, "people_group_1200x800.jpeg", size_hw)[..., ::-1]
    batch = tails.as_batch(pixels, recognition.input["mean"], recognition.input["std"])
    outputs = tails.run(path, batch)
    for threshold in (0.4, 0.01):
        (got,) = HEAD.decode(outputs, recognition.head, size_hw, Thresholds(score=threshold))
        tails.assert_close(got, plain_decode(outputs["758"][0], size_hw, threshold))
    assert recognition.labels[got.classes[got.scores.argmax()]] == "person"
