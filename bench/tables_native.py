"""The tables of docs/performance/native-engine.md, from bench/results/h200/native_engine.json.

The file holds sessions (what one run of `python -m bench.native_engine` wrote) in the order they
were made. A case's row is taken from the last session that has it; its peers come from that
session too, since contenders are only compared within one run.
"""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

from bench.cases import ROOT
from bench.markdown import NO_RESULT, markdown
from bench.native_suite import CASES

FILE = ROOT / "bench" / "results" / "h200" / "native_engine.json"
SHOWN = tuple((case.network.removesuffix(".onnx").replace(":", "_"), case.batch) for case in CASES)
# Kernels in a table: of the network that the engine was begun for, and of the others.
FIRST, MOST_KERNELS, MOST_OTHERS = "cells_640", 24, 12
PEERS = (
    ("torch.compile max-autotune", ("torch.compile max-autotune",)),
    ("torch.compile", ("torch.compile",)),
    ("eager graph", ("torch eager graph",)),
    ("ONNX Runtime CUDA", ("ONNX Runtime CUDA", "ONNX Runtime CUDA, NHWC")),
)

Row = dict[str, Any]


def native_tables() -> dict[str, str]:
    """Each mark's name and its table."""
    names = ["machine", "rates", "beside-peers", "build", *(f"steps-{m}-{b}" for m, b in SHOWN)]
    if not FILE.is_file():
        return {f"native-{name}": "No results yet.\n" for name in names}
    sessions = json.loads(FILE.read_text())["sessions"]
    rows = last_rows(sessions)
    compared = {case: row for case, row in rows.items() if len(row["times"]) > 1}
    tables = [machine(sessions), rates(rows), rates(compared), builds(rows)]
    tables += [steps(rows[case]) if case in rows else "No results yet.\n" for case in SHOWN]
    return {f"native-{n}": f"\n{table}\n" for n, table in zip(names, tables, strict=True)}


def last_rows(sessions: list[Row]) -> dict[tuple[str, int], Row]:
    found = {}
    for session in sessions:
        for row in session["rows"]:
            if "times" in row:
                found[row["model"], row["batch"]] = row
    return found


def machine(sessions: list[Row]) -> str:
    last = sessions[-1]
    packages = ", ".join(f"{name} {version}" for name, version in last["packages"].items())
    return (
        f"{last['gpu']}, CUDA driver API {last['cuda_driver'] // 1000}."
        f"{last['cuda_driver'] % 1000 // 10}, NVRTC {last['nvrtc']}, Python {last['python']}, "
        f"{packages}; {', '.join(dict.fromkeys(session['at'][:10] for session in sessions))}.\n"
    )


def rates(rows: dict[tuple[str, int], Row]) -> str:
    """One line per case: the engine, each peer of the same run, the ratio to the best, errors."""
    lines = [["network", "batch", "ms", "pictures/s", *(f"{name}, ms" for name, _ in PEERS),
              "best / ours", "relative error"]]  # fmt: skip
    for (model, batch), row in rows.items():
        own = row["times"]["native"]["ms"]
        found = [
            min((row["times"][n]["ms"] for n in names if n in row["times"]), default=None)
            for _, names in PEERS
        ]
        best = min((ms for ms in found if ms is not None), default=None)
        errors = dict(row["errors"]["native"])
        agreement = errors.pop("agreement", None)
        lines.append(
            [
                model,
                str(batch),
                f"{own:.3f}",
                f"{batch * 1000 / own:,.0f}",
                *(NO_RESULT if ms is None else f"{ms:.3f}" for ms in found),
                NO_RESULT if best is None else f"**{best / own:.2f}**",
                f"{max(errors.values()):.1e}"
                if agreement is None
                else f"boxes agree: {agreement:.0%}",
            ]
        )
    return markdown(lines)


def builds(rows: dict[tuple[str, int], Row]) -> str:
    lines = [["network", "batch", "steps", "build s", "again s", "load s", "MB", "arena MiB",
              "sum of kernels us", "floor us"]]  # fmt: skip
    for (model, batch), row in rows.items():
        lines.append(
            [
                model,
                str(batch),
                str(len(row["steps"])),
                f"{row['build_s']:.1f}",
                f"{row['again_s']:.1f}",
                f"{row['load_s']:.2f}",
                f"{row['num_bytes'] / 1e6:.1f}",
                f"{row['arena_bytes'] / 2**20:.0f}",
                f"{sum(step['us'] for step in row['steps']):.0f}",
                f"{sum(step['floor_us'] for step in row['steps']):.0f}",
            ]
        )
    return markdown(lines)


def steps(row: Row) -> str:
    """Like steps together, the longest first."""
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for step in row["steps"]:
        shapes = " ".join(
            "x".join(map(str, shape[1:])) for shape in (*step["reads"][:1], *step["writes"][:1])
        )
        groups[step["step"], shapes, step["way"]].append(step)
    total = sum(step["us"] for step in row["steps"])
    lines = [["step", "picture in, picture out", "kernel", "count", "us each", "floor us", "ratio",
              "share"]]  # fmt: skip
    ranked = sorted(groups.items(), key=lambda item: -sum(step["us"] for step in item[1]))
    most = MOST_KERNELS if row["model"] == FIRST else MOST_OTHERS
    for (kind, shapes, way), found in ranked[:most]:
        us, floor = found[0]["us"], found[0]["floor_us"]
        share = sum(step["us"] for step in found) / total
        lines.append(
            [kind, shapes, way, str(len(found)), f"{us:.1f}", f"{floor:.1f}",
             f"{us / max(floor, 0.01):.1f}", f"{share:.1%}"]
        )  # fmt: skip
    rest = sum(len(found) for _, found in ranked[most:])
    more = f"\nand {rest} more steps; {total:.0f} us in all, one by one.\n" if rest else ""
    return markdown(lines) + more
