"""The tables of docs/performance/torch-engine.md, from bench/results/h200/torch_engine.json.

The file holds sessions (one run of `python -m bench.torch_engine` each) in the order they were
made; a plan may stand in several. Answers and the other models come from the last session that has
the plan, for later checks look at more pictures; rates by batch come from the first, so that a
column is one sweep. The table of ways shows all of them.
"""

from __future__ import annotations

import json
from typing import Any

from bench.cases import ROOT
from bench.markdown import NO_RESULT, markdown

FILE = ROOT / "bench" / "results" / "h200" / "torch_engine.json"
NAMES = ("machine", "answers", "rates", "ways", "others", "kernels")
SWEPT = "cells_640"
BATCH = 32
COLUMNS = {
    "eager": ("none", "model"),
    "inductor": ("inductor", "model"),
    "inductor, channels-last input": ("inductor", "channels_last"),
    "tuned, channels-last input": ("tuned", "channels_last"),
}
# The first group with a part that is in a kernel's name takes it.
GROUPS = {
    "convolutions": ("xmma", "nvjet"),
    "pooling": ("pool",),
    "conversion of the input": ("triton_poi_fused_clone_0",),
    "concatenation, box decoding": ("_to_copy_", "CatArray", "SoftMax"),
    "SiLU (inductor: with bias)": ("silu",),
    "bias additions and copies by themselves": ("elementwise_kernel<128, 4",),
    "other": ("",),
}

Row = dict[str, Any]


def torch_tables() -> dict[str, str]:
    """Each mark's name and its table."""
    if not FILE.is_file():
        return {f"torch-{name}": "No results yet.\n" for name in NAMES}
    sessions = json.loads(FILE.read_text())["sessions"]
    rows = [
        {"session": num} | row
        for num, session in enumerate(sessions, start=1)
        for row in session["rows"]
    ]
    parts = (
        machine(sessions, rows),
        answers(rows),
        rates(rows),
        ways(rows),
        others(rows),
        kernels(rows),
    )
    return {f"torch-{name}": f"\n{part}\n" for name, part in zip(NAMES, parts, strict=True)}


def matching(rows: list[Row], **wanted: Any) -> list[Row]:
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def machine(sessions: list[dict[str, Any]], rows: list[Row]) -> str:
    """Where it was measured, and what holds for all rows."""
    machines = dict.fromkeys(machine_of(session["environment"]) for session in sessions)
    listed = "\n".join(
        f"{num}. {session['note']}; commit {session['commit']}."
        for num, session in enumerate(sessions, start=1)
    )
    copies = max(row["between_copies"] for row in rows)
    captured = max(row["captured_by_caller"] for row in rows)
    return (
        f"{'; '.join(machines)}. In all {len(rows)} rows the largest difference between copies of "
        f"a picture in one batch is {copies:g}, and between the engine's own graph and one that "
        f"the caller captures {captured:g}. Sessions:\n\n{listed}\n"
    )


def machine_of(environment: dict[str, Any]) -> str:
    driver = environment["smi"].splitlines()[1].split(", ")[1]
    major, rest = divmod(environment["cudnn"], 10000)
    return (
        f"{environment['gpu']}, driver {driver}, torch {environment['torch']}, cuDNN "
        f"{major}.{rest // 100}, ONNX Runtime {environment['onnxruntime']}, Python "
        f"{environment['python']}"
    )


def answers(rows: list[Row]) -> str:
    """One line per model; then every row that the check refused."""
    head = ["model", "FP32", "FP16", "FP16, relative to the norm"]
    lines = [[*head, "agreement FP32 (boxes)", "agreement FP16 (boxes)", "FP16 plan"]]
    for model in dict.fromkeys(row["model"] for row in rows):
        full = matching(rows, model=model, precision="fp32")[-1]
        half = matching(rows, model=model, precision="fp16")
        compiled = matching(half, compile="inductor", batch=BATCH)
        last = (compiled or matching(half, batch=1))[-1]
        lines.append(
            [
                model,
                difference(full["max_abs_error"]),
                difference(last["max_abs_error"]),
                difference(last["relative_error"]),
                agreement(full),
                agreement(last),
                f"{way_of(last)}, batch {last['batch']}",
            ]
        )
    refused = "; ".join(
        f"{row['model']} {row['precision'].upper()} {way_of(row)} batch {row['batch']}, "
        f"{agreement(row)}, session {row['session']}"
        for row in rows
        if "median_ms" not in row
    )
    return f"{markdown(lines)}\nRefused by the check, so not timed: {refused}.\n"


def difference(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:#.2g}"


def agreement(row: Row) -> str:
    return f"{row['agreement']:.3f} ({row['reference_boxes']})"


def way_of(row: Row) -> str:
    way = "eager" if row["compile"] == "none" else row["compile"]
    return way if row["input"] == "model" else f"{way}, `input={row['input']}`"


def timed_rows(rows: list[Row]) -> list[Row]:
    return [row for row in matching(rows, model=SWEPT, precision="fp16") if "median_ms" in row]


def rates(rows: list[Row]) -> str:
    """Pictures per second, one line per batch, one column per way; then spread and loading."""
    swept = timed_rows(rows)
    lines, shown = [["batch", *COLUMNS]], []
    for batch in sorted({row["batch"] for row in swept}):
        cells = [str(batch)]
        for compile_, input_ in COLUMNS.values():
            found = matching(swept, batch=batch, compile=compile_, input=input_)
            first = [row for row in found if row["session"] == found[0]["session"]][-1:]
            shown += first
            cells.append(f"{first[0]['images_per_s']:,.0f}" if first else NO_RESULT)
        lines.append(cells)
    spread = max((row["most_ms"] - row["least_ms"]) / row["median_ms"] for row in shown)
    note = f"Medians of rounds; from least to most no cell spreads over more than {spread:.1%}."
    return f"{markdown(lines)}\n{note}\n"


def ways(rows: list[Row]) -> str:
    """All that was tried with large batches, every time it was measured."""
    head = ["way", "batch", "session", "ms", "least to most", "pictures/s", "load, s"]
    lines = [[*head, "memory, MiB"]]
    large = [row for row in timed_rows(rows) if row["batch"] >= BATCH]
    large.sort(key=lambda row: (row["batch"], -row["median_ms"]))
    lines += [
        [
            way_of(row),
            str(row["batch"]),
            str(row["session"]),
            f"{row['median_ms']:.2f}",
            f"{row['least_ms']:.3f} to {row['most_ms']:.3f}",
            f"{row['images_per_s']:,.0f}",
            f"{row['load_s']:.1f}",
            f"{row['workspace_bytes'] / 2**20:.0f}",
        ]
        for row in large
    ]
    note = "Load: compilation included. Memory: of the device, beyond weights and buffers."
    return f"{markdown(lines)}\n{note}\n"


def others(rows: list[Row]) -> str:
    """Pictures per second of the other models at the large batch."""
    found = [row for row in matching(rows, precision="fp16", batch=BATCH) if row["model"] != SWEPT]
    lines = [["model", "eager", "inductor"]]
    for model in dict.fromkeys(row["model"] for row in found):
        cells = [model]
        for compile_ in ("none", "inductor"):
            last = matching(found, model=model, compile=compile_)[-1:]
            is_timed = bool(last) and "images_per_s" in last[0]
            cells.append(f"{last[0]['images_per_s']:,.0f}" if is_timed else NO_RESULT)
        lines.append(cells)
    return markdown(lines)


def kernels(rows: list[Row]) -> str:
    """Milliseconds and launches by what the kernels are for."""
    profiled = [row for row in rows if "kernels" in row]
    groups = [grouped(row["kernels"]) for row in profiled]
    lines = [["kernels, ms (launches)", *(way_of(row) for row in profiled)]]
    lines += [[name, *(launched(*group[name]) for group in groups)] for name in GROUPS]
    sums = [sum(us for _, us in group.values()) / 1000 for group in groups]
    lines.append(["sum of the kernels above", *(f"{ms:.2f}" for ms in sums)])
    lines.append(["the whole inference", *(f"{row['median_ms']:.2f}" for row in profiled)])
    kept = " and ".join(dict.fromkeys(str(len(row["kernels"])) for row in profiled))
    batches = " and ".join(dict.fromkeys(str(row["batch"]) for row in profiled))
    return f"{markdown(lines)}\nBatch {batches}; the {kept} longest kernels of each.\n"


def grouped(found: list[tuple[str, int, float]]) -> dict[str, tuple[int, float]]:
    """Launches and microseconds of each group."""
    sums = {name: (0, 0.0) for name in GROUPS}
    for kernel, launches, us in found:
        group = next(g for g, parts in GROUPS.items() if any(part in kernel for part in parts))
        sums[group] = (sums[group][0] + launches, sums[group][1] + us)
    return sums


def launched(launches: int, us: float) -> str:
    return f"{us / 1000:.2f} ({launches})" if launches else NO_RESULT
