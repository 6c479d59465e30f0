"""Final boxes in every layout against a plain reading."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from heads import tails
from saccade.errors import ContractError
from saccade.graph.reading import read_model
from saccade.graph.signature import signature_of
from saccade.heads.final import HEAD
from saccade.types import HeadRule, Thresholds

LOW = Thresholds(score=0.4)


def plain(outputs, rule, score):
    """Read slot by slot; one list of (box, class, score) per picture."""
    named = {role: np.float64(outputs[name]) for role, name in rule.outputs.items()}
    layout = rule.options["layout"]
    if layout == "num_dets":
        slots = [
            list(zip(boxes, classes, scores, strict=True))[: int(count)]
            for boxes, classes, scores, count in zip(
                named["boxes"],
                named["classes"],
                named["scores"],
                named["count"].ravel(),
                strict=True,
            )
        ]
    elif layout == "dets_labels":
        pairs = zip(named["dets"], named["labels"], strict=True)
        slots = [
            [(r[:4], c, r[4]) for r, c in zip(rows, labels, strict=True)] for rows, labels in pairs
        ]
    elif layout == "nms6":
        slots = [[(r[:4], r[5], r[4]) for r in rows] for rows in named["rows"]]
    else:
        num = 1 + int(named["rows"][:, 0].max())
        slots = [[(r[1:5], r[5], r[6]) for r in named["rows"] if r[0] == i] for i in range(num)]
    return [[s for s in picture if s[2] > score and s[1] >= 0] for picture in slots]


def test_recognises_its_own_and_no_other():
    tails.check_recognises(HEAD)


@pytest.mark.shared
@pytest.mark.slow
def test_recognises_among_real_models(shared):
    tails.check_recognises_shared(HEAD, shared)


@pytest.mark.parametrize("title", tails.ALL["final"])
def test_decodes_like_a_plain_reading(title):
    model = tails.ALL["final"][title]
    rule = HEAD.recognise(tails.sign(model)).head
    assert rule.options["layout"] == title.split(",")[0]
    outputs = tails.run(model, 3)
    if title != "nms7":
        tails.check_decoding(HEAD, rule, outputs, LOW)
    found = HEAD.decode(outputs, rule, tails.SIZE_HW, LOW)
    expected = plain(outputs, rule, LOW.score)
    assert len(found) == len(expected) == 3
    for one, rows in zip(found, expected, strict=True):
        tails.check_types(one)
        tails.check_equals_plain(one, rows)
        assert (one.frame, one.is_final) == ("input", True)


def test_mixed_rows_find_their_pictures():
    rows = np.array(
        [
            [2, 1, 2, 3, 4, 5, 0.9],
            [0, 5, 6, 7, 8, 1, 0.8],
            [2, 0, 0, 1, 1, 0, 0.1],
            [-1, 0, 0, 0, 0, 0, 0.9],
            [np.nan, 0, 0, 0, 0, 0, 0.9],
            [0, 0, 0, 0, 0, 1, np.nan],
            [0, 0, 0, 0, 0, np.nan, 0.9],
            [0, 0, 0, 0, 0, np.inf, 0.9],
        ],
        np.float32,
    )
    for dtype in (np.float32, np.float16):
        rule = HeadRule("final", {"rows": "o"}, 0, {"layout": "nms7"})
        found = HEAD.decode({"o": rows.astype(dtype)}, rule, (8, 8), LOW)
        assert [one.classes.tolist() for one in found] == [[1], [], [5]]
        fixed = dataclasses.replace(rule, options={"layout": "nms7", "batch": 5})
        found = HEAD.decode({"o": rows.astype(dtype)}, fixed, (8, 8), LOW)
        assert [one.classes.tolist() for one in found] == [[1], [], [5], [], []]
        np.testing.assert_array_equal(found[2].boxes_xyxy, [[1, 2, 3, 4]])


@pytest.mark.parametrize("options", [{"layout": "nms7"}, {"layout": "nms7", "batch": 1}])
def test_no_rows_at_all_are_one_empty_picture(options):
    rule = HeadRule("final", {"rows": "o"}, 0, options)
    (found,) = HEAD.decode({"o": np.zeros((0, 7), np.float32)}, rule, (8, 8), LOW)
    tails.check_types(found)
    assert len(found.scores) == 0


def test_unused_slots_are_left_out():
    outputs = {
        "n": np.array([[2], [0], [9]], np.int32),
        "b": np.ones((3, 4, 4), np.float32),
        "s": np.full((3, 4), 0.9, np.float32),
        "c": np.array([[1, -1, 3, 4], [1, 2, 3, 4], [1, 2, -1, 4]]),
    }
    roles = {"count": "n", "boxes": "b", "scores": "s", "classes": "c"}
    rule = HeadRule("final", roles, 0, {"layout": "num_dets"})
    found = HEAD.decode(outputs, rule, (8, 8), LOW)
    assert [one.classes.tolist() for one in found] == [[1], [], [1, 2, 4]]


def test_what_cannot_be_told_is_not_recognised():
    # TensorFlow's boxes are y first and in 0..1.
    names = ("num_detections", "detection_boxes", "detection_scores", "detection_classes")
    assert HEAD.recognise(tails.sign(tails.final("num_dets", names=names))) is None
    rtdetr = {"names": "{0: 'a', 1: 'b'}", "description": "Ultralytics RT-DETR-l model"}
    assert HEAD.recognise(tails.sign(tails.final("nms6", metadata=rtdetr))) is None
    segments = {**tails.NAMES, "task": "segment"}
    assert HEAD.recognise(tails.sign(tails.final("nms6", metadata=segments))) is None


def test_a_convention_is_given_only_where_there_is_one():
    given = {
        title: HEAD.recognise(tails.sign(model)).input is not None
        for title, model in tails.ALL["final"].items()
    }
    assert {title for title, known in given.items() if known} == {"nms6, named", "nms7"}
    named = HEAD.recognise(tails.sign(tails.ALL["final"]["nms6, named"]))
    assert named.labels == ("a", "b", "c", "d", "e")


def test_a_fixed_batch_is_remembered():
    signature = tails.sign(tails.ALL["final"]["nms7"])
    assert "batch" not in HEAD.recognise(signature).head.options
    fixed = dataclasses.replace(signature.inputs[0], shape=(1, 3, 64, 96))
    found = HEAD.recognise(dataclasses.replace(signature, inputs=(fixed,)))
    assert found.head.options["batch"] == 1


def test_wrong_rules_say_what_to_do():
    outputs = {"o": np.zeros((1, 4, 6), np.float32)}
    with pytest.raises(ContractError, match="must be one of num_dets, dets_labels, nms6, nms7"):
        HEAD.decode(outputs, HeadRule("final", {"rows": "o"}, 0), (8, 8), LOW)
    rule = HeadRule("final", {"boxes": "o"}, 0, {"layout": "nms6"})
    with pytest.raises(ContractError, match="needs an output for 'rows' among o"):
        HEAD.decode(outputs, rule, (8, 8), LOW)
    rule = HeadRule("final", {"dets": "o", "labels": "o"}, 0, {"layout": "dets_labels"})
    with pytest.raises(ContractError, match="must have 5 values per box"):
        HEAD.decode(outputs, rule, (8, 8), LOW)


@pytest.mark.shared
@pytest.mark.slow
def test_real_model(shared):
    path = shared / "models" / "fastestdet_352_nms.onnx"
    found = HEAD.recognise(signature_of(read_model(path)))
    assert found.head.options == {"layout": "num_dets"}
    assert found.input is None
    outputs, size_hw = tails.run_shared(path, color="bgr", resize="stretch", std=255.0)
    for score in (0.0, 0.4):
        (one,) = HEAD.decode(outputs, found.head, size_hw, Thresholds(score=score))
        (expected,) = plain(outputs, found.head, score)
        assert len(expected) > 0
        tails.check_equals_plain(one, expected)
    (one,) = HEAD.decode(outputs, found.head, size_hw, Thresholds(score=0.0))
    assert len(one.scores) == outputs["num_dets"].item()
