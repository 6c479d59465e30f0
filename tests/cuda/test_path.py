"""What of the path needs no GPU."""

from __future__ import annotations

import numpy as np

from saccade.cuda.path import _FULL_HD_BYTES
from saccade.cuda.prepare import PACKED, PICTURE
from saccade.cuda.slots import Feeder, Load, Slot
from saccade.types import InputRule


def test_full_hd_fits_in_the_default_room() -> None:
    class Room:
        source = 0
        source_bytes = _FULL_HD_BYTES
        table = np.zeros(1, PICTURE)

    feeder = Feeder(InputRule("x", (64, 64)), None, None, 1 << 24)  # type: ignore[arg-type]
    slot: Slot = Room()  # type: ignore[assignment]
    assert feeder._place(Load(slot), (1920, 1080), 1920 * 3, PACKED) == (0, (1920, 1080))
