"""SPPF's maxima of maxima as one step."""

from __future__ import annotations

from saccade.native.ops import Pool, PoolChain, Step
from saccade.native.plan import Draft
from saccade.native.views import same_places

__all__ = ["chain_pools"]


def chain_pools(draft: Draft) -> None:
    """Join pools that each read what the one before has made, of one size, with stride 1."""
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
        ys, size, x = (before.y,), before.kernel[0], before.x
    elif isinstance(before, PoolChain):
        ys, size, x = before.ys, before.size, before.x
    else:
        return None
    if size != step.kernel[0] or not same_places(ys[-1], step.x):
        return None
    return PoolChain(f"{before.label} + {step.label}", x, (*ys, step.y), size)
