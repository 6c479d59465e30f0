"""The tables of docs/performance/native-eight.md, from bench/results/h200/native_eight.json."""

from __future__ import annotations

import json
from typing import Any

from bench.cases import ROOT
from bench.markdown import NO_RESULT, markdown

FILE = ROOT / "bench" / "results" / "h200" / "native_eight.json"
NAMES = {"fp16": "FP16", "int8": "INT8, mixed", "fp8": "e4m3, mixed"}
NUM_STEPS, NUM_CHANGED = 30, 12
BATCH = 32

Row = dict[str, Any]


def native_eight_tables() -> dict[str, str]:
    """Each mark's name and its table."""
    names = ("machine", "rates", "first", "steps")
    if not FILE.is_file():
        return {f"native-eight-{name}": "No results yet.\n" for name in names}
    rows = json.loads(FILE.read_text())["rows"]
    whole = next(row for row in rows if row["batch"] == BATCH)
    tables = (machine(whole), rates(rows), first(whole), steps(whole))
    return {f"native-eight-{n}": f"\n{t}\n" for n, t in zip(names, tables, strict=True)}


def machine(row: Row) -> str:
    found = row["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    driver = f"{found['cuda_driver'] // 1000}.{found['cuda_driver'] % 1000 // 10}"
    return (
        f"{found['gpu']}, CUDA driver API {driver}, NVRTC {found['nvrtc']}, Python "
        f"{found['python']}, {packages}; {found['at'][:10]}.\n"
    )


def rates(rows: list[Row]) -> str:
    """Whole networks, per batch and kind."""
    lines = [["batch", "kind", "ms", "pictures/s", "of FP16's rate", "tensors in codes", "AP",
              "drop", "off FP32", "off the Q/DQ file", "sum of steps us", "arena MiB", "build s",
              "again s"]]  # fmt: skip
    for row in rows:
        lines += [
            rate(row, kind, found) for kind, found in row["kinds"].items() if "times" in found
        ]
    return markdown(lines)


def rate(row: Row, kind: str, found: Row) -> list[str]:
    base, ms = row["kinds"]["fp16"], found["times"]["ms"]
    ap, groups = found.get("judged", {}).get("ap"), found.get("codes")
    again = found.get("again_s")
    return [
        str(row["batch"]), NAMES[kind], f"{ms:.3f}", f"{row['batch'] * 1000 / ms:,.0f}",
        f"{base['times']['ms'] / ms:.2f}",
        NO_RESULT if groups is None else f"{groups} of {groups + found['halves']}",
        NO_RESULT if ap is None else f"{ap:.4f}",
        NO_RESULT if ap is None else f"{base['judged']['ap'] - ap:.4f}",
        f"{max(found['errors_fp32'].values()):.1e}", f"{max(found['errors_qdq'].values()):.1e}",
        f"{found['sum_us']:,.0f}", f"{found['arena_bytes'] / 2**20:.0f}",
        f"{found['build_s']:.0f}", NO_RESULT if again is None else f"{again:.1f}",
    ]  # fmt: skip


def first(row: Row) -> str:
    """The first kernels beside those of the table: steps that changed most."""
    before, after = row["first_kernels"]["steps"], row["kinds"]["int8"]["steps"]
    lines = [["step", "picture in, picture out", "first us", "now us"]]
    pairs = sorted(zip(before, after, strict=True), key=lambda pair: pair[1]["us"] - pair[0][2])
    for (name, _, us), step in pairs[:NUM_CHANGED]:
        lines.append([name, shapes_of(step), f"{us:.1f}", f"{step['us']:.1f}"])
    sums = [sum(us for _, _, us in before), sum(step["us"] for step in after)]
    lines.append(["all", "", f"{sums[0]:.0f}", f"{sums[1]:.0f}"])
    return markdown(lines)


def shapes_of(step: Row) -> str:
    shapes = [s[0][1:] if s else [] for s in (step["reads"], step["writes"])]
    return " ".join("x".join(map(str, shape)) for shape in shapes if shape)


def steps(row: Row) -> str:
    """Step by step, the slowest in FP16 first."""
    half, coded = row["kinds"]["fp16"], row["kinds"]["int8"]
    lines = [["step", "picture in, picture out", "FP16 us", "INT8 us", "ratio", "its floor us",
              "reads", "kernel"]]  # fmt: skip
    pairs = list(zip(half["steps"], coded["steps"], coded["types"], strict=True))
    pairs.sort(key=lambda pair: -pair[0]["us"])
    for before, after, kind in pairs[:NUM_STEPS]:
        lines.append([
            after["step"], shapes_of(after), f"{before['us']:.1f}",
            f"{after['us']:.1f}", f"{before['us'] / after['us']:.2f}", f"{after['floor_us']:.1f}",
            kind, after["way"],
        ])  # fmt: skip
    rest = pairs[NUM_STEPS:]
    lasts = [sum(pair[i]["us"] for pair in rest) for i in (0, 1)]
    floors = [sum(step["floor_us"] for step in found["steps"]) for found in (half, coded)]
    return markdown(lines) + (
        f"\nand {len(rest)} more steps: {lasts[0]:.0f} us in FP16, {lasts[1]:.0f} us in INT8. "
        f"All floors together: {floors[0]:.0f} and {floors[1]:.0f} us.\n"
    )
