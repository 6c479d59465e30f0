"""Who is faster, from interleaved rounds on a machine that does other things as well.

In a round every candidate is measured once, one after the other, so that what disturbs the machine
disturbs all of them. Two candidates are compared round by round; the median of the ratios decides.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

__all__ = ["disturbed", "fastest", "paired_ratios", "ranking", "survivors"]

# Ratios of single rounds scatter by this much even when nothing else runs.
NOISE = 0.05
# The same deployment moves by less than this between the ends of a round if nothing else runs.
_STEADY = 0.15

Rounds = Sequence[Mapping[str, float]]


def disturbed(first: float, last: float) -> bool:
    """Whether something else ran for a part of a round, told by the reference at both ends."""
    return not 1 - _STEADY <= last / first <= 1 / (1 - _STEADY)


def paired_ratios(rounds: Rounds, one: str, other: str) -> list[float]:
    """one / other in each round that has both."""
    return [r[one] / r[other] for r in rounds if one in r and other in r]


def ranking(rounds: Rounds, keys: Sequence[str]) -> list[str]:
    """Fastest first: by the median ratio to whatever was measured most often."""
    counts = {key: sum(key in r for r in rounds) for key in keys}
    measured = [key for key in keys if counts[key]]
    if not measured:
        return []
    anchor = max(measured, key=lambda key: counts[key])
    ratio = {
        key: statistics.median(paired_ratios(rounds, key, anchor) or [0.0]) for key in measured
    }
    return sorted(measured, key=lambda key: -ratio[key])


def fastest(rounds: Rounds, keys: Sequence[str]) -> str:
    """The first of the ranking."""
    return ranking(rounds, keys)[0]


def survivors(rounds: Rounds, keys: Sequence[str]) -> list[str]:
    """The faster half, and of the others those that noise does not let us tell from the best;
    never more than two thirds, so that the field shrinks on any machine."""
    ranked = ranking(rounds, keys)
    if not ranked:
        return []
    num_half, at_most = math.ceil(len(ranked) / 2), math.ceil(len(ranked) * 2 / 3)
    best = ranked[0]
    return [
        key
        for position, key in enumerate(ranked[:at_most])
        if position < num_half or _may_be_equal(paired_ratios(rounds, key, best))
    ]


def _may_be_equal(ratios: Sequence[float]) -> bool:
    """Noise shrinks with the square root of the number of rounds."""
    return statistics.median(ratios) >= 1 - NOISE / math.sqrt(len(ratios))
