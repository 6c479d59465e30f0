from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.errors import InputError
from saccade.types import Candidates, Placement, Thresholds
from saccade.vision import suppress as module
from saccade.vision.suppress import finish, suppress, suppress_reference

PLAIN = Placement(source_wh=(640, 480), scale_xy=(1.0, 1.0), offset_xy=(0.0, 0.0))


def random_boxes(rng, num, num_classes, grid=None):
    xy = rng.uniform(0, 300, (num, 2))
    boxes = np.concatenate([xy, xy + rng.uniform(5, 150, (num, 2))], axis=1)
    scores = rng.random(num)
    if grid:
        boxes, scores = np.round(boxes / grid) * grid, np.round(scores, 1)
    return (
        boxes.astype(np.float32),
        scores.astype(np.float32),
        rng.integers(0, num_classes, num).astype(np.int32),
    )


def check_same(boxes, scores, classes, iou, class_agnostic=False):
    want = suppress_reference(boxes, scores, classes, iou, class_agnostic)
    got = suppress(boxes, scores, classes, iou, class_agnostic=class_agnostic)
    assert got.dtype == want.dtype == np.int64
    assert np.array_equal(got, want)
    for limit in (0, 1, 7):
        few = suppress(
            boxes, scores, classes, iou, class_agnostic=class_agnostic, max_detections=limit
        )
        assert np.array_equal(few, want[:limit])
    return want


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("grid", [None, 40])
@pytest.mark.parametrize("num", [0, 1, 2, 63, 64, 65, 200])
def test_suppress_equals_reference_on_random_boxes(rng, num, grid, class_agnostic):
    for iou in (0.0, 0.25, 1 / 3, 0.5, 0.65, 1.0):
        check_same(*random_boxes(rng, num, 3, grid), iou, class_agnostic)


def test_suppress_equals_reference_where_most_candidates_fall(rng):
    num = 1200
    center = rng.integers(0, 6, num)
    xy = center[:, None] * 90.0 + rng.normal(0, 4, (num, 2))
    boxes = np.concatenate([xy, xy + 80], axis=1).astype(np.float32)
    scores = rng.random(num).astype(np.float32)
    kept = check_same(boxes, scores, (center % 2).astype(np.int32), 0.45)
    assert 6 <= len(kept) < 60


NASTY = st.sampled_from(
    [0.0, -0.0, 1.0, 2.0, 3.0, 10.0, -5.0, 1e30, -1e30, 3e38, 1e-30, np.nan, np.inf, -np.inf]
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(NASTY, NASTY, NASTY, NASTY, NASTY, st.integers(0, 1)), min_size=0, max_size=12
    ),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.booleans(),
)
def test_suppress_equals_reference_on_nasty_boxes(rows, iou, class_agnostic):
    boxes = np.array([row[:4] for row in rows], np.float32).reshape(-1, 4)
    scores = np.array([row[4] for row in rows], np.float32)
    classes = np.array([row[5] for row in rows], np.int32)
    kept = check_same(boxes, scores, classes, iou, class_agnostic)
    assert np.isfinite(boxes[kept]).all()


def test_equal_scores_are_kept_lower_index_first():
    boxes = np.tile(np.float32([[10, 10, 20, 20]]), (130, 1))
    ones, zeros = np.ones(130, np.float32), np.zeros(130, np.int32)
    assert suppress(boxes, ones, zeros, 0.5).tolist() == [0]
    assert suppress(boxes, ones, zeros, 1.0).tolist() == list(range(130))
    assert suppress(boxes, ones, np.arange(130), 0.5).tolist() == list(range(130))
    assert suppress(boxes, ones, np.arange(130), 0.5, class_agnostic=True).tolist() == [0]


def test_overlap_equal_to_the_threshold_is_kept():
    # 2 of 4 columns are shared: an overlap of exactly one half.
    boxes = np.float32([[0, 0, 4, 3], [0, 0, 2, 3]])
    scores, classes = np.float32([0.9, 0.8]), np.zeros(2, np.int32)
    assert suppress(boxes, scores, classes, 0.5).tolist() == [0, 1]
    assert suppress(boxes, scores, classes, np.nextafter(0.5, 0)).tolist() == [0]


def candidates(boxes, scores, classes=None, **others):
    boxes = np.float32(boxes).reshape(-1, 4)
    classes = np.zeros(len(boxes), np.int32) if classes is None else np.int32(classes)
    return Candidates(boxes, np.float32(scores), classes, **others)


def test_finish_maps_clips_and_drops_what_is_outside():
    placement = Placement(source_wh=(100, 50), scale_xy=(2.0, 2.0), offset_xy=(10.0, 20.0))
    found = finish(
        candidates(
            [[30, 40, 50, 60], [0, 0, 30, 40], [0, 0, 10, 10], [150, 100, 400, 400]],
            [0.5, 0.9, 0.8, 0.7],
            keypoints_xy=np.tile(np.float32([[[12, 24], [0, 0]]]), (4, 1, 1)),
        ),
        placement,
        Thresholds(),
    )
    assert found.boxes_xyxy.tolist() == [[0, 0, 10, 10], [70, 40, 100, 50], [10, 10, 20, 20]]
    assert found.scores.tolist() == pytest.approx([0.9, 0.7, 0.5])
    assert found.keypoints_xy[0].tolist() == [[1, 2], [-5, -10]]


def test_finish_leaves_final_candidates_and_source_frames_alone():
    boxes = [[1, 1, 9, 9], [1, 1, 9, 9], [2, 2, 1, 9], [0, 0, np.inf, 5]]
    found = finish(
        candidates(boxes, [0.3, 0.4, 0.9, 0.8], frame="source", is_final=True),
        Placement(source_wh=(8, 20), scale_xy=(3.0, 3.0), offset_xy=(5.0, 5.0)),
        Thresholds(),
    )
    assert found.boxes_xyxy.tolist() == [[1, 1, 8, 9], [1, 1, 8, 9]]
    assert found.scores.tolist() == pytest.approx([0.4, 0.3])


def test_finish_keeps_the_best_in_stable_order(rng):
    boxes = np.stack([np.arange(50) * 10, np.zeros(50), np.arange(50) * 10 + 5, np.full(50, 5)], 1)
    scores = np.round(rng.random(50), 1)
    found = finish(
        candidates(boxes, scores, classes=np.arange(50)), PLAIN, Thresholds(max_detections=20)
    )
    assert found.classes.tolist() == np.argsort(-np.float32(scores), kind="stable")[:20].tolist()


def test_finish_of_nothing_and_of_a_negative_limit():
    assert len(finish(candidates([], []), PLAIN, Thresholds())) == 0
    assert len(finish(candidates([[1, 1, 2, 2]], [1]), PLAIN, Thresholds(max_detections=0))) == 0
    with pytest.raises(InputError, match="max_detections"):
        finish(candidates([], []), PLAIN, Thresholds(max_detections=-1))


def test_finish_looks_at_the_best_candidates_only(rng):
    num = module.MAX_CANDIDATES + 500
    boxes, scores, classes = random_boxes(rng, num, 80)
    scores[-1] = 2.0
    found = finish(Candidates(boxes, scores, classes), PLAIN, Thresholds(max_detections=100))
    best = suppress(boxes, scores, classes, 0.45, max_detections=100)
    assert found.scores.tolist() == scores[best].tolist()
