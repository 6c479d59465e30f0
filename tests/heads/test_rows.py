"""The helpers that heads share."""

from __future__ import annotations

import numpy as np
import pytest

from saccade.errors import ContractError
from saccade.heads import _labels, _rows
from saccade.types import HeadRule, Thresholds

NAN = np.nan


@pytest.mark.parametrize("size_hw", [(64, 96), (416, 416), (50, 33), (1, 1)])
def test_grid_is_row_by_row(size_hw):
    points, strides = _rows.grid_centres(size_hw, (8, 16), 0.5)
    plain = [
        ((x + 0.5) * s, (y + 0.5) * s, s)
        for s in (8, 16)
        for y in range(int(np.ceil(size_hw[0] / s)))
        for x in range(int(np.ceil(size_hw[1] / s)))
    ]
    np.testing.assert_array_equal(np.column_stack([points, strides]), plain)
    assert points.dtype == strides.dtype == np.float32
    assert len(points) == _rows.num_cells(size_hw, (8, 16))
    with pytest.raises(ValueError):
        points[0] = 1


def plain_pick(scores, score, multi_label):
    found = []
    for i, row in enumerate(scores.astype(np.float64)):
        if np.isnan(row).any() or not len(row):
            continue
        chosen = range(len(row)) if multi_label else [int(row.argmax())]
        found += [(i, j, row[j]) for j in chosen if row[j] > np.float32(score)]
    return found


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("columns_first", [False, True])
@pytest.mark.parametrize("score", [-1.0, 0.0, 0.001, 0.5, 0.9, 1.0])
def test_pick_equals_a_plain_loop(rng, multi_label, dtype, columns_first, score):
    scores = rng.random((200, 7)) ** 3
    scores[rng.random(scores.shape) < 0.1] = 0
    scores[3, 2], scores[4, 0], scores[5] = NAN, -NAN, NAN
    scores[6, 1] = -0.0
    scores[10] = [-2, -0.5, -3, -2, -2, -2, -2]
    scores[7] = 0.9  # a tie: the first class
    scores[8] = np.nextafter(np.float32(0.5), np.float32(1))
    scores = scores.astype(dtype)
    scores[9, 3] = np.array([-np.float16(NAN)], dtype)[0]
    if columns_first:
        scores = np.ascontiguousarray(scores.T).T
    rows, classes, best = _rows.pick(scores, Thresholds(score=score, multi_label=multi_label))
    plain = plain_pick(scores, score, multi_label)
    assert list(zip(rows, classes, best, strict=True)) == plain
    assert (classes.dtype, best.dtype) == (np.int32, np.float32)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("multi_label", [False, True])
def test_pick_from_nothing(shape, dtype, multi_label):
    found = _rows.pick(np.zeros(shape, dtype), Thresholds(score=-1, multi_label=multi_label))
    assert [len(array) for array in found] == [0, 0, 0]


def test_pick_leaves_its_input_alone(rng):
    rows = rng.random((50, 8), np.float32)
    before = rows.copy()
    _rows.pick(rows[:, 5:], Thresholds(score=0.1))
    _rows.pick_with_objectness(rows, Thresholds(score=0.1))
    np.testing.assert_array_equal(rows, before)


def test_a_threshold_is_not_rounded_to_float16():
    half = np.array([[0.3]], np.float16)  # 0.300048828125
    assert len(_rows.pick(half, Thresholds(score=0.30002))[0]) == 1
    assert len(_rows.pick(half, Thresholds(score=0.30006))[0]) == 0


def test_boxes_that_are_not_finite_are_dropped():
    boxes = np.array([[0, 0, 1, 1], [0, 0, np.inf, 1], [NAN, 0, 1, 1], [1, 2, 3, 4]])
    found = _rows.candidates(boxes, np.arange(4), np.linspace(0.1, 0.4, 4))
    np.testing.assert_array_equal(found.boxes_xyxy, boxes[[0, 3]])
    assert found.classes.tolist() == [0, 3]
    assert found.classes.dtype == np.int32


def test_a_wrong_role_and_a_wrong_rank_say_what_to_do():
    outputs = {"a": np.zeros((1, 2))}
    with pytest.raises(ContractError, match=r"names 'b'; correct head\.outputs"):
        _rows.read(outputs, HeadRule("yolox", {"rows": "b"}, 1), "rows", 3)
    with pytest.raises(ContractError, match="must have 3 axes"):
        _rows.read(outputs, HeadRule("yolox", {"rows": "a"}, 1), "rows", 3)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("{0: 'a', 1: 'b'}", ("a", "b")),
        ("{1: 'b', 0: 'a'}", ("a", "b")),
        ("['a', 'b']", ("a", "b")),
        ("{1: 'a', 2: 'b'}", ()),
        ("{0: 'a', 2: 'b'}", ()),
        ("person", ()),
        ("__import__('os').getcwd()", ()),
        ("{", ()),
        ("(" * 1000, ()),
        ("7", ()),
        ("{'x': 1}", ()),
    ],
)
def test_names_in_metadata(text, names):
    assert _labels.ultralytics_names({"names": text}) == names


def test_coco_labels():
    assert len(set(_labels.COCO_80)) == 80
    assert (_labels.COCO_80[0], _labels.COCO_80[79]) == ("person", "toothbrush")
    assert len(set(_labels.COCO_91)) == 91
    assert (_labels.COCO_91[1], _labels.COCO_91[13]) == ("person", "stop sign")
    assert (_labels.COCO_91[18], _labels.COCO_91[90]) == ("dog", "toothbrush")
