"""How things are printed: tables for people, JSON for programs, progress for terminals."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["human_bytes", "human_count", "print_device", "print_json", "print_table", "progress"]

_FILE_WIDTH = 1000


def print_json(value: Any) -> None:
    """Print a value as indented JSON on standard output."""
    import msgspec

    text = msgspec.json.format(msgspec.json.encode(value, enc_hook=_plain), indent=2)
    sys.stdout.write(text.decode() + "\n")


def _plain(value: object) -> object:
    """What JSON has no form for: paths are text."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"no JSON form for {type(value).__name__}")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; columns whose cells are all numbers are set to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        cells = [str(row[index]) for row in rows]
        is_number = bool(cells) and all(c[:1].isdigit() or c in ("", "-") for c in cells)
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    # Cells are wrapped for people only: a command to copy must stay in one piece in a file.
    width = None if sys.stdout.isatty() else _FILE_WIDTH
    Console(highlight=False, width=width).print(table)


def print_device(report: Any) -> None:
    """Print a DeviceReport: what the GPU did, allocations, and memory beside its prediction."""
    per_s = report.num_pictures / report.wall_s if report.wall_s else 0.0
    decoded = sum(report.decoded_on_cpu.values())
    print(
        f"{report.device}: {report.num_pictures} pictures in {report.num_batches} batches, "
        f"{per_s:.0f} pictures/s, busy {report.gpu_busy:.0%}; decoded on the GPU "
        f"{report.decoded_on_gpu}, on the CPU {decoded}; allocations {report.allocations_at_load} "
        f"at load, {report.allocations_while_running} while running"
    )
    rows = [
        (
            part.name,
            human_bytes(part.predicted_bytes),
            "-" if part.measured_bytes is None else human_bytes(part.measured_bytes),
        )
        for part in report.memory
    ]
    print_table("", ("device memory", "predicted", "measured"), rows)


@contextlib.contextmanager
def progress(what: str, total: int | None, is_quiet: bool) -> Iterator[Any]:
    """A bar on standard error with rate and time left; nothing if that is not a terminal.

    Yields:
        A function to call once per picture with the number of errors so far.
    """
    if is_quiet or not sys.stderr.isatty():
        yield lambda num_errors: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[errors]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total, rate="", errors="")

        def advance(num_errors: int) -> None:
            speed = bar.tasks[0].speed
            bar.update(
                task,
                advance=1,
                rate=f"{speed:.1f} img/s" if speed else "",
                errors=f"{num_errors} errors" if num_errors else "",
            )

        yield advance


def human_bytes(num_bytes: float) -> str:
    """Bytes with a binary unit, e.g. "11.6 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def human_count(number: float) -> str:
    """A count with a decimal unit, e.g. "3.01 M"."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:.0f}"
