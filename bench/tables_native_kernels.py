"""The tables of docs/performance/native-kernels.md, from bench/results/h200/native_kernels.json.

The file holds sessions (one run of `python -m bench.native_kernels` each) in the order they were
made; the tables of layers show the last session that measured whole batches.
"""

from __future__ import annotations

import json
from typing import Any

from bench.cases import ROOT
from bench.markdown import NO_RESULT, markdown

FILE = ROOT / "bench" / "results" / "h200" / "native_kernels.json"
BATCHES = (32, 1)
LAYERS = 34

Row = dict[str, Any]


def native_kernel_tables() -> dict[str, str]:
    """Each mark's name and its table."""
    names = ["machine", "sums", *(f"layers-{batch}" for batch in BATCHES)]
    if not FILE.is_file():
        return {f"native-kernels-{name}": "No results yet.\n" for name in names}
    sessions = json.loads(FILE.read_text())["sessions"]
    tables = [machine(sessions), sums(sessions)]
    tables += [layers(sessions, batch) for batch in BATCHES]
    return {f"native-kernels-{n}": f"\n{t}\n" for n, t in zip(names, tables, strict=True)}


def rows_of(session: Row, batch: int) -> list[Row]:
    """A session's rows of one batch; none if it left layers out."""
    rows = [row for row in session["rows"] if row["batch"] == batch]
    return rows if len(rows) == LAYERS else []


def machine(sessions: list[Row]) -> str:
    last = sessions[-1]
    worst = max(row["worst_error"] for session in sessions for row in session["rows"])
    return (
        f"{last['gpu']}, driver {last['driver']}; {last['packages']}; {last['at'][:10]}. Largest "
        f"relative error of any kernel that was timed: {worst:.1e}.\n"
    )


def fastest(row: Row, *, is_library: bool) -> tuple[float, str]:
    """Time and name of the fastest kernel, of the library (ours where it has none) or of ours."""
    found = [
        (us, name) for name, us in row["ways"].items() if name.startswith("cudnn") is is_library
    ]
    return min(found) if found else fastest(row, is_library=False)


def sums(sessions: list[Row]) -> str:
    """All convolutions of the network, one after another, per session."""
    lines = [["session", "batch", "ours", "cuDNN (ours where it has none)", "best of both",
              "floor", "best / floor"]]  # fmt: skip
    for batch in BATCHES:
        for session in sessions:
            rows = rows_of(session, batch)
            if not rows:
                continue
            ours = sum(r["count"] * fastest(r, is_library=False)[0] for r in rows)
            library = sum(r["count"] * fastest(r, is_library=True)[0] for r in rows)
            best = sum(r["count"] * min(r["ways"].values()) for r in rows)
            floor = sum(r["count"] * r["floor_us"] for r in rows)
            lines.append(
                [session["note"], str(batch), f"{ours:,.0f}", f"{library:,.0f}",
                 f"**{best:,.0f}**", f"{floor:,.0f}", f"{best / floor:.2f}"]
            )  # fmt: skip
    return markdown(lines)


def layers(sessions: list[Row], batch: int) -> str:
    """Every layer of the last whole session."""
    whole = [rows for session in sessions if (rows := rows_of(session, batch))]
    lines = [["C, HxW, K, kernel/stride", "count", "floor us", "ours us", "cuDNN us",
              "best / floor", "our fastest"]]  # fmt: skip
    for row in whole[-1]:
        c, size, k, kernel, stride = row["layer"]
        ours, library = fastest(row, is_library=False), fastest(row, is_library=True)
        best = min(row["ways"].values())
        has_library = library[1] != ours[1]
        cells = [f"{ours[0]:.1f}", f"{library[0]:.1f}" if has_library else NO_RESULT]
        winner = 0 if ours[0] == best else 1
        cells[winner] = f"**{cells[winner]}**"
        lines.append(
            [f"{c}, {size}, {k}, {kernel}/{stride}", str(row["count"]), f"{row['floor_us']:.1f}",
             *cells, f"{best / row['floor_us']:.1f}", ours[1]]
        )  # fmt: skip
    return markdown(lines)
