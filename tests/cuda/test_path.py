"""What of the path needs no GPU."""

from __future__ import annotations

import numpy as np
import pytest

from saccade.cuda.nv12 import Nv12Frame
from saccade.cuda.path import _FULL_HD_BYTES
from saccade.cuda.prepare import BT709, GRAY, NV12, PACKED, PICTURE, describe
from saccade.cuda.slots import Feeder, Load, Slot
from saccade.errors import InputError
from saccade.types import InputRule

RULE = InputRule("x", (64, 64))


class Room:
    """The memory of a slot, without a device."""

    source = 1 << 20
    source_bytes = _FULL_HD_BYTES

    def __init__(self, batch: int) -> None:
        raw = np.zeros(batch * PICTURE.itemsize, np.uint8)
        self.table = raw.view(PICTURE)
        self.rows = raw.reshape(batch, PICTURE.itemsize)
        self.pixels, self.chroma = self.table["pixels"], self.table["chroma"]


def load_of(room: Room) -> Load:
    slot: Slot = room  # type: ignore[assignment]
    return Load(slot)


def feeder() -> Feeder:
    return Feeder(RULE, None, None, 1 << 24)  # type: ignore[arg-type]


def test_full_hd_fits_in_the_default_room() -> None:
    placed = feeder()._place(load_of(Room(1)), (1920, 1080), 1920 * 3, PACKED)
    assert placed == (0, (1920, 1080))


def test_places_are_described_one_behind_the_other() -> None:
    room, fed = Room(3), feeder()
    load = load_of(room)
    want = np.zeros(3, PICTURE)
    sizes, at = [((40, 30), 120, PACKED), ((17, 9), 17, GRAY), ((40, 30), 120, PACKED)], room.source
    for i, (wh, pitch, form) in enumerate(sizes):
        assert fed._place(load, wh, pitch, form) == (i, wh)
        describe(want[i : i + 1], RULE, wh, at, pitch, form=form)
        at += -(-(pitch * wh[1] + 16) // 256) * 256
    np.testing.assert_array_equal(room.table, want)
    assert fed._place(load, (1, 1), 3, PACKED) is None


def test_a_video_frame_is_described_with_its_plane_of_chroma() -> None:
    room, fed = Room(2), feeder()
    load = load_of(room)
    want = np.zeros(2, PICTURE)
    for i in range(2):
        assert fed._place(load, (40, 30), 40, NV12, BT709) == (i, (40, 30))
        at = room.source + i * (-(-(40 * 45 + 16) // 256) * 256)
        describe(want[i : i + 1], RULE, (40, 30), at, 40, form=NV12, matrix=BT709)
    np.testing.assert_array_equal(room.table, want)


def test_what_is_no_video_frame() -> None:
    frame = Nv12Frame(np.zeros((45, 40), np.uint8), "bt709")
    assert frame.wh == (40, 30)
    for rows in (
        np.zeros((44, 40), np.uint8),
        np.zeros((45, 41), np.uint8),
        np.zeros((45, 40, 1), np.uint8),
        np.zeros((45, 40), np.float32),
        np.zeros((0, 40), np.uint8),
    ):
        with pytest.raises(InputError, match=r"h \* 3 / 2"):
            Nv12Frame(rows)
    with pytest.raises(InputError, match="bt709"):
        Nv12Frame(frame.rows, "bt2020")  # type: ignore[arg-type]
