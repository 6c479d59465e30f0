"""Write the tables of the documents from the committed results. No number is typed by hand.

    python -m bench.tables            rewrite what stands between the marks
    python -m bench.tables --check    only say whether the documents are up to date

The marks are `<!-- bench:cpu -->` ... `<!-- /bench:cpu -->` (one line per case, the rates) and
`<!-- bench:cpu-details -->` ... (per case: spread, ratio, CPU time, memory, check) in README.md,
docs/**/*.md and bench/README.md. `bench:prepare-convert`, `-strips`, `-parts`, `-steps`,
`-suppress` and `-machine` come from what `python -m bench.cpu_prepare` wrote; `bench:torch-*` are
in `tables_torch.py`, `bench:native-*` in `tables_native.py`, `bench:builds-*` and
`bench:tensorrt*` in `tables_builds.py`.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from bench.cases import CASES, ROOT
from bench.markdown import NO_RESULT, markdown
from bench.tables_builds import builds_tables
from bench.tables_cuda import cuda_tables
from bench.tables_native import native_tables
from bench.tables_native_eight import native_eight_tables
from bench.tables_native_kernels import native_kernel_tables
from bench.tables_native_path import native_path_tables
from bench.tables_serve import serve_tables
from bench.tables_torch import torch_tables

RESULTS = ROOT / "bench" / "results" / "cpu"


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        sys.exit(f"usage: python -m bench.tables [--check]; got {' '.join(arguments)}")
    reports = load()
    tables = {"cpu": overview(reports), "cpu-details": details(reports)}
    tables |= prepare_tables() | torch_tables() | cuda_tables() | builds_tables() | native_tables()
    tables |= native_kernel_tables() | native_path_tables() | native_eight_tables()
    tables |= serve_tables()
    stale = []
    for path in documents():
        text = path.read_text()
        fresh = fill(text, tables)
        if fresh != text:
            stale.append(path)
            if not arguments:
                path.write_text(fresh)
    for path in stale:
        print(f"{'stale' if arguments else 'written'}: {path.relative_to(ROOT)}")
    return 1 if arguments and stale else 0


def load() -> list[dict[str, Any]]:
    """Reports in the order of the cases; a case without one is left out."""
    files = [RESULTS / f"{name}.json" for name in CASES]
    return [json.loads(file.read_text()) for file in files if file.is_file()]


def documents() -> list[Path]:
    fixed = [ROOT / "README.md", ROOT / "bench" / "README.md"]
    return [path for path in fixed if path.is_file()] + sorted((ROOT / "docs").rglob("*.md"))


def fill(text: str, tables: dict[str, str]) -> str:
    """The text with each marked stretch replaced by its table.

    Raises:
        SystemExit: A mark is opened and not closed.
    """
    for name, table in tables.items():
        begin, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
        lines = text.splitlines()
        if lines.count(begin) != lines.count(end):
            sys.exit(f"{begin} must be followed by {end}, each on its own line")
        pattern = rf"^{re.escape(begin)}$.*?^{re.escape(end)}$"
        block = f"{begin}\n{table}{end}"
        text = re.sub(pattern, lambda _, b=block: b, text, flags=re.DOTALL | re.MULTILINE)
    return text


def overview(reports: list[dict[str, Any]]) -> str:
    """One line per contender, one column per case: median pictures per second."""
    if not reports:
        return "No results yet.\n"
    names: dict[str, str] = {}
    for report in reports:
        names |= {name: entry["label"] for name, entry in report["contenders"].items()}
    rows = [["pictures/s", *(report["title"] for report in reports)]]
    for name, label in names.items():
        rows.append([label, *(rate_of(report, name) for report in reports)])
    rows.append(["bound, ONNX Runtime, FP32", *(bound_of(report) for report in reports)])
    dates = sorted({report["environment"]["date"][:10] for report in reports})
    rounds = sorted({str(report["rounds"]) for report in reports})
    note = (
        f"{machines_of(reports)}; {', '.join(dates)}. Files on disk to final boxes; medians of "
        f"{', '.join(rounds)} rounds in turns; every answer checked before timing (refused: the "
        "answers were worse than allowed). Bound: cores / CPU seconds of decode, prepare, "
        "one-thread inference and suppress."
    )
    return f"\n{markdown(rows)}\n{note}\n\n"


def rate_of(report: dict[str, Any], name: str) -> str:
    entry = report["contenders"].get(name)
    if entry is None:
        return NO_RESULT
    if "rate" not in entry:
        return "refused" if "refused" in entry else "failed"
    return number(entry["rate"]["median"])


def bound_of(report: dict[str, Any]) -> str:
    """The worse and the better of the two measurements, before and after the rounds."""
    measured = (report["bound"] or {}).values()
    bounds = [m["report"]["bound_per_s"] for m in measured if m and m["available"]]
    shown = sorted({number(value) for value in bounds}, key=float)
    return " to ".join(shown) if shown else NO_RESULT


def machines_of(reports: list[dict[str, Any]]) -> str:
    """The machine, or each machine and the cases that it ran: only a column is one comparison."""
    titles: dict[str, list[str]] = {}
    for report in reports:
        titles.setdefault(machine_of(report), []).append(report["title"])
    if len(titles) == 1:
        return next(iter(titles))
    return "; ".join(f"{' and '.join(cases)} on {machine}" for machine, cases in titles.items())


def machine_of(report: dict[str, Any]) -> str:
    machine = report["environment"]
    return f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['flags'])})"


def details(reports: list[dict[str, Any]]) -> str:
    """One table per case, with everything that was measured."""
    parts = [detail(report) for report in reports]
    return "\n" + "\n".join(parts) + "\n" if parts else "No results yet.\n"


def detail(report: dict[str, Any]) -> str:
    head = ["contender", "pictures/s", "least to most", "times saccade", "CPU ms/picture"]
    rows = [[*head, "peak MiB", "agreement", "AP (reference)"]]
    notes, versions = [], []
    for name, entry in report["contenders"].items():
        rows.append([entry["label"], *cells(report, name, entry)])
        if entry["note"]:
            notes.append(f"- {entry['label']}: {entry['note']}.")
        listed = ", ".join(f"{key} {value}" for key, value in entry.get("versions", {}).items())
        versions.append(f"- {entry['label']}: {listed}.")
    pictures, machine = report["pictures"], report["environment"]
    facts = (
        f"{pictures['per_round']} pictures per round ({pictures['different']} different), "
        f"{report['rounds']} rounds, score over {report['thresholds']['score']}, IoU "
        f"{report['thresholds']['iou']}; commit {machine['commit'][:12]}"
        f"{' and changes' if machine['dirty'] else ''}, {machine['date']}, load "
        f"{machine['load_average'][0]} at the start; bound {bound_of(report)} pictures/s."
    )
    blocks = [f"### {report['title']}", markdown(rows).rstrip(), facts]
    blocks += ["\n".join(notes)] if notes else []
    blocks += ["\n".join(versions)]
    return "\n\n".join(blocks) + "\n"


def cells(report: dict[str, Any], name: str, entry: dict[str, Any]) -> list[str]:
    rate, ratio = entry.get("rate"), entry.get("ratio_to_saccade")
    check = entry.get("check", {})
    ap = f"{check['ap']:.3f} ({check['ap_reference']:.3f})" if "ap" in check else NO_RESULT
    cpu = entry.get("cpu_ms_per_picture")
    return [
        rate_of(report, name),
        f"{number(rate['min'])} to {number(rate['max'])}" if rate else NO_RESULT,
        f"{ratio['median']:.2f}" if ratio else NO_RESULT,
        f"{cpu['median']:.1f}" if cpu else NO_RESULT,
        str(entry.get("peak_mib", NO_RESULT)),
        f"{check['agreement']:.1%}" if "agreement" in check else NO_RESULT,
        ap,
    ]


def prepare_tables() -> dict[str, str]:
    """The tables of docs/performance/cpu-prepare.md."""
    names = ("machine", "convert", "strips", "parts", "steps", "suppress")
    file = RESULTS / "prepare.json"
    if not file.is_file():
        return {f"prepare-{name}": "No results yet.\n" for name in names}
    report = json.loads(file.read_text())
    cases = report["convert"]
    tables = {
        "convert": prepare_convert(cases),
        "strips": side_by_side("rows at a time", {k: v["strips"] for k, v in cases.items()}),
        "parts": side_by_side("the kept way up to", {k: v["parts"] for k, v in cases.items()}),
        "steps": side_by_side("step", {"one thread": report["steps"]}),
        "suppress": prepare_suppress(report),
    }
    tables["machine"] = prepare_note(report)
    return {f"prepare-{name}": f"\n{table}\n" for name, table in tables.items()}


def prepare_convert(cases: dict[str, Any]) -> str:
    """One line per candidate, fastest first in the first case; then what a case moves."""
    first = next(iter(cases.values()))
    heads = [head for case in cases for head in (f"{case}, us", "least", "times the kept")]
    rows = [["candidate", *heads, "error"]]
    entries = first["candidates"]
    for name in sorted(entries, key=lambda name: entries[name].get("median_us", float("inf"))):
        cells = []
        for case in cases.values():
            entry, kept = case["candidates"][name], case["candidates"][case["kept"]]
            is_timed = "median_us" in entry and "median_us" in kept
            ratio = f"{entry['median_us'] / kept['median_us']:.2f}" if is_timed else NO_RESULT
            cells += [*microseconds(entry), ratio]
        errors = [case["candidates"][name]["error"] for case in cases.values()]
        error = NO_RESULT if name == first["floor"] else f"{max(map(float, errors)):.0e}"
        rows.append([f"**{name}**" if name == first["kept"] else name, *cells, error])
    moved = "; ".join(
        f"{name}: {case['bytes_read'] / 1e6:.2f} MB read, {case['bytes_written'] / 1e6:.2f} MB "
        f"written, {case['bytes_padding'] / 1e6:.2f} MB of padding left out"
        for name, case in cases.items()
    )
    return f"{markdown(rows)}\n{moved}. Error: the largest distance from x / 255 in float64.\n"


def side_by_side(head: str, groups: dict[str, dict[str, Any]]) -> str:
    """One line per entry in the order of the file, two columns per group."""
    rows = [[head, *(cell for group in groups for cell in (f"{group}, us", "least"))]]
    for name in dict.fromkeys(name for group in groups.values() for name in group):
        found = [group.get(name) for group in groups.values()]
        rows.append([name, *(cell for entry in found for cell in microseconds(entry))])
    return markdown(rows)


def prepare_suppress(report: dict[str, Any]) -> str:
    kinds = report["suppress"]
    columns = [(kind, way) for kind in kinds for way in ("saccade", "cv2", "reference")]
    rows = [["candidates", *(f"{kind}, {way}, us" for kind, way in columns)]]
    for num in next(iter(kinds.values())):
        entries = [kinds[kind][num].get(way) for kind, way in columns]
        rows.append([num, *(microseconds(entry)[0] for entry in entries)])
    return (
        f"{markdown(rows)}\nAt most {report['max_detections']} boxes of {report['num_classes']} "
        f"classes, IoU {report['iou']}; crowded: {report['num_objects']} objects.\n"
    )


def prepare_note(report: dict[str, Any]) -> str:
    machine = report["environment"]
    versions = ", ".join(
        f"{name} {machine['packages'][name]}"
        for name in ("numpy", "opencv-python-headless", "simplejpeg", "pillow")
    )
    return (
        f"Median, least of rounds in turns, {report['clock']}, one thread; {machine_of(report)}; "
        f"{versions}; {machine['date'][:10]}, load {machine['load_average'][0]} at the start and "
        f"{report['load_average_after'][0]} at the end: the run took {report['cpu_s']} s of CPU "
        f"time and {report['wall_s']} s.\n"
    )


def microseconds(entry: dict[str, Any] | None) -> list[str]:
    """Median and least of one entry."""
    if entry is None:
        return [NO_RESULT, NO_RESULT]
    if "refused" in entry:
        return ["refused", NO_RESULT]
    return [number(entry["median_us"]), number(entry["min_us"])]


def number(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
