"""Drawn blood smears: deterministic, truthful, and real enough for the detector of real ones."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from saccade.demo.render import NAMES, render
from saccade.errors import InputError

MODEL = Path(__file__).resolve().parents[2] / "models" / "cells_640.onnx"


def test_the_same_seed_gives_the_same_picture():
    one, two = render(np.random.default_rng(7)), render(np.random.default_rng(7))
    np.testing.assert_array_equal(one.picture_rgb, two.picture_rgb)
    np.testing.assert_array_equal(one.boxes_xyxy, two.boxes_xyxy)
    np.testing.assert_array_equal(one.classes, two.classes)
    other = render(np.random.default_rng(8))
    assert (one.picture_rgb != other.picture_rgb).any()


@pytest.mark.parametrize("size_wh", [(640, 480), (641, 479), (64, 64), (70, 300), (1280, 960)])
def test_truth_lies_in_the_picture(size_wh):
    width, height = size_wh
    for seed in range(3):
        picture_rgb, boxes, classes, names = render(np.random.default_rng(seed), size_wh)
        assert picture_rgb.shape == (height, width, 3)
        assert picture_rgb.dtype == np.uint8
        assert picture_rgb.flags.c_contiguous
        assert boxes.shape == (len(classes), 4)
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= [width, height]).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert names == NAMES
        assert set(classes.tolist()) <= {0, 1, 2}


def test_cells_are_where_the_boxes_say():
    picture_rgb, boxes, classes, _ = render(np.random.default_rng(3))
    green = picture_rgb[..., 1].astype(np.float32)
    is_ground = np.ones(green.shape, bool)
    for x1, y1, x2, y2 in boxes.astype(int):
        is_ground[y1:y2, x1:x2] = False
    ground = np.median(green[is_ground])
    assert green[is_ground].min() > ground - 45, "something dark lies outside every box"
    for x1, y1, x2, y2 in boxes[classes == 1].astype(int):
        assert green[y1:y2, x1:x2].mean() < ground - 10


def test_too_small_is_refused():
    with pytest.raises(InputError, match=r"at least 64 pixels each way, got 640 x 63"):
        render(np.random.default_rng(0), (640, 63))


@pytest.mark.slow
def test_the_detector_of_real_smears_finds_drawn_cells():
    found, wrong, total = np.zeros(3, int), np.zeros(3, int), np.zeros(3, int)
    session = _session()
    for seed in range(12):
        picture_rgb, boxes, classes, _ = render(np.random.default_rng(seed))
        guesses, kinds = _detect(session, picture_rgb)
        for kind in range(3):
            truth, guess = boxes[classes == kind], guesses[kinds == kind]
            hits = int((_iou(truth, guess) >= 0.5).any(axis=1).sum()) if len(guess) else 0
            total[kind] += len(truth)
            found[kind] += hits
            wrong[kind] += len(guess) - hits
    recall = found / total
    assert total[1] > 100
    assert recall[1] >= 0.9
    assert recall[2] >= 0.9
    assert recall[0] >= 0.7
    assert found.sum() / (found.sum() + wrong.sum()) >= 0.9


def _session():
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    return onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])


def _detect(session, picture_rgb):
    """Boxes and classes of a 640 x 480 picture, read with nothing of saccade's own."""
    square = np.full((640, 640, 3), 114, np.uint8)
    square[80:560] = picture_rgb
    feed = square.transpose(2, 0, 1)[None].astype(np.float32) / 255
    rows = session.run(None, {"images": feed})[0][0].T
    scores, kinds = rows[:, 4:].max(axis=1), rows[:, 4:].argmax(axis=1)
    keep = scores > 0.25
    rows, scores, kinds = rows[keep], scores[keep], kinds[keep]
    boxes_xywh = np.column_stack([rows[:, :2] - rows[:, 2:4] / 2 - [0, 80], rows[:, 2:4]])
    best = cv2.dnn.NMSBoxesBatched(boxes_xywh.tolist(), scores, kinds, 0.25, 0.45)
    boxes = np.hstack([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]])
    order = np.asarray(best, int).reshape(-1)
    return boxes[order].clip(0, [640, 480, 640, 480]), kinds[order]


def _iou(a, b):
    top_left = np.maximum(a[:, None, :2], b[None, :, :2])
    size = np.clip(np.minimum(a[:, None, 2:], b[None, :, 2:]) - top_left, 0, None)
    both = size.prod(axis=2)
    area = [(x[:, 2:] - x[:, :2]).prod(axis=1) for x in (a, b)]
    return both / (area[0][:, None] + area[1][None] - both)
