from __future__ import annotations

import numpy as np
import pytest

from saccade.types import Placement
from saccade.vision.boxes import clip, iou_matrix, points_to_source, to_source


def test_iou_matrix_of_known_boxes():
    boxes = np.float32([[0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 6, 6], [1, 1, 1, 1]])
    expected = [[1, 1 / 7, 0, 0], [1 / 7, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert iou_matrix(boxes, boxes) == pytest.approx(np.array(expected))
    assert iou_matrix(boxes[:0], boxes).shape == (0, 4)


def test_clip_keeps_dtype_and_leaves_the_input_alone():
    boxes = np.float32([[-3, 2, 50, 60], [np.inf, -np.inf, 5, 5]])
    cut = clip(boxes, (40, 30))
    assert cut.dtype == np.float32
    assert cut.tolist() == [[0, 2, 40, 30], [40, 0, 5, 5]]
    assert boxes[0, 0] == -3


def test_to_source_undoes_the_placement(rng):
    placement = Placement(source_wh=(640, 427), scale_xy=(0.65, 0.651), offset_xy=(0.0, 69.0))
    source = rng.uniform(0, 400, (20, 4)).astype(np.float32)
    scale, offset = np.tile(placement.scale_xy, 2), np.tile(placement.offset_xy, 2)
    placed = (source * scale + offset).astype(np.float32)
    assert to_source(placed, placement) == pytest.approx(source, abs=1e-3)
    points = placed.reshape(10, 4, 2)
    assert points_to_source(points, placement) == pytest.approx(source.reshape(10, 4, 2), abs=1e-3)
    assert to_source(placed[:0], placement).shape == (0, 4)
