"""An iterator that the thread that fills batches reads from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

__all__ = ["Peekable"]

T = TypeVar("T")


class Peekable(Iterator[T]):
    """An iterator that knows whether it is exhausted and takes one item back.

    If the source fails, it ends here, and says so when it is asked whether it is exhausted: what
    came before the failure is not lost.
    """

    def __init__(self, items: Iterable[T]) -> None:
        self._items = iter(items)
        self._held: list[T] = []
        self._failure: Exception | None = None

    def __next__(self) -> T:
        if self._held:
            return self._held.pop()
        if self._failure is not None:
            raise StopIteration
        try:
            return next(self._items)
        except StopIteration:
            raise
        except Exception as exc:
            self._failure = exc
            raise StopIteration from exc

    def push_back(self, item: T) -> None:
        """Take an item back, to be the next again."""
        self._held.append(item)

    def is_exhausted(self) -> bool:
        """Whether nothing more comes; raises the source's own failure if that ended it."""
        try:
            self._held.append(next(self))
        except StopIteration:
            if self._failure is not None:
                raise self._failure from None
            return True
        return False
