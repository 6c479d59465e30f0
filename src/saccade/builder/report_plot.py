"""Plots as inline SVG, in colours of the page's style sheet."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass

from saccade.builder.records import BuildRecord, Interval
from saccade.builder.report import rate_of, score_key, score_of, why

__all__ = ["Plot", "plot", "whisker"]

# Scores further below the limit than this many times the allowed drop would flatten the rest.
_DEPTH = 6.0


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot and what its frame leaves out.

    Attributes:
        svg: The element.
        num_untimed: Judged candidates without a rate.
        num_below: Candidates whose score lies under the lower edge.
    """

    svg: str
    num_untimed: int
    num_below: int


@dataclass(frozen=True, slots=True)
class _Frame:
    """From rate and score to pixels."""

    left: float
    right: float
    top: float
    bottom: float
    most_rate: float
    least_score: float
    most_score: float

    def x(self, rate: float) -> float:
        return self.left + (self.right - self.left) * rate / self.most_rate

    def y(self, score: float) -> float:
        share = (score - self.least_score) / (self.most_score - self.least_score)
        return self.bottom - (self.bottom - self.top) * min(1.0, max(0.0, share))


def plot(record: BuildRecord, *, width: int) -> Plot | None:
    """Speed to the right, score upwards; None if nothing was judged and timed."""
    scores = {
        index: score
        for index in range(len(record.rows))
        if (score := score_of(record, index)) is not None and math.isfinite(score)
    }
    rates = {i: rate for i in scores if (rate := rate_of(record.rows[i])) is not None}
    if not rates:
        return None
    limit = _limit(record, scores)
    frame = _frame(scores, rates, limit, width)
    below = sum(score < frame.least_score for score in scores.values())
    key = "AP" if score_key(record) == "AP" else "agreement with FP32"
    title = f"{key} over pictures per second"
    told = f"{len(scores)} candidates; {len(rates)} were timed. The table has the same figures."
    parts = [
        f'<svg viewBox="0 0 {width} {frame.bottom + 46:.0f}" role="img" '
        f'aria-labelledby="plot-{width} plot-{width}-told">'
        f'<title id="plot-{width}">{title}</title><desc id="plot-{width}-told">{told}</desc>',
        *_axes(frame, key),
    ]
    if limit is not None and limit > frame.least_score:
        y = frame.y(limit)
        parts.append(
            f'<path class="limit" d="M{frame.left:.1f} {y:.1f}H{frame.right:.1f}"/>'
            f'<text class="faint" x="{frame.left + 6:.1f}" y="{y + 14:.1f}" '
            f'font-size="11.5">limit {limit:.4f}</text>'
        )
    # The most important on top.
    order = sorted(scores, key=lambda i: (i == record.chosen, i == record.reference, i in rates))
    parts += [_mark(record, i, frame, scores[i], rates.get(i)) for i in order]
    return Plot("".join(parts) + "</svg>", len(scores) - len(rates), below)


def _limit(record: BuildRecord, scores: dict[int, float]) -> float | None:
    if score_key(record) == "agreement":
        return record.limits.agreement
    drop, wanted = record.limits.max_drop.get("AP"), scores.get(record.reference)
    return wanted - drop if drop is not None and wanted is not None else None


def _frame(
    scores: dict[int, float], rates: dict[int, float], limit: float | None, width: int
) -> _Frame:
    most = max([*scores.values(), *([limit] if limit is not None else [])])
    least = min([*scores.values(), *([limit] if limit is not None else [])])
    if limit is not None:
        least = max(least, limit - _DEPTH * max(most - limit, 0.002))
    margin = max((most - least) * 0.12, 0.001)
    height = 330 if width > 500 else 300
    return _Frame(
        left=58.0,
        right=width - 14.0,
        top=16.0,
        bottom=float(height),
        most_rate=max(rates.values()) * 1.1,
        least_score=least - margin,
        most_score=most + margin,
    )


def _axes(frame: _Frame, key: str) -> list[str]:
    parts = []
    for rate in _ticks(0.0, frame.most_rate, 4 if frame.right < 500 else 7):
        x = frame.x(rate)
        parts.append(
            f'<path class="grid" d="M{x:.1f} {frame.top:.1f}V{frame.bottom:.1f}"/>'
            f'<text class="faint" x="{x:.1f}" y="{frame.bottom + 17:.1f}" text-anchor="middle" '
            f'font-size="12">{rate:g}</text>'
        )
    for score in _ticks(frame.least_score, frame.most_score, 6):
        y = frame.y(score)
        parts.append(
            f'<path class="grid" d="M{frame.left:.1f} {y:.1f}H{frame.right:.1f}"/>'
            f'<text class="faint" x="{frame.left - 7:.1f}" y="{y + 4:.1f}" text-anchor="end" '
            f'font-size="12">{score:.6g}</text>'
        )
    middle = (frame.left + frame.right) / 2
    parts.append(
        f'<text x="{middle:.1f}" y="{frame.bottom + 37:.1f}" text-anchor="middle" font-size="13">'
        "pictures per second, end to end</text>"
        f'<text x="{frame.left + 4:.1f}" y="{frame.top - 4:.1f}" font-size="13">{key}</text>'
    )
    return parts


def _ticks(least: float, most: float, about: int) -> list[float]:
    """Round numbers between two ends, 1, 2 or 5 times a power of ten apart."""
    rough = (most - least) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    first = math.ceil(least / step)
    return [round(i * step, 10) for i in range(first, math.floor(most / step) + 1)]


def _mark(record: BuildRecord, index: int, frame: _Frame, score: float, rate: float | None) -> str:
    row = record.rows[index]
    x, y = frame.x(rate) if rate is not None else frame.left, frame.y(score)
    speed = f"{rate:.1f} pictures/s" if rate is not None else "not timed"
    told = f"{index + 1}: {row.candidate.label}; {score:.4f}; {speed}; {row.status}"
    reason = why(row)
    title = html.escape(_clean(f"{told}: {reason}" if reason else told))
    kind, shape = (
        "refused",
        f'<path stroke-width="2.5" d="M{x - 5:.1f} {y - 5:.1f}l10 10m0-10l-10 10"/>',
    )
    if row.status in ("dropped", "waiting"):
        # Slower, not worse: no verdict of the gate speaks against it.
        kind, shape = "dropped", f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    elif row.status == "passed":
        kind, shape = "passed", f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
    if index == record.reference:
        kind, shape = "reference", f'<path d="M{x:.1f} {y - 8:.1f}l8 8-8 8-8-8z"/>'
    halo = ""
    if index == record.chosen:
        kind = "chosen" if index != record.reference else kind
        shape = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6.5"/>' if kind == "chosen" else shape
        halo = f'<circle class="halo" cx="{x:.1f}" cy="{y:.1f}" r="12"/>'
    is_right = x > frame.right - 40
    at = f'x="{x - 11:.1f}" text-anchor="end"' if is_right else f'x="{x + 11:.1f}"'
    down = "\N{BLACK DOWN-POINTING SMALL TRIANGLE}" if score < frame.least_score else ""
    return (
        f'<g class="mark"><title>{title}</title><g class="{kind}">{shape}</g>{halo}'
        f'<text {at} y="{y - 6:.1f}" font-size="11.5">{index + 1}{down}</text></g>'
    )


def _clean(value: str) -> str:
    value = value.encode("utf-8", "replace").decode()
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in value)


def whisker(drop: Interval, limit: float | None, reach: float) -> str:
    """A drop with its interval between -reach and +reach; the limit as a dashed mark.

    All are finite.
    """
    width, middle, half = 200.0, 100.0, 92.0

    def at(value: float) -> float:
        return middle + half * min(1.0, max(-1.0, value / reach))

    told = f"drop {drop.value:+.4f}, 95 % interval {drop.low:+.4f} to {drop.high:+.4f}"
    told += f", limit {limit:g}" if limit is not None else ""
    kind = "refused" if limit is not None and drop.value > limit else "passed"
    mark = ""
    if limit is not None:
        mark = f'<path class="limit" d="M{at(limit):.1f} 1V23"/>'
    return (
        f'<svg viewBox="0 0 {width:.0f} 24" role="img" aria-label="{told}"><title>{told}</title>'
        f'<path class="grid" d="M{middle:.0f} 0V24"/>{mark}'
        f'<g class="{kind}"><path stroke-width="2" d="M{at(drop.low):.1f} 12H{at(drop.high):.1f}'
        f'M{at(drop.low):.1f} 7v10M{at(drop.high):.1f} 7v10"/>'
        f'<circle cx="{at(drop.value):.1f}" cy="12" r="4.5"/></g></svg>'
    )
