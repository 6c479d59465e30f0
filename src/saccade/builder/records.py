"""The nouns of a build: what is tried, what is measured, what is decided.

They are plain data, so that a candidate can be handed to its own process, a build can be resumed
from a file, and a bundle and a report can be written from the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from saccade.types import Fallback, Plan

__all__ = [
    "BuildRecord",
    "Candidate",
    "GateLimits",
    "Interval",
    "Islands",
    "KeptBlock",
    "Reason",
    "Recipe",
    "Row",
    "Speed",
    "Verdict",
]

ReasonKind = Literal[
    "drop",  # a metric fell by more than its limit
    "too_few_pictures",  # the set is too small to see a drop of the limit's size
    "not_finite",  # NaN or infinity in an answer
    "batch_dependent",  # an answer depends on its neighbours in the batch
    "not_repeatable",  # the same picture gave different answers
    "fallback",  # another device or precision than the plan says
    "contract_changed",  # the transformed graph is fed or read otherwise
    "picture_errors",  # pictures that the reference could use failed
]
Status = Literal[
    "waiting",  # not looked at yet
    "passed",  # the gate let it pass and it was measured
    "refused",  # the gate refused it
    "failed",  # it could not be built or loaded, crashed, hung or ran out of memory
    "dropped",  # not pursued: it could not become the fastest any more, or time was up
]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the ONNX file of a candidate is made from the model.

    Attributes:
        precision: What the graph itself says: "fp32" leaves it as it is.
        calibrator: For "int8": how ranges were found, e.g. "minmax" or "percentile-99.99".
        kept: Names of nodes that stay in FP32, sorted.
        everything: For "int8": also quantise the head and the first layer (a bad idea that users
            have; the gate must refuse it where it is).
    """

    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    calibrator: str = ""
    kept: tuple[str, ...] = ()
    everything: bool = False

    @property
    def label(self) -> str:
        """Short name for tables, e.g. "int8 minmax, 3 kept"."""
        parts = [self.precision, self.calibrator, "every operator" if self.everything else ""]
        text = " ".join(part for part in parts if part)
        return f"{text}, {len(self.kept)} kept" if self.kept else text


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to deploy: a recipe for the file, a plan for the engine, and the pipeline round it.

    Attributes:
        recipe: How the file is made.
        plan: How the engine runs it.
        workers: Threads that decode, prepare and suppress.
        scaled_decode: Whether large JPEGs are decoded at a fraction of their size.
    """

    recipe: Recipe
    plan: Plan
    workers: int = 1
    scaled_decode: bool = False

    @property
    def label(self) -> str:
        """Short name for tables and files; equal labels mean equal candidates."""
        plan = self.plan
        text = (
            f"{plan.backend} {plan.precision}, {self.recipe.label}, batch {plan.batch}, "
            f"{plan.streams}x{plan.threads} threads, {self.workers} workers"
        )
        options = ", ".join(f"{name}={value}" for name, value in plan.options)
        scaled = ", scaled decode" if self.scaled_decode else ""
        return f"{text}{scaled}{', ' + options if options else ''}"


@dataclass(frozen=True, slots=True)
class GateLimits:
    """How much each figure may fall against the FP32 reference.

    Attributes:
        max_drop: By metric name: "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
            "AR100", or "class:NAME" for the AP of one class. Absolute, in AP units (0 to 1).
        agreement: Without labels: the least AP of the candidate against the reference's boxes.
    """

    max_drop: Mapping[str, float] = field(
        default_factory=lambda: {"AP": 0.005, "AP50": 0.01, "AP_small": 0.02, "AR100": 0.01}
    )
    agreement: float = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its bootstrap interval (95 % over pictures)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a candidate was refused, or a warning about the evidence.

    Attributes:
        kind: One of ReasonKind.
        text: In plain words, with numbers and the limit.
        where: Batch size, input shape or picture that showed it.
    """

    kind: ReasonKind
    text: str
    where: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says of one candidate.

    Attributes:
        passed: Whether it may be deployed.
        judged_by: "AP" on labels, or "agreement" with the FP32 reference's boxes.
        reasons: Why it was refused; empty if it passed.
        warnings: What the evidence cannot show, e.g. too few pictures.
        metrics: Candidate's figures, by metric name ("AP", ..., "class:NAME").
        reference: The reference's figures, likewise.
        drops: Reference minus candidate with its interval, likewise.
        num_pictures: Pictures that it was judged on.
        checked: What was run, e.g. "batch 1 at 640x640", "batch 4 at 640x640".
    """

    passed: bool
    judged_by: Literal["AP", "agreement"]
    reasons: tuple[Reason, ...]
    warnings: tuple[Reason, ...]
    metrics: Mapping[str, float]
    reference: Mapping[str, float]
    drops: Mapping[str, Interval]
    num_pictures: int
    checked: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Speed:
    """What one candidate reached, end to end, from encoded picture to final boxes.

    Attributes:
        pictures_per_s: Per round, interleaved with the other candidates.
        latency_p50_ms: Of single pictures through the same engine, end to end; None if not taken.
        latency_p99_ms: Likewise.
        cpu_ms: CPU milliseconds per picture.
        load_s: Seconds to load the engine.
        peak_memory_bytes: Of the candidate's process.
    """

    pictures_per_s: tuple[float, ...]
    latency_p50_ms: float | None
    latency_p99_ms: float | None
    cpu_ms: float
    load_s: float
    peak_memory_bytes: int


@dataclass(frozen=True, slots=True)
class Row:
    """One candidate's line in the table, refused and failed ones included."""

    candidate: Candidate
    status: Status = "waiting"
    verdict: Verdict | None = None
    speed: Speed | None = None
    error: str = ""
    fallbacks: tuple[Fallback, ...] = ()


@dataclass(frozen=True, slots=True)
class KeptBlock:
    """Nodes that stay in FP32 together.

    Attributes:
        nodes: Their names.
        short: How far the worst figure falls beyond its limit, in AP units, if this block alone is
            quantised as well; None if there was no time to measure it.
    """

    nodes: tuple[str, ...]
    short: float | None


@dataclass(frozen=True, slots=True)
class Islands:
    """What has to stay in FP32 so that an INT8 candidate passes.

    Attributes:
        without: Label of the candidate that quantises it all and was refused.
        winner: Label of the one that keeps these blocks.
        blocks: What is kept, in graph order.
        num_blocks: Blocks that INT8 would touch.
        num_trials: Sets of blocks that were judged.
        is_minimal: Whether no single block can be released; False if time ran out before.
    """

    without: str
    winner: str
    blocks: tuple[KeptBlock, ...]
    num_blocks: int
    num_trials: int
    is_minimal: bool


@dataclass(frozen=True, slots=True)
class BuildRecord:
    """A whole build.

    Attributes:
        model: File name of the model.
        model_digest: Its digest.
        objective: "throughput", or "latency".
        latency_ms: Limit on p99 end to end, or None.
        limits: Of the gate.
        rows: Every candidate.
        reference: Index in rows of the FP32 reference.
        chosen: Index in rows of the winner.
        verdict: The outcome in one sentence.
        notes: What was tried and did not pay, in sentences.
        machine: Where, as plain values.
        seconds: How long it took, over all runs of a resumed build.
        islands: What was found to have to stay in FP32, one search each.
        engines: By target of the engines asked for, why there is none; "" if there is one.
    """

    model: str
    model_digest: str
    objective: Literal["throughput", "latency"]
    latency_ms: float | None
    limits: GateLimits
    rows: tuple[Row, ...]
    reference: int
    chosen: int
    verdict: str
    notes: tuple[str, ...]
    machine: Mapping[str, Any]
    seconds: float
    islands: tuple[Islands, ...] = ()
    engines: Mapping[str, str] = field(default_factory=dict)
