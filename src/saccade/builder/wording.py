"""The outcome of a build in plain words."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence

from saccade.builder.engines import Engines
from saccade.builder.records import Candidate, Row, Verdict
from saccade.builder.task import Outcome

__all__ = ["engine_notes", "figure_of", "notes", "rate_of", "sentence"]

_KINDS: dict[str, Callable[[Candidate], bool]] = {
    "INT8": lambda c: c.recipe.precision == "int8",
    "FP16": lambda c: c.recipe.precision == "fp16" or c.plan.precision == "fp16",
    "BF16": lambda c: c.plan.precision == "bf16",
    "Scaled decoding": lambda c: c.scaled_decode,
}


def rate_of(row: Row) -> float | None:
    """Median of the rounds; None if it was never timed."""
    if row.speed is None or not row.speed.pictures_per_s:
        return None
    return statistics.median(row.speed.pictures_per_s)


def figure_of(verdict: Verdict | None) -> str:
    """AP or agreement, with its name."""
    if verdict is None:
        return ""
    name = verdict.judged_by
    value = verdict.metrics.get(name)
    return "" if value is None else f"{name} {value:.4f}"


def _speed(row: Row, unit: str) -> str:
    rate = rate_of(row)
    if rate is None:
        return "never timed"
    return f"{rate:.1f} pictures/s" if unit == "throughput" else f"{1e3 / rate:.2f} ms a picture"


def sentence(outcome: Outcome, objective: str, latency_ms: float | None = None) -> str:
    """The verdict."""
    return _verdict(outcome, objective) + _broken_limit(outcome, latency_ms)


def _broken_limit(outcome: Outcome, latency_ms: float | None) -> str:
    speed = outcome.rows[outcome.chosen].speed
    p99_ms = speed.latency_p99_ms if speed else None
    if latency_ms is None or p99_ms is None or p99_ms <= latency_ms:
        return ""
    return (
        f". It does NOT keep the limit of {latency_ms:g} ms, nor does anything else that passed: "
        f"the 99th percentile of single pictures is {p99_ms:.1f} ms"
    )


def _verdict(outcome: Outcome, objective: str) -> str:
    chosen, base = outcome.rows[outcome.chosen], outcome.rows[outcome.reference]
    if outcome.chosen == outcome.reference:
        tried = [row for row in outcome.rows if row is not base]
        counts = {s: sum(row.status == s for row in tried) for s in ("refused", "failed")}
        return (
            f"FP32 in ONNX Runtime is the answer ({_speed(base, objective)}, "
            f"{figure_of(base.verdict)}): of {len(tried)} other deployments {counts['refused']} "
            f"lost accuracy, {counts['failed']} failed, and none of the rest was worth having"
        )
    return (
        f"{chosen.candidate.label}: {_speed(chosen, objective)}, {outcome.ratio:.2f} times FP32 "
        f"ONNX Runtime ({_speed(base, objective)}); {figure_of(chosen.verdict)} against "
        f"{figure_of(base.verdict)} of FP32"
    )


def notes(outcome: Outcome, objective: str, spent_s: Mapping[str, float]) -> tuple[str, ...]:
    """What did not pay, and where the time went."""
    told = ", ".join(f"{s:.0f} s {name}" for name, s in spent_s.items() if s >= 0.5)
    return (
        *_unpaid(outcome, objective),
        *_warnings(outcome.rows[outcome.chosen]),
        *_untried(outcome.num_untried),
        f"{sum(spent_s.values()):.0f} s in all: {told}",
    )


def _unpaid(outcome: Outcome, objective: str) -> Iterator[str]:
    chosen = outcome.rows[outcome.chosen]
    for kind, is_kind in _KINDS.items():
        rows = [row for row in outcome.rows if is_kind(row.candidate)]
        if rows and not is_kind(chosen.candidate):
            told = "was not judged in time" if _is_open(rows, chosen) else "does not pay here"
            yield f"{kind} {told}: {_why(rows, chosen, objective)}"


def _is_open(rows: Sequence[Row], chosen: Row) -> bool:
    """Whether none of a kind was judged, though one of them was faster than the chosen one."""
    fastest = max((rate_of(row) or 0.0 for row in rows), default=0.0)
    return not any(row.verdict for row in rows) and fastest > (rate_of(chosen) or 0.0)


def _why(rows: Sequence[Row], chosen: Row, objective: str) -> str:
    timed = [row for row in rows if rate_of(row) is not None]
    if not timed:
        return f"it could not be run: {next((r.error for r in rows if r.error), 'not tried')}"
    refused = [row for row in timed if row.status == "refused"]
    others = [row for row in timed if row.status != "refused"]
    told = []
    if others:
        # The one that stayed longest in the field was compared most often.
        best = max(others, key=lambda row: (_num_rounds(row), rate_of(row) or 0.0))
        why = f" ({best.error})" if best.error else ""
        told.append(
            f"{best.candidate.label} reaches {_speed(best, objective)}{why}, the chosen one "
            f"{_speed(chosen, objective)}"
        )
    if refused:
        best = max(refused, key=lambda row: rate_of(row) or 0.0)
        told.append(
            f"{best.candidate.label} with {_speed(best, objective)} was refused: {best.error}"
        )
    return "; ".join(told)


def _num_rounds(row: Row) -> int:
    return len(row.speed.pictures_per_s) if row.speed else 0


def _untried(num: int) -> Iterator[str]:
    if num:
        yield (
            f"there was no time for {num} other plans (batch sizes, streams, workers) of the "
            "deployments that passed; a larger --budget tries them"
        )


def _warnings(chosen: Row) -> Iterator[str]:
    if chosen.verdict is not None:
        yield from (warning.text for warning in chosen.verdict.warnings)


def engine_notes(engines: Engines) -> Iterator[str]:
    """What may be expected of engines that were built for other machines."""
    unrun = sorted(name for name, one in engines.files.items() if not one.is_verified)
    if unrun:
        yield (
            f"TensorRT engines for {', '.join(unrun)} were built ahead of time "
            "from the chosen network and were NOT run: no such card is here, so the gate has not "
            "seen their answers. Loading the bundle never takes them; have them judged on a "
            "machine with such a card: saccade build --from BUNDLE --backends tensorrt"
        )
    ready = sorted(name for name, one in engines.files.items() if one.backend == "native")
    if ready:
        yield (
            f"native engines {', '.join(ready)} are in the bundle as the gate ran them; on another "
            "card or with other kernels loading refuses them and says what differs"
        )
    for target, why in engines.refused.items():
        kind = "native" if target.startswith("batch ") else "TensorRT"
        yield f"there is no {kind} engine for {target}: {why}"
