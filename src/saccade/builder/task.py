"""What a search is about, how it goes, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from saccade.builder.candidates import Space
from saccade.builder.records import Candidate, GateLimits, Islands, Recipe, Row
from saccade.evaluation.annotations import Annotations
from saccade.types import Contract, Model, Precision

__all__ = ["Outcome", "Settings", "Subject"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to search.

    Attributes:
        objective: What counts.
        latency_ms: Limit on p99 end to end of single pictures, or None.
        space: What plans may be made of.
        usable: Back ends and their precisions.
        round_s: Seconds of one candidate's turn in a round.
        patience_s: Longest that a candidate may take to load or to do what it is asked, beyond
            what is known to take time.
        only: The one candidate to try besides the reference, or None to search.
    """

    objective: Literal["throughput", "latency"] = "throughput"
    latency_ms: float | None = None
    space: Space
    usable: dict[str, tuple[Precision, ...]]
    round_s: float = 1.0
    patience_s: float = 120.0
    only: Candidate | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is deployed, and what it is judged by.

    Attributes:
        model: The FP32 network.
        contract: How it is fed and read.
        num_pictures: Pictures to judge on.
        limits: Of the gate.
        annotations: Labels, or None to judge by agreement.
        recipes: Files to try.
        make: Makes a file by its recipe; may raise SaccadeError.
        blocks: Nodes that INT8 touches, in blocks that may be kept in FP32 together.
    """

    model: Model
    contract: Contract
    num_pictures: int
    limits: GateLimits
    annotations: Annotations | None
    recipes: Sequence[Recipe]
    make: Callable[[Recipe], Path]
    blocks: Callable[[], Sequence[frozenset[str]]] = tuple


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was found.

    Attributes:
        rows: All candidates.
        reference: Index of the FP32 reference.
        chosen: Index of the winner.
        ratio: How often as fast the winner is, median of paired rounds.
        islands: What was found to have to stay in FP32.
        num_untried: Plans that there was no time for.
    """

    rows: tuple[Row, ...]
    reference: int
    chosen: int
    ratio: float
    islands: tuple[Islands, ...] = ()
    num_untried: int = 0
