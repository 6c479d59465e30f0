"""YOLOX rows against a plain float64 decode, in the graph and outside."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from heads import tails
from saccade.errors import ContractError
from saccade.graph.reading import read_model
from saccade.graph.signature import signature_of
from saccade.heads.yolox import HEAD
from saccade.types import Thresholds

LOW = Thresholds(score=0.2)


def plain(rows, num_classes, score, size_hw, *, decoded):
    """Decode all rows one by one, then take those above the score."""
    rows = np.float64(rows)
    cells = [
        (x, y, s)
        for s in (8, 16, 32)
        for y in range(size_hw[0] // s)
        for x in range(size_hw[1] // s)
    ]
    found = []
    for i, j, score_ in tails.plain_rows(rows, num_classes, score, objectness=True):
        cx, cy, w, h = rows[i, :4]
        if not decoded:
            x, y, s = cells[i]
            cx, cy, w, h = (cx + x) * s, (cy + y) * s, np.exp(w) * s, np.exp(h) * s
        found.append((tails.corners(cx, cy, w, h), j, score_))
    return found


def test_recognises_its_own_and_no_other():
    tails.check_recognises(HEAD)


@pytest.mark.shared
@pytest.mark.slow
def test_recognises_among_real_models(shared):
    tails.check_recognises_shared(HEAD, shared)


@pytest.mark.parametrize("title", tails.ALL["yolox"])
def test_decodes_like_a_plain_loop(title):
    model = tails.ALL["yolox"][title]
    rule = HEAD.recognise(tails.sign(model)).head
    assert rule.options["decoded"] is title.startswith("decoded")
    outputs = tails.run(model, 3)
    tails.check_decoding(HEAD, rule, outputs, LOW)
    found = HEAD.decode(outputs, rule, tails.SIZE_HW, LOW)
    for one, rows in zip(found, outputs["output"], strict=True):
        expected = plain(
            rows, rule.num_classes, 0.2, tails.SIZE_HW, decoded=rule.options["decoded"]
        )
        tails.check_equals_plain(one, expected)
        assert (one.frame, one.is_final) == ("input", False)


def test_decoding_in_the_graph_and_outside_agree():
    results = []
    for title in ("plain", "decoded"):
        model = tails.ALL["yolox"][title]
        rule = HEAD.recognise(tails.sign(model)).head
        results.append(HEAD.decode(tails.run(model), rule, tails.SIZE_HW, LOW)[0])
    assert len(results[0].scores) > 5
    tails.check_same(*results, atol=1e-3)


def test_a_box_without_end_is_dropped():
    model = tails.ALL["yolox"]["plain"]
    rule = HEAD.recognise(tails.sign(model)).head
    outputs = tails.run(model)
    before = HEAD.decode(outputs, rule, tails.SIZE_HW, LOW)[0]
    best = int(outputs["output"][0, :, 4].argmax())
    outputs["output"][0, best, 2] = 1000.0
    after = HEAD.decode(outputs, rule, tails.SIZE_HW, LOW)[0]
    assert len(after.scores) == len(before.scores) - 1


def test_the_outputs_are_not_written_to():
    model = tails.ALL["yolox"]["plain"]
    rule = HEAD.recognise(tails.sign(model)).head
    outputs = tails.run(model)
    outputs["output"].setflags(write=False)
    HEAD.decode(outputs, rule, tails.SIZE_HW, Thresholds(score=-1.0))


def test_a_wrong_size_is_an_error():
    model = tails.ALL["yolox"]["plain"]
    rule = HEAD.recognise(tails.sign(model)).head
    with pytest.raises(ContractError, match="must have 84 rows of 10 values at 64x64"):
        HEAD.decode(tails.run(model), rule, (64, 64), LOW)


def test_unknown_arithmetic_is_not_recognised():
    signature = tails.sign(tails.ALL["yolox"]["plain"])
    for kind in ("Sub", "Add", "Pow", "Softmax", "TopK"):
        changed = {"output": ("Concat", kind, *signature.tails["output"])}
        assert HEAD.recognise(dataclasses.replace(signature, tails=changed)) is None


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize(("name", "num_classes"), [("yolox_nano_416", 80), ("light_person_192", 1)])
def test_real_models(shared, name, num_classes):
    path = shared / "models" / f"{name}.onnx"
    outputs, size_hw = tails.run_shared(path, color="bgr", resize="top_left")
    found = HEAD.recognise(signature_of(read_model(path)))
    assert found.head.num_classes == num_classes
    assert found.head.options == {"decoded": False}
    for score in (0.3, 0.001):
        one = HEAD.decode(outputs, found.head, size_hw, Thresholds(score=score))[0]
        expected = plain(outputs["output"][0], num_classes, score, size_hw, decoded=False)
        tails.check_equals_plain(one, expected)
    people = HEAD.decode(outputs, found.head, size_hw, Thresholds(score=0.3))[0]
    assert len(people.scores) > 0
    assert (people.classes == 0).mean() > 0.5
