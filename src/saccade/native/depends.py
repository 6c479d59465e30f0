"""Which steps must wait for which, and which stream each goes to.

A step waits for those that wrote what it reads, and, where bytes are shared, for those that read or
wrote what it overwrites.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saccade.native.ops import reads, writes
from saccade.native.plan import Plan
from saccade.native.tensors import View
from saccade.native.views import footprint

__all__ = ["Place", "depends", "scheduled"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a step runs.

    Attributes:
        stream: Its stream's number; 0 is the caller's.
        waits: Steps on other streams that must be done before.
    """

    stream: int
    waits: tuple[int, ...]


def depends(plan: Plan) -> list[set[int]]:
    """For each step the earlier ones that it must wait for, those implied by others left out."""
    found: list[set[int]] = []
    behind: list[set[int]] = []  # with all that those wait for
    for index in range(len(plan.steps)):
        needs: set[int] = set()
        for earlier in range(index - 1, -1, -1):
            if any(earlier in behind[other] for other in needs):
                continue
            if _conflict(plan, earlier, index):
                needs.add(earlier)
        found.append(needs)
        behind.append({index}.union(*(behind[other] for other in needs)))
    return found


def _conflict(plan: Plan, earlier: int, later: int) -> bool:
    one, two = plan.steps[earlier], plan.steps[later]
    pairs = [(a, b) for a in writes(one) for b in (*reads(two), *writes(two))]
    pairs += [(a, b) for a in reads(one) for b in writes(two)]
    return any(_overlap(plan, a, b) for a, b in pairs)


def _overlap(plan: Plan, a: View, b: View) -> bool:
    if a.buffer == b.buffer:
        return not _are_apart(a, b)
    one, two = plan.buffers[a.buffer], plan.buffers[b.buffer]
    if one.kind != "arena" or two.kind != "arena":
        return False
    return one.offset < two.offset + two.num_bytes and two.offset < one.offset + one.num_bytes


def _are_apart(a: View, b: View) -> bool:
    """Whether two views of one buffer surely share no element: other rows, or other channels."""
    (low, high), (start, end) = footprint(a), footprint(b)
    if high <= start or end <= low:
        return True
    if not (a.is_pixels and b.is_pixels and a.pitch == b.pitch):
        return False
    pitch = a.pitch
    strides = {s for v in (a, b) for n, s in zip(v.shape[:3], v.strides[:3], strict=True) if n > 1}
    if any(stride % pitch for stride in strides):
        return False
    one, two = a.offset % pitch, b.offset % pitch
    if one + a.c > pitch or two + b.c > pitch:
        return False
    return one + a.c <= two or two + b.c <= one


def scheduled(needs: Sequence[set[int]], num_streams: int) -> list[Place]:
    """Streams for steps: a step goes on behind one it waits for, if nothing else did yet.

    Args:
        needs: From `depends`.
        num_streams: At most so many.
    """
    last: list[int] = []  # the last step of each stream
    stream_of: list[int] = []
    places = []
    for index, waits in enumerate(needs):
        free = [s for s, step in enumerate(last) if step in waits]
        if free:
            # Behind the one that ends latest.
            stream = max(free, key=lambda s: last[s])
        elif len(last) < num_streams:
            stream = len(last)
            last.append(-1)
        else:
            stream = min(range(len(last)), key=lambda s: last[s])
        last[stream] = index
        stream_of.append(stream)
        others = {max(w for w in waits if stream_of[w] == s) for s in {stream_of[w] for w in waits}}
        places.append(Place(stream, tuple(sorted(w for w in others if stream_of[w] != stream))))
    return places
