"""The page: HTML and SVG written by hand, no script, nothing fetched from anywhere.

Every text that is not written here goes through `text`: names of classes, files and models come
from strangers.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

from saccade.builder.records import BuildRecord, Interval, Islands, Row, Verdict
from saccade.builder.report import Difference, rate_of, score_key, score_of, why
from saccade.builder.report_pictures import data_uris
from saccade.builder.report_plot import plot, whisker

__all__ = ["page", "text"]

_MAX_PAGE_BYTES = 500_000
_CLASSES_SHOWN = 15
_SIZES = ("small", "medium", "large")
# Nothing may be fetched and nothing may run, whatever a name contains.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def text(value: object) -> str:
    """Escape for HTML and SVG; what is no text becomes a question mark."""
    clean = str(value).encode("utf-8", "replace").decode()
    clean = "".join(
        c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in clean
    )
    return html.escape(clean)


def page(record: BuildRecord, differing: Sequence[Difference], labels: Sequence[str]) -> str:
    """The whole page; pictures are left out from the end until it is small enough."""
    style = (resources.files("saccade.builder") / "report.css").read_text("utf-8")
    before = "".join(_before_pictures(record))
    after = _machine(record.machine)
    head = (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Build of {text(record.model)}</title>\n<style>\n{style}</style>\n<body>\n<main>\n"
    )
    room = _MAX_PAGE_BYTES - 8_000 - len((head + before + after).encode())
    return f"{head}{before}{_pictures(differing, labels, room)}{after}</main>\n</body>\n</html>\n"


def _before_pictures(record: BuildRecord) -> Iterator[str]:
    chosen = record.rows[record.chosen]
    yield f'<p class="soft">Build of <bdi>{text(record.model)}</bdi></p>\n'
    yield f"<h1>{text(record.verdict)}</h1>\n"
    yield _tiles(record)
    if chosen.verdict is not None and chosen.verdict.warnings:
        told = "".join(f"<li>{text(one.text)}</li>" for one in chosen.verdict.warnings)
        yield f"<h2>What the evidence cannot show</h2>\n<ul>{told}</ul>\n"
    yield _speed_and_score(record)
    if record.notes:
        told = "".join(f"<li>{text(note)}</li>" for note in record.notes)
        yield f"<h2>Tried</h2>\n<ul>{told}</ul>\n"
    yield _candidates(record)
    yield "".join(_islands(record, islands) for islands in record.islands)
    if chosen.verdict is not None:
        yield _drops(record, chosen.verdict)


def _tiles(record: BuildRecord) -> str:
    chosen, reference = record.rows[record.chosen], record.rows[record.reference]
    key = score_key(record)
    here, there = rate_of(chosen), rate_of(reference)
    tiles = []
    if here is not None:
        times = f"{here / there:.2f} times FP32&rsquo;s {there:.1f}" if there else "not compared"
        tiles.append((f"{here:.1f}", f"pictures per second, end to end; {times}"))
    score, wanted = score_of(record, record.chosen), score_of(record, record.reference)
    if score is not None:
        told = f"FP32 has {_figure(wanted)}; {_drop_words(chosen.verdict, key)}"
        name = "AP on labelled pictures" if key == "AP" else "agreement with FP32&rsquo;s boxes"
        tiles.append((_figure(score), f"{name}; {told}"))
    if chosen.speed is not None and chosen.speed.latency_p99_ms is not None:
        limit = f", limit {record.latency_ms:g}" if record.latency_ms is not None else ""
        p50 = chosen.speed.latency_p50_ms
        half = f"p50 {p50:.1f}" if p50 is not None else "p50 not taken"
        told = f"ms p99 latency of one picture, {half}{limit}"
        tiles.append((f"{chosen.speed.latency_p99_ms:.1f}", told))
    statuses = [row.status for row in record.rows]
    told = ", ".join(f"{statuses.count(s)} {s}" for s in dict.fromkeys(statuses))
    tiles.append((str(len(statuses)), f"candidates in {record.seconds:.0f} s: {told}"))
    made = "".join(f'<div class="tile"><b>{big}</b> {small}</div>' for big, small in tiles)
    return f'<div class="tiles">{made}</div>\n'


def _drop_words(verdict: Verdict | None, key: str) -> str:
    drop = verdict.drops.get(key) if verdict is not None else None
    if drop is None or verdict is None:
        return "no drop was measured"
    interval = f"95&nbsp;% {_signed(drop.low)} to {_signed(drop.high)}"
    return f"drop {_signed(drop.value)} ({interval}) on {verdict.num_pictures} pictures"


def _speed_and_score(record: BuildRecord) -> str:
    name = "AP" if score_key(record) == "AP" else "Agreement"
    wide, hidden = plot(record, width=720), ""
    if wide is None:
        return f"<h2>Speed against {name}</h2>\n<p>No candidate was both judged and timed.</p>\n"
    narrow = plot(record, width=360)
    marks = (
        ("reference", '<path d="M8 1l7 7-7 7-7-7z"/>', "FP32 reference"),
        ("chosen", '<circle cx="8" cy="8" r="6"/>', "chosen"),
        ("passed", '<circle cx="8" cy="8" r="5"/>', "passed"),
        ("dropped", '<circle cx="8" cy="8" r="4"/>', "dropped for speed or time"),
        ("refused", '<path stroke-width="2.5" d="M3 3l10 10M13 3L3 13"/>', "refused"),
    )
    legend = "".join(
        f'<li><svg class="mark" viewBox="0 0 16 16" aria-hidden="true"><g class="{kind}">{shape}'
        f"</g></svg>{label}</li>"
        for kind, shape, label in marks
    )
    if wide.num_untimed:
        hidden = f" Judged but not timed, at the left edge: {wide.num_untimed}."
    if wide.num_below:
        hidden += f" Lower than the plot reaches, at its lower edge: {wide.num_below}."
    return (
        f"<h2>Speed against {name}</h2>\n<div class='card'>\n"
        f'<div class="wide">{wide.svg}</div>\n'
        f'<div class="narrow">{narrow.svg if narrow else ""}</div>\n'
        f'<ul class="legend">{legend}</ul>\n'
        f'<p class="soft">Numbers are those of the table.{hidden}</p>\n</div>\n'
    )


def _candidates(record: BuildRecord) -> str:
    key = score_key(record)
    columns = ("", "candidate", "", key, "drop (95 %)", "pictures/s", "p99 ms", "CPU ms", "memory")
    ranked = sorted(range(len(record.rows)), key=lambda index: _rank(record, index))
    kinds = ["", "", "", *[' class="n"'] * 6]
    head = "".join(f"<th{kind}>{name}</th>" for kind, name in zip(kinds, columns, strict=True))
    body = "".join(_candidate(record, index, columns) for index in ranked)
    return (
        "<h2>Candidates</h2>\n<div class='card'><table class='stack'>\n"
        f"<caption>{text(_limits(record))}</caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n"
    )


def _rank(record: BuildRecord, index: int) -> tuple[bool, bool, int, float]:
    row = record.rows[index]
    order = ("passed", "refused", "failed", "dropped", "waiting")
    rate = rate_of(row)
    place = order.index(row.status)
    return index != record.chosen, index != record.reference, place, -(rate or 0.0)


def _limits(record: BuildRecord) -> str:
    if score_key(record) == "agreement":
        return f"Limit: agreement of at least {record.limits.agreement:g} (no labels were given)."
    told = ", ".join(f"{name} {limit:g}" for name, limit in record.limits.max_drop.items())
    return f"Limits on the drop against FP32: {told}."


def _candidate(record: BuildRecord, index: int, columns: Sequence[str]) -> str:
    row = record.rows[index]
    key = score_key(record)
    drop = row.verdict.drops.get(key) if row.verdict is not None else None
    speed = row.speed
    p99 = speed.latency_p99_ms if speed is not None else None
    interval = f"{_signed(drop.low)} to {_signed(drop.high)}" if drop is not None else ""
    cells = [
        f"{_signed(drop.value)}<br><span class='why'>{interval}</span>" if drop is not None else "",
        _rates(row),
        f"{p99:.1f}" if p99 is not None else "",
        f"{speed.cpu_ms:.1f}" if speed is not None else "",
        f"{speed.peak_memory_bytes / 2**20:.0f}&nbsp;MiB" if speed is not None else "",
    ]
    told = "".join(f'<br><span class="why">{text(line)}</span>' for line in _told(row))
    kind = "is-reference" if index == record.reference else ""
    kind = "is-chosen" if index == record.chosen else kind
    role: str = "chosen" if index == record.chosen else row.status
    role += "<br>reference" if index == record.reference else ""
    score = score_of(record, index)
    numbers = [_figure(score) if score is not None else "", *cells]
    made = "".join(
        f'<td class="n" data-name="{name}">{"<span>" + cell + "</span>" if cell else ""}</td>'
        for name, cell in zip(columns[3:], numbers, strict=True)
    )
    return (
        f'<tr class="{kind}"><td class="text number">{index + 1}</td>'
        f'<td class="text label"><bdi>{text(row.candidate.label)}</bdi>{told}</td>'
        f'<td class="text"><span class="chip {row.status}">{role}</span></td>{made}</tr>\n'
    )


def _told(row: Row) -> Iterator[str]:
    if reason := why(row):
        yield reason
    for fallback in row.fallbacks:
        yield f"fallback: {fallback.what} is {fallback.got}, not {fallback.wanted}"


def _rates(row: Row) -> str:
    rate = rate_of(row)
    if rate is None or row.speed is None:
        return ""
    rounds = row.speed.pictures_per_s
    spread = f"{min(rounds):.1f} to {max(rounds):.1f}"
    return f"{rate:.1f}<br><span class='why'>{spread}</span>"


def _islands(record: BuildRecord, islands: Islands) -> str:
    """What stays in FP32, and what each block of it is worth."""
    if len(islands.blocks) == islands.num_blocks:
        return (
            "<h2>What stays in FP32</h2>\n"
            f"<p class='soft'>{text(islands.without)} was refused, and in {islands.num_trials} "
            "trials nothing less than all of it in FP32 was within the limits.</p>\n"
        )
    key = "AP" if score_key(record) == "AP" else "agreement"
    rows = "".join(
        f'<tr><td class="text label"><bdi>{text(_span(block.nodes))}</bdi></td>'
        f'<td class="n" data-name="nodes"><span>{len(block.nodes)}</span></td>'
        f'<td class="n" data-name="short by"><span>{_short(block.short)}</span></td></tr>\n'
        for block in islands.blocks
    )
    least = (
        "No single one of them can be released."
        if islands.is_minimal
        else "Time ran out before it was known whether fewer would do."
    )
    kept = f"{len(islands.blocks)} of {islands.num_blocks} blocks"
    told = (
        f"{text(islands.without)} was refused; with {kept} in FP32 it is within the limits. Found "
        f"by bisection over the graph in {islands.num_trials} trials, each judged like any "
        f"candidate. {least} Short by: how far {key} or another limited figure falls beyond its "
        "limit if that block alone is quantised as well."
    )
    return (
        "<h2>What stays in FP32</h2>\n"
        f"<p class='soft'>{told}</p>\n<div class='card'><table class='stack'>"
        "<thead><tr><th>block, in graph order</th><th class='n'>nodes</th>"
        f"<th class='n'>short by</th></tr></thead><tbody>{rows}</tbody></table></div>\n"
    )


def _span(nodes: Sequence[str]) -> str:
    return nodes[0] if len(nodes) == 1 else f"{nodes[0]} \N{HORIZONTAL ELLIPSIS} {nodes[-1]}"


def _short(value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:.4f}" if value > 0 else "nothing"


def _drops(record: BuildRecord, verdict: Verdict) -> str:
    """Every figure of the chosen candidate against FP32: overall, by size, by class."""
    names = [name for name in verdict.metrics if not name.startswith("class:")]
    sizes = [name for name in names if name.endswith(_SIZES)]
    overall = [name for name in names if name not in sizes]
    classes = [name for name in verdict.metrics if name.startswith("class:")]
    classes.sort(key=lambda name: -_drop_value(verdict.drops.get(name)))
    parts = [
        "<h2>What the chosen plan lost, figure by figure</h2>\n<p class='soft'>A drop above zero "
        "is a loss. Bars are 95&nbsp;% intervals over pictures; the dashed mark is the limit, if "
        "there is one. An interval that reaches beyond its limit means that these pictures are too "
        "few to exclude such a loss.</p>\n"
    ]
    for title, group in (("Overall", overall), ("By size of object", sizes)):
        if group:
            parts.append(_drop_table(record, verdict, title, group))
    if classes:
        shown, rest = classes[:_CLASSES_SHOWN], classes[_CLASSES_SHOWN:]
        parts.append(_drop_table(record, verdict, "By class, the largest loss first", shown))
        if rest:
            table = _drop_table(record, verdict, "Other classes", rest)
            parts.append(f"<details><summary>{len(rest)} more classes</summary>{table}</details>")
    return "".join(parts)


def _drop_value(drop: Interval | None) -> float:
    return drop.value if drop is not None and math.isfinite(drop.value) else -math.inf


def _drop_table(record: BuildRecord, verdict: Verdict, title: str, names: Sequence[str]) -> str:
    shown = {name: verdict.drops[name] for name in names if name in verdict.drops}
    limits = {name: record.limits.max_drop.get(name) for name in names}
    if verdict.judged_by == "agreement":
        limits["agreement"] = 1 - record.limits.agreement
    ends = [abs(e) for d in shown.values() for e in (d.low, d.high, d.value) if math.isfinite(e)]
    reach = max([*ends, *(limit for limit in limits.values() if limit is not None), 1e-4])
    rows = "".join(_drop_row(verdict, name, limits[name], reach) for name in names)
    head = (
        "<th>figure</th><th class='n'>FP32</th><th class='n'>chosen</th><th class='n'>drop</th>"
        f"<th>&minus;{reach:.3f} to +{reach:.3f}</th>"
    )
    return (
        f"<div class='card'><table class='stack'><caption>{text(title)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div><br>\n"
    )


def _drop_row(verdict: Verdict, name: str, limit: float | None, reach: float) -> str:
    drop = verdict.drops.get(name)
    figures: Iterable[tuple[str, str]] = (
        ("FP32", _figure(verdict.reference.get(name))),
        ("chosen", _figure(verdict.metrics.get(name))),
        ("drop", f"{_signed(drop.value)}" if drop is not None else "&ndash;"),
    )
    cells = "".join(f'<td class="n" data-name="{k}"><span>{v}</span></td>' for k, v in figures)
    is_known = drop is not None and all(map(math.isfinite, (drop.value, drop.low, drop.high)))
    bar = whisker(drop, limit, reach) if drop is not None and is_known else ""
    label = name.removeprefix("class:")
    return (
        f'<tr><td class="text"><bdi>{text(label)}</bdi></td>{cells}'
        f'<td class="interval" data-name="95 %">{bar}</td></tr>\n'
    )


def _figure(value: float | None) -> str:
    return f"{value:.4f}" if value is not None and math.isfinite(value) else "&ndash;"


def _signed(value: float) -> str:
    return f"{value:+.4f}" if math.isfinite(value) else "&ndash;"


def _pictures(differing: Sequence[Difference], labels: Sequence[str], room: int) -> str:
    if not differing:
        return ""
    figures = []
    for one, uri in zip(differing, data_uris(differing, room), strict=False):
        counts = f"{len(one.reference)} boxes in FP32, {len(one.chosen)} in the chosen plan"
        classes = sorted({int(c) for d in (one.reference, one.chosen) for c in d.classes})
        named = ", ".join(labels[c] if 0 <= c < len(labels) else str(c) for c in classes[:6])
        figures.append(
            f'<figure><img alt="{text(one.name)}: {counts}" src="{uri}"><figcaption>'
            f"<bdi>{text(one.name)}</bdi>: {counts}; <bdi>{text(named)}</bdi></figcaption></figure>"
        )
    return (
        "<h2>Where the chosen plan and FP32 differ most</h2>\n<p class='soft'>"
        '<span class="key reference"></span>FP32 &nbsp; <span class="key chosen"></span>chosen. '
        "Thick: a box that the other has not (no box of that class with an overlap of one half). "
        f'Thin: both have it.</p>\n<div class="pictures">{"".join(figures)}</div>\n'
    )


def _machine(machine: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><td class="text">{text(name)}</td><td class="text">{text(value)}</td></tr>'
        for name, value in _flat(machine)
    )
    return f"<h2>The machine</h2>\n<div class='card'><table class='stack'>{rows}</table></div>\n"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key} ")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{key}", ", ".join(map(str, value))
        elif key.endswith("_bytes") and isinstance(value, int):
            yield f"{prefix}{key.removesuffix('_bytes')}", f"{value / 2**30:.1f} GiB"
        else:
            yield f"{prefix}{key}".replace("_", " "), value
