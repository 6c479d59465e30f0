"""One at a time: processes that measure on one card wait for each other."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from saccade.cuda.compile import cache_dir

__all__ = ["card_lock"]

_held = threading.local()


@contextlib.contextmanager
def card_lock(index: int = 0, *, folder: Path | None = None) -> Iterator[None]:
    """Hold the card's lock: two that measure at once would time each other.

    The lock is of this user's processes on this machine, may be taken again by the thread that
    holds it, and is released by the system if a process dies. Where no file can be written nothing
    is held.

    Args:
        index: The card's number.
        folder: Where the lock's file lies; default beside the cubins.
    """
    depth = getattr(_held, "depth", 0)
    if depth:
        _held.depth = depth + 1
        try:
            yield
        finally:
            _held.depth -= 1
        return
    handle = _opened((folder or cache_dir().parent) / f"card-{index}.lock")
    try:
        if handle is not None:
            fcntl.flock(handle, fcntl.LOCK_EX)
        _held.depth = 1
        yield
    finally:
        _held.depth = 0
        if handle is not None:
            os.close(handle)


def _opened(path: Path) -> int | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        return None
