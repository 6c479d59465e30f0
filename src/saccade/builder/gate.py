"""The gate: which deployments may serve. It looks at answers, not at tensors.

Every reason is listed, in a fixed order, so that the first one told is the most basic one.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from saccade.builder.agreement import from_reference
from saccade.builder.answers import Answers, Pass
from saccade.builder.bootstrap import (
    NUM_DRAWS,
    Scored,
    draw,
    draw_weights,
    figures,
    num_pictures_needed,
    paired_drops,
)
from saccade.builder.evidence import Evidence, from_labels, score
from saccade.builder.records import GateLimits, Interval, Reason, Verdict
from saccade.errors import InputError
from saccade.evaluation.annotations import Annotations
from saccade.types import Contract, Detections

__all__ = ["METRICS", "Gate", "judge", "make_gate", "parse_max_drop", "shortfall"]

METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR100")
_CLASS = "class:"
_MAX_SHOWN = 3
# Drops are differences of doubles; a limit of 0 must not refuse the last bit.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Gate:
    """Everything that candidates are held against, prepared once.

    Attributes:
        reference: The FP32 reference's answers.
        evidence: Labels, or the reference's boxes.
        scored: The reference, matched to the evidence.
        limits: How far a candidate may fall.
        weights: (d, num_pictures) the bootstrap's draws.
        drawn: The reference's figures in each draw.
    """

    reference: Answers
    evidence: Evidence
    scored: Scored
    limits: GateLimits
    weights: np.ndarray
    drawn: Mapping[str, np.ndarray]


def parse_max_drop(text: str, classes: Sequence[str] = ()) -> dict[str, float]:
    """Read "AP=0.005,AP_small=0.01,class:WBC=0.01".

    Args:
        text: Comma-separated NAME=NUMBER, numbers in AP units (0 to 1).
        classes: Names that "class:" may be followed by; unchecked if empty.

    Raises:
        InputError: A name or a number is wrong; the message says which and what there is.
    """
    limits: dict[str, float] = {}
    for part in _parts(text):
        name, equals, number = (piece.strip() for piece in part.rpartition("="))
        if not equals or not name:
            raise InputError(
                f"--max-drop must be NAME=NUMBER, several separated by commas, got {part!r}; "
                "write for example AP=0.005,class:car=0.01"
            )
        _check_name(name, classes)
        if name in limits:
            raise InputError(f"--max-drop must name {name} once, it is named twice in {text!r}")
        limits[name] = _number(name, number)
    return limits


def _parts(text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise InputError(
            f"--max-drop must name at least one metric and none may be empty, got {text!r}; write "
            "for example AP=0.005"
        )
    return parts


def _check_name(name: str, classes: Sequence[str]) -> None:
    if name.startswith(_CLASS):
        wanted = name[len(_CLASS) :]
        if classes and wanted not in classes:
            by_plain = {name.casefold(): name for name in classes}
            found = difflib.get_close_matches(wanted.casefold(), by_plain, n=1)
            close = [by_plain[name] for name in found]
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise InputError(
                f"a class in --max-drop must be one of {', '.join(classes[:20])}"
                f"{', ...' if len(classes) > 20 else ''}; got {wanted!r}{hint}"
            )
    elif name not in METRICS:
        close = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise InputError(
            f"a metric in --max-drop must be one of {', '.join(METRICS)} or class:NAME; got "
            f"{name!r}{hint}"
        )


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1:
        hint = f"; for {text} write {_as_fraction(text)}" if _as_fraction(text) else ""
        raise InputError(
            f"the drop allowed for {name} must be a number from 0 to below 1 in AP units, got "
            f"{text!r}{hint}"
        )
    return value


def _as_fraction(text: str) -> str:
    try:
        return f"{float(text.rstrip('%')) / 100:g}" if text.endswith("%") else ""
    except ValueError:
        return ""


def make_gate(
    reference: Answers,
    contract: Contract,
    limits: GateLimits,
    *,
    annotations: Annotations | None = None,
    num_draws: int = NUM_DRAWS,
) -> Gate:
    """Prepare the gate from the reference's answers.

    Args:
        reference: Answers of FP32 ONNX Runtime, to the annotated images in the order of their
            ids if there are annotations.
        contract: How the model is fed and read.
        limits: How far a candidate may fall.
        annotations: Labels; without them candidates are judged by agreement.
        num_draws: Of the bootstrap.

    Raises:
        AnnotationError: The labels do not fit the model.
        InputError: The reference finds nothing to judge by.
    """
    answers = reference.passes[0].detections
    if annotations is None:
        evidence = from_reference(answers, contract)
    else:
        evidence = from_labels(annotations, contract)
    if len(evidence.truth) != len(answers):
        raise InputError(
            f"there must be one answer for each of {len(evidence.truth)} pictures, got "
            f"{len(answers)}"
        )
    scored = score(evidence, answers)
    weights = draw_weights(len(answers), num_draws)
    return Gate(reference, evidence, scored, limits, weights, draw(scored, weights))


def judge(gate: Gate, candidate: Answers) -> Verdict:
    """Say whether a candidate may serve, and every reason why not."""
    scored = [_score_pass(gate, one) for one in candidate.passes]
    # The last pass is the largest batch: the one that serves. Its figures are shown.
    drops = _drops(gate, scored[-1])
    reasons = [
        *_contract_reasons(gate.reference, candidate),
        *_fallback_reasons(candidate),
        *(r for one in candidate.passes for r in _error_reasons(gate.reference, one)),
        *(r for one in candidate.passes for r in _finite_reasons(gate.reference, one)),
        *(r for r in candidate.findings if r.kind == "batch_dependent"),
        *(r for r in candidate.findings if r.kind == "not_repeatable"),
        *_drop_reasons(gate, candidate.passes, scored, drops),
    ]
    metrics = _figures(gate, scored[-1])
    return Verdict(
        passed=not reasons,
        judged_by=gate.evidence.judged_by,
        reasons=tuple(reasons),
        warnings=tuple(_warnings(gate, drops)),
        metrics=metrics,
        reference=_figures(gate, gate.scored),
        drops=drops,
        num_pictures=gate.scored.num_pictures,
        checked=tuple(one.where for one in candidate.passes),
    )


def shortfall(gate: Gate, verdict: Verdict) -> float:
    """How far the worst of the limited figures is beyond its limit, negative if it is."""
    drops = [
        limit - verdict.drops[name].value
        for name, limit in _limits(gate).items()
        if name in verdict.drops
    ]
    worst = min(drops, default=0.0)
    return worst if worst < -_ROUNDING else 0.0


def _score_pass(gate: Gate, one: Pass) -> Scored:
    return score(gate.evidence, [_finite_part(found) for found in one.detections])


def _finite_part(found: Detections | None) -> Detections | None:
    """Boxes that are numbers: the others are a reason of their own and match nothing."""
    if found is None:
        return None
    good = np.isfinite(found.boxes_xyxy).all(axis=1) & np.isfinite(found.scores)
    return replace(
        found,
        boxes_xyxy=found.boxes_xyxy[good],
        scores=found.scores[good],
        classes=found.classes[good],
        keypoints_xy=None,
    )


def _limits(gate: Gate) -> Mapping[str, float]:
    if gate.evidence.judged_by == "agreement":
        return {"agreement": 1.0 - gate.limits.agreement}
    return gate.limits.max_drop


def _plain(name: str, judged_by: str) -> str:
    """AP is never called AP where no person drew the boxes."""
    return name if judged_by == "AP" else name.replace("AP", "agreement").replace("AR", "recall_")


def _figures(gate: Gate, scored: Scored) -> dict[str, float]:
    judged_by = gate.evidence.judged_by
    return {_plain(name, judged_by): value for name, value in figures(scored).items()}


def _drops(gate: Gate, scored: Scored) -> dict[str, Interval]:
    was, now = figures(gate.scored), figures(scored)
    values = {name: value - now.get(name, 0.0) for name, value in was.items()}
    found = paired_drops(gate.drawn, draw(scored, gate.weights), values)
    return {_plain(name, gate.evidence.judged_by): drop for name, drop in found.items()}


def _contract_reasons(reference: Answers, candidate: Answers) -> Iterator[Reason]:
    for what in ("inputs", "outputs"):
        was, now = getattr(reference, what), getattr(candidate, what)
        if was != now:
            yield Reason(
                "contract_changed",
                f"{what} must stay {'; '.join(was)}; they are {'; '.join(now)}",
            )
    lost = sorted(set(reference.families) - set(candidate.families))
    if lost:
        yield Reason(
            "contract_changed",
            f"the head must still be recognised as {', '.join(lost)}; the graph is recognised as "
            f"{', '.join(candidate.families) or 'nothing'}",
        )


def _fallback_reasons(candidate: Answers) -> Iterator[Reason]:
    for one in dict.fromkeys(candidate.fallbacks):
        yield Reason("fallback", f"{one.what} must be {one.wanted}, it is {one.got}")


def _error_reasons(reference: Answers, one: Pass) -> Iterator[Reason]:
    good = reference.passes[0].errors
    failed = [text for text, was in zip(one.errors, good, strict=True) if text and not was]
    if failed:
        yield Reason(
            "picture_errors",
            f"{len(failed)} of {len(good)} pictures that the reference could use failed: "
            f"{'; '.join(failed[:_MAX_SHOWN])}",
            one.where,
        )


def _finite_reasons(reference: Answers, one: Pass) -> Iterator[Reason]:
    known = reference.passes[0].not_finite
    for name, num in sorted(one.not_finite.items()):
        # An overflow in cells that nobody reads is not the candidate's fault if FP32 has it too.
        if name not in known:
            yield Reason(
                "not_finite",
                f"NaN or infinity in output {name} of {num} of {one.num_inferences} inferences",
                one.where,
            )
    bad = sum(
        not (np.isfinite(d.boxes_xyxy).all() and np.isfinite(d.scores).all())
        for d in one.detections
        if d is not None
    )
    if bad:
        yield Reason("not_finite", f"NaN or infinity in the boxes of {bad} pictures", one.where)


def _drop_reasons(
    gate: Gate, passes: Sequence[Pass], scored: Sequence[Scored], drops: Mapping[str, Interval]
) -> Iterator[Reason]:
    was = _figures(gate, gate.scored)
    for one, matched in zip(passes, scored, strict=True):
        now = _figures(gate, matched)
        for name, limit in _limits(gate).items():
            drop = was.get(name, 0.0) - now.get(name, 0.0)
            if drop <= limit + _ROUNDING:
                continue
            text = (
                f"{name} fell by {drop:.4f}, from {was[name]:.4f} to {now.get(name, 0.0):.4f}; "
                f"the limit is {limit:g}"
            )
            if one is passes[-1]:
                text += f" (95 % interval {drops[name].low:.4f} to {drops[name].high:.4f})"
            yield Reason("drop", text, one.where)


def _warnings(gate: Gate, drops: Mapping[str, Interval]) -> Iterator[Reason]:
    num = gate.scored.num_pictures
    for name, limit in _limits(gate).items():
        drop = drops.get(name)
        if drop is None:
            yield Reason(
                "too_few_pictures",
                f"{name} cannot be judged: none of the {num} pictures has a box that counts for it",
            )
        elif (drop.high - drop.low) / 2 > max(limit, _ROUNDING):
            needed = num_pictures_needed(drop, max(limit, _ROUNDING), num)
            yield Reason(
                "too_few_pictures",
                f"a drop of {limit:g} in {name} is too small to be seen in {num} pictures, where "
                f"it is known to +-{(drop.high - drop.low) / 2:.4f}; about {needed} would be "
                "needed",
            )
