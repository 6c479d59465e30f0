"""What of the path needs no GPU."""

from __future__ import annotations

import numpy as np

from saccade.cuda.path import _FULL_HD_BYTES
from saccade.cuda.prepare import GRAY, PACKED, PICTURE, describe
from saccade.cuda.slots import Feeder, Load, Slot
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
        self.pixels = self.table["pixels"]


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
