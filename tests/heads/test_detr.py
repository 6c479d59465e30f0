"""Set prediction, selected in the graph and outside, against a plain float64 decode."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from heads import tails
from saccade.errors import ContractError
from saccade.graph.reading import read_model
from saccade.graph.signature import signature_of
from saccade.heads.detr import HEAD
from saccade.types import HeadRule, Thresholds

LOW = Thresholds(score=0.2)
ALL_OF_THEM = Thresholds(score=0.0)
SIZES = {"orig_target_sizes": np.array([[640, 480], [31, 17], [100, 100]])}
RAW = [title for title in tails.ALL["detr"] if title != "post"]


def plain_raw(logits, boxes, options, num_classes, score):
    """The public post-processing of one picture, pair by pair in float64."""
    logits, boxes = np.float64(logits), np.float64(boxes)
    h, w = tails.SIZE_HW
    if options["activation"] == "softmax":
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores = (powers / powers.sum(axis=1, keepdims=True))[:, :num_classes]
        pairs = [(q, int(scores[q].argmax())) for q in range(len(scores))]
    else:
        scores = 1 / (1 + np.exp(-logits[:, :num_classes]))
        pairs = [(q, c) for q in range(len(scores)) for c in range(num_classes)]
        pairs = sorted(pairs, key=lambda pair: -scores[pair])[: len(scores)]
    return [
        (np.array(tails.corners(*boxes[q])) * [w, h, w, h], c, scores[q, c])
        for q, c in pairs
        if scores[q, c] > score
    ]


def test_recognises_its_own_and_no_other():
    tails.check_recognises(HEAD)


@pytest.mark.shared
@pytest.mark.slow
def test_recognises_among_real_models(shared):
    tails.check_recognises_shared(HEAD, shared)


@pytest.mark.parametrize("title", RAW)
@pytest.mark.parametrize("thresholds", [LOW, ALL_OF_THEM], ids=["low", "all"])
def test_decodes_raw_outputs_like_a_plain_loop(title, thresholds):
    model = tails.ALL["detr"][title]
    rule = HEAD.recognise(tails.sign(model)).head
    outputs = tails.run(model, 3)
    tails.check_decoding(HEAD, rule, outputs, thresholds)
    found = HEAD.decode(outputs, rule, tails.SIZE_HW, thresholds)
    raw = zip(outputs[rule.outputs["logits"]], outputs[rule.outputs["boxes"]], strict=True)
    for one, (logits, boxes) in zip(found, raw, strict=True):
        expected = plain_raw(logits, boxes, rule.options, rule.num_classes, thresholds.score)
        tails.check_equals_plain(one, expected)
        assert (one.frame, one.is_final) == ("input", True)
        if thresholds is ALL_OF_THEM:
            assert len(one.scores) == logits.shape[0]


def test_decodes_selected_outputs():
    model = tails.ALL["detr"]["post"]
    rule = HEAD.recognise(tails.sign(model)).head
    outputs = tails.run(model, 3, **SIZES)
    tails.check_decoding(HEAD, rule, outputs, LOW)
    found = HEAD.decode(outputs, rule, tails.SIZE_HW, LOW)
    for i, one in enumerate(found):
        slots = zip(outputs["boxes"][i], outputs["labels"][i], outputs["scores"][i], strict=True)
        tails.check_equals_plain(one, [slot for slot in slots if slot[2] > 0.2])
        assert (one.frame, one.is_final) == ("source", True)


def test_selection_in_the_graph_and_outside_agree():
    post, raw = tails.ALL["detr"]["post"], tails.ALL["detr"]["sigmoid"]
    size = np.array([tails.SIZE_HW[::-1]])
    inside = HEAD.decode(
        tails.run(post, orig_target_sizes=size),
        HEAD.recognise(tails.sign(post)).head,
        tails.SIZE_HW,
        LOW,
    )[0]
    outside = HEAD.decode(tails.run(raw), HEAD.recognise(tails.sign(raw)).head, tails.SIZE_HW, LOW)[
        0
    ]
    assert len(inside.scores) > 5
    tails.check_same(dataclasses.replace(inside, frame="input"), outside, atol=1e-4)


def test_ties_are_cut_in_order():
    logits = np.zeros((1, 4, 3), np.float32)
    logits[0, 3, 2] = 1
    outputs = {"l": logits, "b": np.full((1, 4, 4), 0.5, np.float32)}
    rule = HeadRule(
        "detr",
        {"logits": "l", "boxes": "b"},
        3,
        {"layout": "raw", "activation": "sigmoid", "no_object": False},
    )
    (found,) = HEAD.decode(outputs, rule, (8, 8), LOW)
    assert found.classes.tolist() == [2, 0, 1, 2]


@pytest.mark.parametrize("score", [1e-6, 0.001, 0.3, 0.5, 0.999])
def test_a_threshold_is_exact(score):
    logits = np.linspace(-0.05, 0.05, 1001)[:, None] + np.log(score / (1 - score))
    logits = logits[None].astype(np.float32)
    outputs = {"l": logits, "b": np.full((1, 1001, 4), 0.5, np.float32)}
    options = {"layout": "raw", "activation": "sigmoid", "no_object": False}
    rule = HeadRule("detr", {"logits": "l", "boxes": "b"}, 1, options)
    (found,) = HEAD.decode(outputs, rule, (8, 8), Thresholds(score=score))
    scores = 1 / (1 + np.exp(-logits[0, :, 0]))
    assert len(found.scores) == (scores > score).sum()
    assert 495 < len(found.scores) < 506


def test_extreme_logits_and_broken_queries():
    logits = np.array([[[-1e30, 1e30], [np.nan, 5], [-np.inf, np.inf], [0, 1]]], np.float32)
    outputs = {"l": logits, "b": np.full((1, 4, 4), 0.5, np.float32)}
    for activation, classes in (("sigmoid", [1, 1, 1, 0]), ("softmax", [1, 1])):
        rule = HeadRule(
            "detr",
            {"logits": "l", "boxes": "b"},
            2,
            {"layout": "raw", "activation": activation, "no_object": False},
        )
        (found,) = HEAD.decode(outputs, rule, (8, 8), ALL_OF_THEM)
        tails.check_types(found)
        assert found.classes.tolist() == classes
        assert np.isfinite(found.scores).all()


@pytest.mark.parametrize(
    ("title", "num_classes", "activation", "no_object", "has_input"),
    [
        ("sigmoid", 7, "sigmoid", False, False),
        ("softmax", 91, "softmax", True, True),
        ("rf", 91, "sigmoid", False, True),
        ("rf, three classes", 3, "sigmoid", True, True),
    ],
)
def test_what_is_taken_for_what(title, num_classes, activation, no_object, has_input):
    found = HEAD.recognise(tails.sign(tails.ALL["detr"][title]))
    assert found.head.num_classes == num_classes
    assert found.head.options == {
        "layout": "raw",
        "activation": activation,
        "no_object": no_object,
    }
    assert (found.input is not None) == has_input
    assert len(found.labels) == (91 if num_classes == 91 else 0)


def test_activated_scores_and_convolutions_are_not_raw():
    signature = tails.sign(tails.ALL["detr"]["sigmoid"])
    for ops in (("Sigmoid", "Add", "MatMul"), ("Softmax", "MatMul"), ("Reshape", "Conv")):
        changed = {**signature.tails, "pred_logits": ops}
        assert HEAD.recognise(dataclasses.replace(signature, tails=changed)) is None


def test_wrong_rules_say_what_to_do():
    outputs = {"l": np.zeros((1, 4, 3), np.float32), "b": np.zeros((1, 4, 4), np.float32)}
    roles = {"logits": "l", "boxes": "b"}
    for options, message in (
        ({}, "must be 'post' or 'raw'"),
        ({"layout": "raw", "activation": "relu"}, "must be 'sigmoid' or 'softmax'"),
        ({"layout": "raw", "activation": "softmax"}, "must have 4 logits per query"),
    ):
        with pytest.raises(ContractError, match=message):
            HEAD.decode(outputs, HeadRule("detr", roles, 3, options), (8, 8), LOW)


@pytest.mark.shared
@pytest.mark.slow
def test_real_model(shared):
    path = shared / "models" / "deimv2_atto_320.onnx"
    found = HEAD.recognise(signature_of(read_model(path)))
    assert found.head.options == {"layout": "post"}
    assert found.input["size_input"] == "orig_target_sizes"
    sizes = np.array([[1200, 800]])
    outputs, size_hw = tails.run_shared(
        path, color="rgb", resize="stretch", std=255.0, orig_target_sizes=sizes
    )
    (one,) = HEAD.decode(outputs, found.head, size_hw, ALL_OF_THEM)
    assert len(one.scores) == 300
    (one,) = HEAD.decode(outputs, found.head, size_hw, found.detect)
    slots = zip(outputs["boxes"][0], outputs["labels"][0], outputs["scores"][0], strict=True)
    tails.check_equals_plain(one, [slot for slot in slots if slot[2] > found.detect.score])
    assert len(one.scores) > 0
    assert one.boxes_xyxy[:, 2].max() > 320  # pixels of the picture, not of the input
    assert one.frame == "source"
