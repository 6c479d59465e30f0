"""SPPF's maxima of maxima as one step."""

from __future__ import annotations

from dataclasses import replace

from saccade.native.ops import Pool, PoolChain, Step
from saccade.native.plan import Draft
from saccade.native.tensors import View
from saccade.native.views import same_places

__all__ = ["chain_pools"]


def chain_pools(draft: Draft) -> None:
    """Join pools that each read what the one before has made, of one size, with stride 1.

    Pools of 5, 9 and 13 of the same picture (SPP) are such a chain of 5 in disguise.
    """
    draft.steps = [_unspread(draft, index) for index in range(len(draft.steps))]
    steps: list[Step] = []
    for step in draft.steps:
        if not isinstance(step, Pool) or not _is_plain(step):
            steps.append(step)
            continue
        for index, before in enumerate(steps):
            joined = _joined(before, step)
            if joined is not None:
                steps[index] = joined
                break
        else:
            steps.append(step)
    draft.steps = steps


def _unspread(draft: Draft, index: int) -> Step:
    """A pool of size a + b - 1 as one of size b over an earlier pool of size a, of one picture."""
    step = draft.steps[index]
    if not isinstance(step, Pool) or not _is_plain(step):
        return step
    best = step
    for before in draft.steps[:index]:
        if isinstance(before, Pool) and _is_plain(before) and same_places(before.x, step.x):
            size = step.kernel[0] - before.kernel[0] + 1
            if 1 < size < best.kernel[0]:
                best = replace(step, x=before.y, kernel=(size, size), pads=(size // 2,) * 4)
    return best


def _is_plain(step: Pool) -> bool:
    size = step.kernel[0]
    return (
        step.kind == "max"
        and step.kernel == (size, size)
        and size % 2 == 1
        and step.stride == (1, 1)
        and step.dilation == (1, 1)
        and step.pads == (size // 2,) * 4
    )


def _joined(before: Step, step: Pool) -> PoolChain | None:
    if isinstance(before, Pool) and _is_plain(before):
        ys: tuple[View, ...] = (before.y,)
        size, x = before.kernel[0], before.x
    elif isinstance(before, PoolChain):
        ys, size, x = before.ys, before.size, before.x
    else:
        return None
    if size != step.kernel[0] or not same_places(ys[-1], step.x):
        return None
    return PoolChain(f"{before.label} + {step.label}", x, (*ys, step.y), size)
