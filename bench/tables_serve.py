"""The tables of docs/performance/serving.md, from bench/results/serve."""

from __future__ import annotations

import json
from typing import Any

from bench.cases import ROOT
from bench.markdown import NO_RESULT, markdown
from bench.tables_serve_cuda import cuda_tables

__all__ = ["serve_tables"]

RESULTS = ROOT / "bench" / "results" / "serve"
CASES = ("light_person_192", "cells_640")


def serve_tables() -> dict[str, str]:
    """By name of the mark: bench:serve-jobs, -notes, -identity, -tensor, -abuse, -bundle, -bars."""
    reports = {name: read(name) for name in CASES}
    tables = {
        "serve-jobs": "\n".join(jobs(r) for r in reports.values() if r),
        "serve-identity": identity(read("identity")),
        "serve-tensor": tensor(read("tensor")),
        "serve-abuse": abuse(read("abuse")),
        "serve-bundle": bundle(read("bundle")),
        "serve-bars": bars(reports, read("identity"), read("abuse")),
        "serve-notes": notes(reports["light_person_192"]),
        **cuda_tables(read("cuda")),
    }
    return {name: f"\n{text}\n" if text else "No results yet.\n" for name, text in tables.items()}


def read(name: str) -> dict[str, Any] | None:
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text()) if file.is_file() else None


def jobs(report: dict[str, Any]) -> str:
    """One line per server: throughput, CPU per request at each load, latency."""
    entries = report["contenders"]
    rates = list(next(e for e in entries.values() if "at_rates" in e)["at_rates"])
    head = [report["title"], f"requests/s at {report['connections']}", "of the bound", "CPU ms"]
    head += [f"CPU ms at {rate}/s" for rate in rates]
    part = f"{report['part_of_most']:.0%}"
    rows = [[*head, f"p50, p99 ms at {part} of its own", "MiB"]]
    order = sorted(entries, key=lambda n: -entries[n].get("closed", {}).get("part_of_bound", 0))
    for name in order:
        entry = entries[name]
        if "closed" not in entry:
            why = "refused" if "refused" in entry else "failed"
            rows.append([entry["label"], why, *[NO_RESULT] * (len(head) + 0)])
            continue
        closed, at_part = entry["closed"], entry["at_part_of_most"]
        tails = f"{at_part['p50_ms']:.1f}, {at_part['p99_ms']:.1f}"
        rows.append(
            [
                entry["label"],
                number(closed["rate_per_s"]["median"]),
                f"{closed['part_of_bound']:.2f}",
                f"{closed['cpu_ms']['median']:.2f} ({closed['times_bare']:.2f})",
                *(f"{entry['at_rates'][rate]['cpu_ms']['median']:.2f}" for rate in rates),
                f"{tails} at {at_part['rate_per_s']:.0f}/s",
                str(entry.get("memory_mib", NO_RESULT)),
            ]
        )
    bare = report["bare_cpu_ms"]
    full = report["bare_cpu_ms_on_all_cores"]["median"]
    paced = f", {full:.2f} ms with all cores at it"
    paced += "".join(
        f", {found['median']:.2f} ms when {rate} fall due per second"
        for rate, found in report["bare_cpu_ms_at_rates"].items()
    )
    say = (
        f"Bare script: {bare['median']:.2f} ms of CPU per picture ({bare['min']:.2f} to "
        f"{bare['max']:.2f}; in parentheses: times that){paced}; pictures of "
        f"{report['mean_kilobytes']:.0f} KB; {len(next(iter(entries.values()))['rounds'])} rounds "
        f"of {report['seconds']:g} s per load in turns; {machine(report)}."
    )
    return f"{markdown(rows)}\n{say}\n"


def identity(report: dict[str, Any] | None) -> str:
    if not report:
        return ""
    columns = (("http", "HTTP"), ("grpc", "gRPC"), ("load", "HTTP, our generator"))
    heads = [f"{text}, infer/s" for _, text in columns]
    rows = [["1 KB there and back", *heads, "server CPU us: HTTP, gRPC", "p99 us: HTTP, gRPC"]]
    for entry in report["contenders"].values():
        found = [entry.get(key, {}) for key, _ in columns]
        rates = [number(f["rate_per_s"]["median"]) if f else NO_RESULT for f in found]
        costs = ", ".join(f"{f['cpu_us']['median']:.0f}" if f else NO_RESULT for f in found[:2])
        tails = ", ".join(f"{f['p99_us']['median']:.0f}" if f else NO_RESULT for f in found[:2])
        rows.append([entry["label"], *rates, costs, tails])
    say = (
        f"perf_analyzer (of {report['perf_analyzer']}) with {report['concurrency']} requests under "
        f"way, which takes its share of the same cores; medians of rounds in turns; "
        f"{machine(report)}."
    )
    return f"{markdown(rows)}\n{say}\n"


def tensor(report: dict[str, Any] | None) -> str:
    if not report:
        return ""
    rows = [["tensor in, tensor out", "requests/s", "server CPU ms", "p99 ms"]]
    for entry in report["contenders"].values():
        if "closed" not in entry:
            rows.append([entry["label"], "failed", NO_RESULT, NO_RESULT])
            continue
        closed = entry["closed"]
        rows.append(
            [
                entry["label"],
                number(closed["rate_per_s"]["median"]),
                f"{closed['cpu_ms']['median']:.2f}",
                f"{closed['p99_ms']['median']:.1f}",
            ]
        )
    say = (
        f"{report['connections']} connections; {report['kilobytes']:.0f} KB in; the network alone "
        f"costs {report['bare_cpu_ms']['median']:.2f} ms; {machine(report)}."
    )
    return f"{markdown(rows)}\n{say}\n"


def abuse(report: dict[str, Any] | None) -> str:
    if not report:
        return ""
    rows = [["seen", "times"], *([what, str(num)] for what, num in report["counts"].items())]
    memory, recovery = report["memory"], report["recovery_s"]
    fifths = ", ".join(str(mib) for mib in memory["mib_by_fifth"])
    say = (
        f"{report['seconds'] / 60:.0f} minutes; {report['engines_killed']} engine processes "
        f"killed; {report['num_faults']} faults; a new request answered after at most "
        f"{max(recovery, default=0):.2f} s (median {sorted(recovery)[len(recovery) // 2]:.2f} s); "
        f"MiB by fifth of the time {fifths} (change {memory['drift']:+.1%}); {machine(report)}."
    )
    return f"{markdown(rows)}\n{say}\n"


def bundle(report: dict[str, Any] | None) -> str:
    if not report:
        return ""
    rows = [["cells_640", "requests/s", "CPU ms", "p50 ms", "p99 ms"]]
    for entry in report["contenders"].values():
        closed = entry["closed"]
        rows.append(
            [
                entry["label"],
                number(closed["rate_per_s"]["median"]),
                f"{closed['cpu_ms']['median']:.2f}",
                f"{entry['at_part_of_most']['p50_ms']:.1f}",
                f"{entry['at_part_of_most']['p99_ms']:.1f}",
            ]
        )
    return f"{markdown(rows)}\n{machine(report)}.\n"


def bars(
    reports: dict[str, dict[str, Any] | None],
    identities: dict[str, Any] | None,
    abused: dict[str, Any] | None,
) -> str:
    """What was aimed at, and what came out."""
    rows = [["aim", "wanted", "found"]]
    for name, report in reports.items():
        if report and "closed" in report["contenders"].get("saccade", {}):
            rows += bars_of(name, report)
    if identities:
        own = identities["contenders"]["saccade"]
        for key, text, wanted in (("http", "HTTP", 8000), ("grpc", "gRPC", 5000)):
            found = number(own[key]["rate_per_s"]["median"])
            rows.append([f"identity over {text}, infer/s", f"at least {wanted}", found])
    if abused:
        rows.append(["abuse: faults", "0", str(abused["num_faults"])])
        rows.append(["abuse: memory", "within 5 %", f"{abused['memory']['drift']:+.1%}"])
        worst = max(abused["recovery_s"], default=0)
        rows.append(["abuse: recovery", "under 2 s", f"{worst:.2f} s"])
    return markdown(rows) if len(rows) > 1 else ""


def bars_of(name: str, report: dict[str, Any]) -> list[list[str]]:
    entries = {k: e for k, e in report["contenders"].items() if "closed" in e}
    own = entries.pop("saccade")
    worst = max(own["closed"]["times_bare"], *(r["times_bare"] for r in own["at_rates"].values()))
    cheapest = min(entries, key=lambda k: entries[k]["closed"]["cpu_ms"]["median"])
    fastest = max(entries, key=lambda k: entries[k]["closed"]["rate_per_s"]["median"])
    calmest = min(entries, key=lambda k: entries[k]["at_part_of_most"]["p99_ms"])

    def beside(key: str, value: float, form: str) -> str:
        return f"{value:{form}} ({entries[key]['label']})"

    return [
        [f"{name}: CPU per request, times the bare script", "at most 1.10", f"{worst:.2f}"],
        [
            f"{name}: CPU ms per request at {report['connections']} connections",
            "below " + beside(cheapest, entries[cheapest]["closed"]["cpu_ms"]["median"], ".2f"),
            f"{own['closed']['cpu_ms']['median']:.2f}",
        ],
        [f"{name}: of the bound", "at least 0.93", f"{own['closed']['part_of_bound']:.2f}"],
        [
            f"{name}: requests/s",
            "above " + beside(fastest, entries[fastest]["closed"]["rate_per_s"]["median"], ".0f"),
            number(own["closed"]["rate_per_s"]["median"]),
        ],
        [
            f"{name}: p99 ms at {report['part_of_most']:.0%} of its own most",
            "at most " + beside(calmest, entries[calmest]["at_part_of_most"]["p99_ms"], ".1f"),
            f"{own['at_part_of_most']['p99_ms']:.1f}",
        ],
    ]


def notes(report: dict[str, Any] | None) -> str:
    """How each server is set up, and with what."""
    if not report:
        return ""
    lines = []
    for entry in report["contenders"].values():
        listed = ", ".join(f"{name} {v}" for name, v in entry.get("versions", {}).items())
        lines.append(f"- {entry['label']}: {entry['note']}; {listed}.\n")
    return "".join(lines)


def machine(report: dict[str, Any]) -> str:
    found = report["environment"]
    commit, date = found["commit"][:12], found["date"][:10]
    return f"{found['cpu']}, {found['cores']} cores, commit {commit}, {date}"


def number(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"
