"""How many requests go into one run, and whether it pays to wait for more.

A run starts at once if nothing else is there. What has gathered meanwhile goes together, but not
more than leaves every other idle thread its share, and not more than can be done within the
latency objective. Waiting for the next request costs the time until it comes; it saves what a
larger batch saves per item. So it pays where that is more, and where the oldest request still
meets the objective.
"""

from __future__ import annotations

import math

__all__ = ["Batching"]

_WEIGHT = 0.1
_LONGEST_GAP_S = 1.0


class Batching:
    """What is known of one model's runs. Its numbers are estimates: threads do not lock it.

    Args:
        max_batch: Items per run at most.
        objective_s: Seconds that a request may take in all.
    """

    def __init__(self, max_batch: int, objective_s: float) -> None:
        self.max_batch = max_batch
        self._objective_s = objective_s
        self._run_s: dict[int, float] = {}
        self._gap_s = _LONGEST_GAP_S
        self._last_s = 0.0

    def arrived(self, now_s: float) -> None:
        """A request came."""
        gap_s = min(_LONGEST_GAP_S, max(0.0, now_s - self._last_s))
        self._last_s = now_s
        self._gap_s += _WEIGHT * (gap_s - self._gap_s)

    def ran(self, num: int, seconds: float) -> None:
        """A run of num items took this long."""
        before_s = self._run_s.get(num)
        change_s = seconds if before_s is None else before_s + _WEIGHT * (seconds - before_s)
        self._run_s[num] = change_s

    def run_s(self, num: int) -> float:
        """Seconds that a run of num items is expected to take: what was measured, or in
        proportion to the nearest size that was."""
        if not self._run_s:
            return 0.0
        known = self._run_s.get(num)
        if known is not None:
            return known
        nearest = min(self._run_s, key=lambda size: abs(size - num))
        return self._run_s[nearest] * num / nearest

    def share(self, num_waiting: int, num_idle: int, age_s: float) -> int:
        """How many of the waiting requests one thread takes.

        Args:
            num_waiting: Requests, at least 1.
            num_idle: Threads with nothing to do, this one among them, at least 1.
            age_s: Of the oldest request.
        """
        num = min(self.max_batch, math.ceil(num_waiting / num_idle))
        left_s = self._objective_s - age_s
        while num > 1 and self.run_s(num) > left_s > self.run_s(1):
            num -= 1
        return num

    def wait_s(self, num: int, age_s: float) -> float:
        """How long to wait for one more request; 0 to run at once.

        Args:
            num: Requests at hand.
            age_s: Of the oldest.
        """
        # Sizes that were never run tell of no saving, so nothing is waited for on a guess.
        if num >= self.max_batch or num + 1 not in self._run_s or num not in self._run_s:
            return 0.0
        saved_s = (num + 1) * (self._run_s[num] / num - self._run_s[num + 1] / (num + 1))
        left_s = self._objective_s - age_s - self._run_s[num + 1]
        if saved_s <= self._gap_s or left_s <= self._gap_s:
            return 0.0
        return min(left_s, 2 * self._gap_s)
