"""Which tensors of a quantised graph travel as 8-bit codes: decided by the times of whole plans.

Every group of buffers that can hold codes (`passes.eight_bits`) is tried in codes first. Where a
step that touches a group turns out slower than it is in halves, the plan is priced again with that
group in halves; what is faster stays. A plan's price is the sum of its steps' fastest kernels, so
conversions, which are parts of kernels, count where they happen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from saccade.native.lowering.units import Kind
from saccade.native.ops import Step, reads, writes
from saccade.native.passes.eight_bits import Group, groups_of, put_codes
from saccade.native.plan import Draft

__all__ = ["Mix", "mixed"]

# Gains below this share of a step are noise.
MIN_GAIN = 0.02


@dataclass(frozen=True, slots=True, eq=False)
class Mix:
    """A draft in which some tensors are codes.

    Attributes:
        draft: To be placed.
        groups: That hold codes.
        halves: That could and do not.
        us: Sum of the steps' times, of this draft.
        us_halves: The same of the draft without codes.
    """

    draft: Draft
    groups: tuple[Group, ...]
    halves: tuple[Group, ...]
    us: float
    us_halves: float


def mixed(
    draft: Draft,
    kind: Kind,
    can_run: Callable[[Step], bool],
    price: Callable[[Draft], Sequence[float]],
) -> Mix:
    """Decide by prices.

    Args:
        draft: Marked by `mark_units`; left as it is.
        kind: Of codes.
        can_run: Whether there is a kernel worth having for a step.
        price: Microseconds of each step of a draft.
    """
    groups = groups_of(draft, kind, can_run)
    halves = price(_coded(draft, (), kind))
    chosen = list(groups)
    times = price(_coded(draft, chosen, kind))
    for group in groups:
        touched = [i for i, step in enumerate(draft.steps) if _touches(step, group)]
        if all(times[i] <= halves[i] for i in touched):
            continue
        others = [other for other in chosen if other is not group]
        without = price(_coded(draft, others, kind))
        if sum(without) < sum(times) - MIN_GAIN * max(times[i] for i in touched):
            chosen, times = others, without
    left = tuple(group for group in groups if group not in chosen)
    return Mix(_coded(draft, chosen, kind), tuple(chosen), left, sum(times), sum(halves))


def _coded(draft: Draft, groups: Sequence[Group], kind: Kind) -> Draft:
    made = draft.copy()
    put_codes(made, groups, kind)
    return made


def _touches(step: Step, group: Group) -> bool:
    return any(view.buffer in group.buffers for view in (*reads(step), *writes(step)))
