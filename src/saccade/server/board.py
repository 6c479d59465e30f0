"""Numbers that fronts tell one another without asking.

Each front writes only its own row, so nothing locks; who reads sees a value that was true a moment
ago, which is enough for sharing out connections and engine processes.
"""

from __future__ import annotations

import mmap
import os

__all__ = ["MAX_ENGINES", "Board"]

MAX_ENGINES = 62
_CLOSED, _FIRST_ENGINE = 0, 1
_ROW = 64


class Board:
    """One row of whole numbers per front, in shared memory.

    Args:
        num_fronts: Rows.
        row: The front that this process is.
        fd: An existing board; None makes one.

    Attributes:
        fd: Its file descriptor, for other fronts to map.
        num_fronts: Rows.
    """

    def __init__(self, num_fronts: int, row: int = 0, fd: int | None = None) -> None:
        self.num_fronts = num_fronts
        size = num_fronts * _ROW * 8
        if fd is None:
            fd = os.memfd_create("saccade-board", os.MFD_CLOEXEC)
            os.ftruncate(fd, size)
        self.fd = fd
        self._numbers = memoryview(mmap.mmap(fd, size)).cast("q")
        self._start = row * _ROW

    def count_closed(self) -> None:
        """One more client of this front has gone."""
        self._numbers[self._start + _CLOSED] += 1

    def num_closed(self, row: int) -> int:
        """Clients of a front that have gone."""
        return self._numbers[row * _ROW + _CLOSED]

    def hold(self, engine: int, num: int) -> None:
        """Say how many tasks of this front an engine process has."""
        self._numbers[self._start + _FIRST_ENGINE + engine] = num

    def held_by_all(self, engine: int) -> int:
        """How many tasks of all fronts an engine process has."""
        numbers = self._numbers
        return sum(numbers[at] for at in range(_FIRST_ENGINE + engine, len(numbers), _ROW))

    def clear(self, row: int) -> None:
        """Forget a front that has ended."""
        for at in range(row * _ROW, (row + 1) * _ROW):
            self._numbers[at] = 0
