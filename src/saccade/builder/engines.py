"""TensorRT engines for cards that are not here, made ready to go into a bundle."""

from __future__ import annotations

from collections.abc import Sequence

from saccade.backends.tensorrt import BACKEND
from saccade.bundles import EngineFile
from saccade.errors import BackendUnavailable
from saccade.types import Model, Plan

__all__ = ["build_engines"]


def build_engines(
    model: Model, targets: Sequence[str], *, batch: int = 1, shapes: str = ""
) -> dict[str, EngineFile]:
    """Build one engine per target, without a GPU. The gate cannot run them, and they say so.

    Args:
        model: The transformed network, whose types are the precision.
        targets: E.g. ("sm86", "sm89+sm120").
        batch: Largest batch where the graph leaves it free and no shapes are given.
        shapes: LEAST:BEST:MOST of the picture input, with a comma between several ranges.

    Raises:
        BackendUnavailable: The package is missing.
        BuildError: TensorRT refuses the graph; the message has its words.
        InputError: A target or the shapes are wrong.
    """
    can_build = BACKEND.can_build()
    if not can_build.ok:
        raise BackendUnavailable(f"engines cannot be built here: {can_build.reason}")
    options = (("shapes", shapes),) if shapes else ()
    plan = Plan(BACKEND.name, batch=batch, options=options)
    # No times: two equal builds write equal manifests.
    return {
        target: EngineFile(
            built.data,
            BACKEND.name,
            built.package,
            facts={
                "shapes": [str(one) for one in built.shapes],
                "warnings": [line for line in built.messages if line.startswith("WARNING")],
            },
        )
        for target, built in BACKEND.build(model, plan, targets).items()
    }
