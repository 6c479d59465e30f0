from __future__ import annotations

import dataclasses
import itertools

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.errors import InputError
from saccade.types import InputRule
from saccade.vision.place import Placer, place_reference, placement_of, single_threaded_cv2

RULE = InputRule(name="images", size_hw=(64, 96))
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
UNEVEN = {"mean": (103.53, 116.28, 123.675), "std": (57.375, 57.12, 58.395)}
SIZES_HW = [(1, 1), (24, 400), (400, 24), (33, 97), (64, 96), (128, 192), (31, 30), (301, 203)]


def picture_of(rng, rule, size_hw):
    shape = size_hw if rule.color == "gray" else (*size_hw, 3)
    top = 65536 if rule.bits == 16 else 256
    return rng.integers(0, top, shape).astype(np.uint16 if rule.bits == 16 else np.uint8)


def empty_item(rule):
    num = rule.num_channels
    shape = (num, *rule.size_hw) if rule.layout == "nchw" else (*rule.size_hw, num)
    # What was in the buffer before must not matter.
    return np.full(shape, 77, rule.dtype)


def check_against_reference(picture, rule, placer=None):
    """At most one level of 255 apart in the picture; the padding is exactly the pad value."""
    want, placement = place_reference(picture, rule)
    out = empty_item(rule)
    assert (placer or Placer(rule)).place(picture, out) == placement
    assert want.shape == out.shape
    assert want.dtype == out.dtype
    level = (257 if rule.bits == 16 else 1) / min(rule.std[: rule.num_channels])
    if rule.dtype.startswith("uint"):
        level = max(level, 1)
    slack = 2e-3 * np.abs(want.astype(np.float64)).max() if rule.dtype == "float16" else 2e-5
    difference = np.abs(want.astype(np.float64) - out.astype(np.float64))
    assert difference.max() <= level + slack
    inside = np.zeros(rule.size_hw, bool)
    left, top = (int(v) for v in placement.offset_xy)
    w, h = (round(n * s) for n, s in zip(placement.source_wh, placement.scale_xy, strict=True))
    inside[top : top + h, left : left + w] = True
    padding = difference[:, ~inside] if rule.layout == "nchw" else difference[~inside]
    assert padding.max(initial=0) <= 1e-5
    return out


@pytest.mark.parametrize("size_hw", SIZES_HW)
@pytest.mark.parametrize("interpolation", ["linear", "area", "nearest", "cubic", "antialias"])
def test_every_interpolation_equals_the_reference(rng, interpolation, size_hw):
    for resize, bits in itertools.product(("letterbox", "stretch"), (8, 16)):
        rule = dataclasses.replace(RULE, interpolation=interpolation, resize=resize, bits=bits)
        check_against_reference(picture_of(rng, rule, size_hw), rule)


@pytest.mark.parametrize("scale", [PLAIN, UNEVEN, {"mean": (5.0,) * 3}], ids=["1", "mean", "even"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "uint16"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_every_layout_and_dtype_equals_the_reference(rng, layout, dtype, scale):
    if dtype.startswith("uint"):
        scale = PLAIN if scale is PLAIN else {"mean": (-9.0, 0.0, 9.0), "std": (2.0, 1.0, 3.0)}
    for color, bits, anchor in itertools.product(("rgb", "gray"), (8, 16), ("center", "top_left")):
        rule = dataclasses.replace(
            RULE, color=color, bits=bits, layout=layout, dtype=dtype, anchor=anchor, **scale
        )
        if dtype == "float16" and bits == 16 and scale is PLAIN:
            continue
        for size_hw in ((50, 40), (64, 96)):
            picture = picture_of(rng, rule, size_hw)
            if dtype == "uint8" and bits == 16:
                picture //= 300
            check_against_reference(picture, rule)


def test_one_level_in_is_one_level_out_without_resizing(rng):
    for layout in ("nchw", "nhwc"):
        rule = dataclasses.replace(RULE, layout=layout, **UNEVEN)
        picture = picture_of(rng, rule, rule.size_hw)
        out = check_against_reference(picture, rule)
        want, _ = place_reference(picture, rule)
        np.testing.assert_allclose(out, want, rtol=3e-7, atol=1e-6)


def test_reused_buffers_leave_nothing_behind(rng):
    rule = dataclasses.replace(RULE, **UNEVEN)
    placer, out = Placer(rule), empty_item(rule)
    for size_hw in ((200, 100), (10, 300), (1, 1), (64, 96), (200, 100), (31, 30)):
        picture = picture_of(rng, rule, size_hw)
        fresh = empty_item(rule)
        Placer(rule).place(picture, fresh)
        placer.place(picture, out)
        assert np.array_equal(out, fresh)


def test_items_of_a_batch_are_written_in_place(rng):
    batch = np.zeros((3, 3, 64, 96), np.float32)
    Placer(RULE).place(picture_of(rng, RULE, (50, 40)), batch[1])
    assert batch[1].any()
    assert not batch[0].any()
    assert not batch[2].any()


def test_a_gray_picture_may_have_a_channel_axis(rng):
    rule = dataclasses.replace(RULE, color="gray")
    picture = picture_of(rng, rule, (50, 40))
    flat = check_against_reference(picture, rule)
    assert np.array_equal(flat, check_against_reference(picture[:, :, None], rule))


@pytest.mark.parametrize(
    ("source_wh", "changes", "scale_xy", "offset_xy"),
    [
        ((96, 64), {}, (1.0, 1.0), (0.0, 0.0)),
        ((960, 640), {}, (0.1, 0.1), (0.0, 0.0)),
        ((1, 1), {}, (64.0, 64.0), (16.0, 0.0)),
        ((1, 1), {"enlarge": False}, (1.0, 1.0), (47.0, 31.0)),
        ((48, 20), {"enlarge": False}, (1.0, 1.0), (24.0, 22.0)),
        ((4000, 24), {}, (0.024, 1 / 24), (0.0, 31.0)),
        ((24, 4000), {}, (1 / 24, 0.016), (47.0, 0.0)),
        ((24, 4000), {"anchor": "top_left"}, (1 / 24, 0.016), (0.0, 0.0)),
        ((24, 4000), {"resize": "stretch"}, (4.0, 0.016), (0.0, 0.0)),
        ((33, 64), {}, (1.0, 1.0), (31.0, 0.0)),
    ],
)
def test_placement_of_known_sizes(source_wh, changes, scale_xy, offset_xy):
    placement = placement_of(source_wh, dataclasses.replace(RULE, **changes))
    assert placement.source_wh == source_wh
    assert placement.scale_xy == pytest.approx(scale_xy)
    assert placement.offset_xy == offset_xy


@settings(max_examples=300, deadline=None)
@given(
    st.tuples(st.integers(1, 9000), st.integers(1, 9000)),
    st.tuples(st.integers(1, 800), st.integers(1, 800)),
    st.sampled_from(["center", "top_left"]),
    st.sampled_from(["letterbox", "stretch"]),
    st.booleans(),
)
def test_a_placement_lies_inside_the_input(source_wh, size_hw, anchor, resize, enlarge):
    rule = InputRule("x", size_hw, anchor=anchor, resize=resize, enlarge=enlarge)
    placement = placement_of(source_wh, rule)
    for n, s, offset, limit in zip(
        source_wh, placement.scale_xy, placement.offset_xy, size_hw[::-1], strict=True
    ):
        new = n * s
        assert new == pytest.approx(round(new))
        assert new > 0.5
        assert 0 <= offset == int(offset)
        assert offset + new <= limit + 1e-6
        if anchor == "center" and resize == "letterbox":
            # The padding on both sides differs by one pixel at most, the larger after.
            assert -1e-6 <= (limit - new - offset) - offset < 1.5
    if resize == "letterbox" and not enlarge and source_wh[0] <= rule.size_hw[1]:
        assert max(placement.scale_xy) <= 1 or min(source_wh) == 1 or source_wh[1] > size_hw[0]


def test_a_picture_decoded_smaller_is_placed_by_its_full_size(rng):
    rule = dataclasses.replace(RULE, resize="letterbox")
    full = cv2.resize(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8), (601, 401))
    half = cv2.resize(full, (301, 201), interpolation=cv2.INTER_AREA)
    out, exact = empty_item(rule), empty_item(rule)
    placement = Placer(rule).place(half, out, source_wh=(601, 401))
    assert placement == placement_of((601, 401), rule)
    Placer(rule).place(full, exact)
    assert np.abs(out - exact).mean() < 0.02


@pytest.mark.parametrize(
    ("picture", "out"),
    [
        (np.zeros((5, 5, 3), np.uint16), np.zeros((3, 64, 96), np.float32)),
        (np.zeros((5, 5), np.uint8), np.zeros((3, 64, 96), np.float32)),
        (np.zeros((5, 5, 4), np.uint8), np.zeros((3, 64, 96), np.float32)),
        (np.zeros((0, 5, 3), np.uint8), np.zeros((3, 64, 96), np.float32)),
        (np.zeros((5, 5, 3), np.uint8), np.zeros((3, 64, 96), np.float64)),
        (np.zeros((5, 5, 3), np.uint8), np.zeros((64, 96, 3), np.float32)),
    ],
)
def test_what_does_not_fit_the_rule_is_refused(picture, out):
    with pytest.raises(InputError):
        Placer(RULE).place(picture, out)


@pytest.mark.parametrize("changes", [{"std": (1.0, 0.0, 1.0)}, {"mean": (1.0,)}])
def test_a_rule_without_sense_is_refused(changes):
    with pytest.raises(InputError, match="mean and std"):
        Placer(dataclasses.replace(RULE, **changes))


def test_single_threaded_cv2_restores_the_number_of_threads():
    before = cv2.getNumThreads()
    with single_threaded_cv2():
        assert cv2.getNumThreads() == 1
    assert cv2.getNumThreads() == before
