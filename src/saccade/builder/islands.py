"""Which nodes must stay in FP32: found by the task's loss, with few trials."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from saccade.errors import BuildError, InputError
from saccade.graph.passes.fp16 import islands_of
from saccade.graph.passes.loading import load_tidy
from saccade.graph.passes.quantize import quantizable_nodes
from saccade.types import Model

__all__ = ["Contribution", "Found", "blocks_of", "find_islands", "search_islands"]

_MIN_BLOCKS, _MAX_BLOCKS, _DEPTHS = 6, 32, 6


@dataclass(frozen=True, slots=True)
class Contribution:
    """What keeping one block is worth.

    Attributes:
        nodes: Its nodes.
        drop: How far the score falls below the reference if this block alone is released from
            the islands found; None if there was no trial left to measure it.
    """

    nodes: tuple[str, ...]
    drop: float | None


@dataclass(frozen=True, slots=True)
class Found:
    """The outcome of a search.

    Attributes:
        kept: Names of the nodes that stay in FP32.
        contributions: One per kept block, in graph order.
        reference: Score with everything kept.
        drop: Reference minus the score with `kept`; within the limit unless kept is everything.
        trials: Scores that were measured.
        is_minimal: Whether no single block can be released; False if trials ran out before.
    """

    kept: frozenset[str]
    contributions: tuple[Contribution, ...]
    reference: float
    drop: float
    trials: int
    is_minimal: bool


def find_islands(
    score: Callable[[frozenset[str]], float],
    blocks: Sequence[frozenset[str]],
    *,
    target_drop: float,
    max_trials: int,
    reference: float | None = None,
) -> frozenset[str]:
    """The nodes of `search_islands`, without the evidence."""
    return search_islands(
        score, blocks, target_drop=target_drop, max_trials=max_trials, reference=reference
    ).kept


def search_islands(
    score: Callable[[frozenset[str]], float],
    blocks: Sequence[frozenset[str]],
    *,
    target_drop: float,
    max_trials: int,
    reference: float | None = None,
) -> Found:
    """Find few blocks which, kept in FP32, hold the score within a limit of the reference.

    The drop is measured against the score with all blocks kept. First groups of blocks are
    bisected for the smallest that suffices, then smaller groups and single blocks are released
    until none can be. What is returned has been measured to be within the limit, also when trials
    run out; at worst it is everything.

    Source: A. Zeller and R. Hildebrandt, Simplifying and Isolating Failure-Inducing Input, IEEE
    Transactions on Software Engineering 28(2), 2002: the minimising delta-debugging algorithm.

    Args:
        score: Measures the task with these nodes kept, higher is better. Called at most
            max_trials times, never twice with the same nodes.
        blocks: Disjoint sets of node names, in graph order.
        target_drop: Limit on reference minus score.
        max_trials: At least 2.
        reference: Score with everything kept, if it is known already (that is the FP32 model).

    Raises:
        InputError: The call is wrong.
    """
    _check(blocks, target_drop, max_trials)
    search = _Search(score, blocks, target_drop, max_trials)
    everything = tuple(range(len(blocks)))
    reference = search.start(everything, reference)
    kept: tuple[int, ...] = everything
    try:
        kept = () if search.is_enough(()) else search.reduce(everything)
        is_minimal = True
    except _OutOfTrialsError:
        kept, is_minimal = search.smallest, False
    contributions = []
    for index in kept:
        rest = tuple(i for i in kept if i != index)
        value = search.known.get(rest)
        drop = None if value is None else reference - value
        contributions.append(Contribution(tuple(sorted(blocks[index])), drop))
    return Found(
        kept=_union(blocks, kept),
        contributions=tuple(contributions),
        reference=reference,
        drop=reference - search.known[kept],
        trials=search.trials,
        is_minimal=is_minimal,
    )


def _check(blocks: Sequence[frozenset[str]], target_drop: float, max_trials: int) -> None:
    if not blocks or not all(blocks) or sum(map(len, blocks)) != len(_union(blocks)):
        raise InputError("blocks must be disjoint sets of node names, at least one, none empty")
    if not target_drop >= 0:
        raise InputError(f"target_drop must be 0 or more, got {target_drop}")
    if max_trials < 2:
        raise InputError(
            f"max_trials must be at least 2 (everything kept, nothing kept), got {max_trials}"
        )


def _union(
    blocks: Sequence[frozenset[str]], indices: Sequence[int] | None = None
) -> frozenset[str]:
    chosen = blocks if indices is None else [blocks[index] for index in indices]
    return frozenset(name for block in chosen for name in block)


class _OutOfTrialsError(Exception):
    """No trial is left."""


class _Search:
    """Measures sets of blocks, each once, and remembers the smallest that was within the limit."""

    def __init__(
        self,
        score: Callable[[frozenset[str]], float],
        blocks: Sequence[frozenset[str]],
        target_drop: float,
        max_trials: int,
    ) -> None:
        self.known: dict[tuple[int, ...], float] = {}
        self.smallest: tuple[int, ...] = ()
        self.trials = 0
        self._score = score
        self._blocks = blocks
        self._target_drop = target_drop
        self._max_trials = max_trials
        self._reference = 0.0

    def start(self, everything: tuple[int, ...], reference: float | None) -> float:
        """Take the reference, or measure it."""
        if reference is None:
            reference = self._score(_union(self._blocks, everything))
            self.trials = 1
        self._reference = self.known[everything] = reference
        self.smallest = everything
        return self._reference

    def is_enough(self, kept: tuple[int, ...]) -> bool:
        """Whether keeping these blocks holds the score within the limit."""
        if kept not in self.known:
            if self.trials >= self._max_trials:
                raise _OutOfTrialsError
            self.trials += 1
            self.known[kept] = self._score(_union(self._blocks, kept))
        # NaN is never enough.
        is_within = self._reference - self.known[kept] <= self._target_drop
        if is_within and len(kept) < len(self.smallest):
            self.smallest = kept
        return is_within

    def reduce(self, kept: tuple[int, ...]) -> tuple[int, ...]:
        """A subset within the limit from which no single block can be released."""
        num_parts = 2
        while len(kept) > 1:
            parts = _split(kept, num_parts)
            smaller = next((part for part in parts if self.is_enough(part)), None)
            if smaller is not None:
                kept, num_parts = smaller, 2
                continue
            rests = [tuple(i for i in kept if i not in part) for part in parts]
            smaller = next((rest for rest in rests if self.is_enough(rest)), None)
            if smaller is not None:
                kept, num_parts = smaller, max(num_parts - 1, 2)
            elif num_parts < len(kept):
                num_parts = min(2 * num_parts, len(kept))
            else:
                return kept
        return kept


def _split(kept: tuple[int, ...], num_parts: int) -> list[tuple[int, ...]]:
    bounds = [len(kept) * i // num_parts for i in range(num_parts + 1)]
    return [kept[a:b] for a, b in itertools.pairwise(bounds) if a < b]


def blocks_of(model: Model, precision: str = "int8") -> tuple[frozenset[str], ...]:
    """The graph's nodes that a lower precision would touch, in blocks of graph order.

    A block is what shares the first parts of its path where nodes are named by paths (as
    exporters of PyTorch do), else one of 16 runs of equal length.

    Args:
        model: The network.
        precision: "int8" or "fp16".

    Raises:
        BuildError: The graph has no such nodes.
    """
    proto = load_tidy(model)
    if precision == "int8":
        names = list(quantizable_nodes(proto.graph))
    else:
        islands = islands_of(proto)
        names = [node.name for node in proto.graph.node if node.name not in islands]
    if not names:
        raise BuildError(
            f"a graph must have nodes that {precision} touches to be searched, this one has none; "
            "use fp32"
        )
    for depth in range(1, _DEPTHS):
        groups: dict[str, list[str]] = {}
        for name in names:
            groups.setdefault("/".join(name.strip("/").split("/")[:depth]), []).append(name)
        if _MIN_BLOCKS <= len(groups) <= _MAX_BLOCKS:
            return tuple(frozenset(group) for group in groups.values())
    size = -(-len(names) // 16)
    return tuple(frozenset(names[i : i + size]) for i in range(0, len(names), size))
