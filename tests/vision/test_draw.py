from __future__ import annotations

import itertools

import numpy as np
import pytest
import simplejpeg

from saccade.errors import InputError
from saccade.types import Detections
from saccade.vision.draw import color_of, draw, encode_jpeg


def detections(boxes, classes=None, points=None):
    k = len(boxes)
    return Detections(
        np.float32(boxes).reshape(k, 4),
        np.linspace(0.9, 0.5, k, dtype=np.float32),
        np.int32(range(k) if classes is None else classes),
        None if points is None else np.float32(points),
    )


def test_draw_leaves_the_picture_alone_and_marks_the_box():
    picture = np.zeros((120, 160, 3), np.uint8)
    drawn = draw(picture, detections([[20, 40, 90, 100]], [1]), ("cat", "dog"))
    assert not picture.any()
    assert drawn.shape == picture.shape
    assert tuple(drawn[70, 20]) == color_of(1)
    assert tuple(drawn[99, 50]) == color_of(1)
    assert not drawn[70, 50].any()
    assert not drawn[110:].any()


def test_draw_copes_with_odd_boxes_points_and_labels():
    points = [[[5, 5], [np.nan, 3]], [[1e30, 0], [-4, 2]], [[0, 0], [1, 1]]]
    found = detections([[0, 0, 30, 20], [0, 0, 1, 1], [29.6, 19.7, 30, 20]], [0, 99, -1], points)
    assert draw(np.zeros((20, 30, 3), np.uint8), found, ("Katze äöü",)).any()
    assert draw(np.zeros((1, 1, 3), np.uint8), found).shape == (1, 1, 3)
    assert not draw(np.zeros((9, 9, 3), np.uint8), detections([])).any()


def test_colors_of_classes_differ():
    colors = [color_of(k) for k in range(80)]
    assert len(set(colors)) == 80
    assert all(np.abs(np.subtract(a, b)).max() > 60 for a, b in itertools.pairwise(colors))


def test_draw_and_encode_refuse_what_they_cannot_do():
    with pytest.raises(InputError, match="uint8"):
        draw(np.zeros((9, 9), np.uint8), detections([]))
    with pytest.raises(InputError, match="quality"):
        encode_jpeg(np.zeros((9, 9, 3), np.uint8), 101)


def test_encoded_pictures_decode_to_nearly_the_same():
    picture = np.full((40, 50, 3), (200, 30, 60), np.uint8)
    data = encode_jpeg(picture[:, ::-1])
    decoded = simplejpeg.decode_jpeg(data, "RGB")
    assert np.abs(decoded.astype(int) - picture).max() <= 3
