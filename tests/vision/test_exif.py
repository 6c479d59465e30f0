from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from saccade.vision import exif


def block(order: str, *entries: tuple[int, int, int, int], at: int = 8) -> bytes:
    head = b"II*\0" if order == "<" else b"MM\0*"
    body = b"".join(struct.pack(order + "HHIHH", *entry, 0) for entry in entries)
    return head + struct.pack(order + "IH", at, len(entries)) + body


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_in_both_byte_orders(order, orientation):
    entries = (0x010F, 2, 3, 5), (0x0112, 3, 1, orientation)
    assert exif.orientation_of_block(block(order, *entries)) == orientation


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"II*\0",
        b"XX*\0\x08\0\0\0",
        block("<", (0x0112, 3, 1, 9)),
        block("<", (0x0112, 3, 1, 0)),
        block("<", (0x0112, 4, 1, 6)),
        block("<", (0x0112, 3, 2, 6)),
        block("<", (0x0112, 3, 1, 6))[:-3],
        block("<", (0x0112, 3, 1, 6), at=0xFFFFFFFF),
        b"MM\0*\0\0\0\x08\xff\xff" + bytes(4000),
    ],
)
def test_damaged_blocks_say_nothing(broken):
    assert exif.orientation_of_block(broken) == 1


@given(st.binary(max_size=80))
def test_any_bytes_give_an_orientation(tail):
    for head in (b"II*\0", b"MM\0*"):
        assert exif.orientation_of_block(head + tail) in range(1, 9)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(5, 7, 3), (5, 7), (1, 1, 3), (64, 33, 3)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_apply_turns_as_defined(rng, orientation, shape, dtype):
    picture = rng.integers(0, 256, shape).astype(dtype)
    rows = {1: picture, 2: picture[:, ::-1], 3: picture[::-1, ::-1], 4: picture[::-1]}
    axes = (1, 0, 2)[: picture.ndim]
    turned = picture.transpose(axes)
    rows |= {5: turned, 6: turned[:, ::-1], 7: turned[::-1, ::-1], 8: turned[::-1]}
    assert np.array_equal(exif.apply(picture, orientation), rows[orientation])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_apply_agrees_with_pillow(rng, orientation):
    picture = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    image = Image.fromarray(picture)
    image.getexif()[0x0112] = orientation
    assert np.array_equal(
        exif.apply(picture, orientation), np.asarray(ImageOps.exif_transpose(image))
    )
