"""Memory that the front and the engine processes share, for what is too long for a message.

The front alone gives out and takes back blocks, so there is nothing to agree on between processes
and nothing is lost when one of them dies.
"""

from __future__ import annotations

import mmap
import os

__all__ = ["Arena", "map_arena"]

_MIN_ORDER = 14  # blocks of 16 KiB and more


class Arena:
    """A buddy allocator over anonymous shared memory. For one thread.

    Pages that were never touched take no memory.

    Args:
        num_bytes: Size; rounded up to a power of two.

    Attributes:
        fd: The memory's file descriptor, for an engine process to map.
        num_bytes: Size.
        used_bytes: In blocks now.
        view: All of it.

    Source: Knuth, The Art of Computer Programming, section 2.5.
    """

    def __init__(self, num_bytes: int) -> None:
        self._top = max(_MIN_ORDER, (num_bytes - 1).bit_length())
        self.num_bytes = 1 << self._top
        self.used_bytes = 0
        self.fd = os.memfd_create("saccade-arena", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, self.num_bytes)
        self._memory = mmap.mmap(self.fd, self.num_bytes)
        self.view = memoryview(self._memory)
        self._free: list[set[int]] = [set() for _ in range(self._top + 1)]
        self._free[self._top].add(0)
        self._orders: dict[int, int] = {}

    def take(self, num_bytes: int) -> int | None:
        """The offset of a free block of at least this many bytes, or None if there is none."""
        order = max(_MIN_ORDER, (num_bytes - 1).bit_length())
        found = order
        while found <= self._top and not self._free[found]:
            found += 1
        if found > self._top:
            return None
        # The lowest, so that few pages are ever touched.
        offset = min(self._free[found])
        self._free[found].remove(offset)
        while found > order:
            found -= 1
            self._free[found].add(offset + (1 << found))
        self._orders[offset] = order
        self.used_bytes += 1 << order
        return offset

    def size(self, offset: int) -> int:
        """The bytes of a block."""
        return 1 << self._orders[offset]

    def give_back(self, offset: int) -> None:
        """Free a block."""
        order = self._orders.pop(offset)
        self.used_bytes -= 1 << order
        while order < self._top:
            buddy = offset ^ (1 << order)
            if buddy not in self._free[order]:
                break
            self._free[order].remove(buddy)
            offset &= ~(1 << order)
            order += 1
        self._free[order].add(offset)

    def close(self) -> None:
        """Release the memory; blocks must not be used afterwards."""
        self.view.release()
        self._memory.close()
        os.close(self.fd)


def map_arena(fd: int) -> memoryview:
    """An arena's memory in another process."""
    return memoryview(mmap.mmap(fd, os.fstat(fd).st_size))
