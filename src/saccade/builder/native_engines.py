"""Engines of the back end `native` that the gate ran, taken from where its processes keep them."""

from __future__ import annotations

from dataclasses import replace

from saccade.backends.native import BACKEND
from saccade.builder.engines import Engines
from saccade.builder.records import Row
from saccade.bundles import EngineFile
from saccade.types import Model

__all__ = ["kept_engines"]


def kept_engines(row: Row, network: Model, size_hw: tuple[int, int]) -> Engines:
    """The engine of each batch size that the gate judged, for the bundle.

    Args:
        row: The candidate that was chosen.
        network: Its file.
        size_hw: Height and width that it was judged at.

    Returns:
        None of another back end's. Where the cache folder could not be written there is no file to
        take, which is told for each batch size.

    Raises:
        BackendUnavailable: The card is gone.
    """
    plan = row.candidate.plan
    if plan.backend != BACKEND.name:
        return Engines()
    checked = row.verdict.checked if row.verdict else ()
    files: dict[str, EngineFile] = {}
    refused: dict[str, str] = {}
    for batch in sorted({1, plan.batch}):
        if not any(told.startswith(f"batch {batch} ") for told in checked):
            continue
        found = BACKEND.stored(network, replace(plan, batch=batch), size_hw)
        if found is None:
            refused[f"batch {batch}"] = (
                "the engine that the gate ran was not kept; the cache folder must be writable"
            )
            continue
        files[found.target] = EngineFile(
            found.data,
            BACKEND.name,
            f"saccade, kernels {found.key['kernels']}",
            is_verified=True,
            facts={"batch": batch, "key": dict(found.key)},
        )
    return Engines(files, refused)
