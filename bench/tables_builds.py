"""The tables of docs/performance/builds.md and docs/build.md, from bench/results/builds/*.json and
bench/results/tensorrt-rtx-build.json.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from typing import Any

from bench.builds import BUILDS, RESULTS
from bench.cases import ROOT
from bench.markdown import NO_RESULT, markdown

TENSORRT = ROOT / "bench" / "results" / "tensorrt-rtx-build.json"
NAMES = ("overview", "precisions", "cells", "islands", "machine")

Row = dict[str, Any]


def _is(precision: str, *, everything: bool = False, kept: bool = False) -> Callable[[Row], bool]:
    def check(candidate: Row) -> bool:
        recipe = candidate["recipe"]
        is_same = recipe["everything"] is everything and bool(recipe["kept"]) is kept
        return recipe["precision"] == precision and is_same and not candidate["scaled_decode"]

    return check


KINDS: dict[str, Callable[[Row], bool]] = {
    "OpenVINO FP32": lambda c: _is("fp32")(c) and _plan(c) == ("openvino", "fp32"),
    "OpenVINO BF16": lambda c: _is("fp32")(c) and _plan(c) == ("openvino", "bf16"),
    "FP16 file": _is("fp16"),
    "INT8": _is("int8"),
    "INT8, islands": _is("int8", kept=True),
    "INT8, every operator": _is("int8", everything=True),
    "scaled decoding": lambda c: c["scaled_decode"],
}


def _plan(candidate: Row) -> tuple[str, str]:
    return candidate["plan"]["backend"], candidate["plan"]["precision"]


def builds_tables() -> dict[str, str]:
    """By the name of their mark."""
    reports = [
        json.loads(path.read_text())
        for path in (RESULTS / f"{name}.json" for name in BUILDS)
        if path.is_file()
    ]
    if not reports:
        tables = dict.fromkeys(NAMES, "No results yet.\n")
    else:
        tables = {
            "overview": _overview(reports),
            "precisions": _precisions(reports),
            "cells": _candidates(reports[0]),
            "islands": _islands(reports),
            "machine": _machines(reports),
        }
    made = {f"builds-{name}": f"\n{table}\n" for name, table in tables.items()}
    return made | {"tensorrt": f"\n{_engines()}\n", "tensorrt-refused": f"\n{_refused()}\n"}


def _overview(reports: list[Row]) -> str:
    head = ["build", "FP32", "chosen", "pictures/s", "times FP32", "judged by", "p99 ms"]
    rows = [[*head, "tried", "s"]]
    for report in reports:
        chosen, base = report["rows"][report["chosen"]], report["rows"][report["reference"]]
        score = _score(report, report["chosen"])
        wanted = _score(report, report["reference"])
        statuses = [row["status"] for row in report["rows"]]
        num_tried = sum(bool(row["verdict"] or row["speed"]) for row in report["rows"])
        num_tried += statuses.count("failed")
        counts = (f"{statuses.count(s)} {s}" for s in ("refused", "failed") if s in statuses)
        rows.append(
            [
                report["title"],
                _rate(base),
                report["candidates"][report["chosen"]]["label"] + _remark(report),
                _rate(chosen),
                _times(report),
                f"{_key(report)} {score} ({wanted})",
                _milliseconds(chosen),
                ", ".join([str(num_tried), *counts]),
                f"{report['seconds']:.0f}",
            ]
        )
    return markdown(rows)


def _remark(report: Row) -> str:
    p99_ms = report["rows"][report["chosen"]]["speed"]["latency_p99_ms"]
    if report["objective"] == "latency":
        return "; rates are 1 / latency of single pictures"
    is_broken = report["latency_ms"] is not None and p99_ms > report["latency_ms"]
    return "; nothing that passed keeps the limit" if is_broken else ""


def _times(report: Row) -> str:
    """As the verdict has it: the median of ratios within rounds."""
    words = report["verdict"].split()
    is_told = report["chosen"] != report["reference"] and "times" in words
    return words[words.index("times") - 1] if is_told else "1.00"


def _precisions(reports: list[Row]) -> str:
    """The best of each kind that passed, else the fastest that was refused."""
    rows = [["build", *KINDS]]
    rows += [[r["title"], *(_best(r, kind) for kind in KINDS.values())] for r in reports]
    return markdown(rows)


def _best(report: Row, is_kind: Callable[[Row], bool]) -> str:
    found = [i for i, row in enumerate(report["rows"]) if is_kind(row["candidate"])]
    judged = [i for i in found if report["rows"][i]["verdict"]]
    passed = [i for i in judged if report["rows"][i]["verdict"]["passed"]]
    if not judged:
        return "failed" if any(report["rows"][i]["status"] == "failed" for i in found) else "-"
    index = max(passed or judged, key=lambda i: _median(report["rows"][i]) or 0.0)
    row = report["rows"][index]
    told = f"{_rate(row)}; {_score(report, index)}"
    if not passed:
        kinds = sorted({reason["kind"] for reason in row["verdict"]["reasons"]})
        return f"refused ({', '.join(kinds)}): {told}"
    return f"**{told}**" if is_kind(report["rows"][report["chosen"]]["candidate"]) else told


def _candidates(report: Row) -> str:
    """Every candidate that was tried, those that were judged first."""
    key = _key(report)
    tried = [i for i, row in enumerate(report["rows"]) if row["verdict"] or row["speed"]]
    tried += [i for i, row in enumerate(report["rows"]) if row["status"] == "failed"]
    rows = [["candidate", key, "drop (95 %)", "pictures/s", "p99 ms", "status", "why"]]
    order = sorted(
        dict.fromkeys(tried),
        key=lambda i: (report["rows"][i]["verdict"] is None, -(_median(report["rows"][i]) or 0)),
    )
    for index in order:
        row = report["rows"][index]
        drop = (row["verdict"] or {}).get("drops", {}).get(key)
        status = "chosen" if index == report["chosen"] else row["status"]
        rows.append(
            [
                report["candidates"][index]["label"],
                _score(report, index),
                f"{drop['value']:+.4f} ({drop['low']:+.4f} to {drop['high']:+.4f})"
                if drop
                else NO_RESULT,
                _rate(row),
                _milliseconds(row),
                "reference" if index == report["reference"] else status,
                row["error"].partition(" (95 %")[0] or NO_RESULT,
            ]
        )
    return markdown(rows)


def _islands(reports: list[Row]) -> str:
    rows = [["build", "refused without", "blocks kept", "nodes kept", "trials", "short by"]]
    for report in reports:
        for found in report["islands"]:
            known = [b["short"] for b in found["blocks"] if b["short"] is not None]
            spread = f"{min(known):.4f} to {max(known):.4f}" if known else "not measured"
            rows.append(
                [
                    report["title"],
                    found["without"],
                    _kept(found),
                    str(sum(len(block["nodes"]) for block in found["blocks"])),
                    f"{found['num_trials']}{'' if found['is_minimal'] else ', cut short'}",
                    spread,
                ]
            )
    return markdown(rows) if len(rows) > 1 else "No build had to look for islands.\n"


def _kept(found: Row) -> str:
    kept, blocks = len(found["blocks"]), found["num_blocks"]
    return f"{kept} of {blocks}" if kept < blocks else f"all {blocks}: nothing less passed"


def _machines(reports: list[Row]) -> str:
    told = sorted(
        {
            f"{r['environment']['cpu']}, {r['environment']['cores']} cores "
            f"({', '.join(r['environment']['flags'])}); {r['environment']['date'][:10]}; "
            + ", ".join(f"{k} {v}" for k, v in r["environment"]["packages"].items() if v)
            for r in reports
        }
    )
    return "; ".join(told) + ".\n"


def _key(report: Row) -> str:
    return next((r["verdict"]["judged_by"] for r in report["rows"] if r["verdict"]), "AP")


def _score(report: Row, index: int) -> str:
    value = report["candidates"][index].get(_key(report))
    return NO_RESULT if value is None else f"{value:.4f}"


def _median(row: Row) -> float | None:
    rates = row["speed"]["pictures_per_s"] if row["speed"] else []
    return statistics.median(rates) if rates else None


def _rate(row: Row) -> str:
    rate = _median(row)
    return NO_RESULT if rate is None else f"{rate:.1f}"


def _milliseconds(row: Row) -> str:
    p99 = row["speed"]["latency_p99_ms"] if row["speed"] else None
    return NO_RESULT if p99 is None else f"{p99:.1f}"


def _engines() -> str:
    """Sizes and times, one line per network and precision."""
    if not TENSORRT.is_file():
        return "No results yet.\n"
    report = json.loads(TENSORRT.read_text())
    built = [row for row in report["rows"] if "engine_bytes" in row]
    targets = list(dict.fromkeys(row["target"] for row in built))
    lines: dict[tuple[str, str], dict[str, Row]] = {}
    for row in built:
        lines.setdefault((row["model"], row["precision"]), {})[row["target"]] = row
    rows = [["network", "precision", "ONNX MB", *(f"{t}, MB; s" for t in targets)]]
    for (model, precision), found in lines.items():
        first = next(iter(found.values()))
        cells = [
            f"{found[t]['engine_bytes'] / 1e6:.1f}; {found[t]['build_s']:.2f}"
            if t in found
            else NO_RESULT
            for t in targets
        ]
        rows.append([model, precision, f"{first['onnx_bytes'] / 1e6:.1f}", *cells])
    machine = report["machine"]
    note = (
        f"tensorrt-rtx {machine['packages']['tensorrt-rtx']} on {machine['cpu']}, "
        f"{machine['cores']} cores, without a GPU; {machine['date'][:10]}; best of "
        f"{report['rounds']}.\n"
    )
    return f"{markdown(rows)}\n{note}"


def _refused() -> str:
    if not TENSORRT.is_file():
        return "No results yet.\n"
    report = json.loads(TENSORRT.read_text())
    rows = [["network", "precision", "target", "what is said"]]
    for row in report["rows"]:
        if "refused" in row:
            told = " ".join(row["refused"].split()).replace("|", "\\|")
            rows.append([row["model"], row["precision"], row["target"], told[:220]])
    return markdown(rows)
