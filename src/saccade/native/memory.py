"""Where every buffer lies: one arena, its size known before anything is reserved.

Buffers whose lives do not overlap share bytes. A buffer lives from the first step that writes it to
the last that reads it, in the order of the steps. Largest first, each goes to the lowest free place
(Pisarchyk and Lee, Efficient memory management for deep neural net inference, 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from saccade.native.ops import Step, reads, writes
from saccade.native.plan import Draft, Plan, Spec, with_views
from saccade.native.tensors import SIZES, Buffer, View

__all__ = ["ALIGNMENT", "Life", "lives_of", "placed"]

ALIGNMENT = 256


@dataclass(frozen=True, slots=True)
class Life:
    """Index of the first step that touches a buffer, and of the last."""

    first: int
    last: int


def lives_of(steps: Sequence[Step]) -> dict[int, Life]:
    """The life of each buffer that a step touches."""
    lives: dict[int, Life] = {}
    for index, step in enumerate(steps):
        for view in (*reads(step), *writes(step)):
            life = lives.get(view.buffer)
            lives[view.buffer] = Life(life.first if life else index, index)
    return lives


def placed(draft: Draft, *, share: bool = True) -> Plan:
    """A plan whose buffers have places; unused buffers are dropped.

    Args:
        draft: Finished.
        share: Whether buffers may share bytes; if not, steps that do not depend on each other can
            run side by side.
    """
    lives = lives_of(draft.steps)
    used = sorted({*lives, *(v.buffer for v in (*draft.inputs.values(), *draft.outputs.values()))})
    numbers = {old: new for new, old in enumerate(used)}
    offsets, arena_bytes = _offsets(draft, lives, share)

    def move(view: View) -> View:
        return replace(view, buffer=numbers[view.buffer])

    def spec(name: str, view: View) -> Spec:
        return Spec(name, numbers[view.buffer], view.dtype, view.shape)

    steps = tuple(with_views(step, move) for step in draft.steps)
    return Plan(
        buffers=tuple(
            Buffer(
                cast(Any, draft.buffers[old].kind),
                draft.buffers[old].name,
                _num_bytes(draft, old),
                offsets.get(old, 0),
            )
            for old in used
        ),
        steps=steps,
        weights=_used_weights(draft),
        constants={numbers[old]: a for old, a in draft.constants.items() if old in numbers},
        inputs=tuple(spec(name, view) for name, view in draft.inputs.items()),
        outputs=tuple(spec(name, view) for name, view in draft.outputs.items()),
        arena_bytes=arena_bytes,
    )


def _num_bytes(draft: Draft, number: int) -> int:
    made = draft.buffers[number]
    return made.num_elements * SIZES[made.dtype]


def _offsets(draft: Draft, lives: dict[int, Life], share: bool) -> tuple[dict[int, int], int]:
    inner = [n for n in lives if draft.buffers[n].kind == "arena"]
    sizes = {n: -(-max(_num_bytes(draft, n), 1) // ALIGNMENT) * ALIGNMENT for n in inner}
    places: dict[int, int] = {}
    for number in sorted(inner, key=lambda n: (-sizes[n], lives[n].first, n)):
        life = lives[number]
        busy = sorted(
            (places[other], places[other] + sizes[other])
            for other in places
            if not share or (lives[other].first <= life.last and life.first <= lives[other].last)
        )
        at = 0
        for low, high in busy:
            if low - at >= sizes[number]:
                break
            at = max(at, high)
        places[number] = at
    return places, max((places[n] + sizes[n] for n in inner), default=0)


def _used_weights(draft: Draft) -> dict[str, Any]:
    named = set()
    for step in draft.steps:
        for field in ("weight", "bias", "weight_scale", "y_units", "gain", "shift"):
            name = getattr(step, field, None)
            if isinstance(name, str):
                named.add(name)
    return {name: array for name, array in draft.weights.items() if name in named}
