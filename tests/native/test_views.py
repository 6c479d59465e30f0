"""Views say the same as NumPy: every element's place, by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.native.tensors import View, dense, pixels
from saccade.native.views import (
    broadcast,
    footprint,
    image,
    inside,
    order_of,
    reshaped,
    sliced,
)


def places(view):
    """Element numbers, in the view's shape."""
    grid = np.indices(view.shape).reshape(len(view.shape), -1)
    return (view.offset + np.asarray(view.strides) @ grid).reshape(view.shape)


@st.composite
def views(draw, max_axes=4):
    """A dense view, permuted and sliced."""
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=max_axes))
    view = dense(0, "float16", tuple(shape), offset=draw(st.integers(0, 3)))
    view = view.permuted(*draw(st.permutations(range(len(shape)))))
    for axis in range(len(shape)):
        low = draw(st.integers(0, view.shape[axis] - 1))
        high = draw(st.integers(low + 1, view.shape[axis]))
        view = sliced(view, axis, low, high, draw(st.integers(1, 2)))
    return view


def divisions(draw, count):
    """A shape of count elements."""
    shape = []
    while count > 1 and len(shape) < 5:
        size = draw(st.sampled_from([d for d in range(1, count + 1) if count % d == 0]))
        shape.append(size)
        count //= size
    return (*shape, count)


@given(st.data(), views())
def test_a_reshape_without_copy_is_numpys(data, view):
    shape = divisions(data.draw, view.num_elements)
    found = reshaped(view, shape)
    want = places(view).reshape(shape)
    if found is not None:
        np.testing.assert_array_equal(places(found), want)
    else:
        # No strides say it: those that fit the first steps do not fit the rest.
        first = want.ravel()[0]
        steps = [
            int(want.take(1, axis).ravel()[0] - first) if size > 1 else 0
            for axis, size in enumerate(shape)
        ]
        guess = View(0, "float16", tuple(shape), tuple(steps), int(first))
        assert not np.array_equal(places(guess), want)


@given(views())
def test_order_goes_from_wide_to_narrow(view):
    ordered = view.permuted(*order_of(view))
    moving = [s for n, s in zip(ordered.shape, ordered.strides, strict=True) if n > 1]
    assert moving == sorted(moving, reverse=True)


@given(views())
def test_footprint_is_the_first_and_last_place(view):
    assert footprint(view) == (places(view).min(), places(view).max() + 1)


@given(st.data(), views(3))
def test_what_moves_takes_its_views_along(data, whole):
    # A new home: another order of axes, and wider strides.
    order = data.draw(st.permutations(range(len(whole.shape))))
    place = dense(1, "float16", tuple(whole.shape[a] for a in order), offset=7)
    place = place.permuted(*np.argsort(order).tolist())
    if data.draw(st.booleans()):
        place = View(1, "float16", place.shape, tuple(3 * s for s in place.strides), 7)
    view = whole
    for axis in range(len(whole.shape)):
        low = data.draw(st.integers(0, view.shape[axis] - 1))
        view = sliced(view, axis, low, view.shape[axis], data.draw(st.integers(1, 2)))
    view = view.permuted(*data.draw(st.permutations(range(len(view.shape)))))
    moves = dict(zip(places(whole).ravel().tolist(), places(place).ravel().tolist(), strict=True))
    found = inside(view, whole, place)
    assert found is not None
    want = np.vectorize(moves.get, otypes=[np.int64])(places(view))
    np.testing.assert_array_equal(places(found), want)


@given(st.data(), views(3))
def test_moved_views_are_right_or_refused(data, whole):
    """Also for views that walk through several axes of what moves."""
    order = data.draw(st.permutations(range(len(whole.shape))))
    place = dense(1, "float16", tuple(whole.shape[a] for a in order)).permuted(
        *np.argsort(order).tolist()
    )
    view = reshaped(whole, divisions(data.draw, whole.num_elements))
    if view is None:
        return
    found = inside(view, whole, place)
    if found is not None:
        old, new = places(whole).ravel().tolist(), places(place).ravel().tolist()
        moves = dict(zip(old, new, strict=True))
        want = np.vectorize(moves.get, otypes=[np.int64])(places(view))
        np.testing.assert_array_equal(places(found), want)


def test_repeats_are_numpys():
    view = pixels(0, "float16", (2, 3, 1, 4))
    wide = broadcast(view, (5, 2, 3, 6, 4))
    np.testing.assert_array_equal(places(wide), np.broadcast_to(places(view), (5, 2, 3, 6, 4)))
    assert wide.is_repeated
    assert not view.is_repeated
    with pytest.raises(ValueError, match="cannot be repeated"):
        broadcast(view, (2, 3, 6, 5))


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 1, 5), (3, 1, 1, 1), (2, 1, 4, 5)])
def test_pixels_and_slices_of_their_channels(shape):
    view = pixels(0, "float16", shape, pitch=shape[3] + 3)
    assert view.is_pixels
    assert view.is_packed
    assert image(view).is_pixels
    part = image(view.channels(0, 1))
    assert part.is_pixels
    np.testing.assert_array_equal(places(part), places(view)[..., :1])
    apart = View(0, "float16", view.shape, (view.strides[0] + 8, *view.strides[1:]))
    assert apart.is_pixels
    assert apart.is_packed == (shape[0] == 1)
    planes = dense(0, "float16", (2, 3, 4, 5)).permuted(0, 2, 3, 1)
    assert not planes.is_pixels


def test_alignment_tells_what_can_be_loaded_at_once():
    assert pixels(0, "float16", (2, 3, 4, 8)).alignment == 16
    assert pixels(0, "float16", (2, 3, 4, 12)).alignment == 8
    assert pixels(0, "float16", (2, 3, 4, 8), offset=3).alignment == 2
    assert math.gcd(16, pixels(0, "float32", (1, 1, 1, 3), offset=2).alignment) == 8
