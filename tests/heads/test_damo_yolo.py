from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from heads import tails_b as tails
from saccade.errors import ContractError
from saccade.heads.damo_yolo import HEAD
from saccade.types import Thresholds

SIZE = (96, 128)
SOME = Thresholds(score=0.9)


def plain_decode(outputs, index, threshold):
    found = []
    for scores, box in zip(outputs["scores"][index], outputs["boxes"][index], strict=True):
        best = int(np.argmax(scores))
        if scores[best] > threshold:
            found.append((np.float64(box), best, float(scores[best])))
    return found


def rule_of(path):
    return HEAD.recognise(tails.signature(path)).head


@pytest.mark.parametrize("size_hw", [SIZE, (100, 68)])
def test_equals_the_plain_decode(tmp_path, size_hw):
    path = tails.damo_yolo(tmp_path / "d.onnx", size_hw)
    outputs = tails.run(path, tails.images(size_hw, 2))
    for index, got in enumerate(HEAD.decode(outputs, rule_of(path), size_hw, SOME)):
        tails.assert_close(got, plain_decode(outputs, index, 0.9))


def test_a_batch_equals_its_pictures(tmp_path):
    path = tails.damo_yolo(tmp_path / "d.onnx")
    outputs = tails.run(path, tails.images(SIZE, 3))
    batch = HEAD.decode(outputs, rule_of(path), SIZE, SOME)
    assert len(batch) == 3
    for index, candidates in enumerate(batch):
        (single,) = HEAD.decode(tails.one(outputs, index), rule_of(path), SIZE, SOME)
        tails.assert_same(candidates, single)


def test_nothing_above_the_threshold(tmp_path):
    path = tails.damo_yolo(tmp_path / "d.onnx")
    outputs = tails.run(path, tails.images(SIZE, 2))
    for candidates in HEAD.decode(outputs, rule_of(path), SIZE, Thresholds(score=1.0)):
        tails.assert_empty(candidates)


@pytest.mark.parametrize("output", ["scores", "boxes"])
def test_nan_never_passes(tmp_path, output):
    path = tails.damo_yolo(tmp_path / "d.onnx")
    outputs = tails.run(path, tails.images(SIZE, 1))
    outputs[output][:] = np.nan
    (got,) = HEAD.decode(outputs, rule_of(path), SIZE, Thresholds(score=0.0))
    tails.assert_empty(got)


def test_float16_outputs(tmp_path):
    path = tails.damo_yolo(tmp_path / "d.onnx")
    half = {n: a.astype(np.float16) for n, a in tails.run(path, tails.images(SIZE, 1)).items()}
    (got,) = HEAD.decode(half, rule_of(path), SIZE, SOME)
    tails.assert_close(got, plain_decode(half, 0, 0.9))


def test_four_classes_are_not_taken_for_boxes(tmp_path):
    path = tails.damo_yolo(tmp_path / "d.onnx", num_classes=4)
    signature = tails.signature(path)
    for outputs in (signature.outputs, signature.outputs[::-1]):
        recognition = HEAD.recognise(dataclasses.replace(signature, outputs=outputs))
        assert recognition.head.outputs == {"scores": "scores", "boxes": "boxes"}


def test_pictures_are_told_only_where_the_graph_shows_the_family(tmp_path):
    one = HEAD.recognise(tails.signature(tails.damo_yolo(tmp_path / "a.onnx", num_classes=80)))
    assert one.input["color"] == "rgb"
    assert one.labels[79] == "toothbrush"
    other = tails.damo_yolo(tmp_path / "b.onnx", extra_column=False)
    assert HEAD.recognise(tails.signature(other)).input is not None  # the matrix product shows it
    # As YOLO-NAS does it: no column too many, and the mean of the distances by a convolution.
    nas = tails.signature(tails.damo_yolo(tmp_path / "c.onnx", extra_column=False, integral="Mul"))
    recognition = HEAD.recognise(nas)
    assert recognition.input is None
    assert "YOLO-NAS" in " ".join(recognition.assumed)


def test_wrong_contract_is_named(tmp_path):
    path = tails.damo_yolo(tmp_path / "d.onnx")
    outputs = tails.run(path, tails.images(SIZE, 1))
    with pytest.raises(ContractError, match="num_classes"):
        HEAD.decode(outputs, dataclasses.replace(rule_of(path), num_classes=80), SIZE, SOME)
