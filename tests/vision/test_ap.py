"""The NumPy AP on cases that can be worked out by hand. Equality with pycocotools on random cases
is tested with the metrics."""

from __future__ import annotations

import numpy as np
import pytest

from saccade.vision.ap import (
    Found,
    Truth,
    accumulate,
    average_precision_reference,
    match_image,
    pool,
    precision_table,
)

BOX = [10.0, 10, 20, 20]
FAR = [500.0, 10, 20, 20]


def truth(*boxes, classes=None, crowd=()):
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    is_crowd = np.isin(np.arange(len(boxes)), crowd)
    numbers = np.zeros(len(boxes), int) if classes is None else np.array(classes)
    return Truth(boxes, numbers, boxes[:, 2] * boxes[:, 3], is_crowd)


def found(*boxes, scores=None, classes=None):
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    k = len(boxes)
    return Found(
        boxes,
        np.linspace(1, 0.1, k) if scores is None else np.array(scores),
        np.zeros(k, int) if classes is None else np.array(classes),
    )


@pytest.mark.parametrize(
    ("what_is", "what_was_said", "expected"),
    [
        (truth(BOX), found(BOX), 1.0),
        (truth(BOX), found(), 0.0),
        (truth(), found(BOX), None),
        (truth(), found(), None),
        (truth(BOX), found(FAR, BOX), 0.5),  # one wrong before the right one
        (truth(BOX), found(BOX, FAR), 1.0),  # one wrong after it
        (truth(BOX), found(BOX, BOX), 1.0),  # a double comes too late to hurt
        (truth(BOX, FAR), found(BOX), 51 / 101),  # recall points 0, .01, ..., .50
        (truth(BOX), found(BOX, classes=[1]), 0.0),
        (truth(BOX, FAR, crowd=[1]), found(FAR, FAR, BOX), 1.0),  # a crowd hides any number
        (truth(BOX, crowd=[0]), found(BOX), None),
        # 20 x 20 against 20 x 15 is an IoU of .75: right at .50, .55, .60, .65, .70 and .75.
        (truth(BOX), found([10, 10, 20, 15]), 0.6),
    ],
)
def test_by_hand(what_is, what_was_said, expected):
    result = average_precision_reference([what_is], [what_was_said])
    assert result == (None if expected is None else pytest.approx(expected, abs=1e-12))


def test_a_class_without_boxes_does_not_count():
    matches = match_image(truth(BOX, classes=[4]), found(BOX, FAR, classes=[4, 7]))
    assert set(matches) == {4, 7}
    assert list(precision_table(pool([matches]))) == [4]
    assert accumulate([matches]) == pytest.approx(1.0)


def test_only_the_best_are_looked_at():
    matches = match_image(truth(BOX), found(BOX, FAR, scores=[0.1, 0.9]), max_detections=1)
    assert accumulate([matches]) == 0.0


def test_sizes_out_of_range_are_ignored():
    pair = truth(BOX, [0, 0, 200, 200]), found(FAR, [0, 0, 200, 200])
    assert accumulate([match_image(*pair, area_range=(96**2, 1e10))]) == pytest.approx(1.0)
    assert accumulate([match_image(*pair, area_range=(0, 32**2))]) == 0.0
    assert accumulate([match_image(*pair, area_range=(32**2, 96**2))]) is None


def test_weights_count_pictures():
    good, bad = match_image(truth(BOX), found(BOX)), match_image(truth(BOX), found())
    assert accumulate([good, bad], np.array([1, 0])) == pytest.approx(1.0)
    assert accumulate([good, bad], np.array([0, 3])) == 0.0
    # Two of three boxes are found: recall points 0, .01, ..., .66.
    assert accumulate([good, bad], np.array([2, 1])) == pytest.approx(67 / 101)
    assert accumulate([good, bad], np.array([0, 0])) is None
