"""YOLOv5, v6 and v7 rows against a plain float64 decode."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from heads import tails
from saccade.errors import ContractError
from saccade.heads.yolov5 import HEAD
from saccade.types import Thresholds

LOW = Thresholds(score=0.3)


def test_recognises_its_own_and_no_other():
    tails.check_recognises(HEAD)


@pytest.mark.shared
@pytest.mark.slow
def test_recognises_none_of_the_real_models(shared):
    tails.check_recognises_shared(HEAD, shared)


@pytest.mark.parametrize("title", tails.ALL["yolov5"])
@pytest.mark.parametrize("multi_label", [False, True])
def test_decodes_like_a_plain_loop(title, multi_label):
    model = tails.ALL["yolov5"][title]
    rule = HEAD.recognise(tails.sign(model)).head
    outputs = tails.run(model, 3)
    thresholds = dataclasses.replace(LOW, multi_label=multi_label)
    tails.check_decoding(HEAD, rule, outputs, thresholds)
    found = HEAD.decode(outputs, rule, tails.SIZE_HW, thresholds)
    for one, rows in zip(found, outputs[rule.outputs["rows"]], strict=True):
        picked = tails.plain_rows(
            rows, rule.num_classes, 0.3, objectness=True, multi_label=multi_label
        )
        expected = [(tails.corners(*np.float64(rows[i, :4])), j, s) for i, j, s in picked]
        tails.check_equals_plain(one, expected)
        assert (one.frame, one.is_final) == ("input", False)


def test_yolov6_skips_its_objectness_of_ones():
    rule = HEAD.recognise(tails.sign(tails.ALL["yolov5"]["v6"])).head
    assert rule.options["objectness"] is False
    outputs = tails.run(tails.ALL["yolov5"]["v6"])
    assert (outputs["outputs"][..., 4] == 1).all()


def test_yolov6_is_told_from_yolox_by_its_arithmetic():
    signature = tails.sign(tails.ALL["yolov5"]["v6"])
    assert any("YOLOX would have an Exp" in why for why in HEAD.recognise(signature).seen)
    with_exp = {"outputs": ("Exp", *signature.tails["outputs"])}
    assert HEAD.recognise(dataclasses.replace(signature, tails=with_exp)) is None


def test_raw_maps_must_match():
    signature = tails.sign(tails.ALL["yolov5"]["with maps"])
    rows, *maps = signature.outputs
    other = dataclasses.replace(maps[0], shape=("b", 3, 8, 12, 11))
    changed = dataclasses.replace(signature, outputs=(rows, other))
    assert HEAD.recognise(changed) is None


def test_names_must_match_the_width():
    signature = tails.sign(tails.ALL["yolov5"]["named"])
    assert HEAD.recognise(signature).labels == ("a", "b", "c", "d", "e")
    six = {"names": "['a', 'b', 'c', 'd', 'e', 'f']"}
    assert HEAD.recognise(dataclasses.replace(signature, metadata=six)) is None


def test_a_wrong_number_of_classes_is_an_error():
    model = tails.ALL["yolov5"]["v5"]
    rule = dataclasses.replace(HEAD.recognise(tails.sign(model)).head, num_classes=80)
    with pytest.raises(ContractError, match="must have 85 values per row, the output has 10"):
        HEAD.decode(tails.run(model), rule, tails.SIZE_HW, LOW)
