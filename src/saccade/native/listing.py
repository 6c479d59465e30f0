"""What is in an engine's file: each step, what runs it, what it fuses, its time and its floor."""

from __future__ import annotations

from typing import Any

from saccade.native.artefact import Artefact, unpacked
from saccade.native.floors import floor_us
from saccade.native.ops import writes

__all__ = ["listed", "rows_of"]


def listed(raw: bytes) -> dict[str, Any]:
    """The content of an engine's file; needs no GPU.

    Raises:
        BuildError: The file is damaged or of another version.
    """
    artefact = unpacked(raw, {})
    rows = rows_of(artefact)
    about = dict(artefact.key) | {
        "inputs": "; ".join(f"{s.name} {s.dtype} {list(s.shape)}" for s in artefact.plan.inputs),
        "outputs": "; ".join(f"{s.name} {s.dtype} {list(s.shape)}" for s in artefact.plan.outputs),
        "arena": f"{artefact.plan.arena_bytes / 2**20:.1f} MiB",
        "streams": str(artefact.options.num_streams),
        "chained": str(artefact.options.is_chained),
        "kernels' time one by one": f"{sum(row['us'] for row in rows):.1f} us",
        "floor": f"{sum(row['floor_us'] for row in rows):.1f} us",
    }
    return {"about": about, "kernels": rows}


def rows_of(artefact: Artefact) -> list[dict[str, Any]]:
    """One row per step, in order."""
    total = sum(artefact.us)
    rows = []
    for step, way, us in zip(artefact.plan.steps, artefact.ways, artefact.us, strict=True):
        floor = floor_us(step)
        rows.append(
            {
                "kind": type(step).__name__,
                "way": way,
                "result": list(writes(step)[0].shape),
                "us": us,
                "floor_us": floor,
                "ratio": us / max(floor, 1e-9),
                "share": us / total if total else 0.0,
                "fuses": step.label,
            }
        )
    return rows
