"""YOLOv8 rows against a plain float64 decode."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from heads import tails
from saccade.errors import ContractError
from saccade.graph.reading import read_model
from saccade.graph.signature import signature_of
from saccade.heads.yolov8 import HEAD
from saccade.types import Thresholds

LOW = Thresholds(score=0.3)


def plain(rows_nc, num_classes, score, *, multi_label=False):
    picked = tails.plain_rows(
        rows_nc, num_classes, score, objectness=False, multi_label=multi_label
    )
    return [(tails.corners(*np.float64(rows_nc[i, :4])), j, s) for i, j, s in picked]


def test_recognises_its_own_and_no_other():
    tails.check_recognises(HEAD)


@pytest.mark.shared
@pytest.mark.slow
def test_recognises_among_real_models(shared):
    tails.check_recognises_shared(HEAD, shared)


@pytest.mark.parametrize("title", tails.ALL["yolov8"])
@pytest.mark.parametrize("multi_label", [False, True])
def test_decodes_like_a_plain_loop(title, multi_label):
    model = tails.ALL["yolov8"][title]
    rule = HEAD.recognise(tails.sign(model)).head
    outputs = tails.run(model, 3)
    thresholds = dataclasses.replace(LOW, multi_label=multi_label)
    tails.check_decoding(HEAD, rule, outputs, thresholds)
    rows = outputs["output0"] if title == "rows first" else outputs["output0"].transpose(0, 2, 1)
    found = HEAD.decode(outputs, rule, tails.SIZE_HW, thresholds)
    for one, picture in zip(found, rows, strict=True):
        expected = plain(picture, rule.num_classes, LOW.score, multi_label=multi_label)
        tails.check_equals_plain(one, expected)
        assert (one.frame, one.is_final, one.keypoints_xy) == ("input", False, None)


def test_both_axis_orders_give_the_same():
    results = []
    for title in ("named", "rows first"):
        model = tails.ALL["yolov8"][title]
        rule = HEAD.recognise(tails.sign(model)).head
        results.append(HEAD.decode(tails.run(model), rule, tails.SIZE_HW, LOW)[0])
    tails.check_same(*results)


def test_names_come_from_metadata():
    found = HEAD.recognise(tails.sign(tails.ALL["yolov8"]["named"]))
    assert found.labels == ("a", "b", "c", "d", "e")
    assert len(HEAD.recognise(tails.sign(tails.ALL["yolov8"]["coco"])).labels) == 80
    assert HEAD.recognise(tails.sign(tails.ALL["yolov8"]["plain"])).labels == ()


@pytest.mark.parametrize(
    "metadata",
    [
        {"task": "segment"},
        {"task": "pose"},
        {"task": "obb"},
        {"names": "{0: 'a'}"},  # the other four scores must be something else
    ],
)
def test_other_tasks_are_not_recognised(metadata):
    signature = tails.sign(tails.ALL["yolov8"]["plain"])
    assert HEAD.recognise(dataclasses.replace(signature, metadata=metadata)) is None


def test_what_cannot_be_told_is_not_recognised():
    plain_order = tails.sign(tails.yolov8())
    assert HEAD.recognise(dataclasses.replace(plain_order, size_hw=(64, 64))) is None
    assert HEAD.recognise(tails.sign(tails.yolov8(rows_first=True))) is None
    assert HEAD.recognise(tails.sign(tails.yolov8(52))) is None  # key points look like this
    turned = {**plain_order.tails, "output0": ("Concat", "Sigmoid", "Cos", "Conv")}
    assert HEAD.recognise(dataclasses.replace(plain_order, tails=turned)) is None


def test_a_wrong_number_of_classes_is_an_error():
    model = tails.ALL["yolov8"]["plain"]
    rule = dataclasses.replace(HEAD.recognise(tails.sign(model)).head, num_classes=4)
    with pytest.raises(ContractError, match="must have 8 values per box, the output has 9"):
        HEAD.decode(tails.run(model), rule, tails.SIZE_HW, LOW)


@pytest.mark.shared
@pytest.mark.slow
def test_real_model(shared):
    path = shared / "models" / "cells_640.onnx"
    outputs, size_hw = tails.run_shared(path, color="rgb", resize="center", std=255.0)
    rule = HEAD.recognise(signature_of(read_model(path))).head
    assert rule.num_classes == 3
    for score in (0.01, 0.001):
        found = HEAD.decode(outputs, rule, size_hw, Thresholds(score=score))[0]
        expected = plain(outputs["output0"][0].T, 3, score)
        assert len(expected) > 0
        tails.check_equals_plain(found, expected)
