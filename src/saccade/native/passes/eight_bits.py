"""Which buffers hold 8-bit codes: those of which the graph tells every reader the unit.

A buffer can hold codes if convolutions that write it can round, convolutions that read it can take
codes, or read it as a residual, and all else only moves it (repeats or pools it) into a buffer that
holds codes of the same unit. Buffers that are moved into each other are one group: they hold codes
together or not at all. Slices of a buffer's channels may have units of their own, if nothing else
than convolutions touches it. Values that the graph wants unrounded beside their codes (the residual
of a sum) are read as codes too: every tensor is stored once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from saccade.native.lowering.units import Kind
from saccade.native.ops import Conv, Copy, Pool, PoolChain, Resize, Step, reads, writes
from saccade.native.plan import Draft, DraftBuffer, with_views
from saccade.native.reference import as_e4m3
from saccade.native.tensors import View

__all__ = ["Group", "groups_of", "put_codes"]

_HALVES = ("float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Group:
    """Buffers that hold codes together.

    Attributes:
        buffers: Their numbers.
        units: First channel and real value of one unit, per slice of channels, in order.
    """

    buffers: frozenset[int]
    units: tuple[tuple[int, float], ...]


def groups_of(draft: Draft, kind: Kind, can_run: Callable[[Step], bool]) -> tuple[Group, ...]:
    """Groups of buffers that can hold codes, all at once or any of them, in order of number.

    Args:
        draft: With element types; its convolutions marked by `mark_units`.
        kind: Of codes.
        can_run: Whether there is a kernel worth having for a step.
    """
    found = _joined(draft)
    while True:
        coded = _Coder(draft, found, kind)
        bad = {
            view.buffer
            for step in draft.steps
            if coded.touches(step) and not can_run(coded.step(step))
            for view in (*reads(step), *writes(step))
        }
        kept = [group for group in found if not group.buffers & bad]
        if len(kept) == len(found):
            return tuple(found)
        found = kept


def put_codes(draft: Draft, groups: Collection[Group], kind: Kind) -> None:
    """Let groups hold codes; other convolutions forget what they were told."""
    coder = _Coder(draft, groups, kind)
    draft.steps = [coder.step(step) for step in draft.steps]
    for group in groups:
        for number in group.buffers:
            draft.buffers[number].dtype = kind
    draft.retyped()


def _joined(draft: Draft) -> list[Group]:
    """Groups by what is moved where, less those that cannot hold codes."""
    parents = list(range(len(draft.buffers)))

    def root(number: int) -> int:
        while parents[number] != number:
            number = parents[number]
        return number

    # Buffer to first channel and unit of what reads it; None where something else touches it.
    told: dict[int, set[tuple[int, float | None]]] = {}
    moved = set()
    for step in draft.steps:
        views = (*reads(step), *writes(step))
        if _moves(step):
            moved |= {view.buffer for view in views}
            for view in views[1:]:
                parents[root(view.buffer)] = root(views[0].buffer)
        for number, channel, unit in _told(step):
            told.setdefault(number, set()).add((channel, unit))
    members: dict[int, list[int]] = {}
    for number in range(len(draft.buffers)):
        members.setdefault(root(number), []).append(number)
    found = []
    for numbers in members.values():
        pairs = set[tuple[int, float | None]]().union(*(told.get(n, set()) for n in numbers))
        slices = _slices(pairs)
        made = [draft.buffers[number] for number in numbers]
        is_apart = len(slices) > 1 and (
            len(numbers) > 1 or numbers[0] in moved or not _has_one_writer(draft, numbers[0])
        )
        if slices and not is_apart and all(_is_inner(buffer) for buffer in made):
            found.append(Group(frozenset(numbers), slices))
    return found


def _told(step: Step) -> Iterator[tuple[int, int, float | None]]:
    """Buffer, first channel and unit of what a step reads; no unit for what it cannot have."""
    if isinstance(step, Conv):
        unit = None if step.weight_scale is None else step.x_scale
        for view in (step.x, step.second):
            if view is not None:
                yield view.buffer, _first_channel(view), unit
    elif not _moves(step):
        for view in (*reads(step), *writes(step)):
            yield view.buffer, 0, None


def _slices(pairs: Collection[tuple[int, float | None]]) -> tuple[tuple[int, float], ...]:
    """One unit, or one per slice of channels; () where readers do not agree."""
    units = {unit for _, unit in pairs}
    if not units or None in units:
        return ()
    told = sorted(cast(Collection[tuple[int, float]], pairs))
    if len(units) == 1:
        return ((0, told[0][1]),)
    is_cut = told[0][0] == 0 and len({first for first, _ in told}) == len(told)
    return tuple(told) if is_cut else ()


def _is_inner(buffer: DraftBuffer) -> bool:
    return buffer.kind == "arena" and buffer.dtype in _HALVES


def _first_channel(view: View) -> int:
    return view.offset % view.strides[-2] if view.strides[-2] else 0


def _has_one_writer(draft: Draft, number: int) -> bool:
    """Whether one convolution writes a whole buffer, and none reads it as a residual."""
    steps = [draft.steps[index] for index in draft.writers().get(number, [])]
    added = [s for s in draft.steps if isinstance(s, Conv) and s.residual is not None]
    return (
        len(steps) == 1
        and writes(steps[0])[0].num_elements == draft.buffers[number].num_elements
        and all(s.residual is not None and s.residual.buffer != number for s in added)
    )


def _moves(step: Step) -> bool:
    """Whether a step's results are some of the numbers that it reads."""
    if isinstance(step, Pool | Resize):
        return step.kind in ("max", "nearest")
    return isinstance(step, PoolChain) or (isinstance(step, Copy) and step.x.dtype == step.y.dtype)


class _Coder:
    """Steps as they are if some groups hold codes."""

    def __init__(self, draft: Draft, groups: Collection[Group], kind: Kind) -> None:
        self._draft = draft
        self._kind = kind
        self._units = {number: group.units for group in groups for number in group.buffers}

    def touches(self, step: Step) -> bool:
        return any(view.buffer in self._units for view in (*reads(step), *writes(step)))

    def step(self, step: Step) -> Step:
        """The step; a convolution that reads no codes forgets what it was told."""
        if not isinstance(step, Conv):
            return with_views(step, self._typed) if self.touches(step) else step
        weight, scale = step.weight, None
        if step.x.buffer in self._units:
            assert step.weight_scale is not None
            weight, scale = self._weights(step.weight, step.weight_scale)
        return replace(
            cast(Conv, with_views(step, self._typed)),
            weight=weight,
            weight_scale=scale,
            x_scale=self._unit(step.x),
            y_scale=1.0 if self._is_apart(step.y) else self._unit(step.y),
            residual_scale=1.0 if step.residual is None else self._unit(step.residual),
            y_units=self._units_of(step) if self._is_apart(step.y) else None,
        )

    def _typed(self, view: View) -> View:
        return replace(view, dtype=self._kind) if view.buffer in self._units else view

    def _is_apart(self, view: View) -> bool:
        return len(self._units.get(view.buffer, ())) > 1

    def _unit(self, view: View) -> float:
        """Of the slice that a view is of; 1 where there are no codes."""
        slices = self._units.get(view.buffer, ((0, 1.0),))
        channel = _first_channel(view) if len(slices) > 1 else 0
        return next(unit for first, unit in slices[::-1] if first <= channel)

    def _units_of(self, step: Conv) -> str:
        """Name of the units of each channel of a result."""
        name = f"{step.label}:{self._kind}:units"
        slices = self._units[step.y.buffer]
        if name not in self._draft.weights:
            firsts = [first for first, _ in slices]
            counts = np.diff([0, *firsts[1:], step.y.c])
            units = np.repeat([unit for _, unit in slices], counts)
            self._draft.weights[name] = units.astype(np.float32)
        return name

    def _weights(self, weight: str, units: str) -> tuple[str, str]:
        """Names of a weight's codes, as int8 (the bits of e4m3), and of their units."""
        name, stored = f"{weight}:{self._kind}", self._draft
        unit_name = f"{name}:units"
        if name not in stored.weights:
            # Channels that passes put behind the others are zeros, of any unit.
            more = len(stored.weights[weight]) - len(stored.weights[units])
            unit = np.pad(stored.weights[units], (0, more), constant_values=1)
            least = np.maximum(unit, np.float32(1e-30)).reshape(-1, 1, 1, 1)
            values = stored.weights[weight] / least
            if self._kind == "int8":
                codes = np.clip(np.rint(values), -128, 127).astype(np.int8)
            else:
                codes = as_e4m3(values)[1].view(np.int8)
            stored.weights[name], stored.weights[unit_name] = np.ascontiguousarray(codes), unit
        return name, unit_name
