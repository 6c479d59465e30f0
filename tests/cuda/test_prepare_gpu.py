"""The prepare kernel against the plain NumPy placement, on odd sizes and all layouts."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from device_arrays import back, levels_off, poisoned
from saccade.cuda.prepare import (
    BT601,
    BT601_FULL,
    BT709,
    GRAY,
    NV12,
    PACKED,
    PICTURE,
    READ_PAST,
    Preparer,
    describe,
)
from saccade.types import InputRule
from saccade.vision.place import place_reference

SIZES = [
    (640, 480), (1, 1), (1, 700), (700, 1), (2, 3), (641, 479), (96, 64), (95, 63), (97, 65),
    (1920, 1080), (13, 500), (64, 64), (33, 47), (192, 128), (48, 32),
]  # fmt: skip
RULES = [
    InputRule("x", (64, 96)),
    InputRule("x", (64, 96), resize="stretch", color="bgr"),
    InputRule("x", (64, 96), layout="nhwc", anchor="top_left", pad_value=0.0),
    InputRule("x", (65, 93), layout="nhwc", color="bgr"),
    InputRule("x", (63, 91), mean=(103.53, 116.28, 123.675), std=(57.375, 57.12, 58.395)),
    InputRule("x", (64, 96), enlarge=False, mean=(0.0,) * 3, std=(1.0,) * 3),
    InputRule("x", (64, 64), color="gray", mean=(127.0,), std=(128.0,)),
    InputRule("x", (40, 96), color="gray", layout="nhwc"),
    InputRule("x", (64, 96), size_input="size", size_order="hw"),
]


def run(device, upload, rule, pictures, dtype, forms=None, pitches=None):  # type: ignore[no-untyped-def]
    target = poisoned(upload, rule, len(pictures), dtype)
    sizes = upload(np.zeros((len(pictures), 2), np.int64)) if rule.size_input else None
    table = np.zeros(len(pictures), PICTURE)
    for i, picture in enumerate(pictures):
        form = forms[i] if forms else PACKED
        height = picture.shape[0] * 2 // 3 if form == NV12 else picture.shape[0]
        pitch = pitches[i] if pitches else picture[0].size
        rows = np.zeros((len(picture), pitch), np.uint8)
        rows[:, : picture[0].size] = picture.reshape(len(picture), -1)
        there = upload(rows, slack=READ_PAST)
        wh = (picture.shape[1], height)
        describe(table[i : i + 1], rule, wh, there.pointer, pitch, form=form)
    preparer = Preparer(device, rule, target, sizes)
    stream = device.stream()
    preparer.enqueue(stream, upload(table.view(np.uint8)).pointer)
    stream.synchronize()
    return back(device, target), None if sizes is None else back(device, sizes)


def in_order(picture: np.ndarray, rule: InputRule) -> np.ndarray:
    if rule.color == "gray":
        return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))
    return picture[:, :, ::-1] if rule.color == "bgr" else picture


@pytest.mark.parametrize("rule", RULES, ids=range(len(RULES)))
def test_all_sizes_in_one_batch(device, upload, rng, rule) -> None:  # type: ignore[no-untyped-def]
    pictures = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for w, h in SIZES]
    got, sizes = run(device, upload, rule, pictures, "float32")
    for item, picture in zip(got, pictures, strict=True):
        want, _ = place_reference(in_order(picture, rule), rule)
        assert levels_off(item, want, rule) <= 1.0001, picture.shape
    if rule.size_input:
        assert sizes.tolist() == [[h, w] for w, h in SIZES]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "uint8"])
def test_element_types(device, upload, rng, dtype) -> None:  # type: ignore[no-untyped-def]
    std = (1.0,) * 3 if dtype == "uint8" else (255.0,) * 3
    rule = InputRule("x", (64, 96), std=std)
    # At its own size nothing is interpolated, so only the cast may differ.
    pictures = [rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)]
    got, _ = run(device, upload, rule, pictures, dtype)
    want, _ = place_reference(pictures[0], rule)
    step = {"float16": 2**-11, "bfloat16": 2**-8, "uint8": 0.0}[dtype]
    assert np.abs(got[0] - want).max() <= step


def test_strides_and_gray_pictures(device, upload, rng) -> None:  # type: ignore[no-untyped-def]
    rule = InputRule("x", (64, 96))
    colour = [rng.integers(0, 256, (50, 77, 3), dtype=np.uint8) for _ in range(4)]
    pitches = [77 * 3 + extra for extra in (0, 1, 3, 64)]
    got, _ = run(device, upload, rule, colour, "float32", pitches=pitches)
    for item, picture in zip(got, colour, strict=True):
        assert levels_off(item, place_reference(picture, rule)[0], rule) <= 1.0001
    gray = [rng.integers(0, 256, (50, 77, 1), dtype=np.uint8)]
    got, _ = run(device, upload, rule, gray, "float32", forms=[GRAY])
    want, _ = place_reference(np.repeat(gray[0], 3, axis=2), rule)
    assert levels_off(got[0], want, rule) <= 1.0001


def test_nv12(device, upload, rng) -> None:  # type: ignore[no-untyped-def]
    rule = InputRule("x", (64, 96))
    raw = rng.integers(0, 256, (60 * 3 // 2, 80), dtype=np.uint8)
    rgb = cv2.cvtColor(raw, cv2.COLOR_YUV2RGB_NV12)
    got, _ = run(device, upload, rule, [raw], "float32", forms=[NV12])
    # OpenCV rounds its fixed-point matrix, so a level may go either way before interpolation.
    assert levels_off(got[0], place_reference(rgb, rule)[0], rule) <= 2.0001


def rgb_of_nv12(luma: np.ndarray, chroma: np.ndarray, matrix: int) -> np.ndarray:
    """Rec. ITU-R BT.601 and BT.709 in double precision, chroma repeated."""
    kr, kb = (0.2126, 0.0722) if matrix == BT709 else (0.299, 0.114)
    h, w = luma.shape
    y = luma.astype(np.float64)
    cb, cr = np.moveaxis(chroma.repeat(2, axis=0).repeat(2, axis=1)[:h, :w] - 128.0, 2, 0)
    if matrix != BT601_FULL:
        y, cb, cr = np.maximum(y - 16, 0) * 255 / 219, cb * 255 / 224, cr * 255 / 224
    r, b = y + 2 * (1 - kr) * cr, y + 2 * (1 - kb) * cb
    g = (y - kr * r - kb * b) / (1 - kr - kb)
    return np.clip(np.rint(np.stack([r, g, b], axis=-1)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("matrix", [BT601, BT709, BT601_FULL])
@pytest.mark.parametrize("size", [(96, 64), (97, 65), (40, 30), (200, 121), (2, 2)])
def test_frames_of_video(device, upload, rng, size, matrix) -> None:  # type: ignore[no-untyped-def]
    """Odd sizes, rows longer than the picture, planes apart from each other."""
    rule = InputRule("x", (64, 96))
    (w, h), pitch = size, size[0] + 33
    cols, rows = -(-w // 2), -(-h // 2)
    luma = rng.integers(0, 256, (h, pitch), dtype=np.uint8)
    chroma = rng.integers(0, 256, (rows, cols, 2), dtype=np.uint8)
    padded = np.zeros((rows, 2 * cols + 6), np.uint8)
    padded[:, : 2 * cols] = chroma.reshape(rows, -1)
    table = np.zeros(1, PICTURE)
    where, there = upload(luma, slack=READ_PAST), upload(padded, slack=READ_PAST)
    describe(table, rule, size, where.pointer, pitch, form=NV12, matrix=matrix)
    table["chroma"], table["chroma_pitch"] = there.pointer, padded.shape[1]
    target = poisoned(upload, rule, 1)
    stream = device.stream()
    Preparer(device, rule, target).enqueue(stream, upload(table.view(np.uint8)).pointer)
    stream.synchronize()
    rgb = rgb_of_nv12(luma[:, :w], chroma, matrix)
    # Single precision may round a value that lies between two levels the other way.
    assert levels_off(back(device, target)[0], place_reference(rgb, rule)[0], rule) <= 2.0001


def test_empty_places_are_left_alone(device, upload, rng) -> None:  # type: ignore[no-untyped-def]
    rule = InputRule("x", (8, 16))
    target = upload(np.full((2, 3, 8, 16), 7, np.float32))
    table = np.zeros(2, PICTURE)
    preparer = Preparer(device, rule, target)
    stream = device.stream()
    preparer.enqueue(stream, upload(table.view(np.uint8)).pointer)
    stream.synchronize()
    assert (back(device, target) == 7).all()
