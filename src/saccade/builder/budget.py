"""Wall time that a build may take, and what it went to."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping

from saccade.errors import InputError

__all__ = ["Budget", "parse_seconds"]

_UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_seconds(text: str) -> float:
    """Seconds from "300s", "10min", "1h" or "300".

    Raises:
        InputError: The text is no time above 0.
    """
    plain = text.strip().lower()
    unit = plain.lstrip("0123456789.")
    try:
        seconds = float(plain.removesuffix(unit)) * _UNITS[unit or "s"]
    except (ValueError, KeyError):
        seconds = 0.0
    if not seconds > 0:
        raise InputError(f"--budget must be a time above 0 such as 300s or 10min, got {text!r}")
    return seconds


class Budget:
    """Time that is left. What was spent before an interruption counts.

    Args:
        total_s: How long the build may take.
        spent_s: What earlier runs of the same build took, by activity.
        clock: Seconds.
    """

    def __init__(
        self,
        total_s: float,
        spent_s: Mapping[str, float] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total_s = total_s
        self._by_activity = dict(spent_s or {})
        self._before_s = sum(self._by_activity.values())
        self._clock = clock
        self._began_s = clock()
        self._booked_s = 0.0

    @property
    def spent_s(self) -> float:
        """Seconds used so far, over all runs."""
        return self._before_s + self._clock() - self._began_s

    @property
    def left_s(self) -> float:
        """Seconds left; negative when overdrawn."""
        return self.total_s - self.spent_s

    @contextlib.contextmanager
    def book(self, activity: str) -> Iterator[None]:
        """Book the time that passes to an activity. Not to be nested."""
        began_s = self._clock()
        try:
            yield
        finally:
            taken_s = self._clock() - began_s
            self._booked_s += taken_s
            self._by_activity[activity] = self._by_activity.get(activity, 0.0) + taken_s

    def by_activity(self) -> dict[str, float]:
        """Seconds by activity; they add up to what was spent."""
        other_s = self._clock() - self._began_s - self._booked_s
        other = self._by_activity.get("other", 0.0) + max(other_s, 0.0)
        return {**self._by_activity, "other": other}
