"""Layer norms and RMS norms that exporters wrote out in parts, as one step.

As with box tails the spelling is not looked at closely: a mean of squares over the last axis and
the pointwise step that reads it are taken, and replaced if a `Norm` gives the same numbers for
random rows, in double precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from saccade.native.ops import Apply, Const, Expr, Norm, Pointwise, Reduce, Step, reads, writes
from saccade.native.plan import Draft
from saccade.native.reference import interpret
from saccade.native.tensors import View

__all__ = ["fuse_norms"]

TOLERANCE = 1e-6
MAX_EPSILON = 1e-2


def fuse_norms(draft: Draft, can_run: Callable[[Step], bool]) -> None:
    """Replace each norm that can be recognised, where there is a kernel for it."""
    for mean in [step for step in draft.steps if isinstance(step, Reduce)]:
        last = _last_step(draft, mean)
        if last is None:
            continue
        for norm in _candidates(draft, mean, last):
            if can_run(norm) and _same(draft, last, norm):
                draft.steps[draft.steps.index(last)] = norm
                break
    draft.drop_dead()


def _last_step(draft: Draft, mean: Reduce) -> Pointwise | None:
    """The one step that reads a mean over the last axis, repeated along it."""
    rank = len(mean.x.shape)
    readers = draft.readers().get(mean.y.buffer, [])
    if mean.kind != "mean" or mean.axes != (rank - 1,) or len(readers) != 1:
        return None
    last = draft.steps[readers[0]]
    if not isinstance(last, Pointwise) or len(last.results) != 1 or last.compute != "float32":
        return None
    views = [view for view in last.operands if view.buffer == mean.y.buffer]
    is_along = all(view.strides[-1] == 0 and view.shape[-1] > 1 for view in views)
    return last if is_along else None


def _candidates(draft: Draft, mean: Reduce, last: Pointwise) -> Iterator[Norm]:
    epsilons = [c for c in _constants(last.exprs[0]) if 0 < c <= MAX_EPSILON]
    vectors = [_vector(draft, view) for view in last.operands]
    stored: list[np.ndarray | None] = [v for v in vectors if v is not None]
    pairs: list[tuple[np.ndarray | None, np.ndarray | None]] = [(None, None)]
    if len(stored) == 1:
        pairs = [(stored[0], None), (None, stored[0])]
    elif len(stored) == 2:
        pairs = [(stored[0], stored[1]), (stored[1], stored[0])]
    for x, is_rms in _rows(draft, mean, last):
        for gain, shift in pairs:
            for epsilon in (*epsilons, 0.0):
                names = [
                    None if array is None else draft.weight(f"{last.label}:{what}", array)
                    for what, array in (("gain", gain), ("shift", shift))
                ]
                yield Norm(
                    last.label, x, last.results[0], epsilon, names[0], names[1], is_rms=is_rms
                )


def _constants(expr: Expr) -> Iterator[float]:
    if isinstance(expr, Const):
        yield expr.value
    elif isinstance(expr, Apply):
        for arg in expr.args:
            yield from _constants(arg)


def _vector(draft: Draft, view: View) -> np.ndarray | None:
    """A constant that varies along the last axis alone."""
    if view.buffer not in draft.constants:
        return None
    if any(n > 1 and s for n, s in zip(view.shape[:-1], view.strides[:-1], strict=True)):
        return None
    stored = draft.constants[view.buffer][view.offset :: view.strides[-1] or 1]
    return np.asarray(stored[: view.shape[-1]], np.float32)


def _rows(draft: Draft, mean: Reduce, last: Pointwise) -> Iterator[tuple[View, bool]]:
    """What might be normalised: an operand itself, or what it was before its mean was taken off."""
    writers = draft.writers()
    for view in last.operands:
        if view.buffer == mean.y.buffer or view.buffer in draft.constants:
            continue
        if view.is_repeated:
            continue
        for index in writers.get(view.buffer, []):
            step = draft.steps[index]
            if not isinstance(step, Pointwise) or step.results[0].shape != view.shape:
                continue
            for operand in step.operands:
                if not operand.is_repeated and operand.buffer not in draft.constants:
                    yield operand, False
        yield view, True


def _same(draft: Draft, last: Pointwise, norm: Norm) -> bool:
    """Whether the norm gives what all the steps between its rows and its result give."""
    steps = _between(draft, norm.x.buffer, last)
    if steps is None:
        return False
    made = draft.buffers[norm.x.buffer]
    # Rows of all sizes, so that what keeps a division from zero is seen.
    rng = np.random.default_rng(0)
    lengths = np.repeat(10.0 ** rng.uniform(-5, 1, made.num_elements), norm.x.shape[-1])
    rows = rng.normal(0.5, 2, made.num_elements) * lengths[: made.num_elements]
    found = []
    for chosen in (steps, [norm]):
        small = Draft()
        small.buffers = [
            replace(b, dtype="float64" if b.dtype == "float32" else b.dtype) for b in draft.buffers
        ]
        small.weights, small.constants = draft.weights, draft.constants
        small.inputs = {"x": View(norm.x.buffer, "float32", (made.num_elements,), (1,))}
        small.outputs = {"y": norm.y}
        small.steps = list(chosen)
        small.retyped()
        found.append(interpret(small, {"x": rows}, compute=np.float64)["y"])
    return bool(np.abs(found[0] - found[1]).max() <= TOLERANCE * np.abs(found[0]).max())


def _between(draft: Draft, start: int, last: Pointwise) -> list[Step] | None:
    """The steps from a buffer to a step, in order, if nothing else goes in."""
    wanted = {view.buffer for view in reads(last)} - {start}
    steps: list[Step] = [last]
    for step in reversed(draft.steps[: draft.steps.index(last)]):
        if any(view.buffer in wanted for view in writes(step)):
            if not isinstance(step, Pointwise | Reduce):
                return None
            steps.append(step)
            wanted |= {view.buffer for view in reads(step)} - {start}
    made = {view.buffer for step in steps for view in writes(step)}
    return steps[::-1] if wanted - made <= set(draft.constants) else None
