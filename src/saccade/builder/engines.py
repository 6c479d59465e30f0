"""TensorRT engines for cards that are not here, made ready to go into a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from saccade.backends.tensorrt import BACKEND, ShapeRange, derive_shapes, parse_shapes
from saccade.bundles import EngineFile
from saccade.errors import BackendUnavailable, BuildError, InputError
from saccade.types import Contract, Model, Plan

__all__ = ["Engines", "build_engines", "check_asked", "shapes_for", "try_engines"]


@dataclass(frozen=True, slots=True)
class Engines:
    """What came of building ahead of time.

    Attributes:
        files: By target.
        refused: Why there is none for the other targets.
    """

    files: Mapping[str, EngineFile] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


def check_asked(contract: Contract, targets: Sequence[str], shapes: str) -> None:
    """Refuse what cannot be built before the work of a build, not after it.

    Args:
        contract: How the network is fed.
        targets: E.g. ("sm86", "sm89+sm120"); none is fine.
        shapes: LEAST:BEST:MOST of the picture input, or "".

    Raises:
        BackendUnavailable: The package is missing.
        InputError: A target is unknown, or the shapes are wrong.
    """
    if not targets:
        if shapes:
            raise InputError(
                "--shapes must come with --targets, the cards to build engines for, got "
                f"{shapes!r} alone; name them, such as --targets sm86,sm89"
            )
        return
    known = _known_targets()
    wrong = [one for one in targets if not set(one.split("+")) <= set(known)]
    if wrong:
        raise InputError(
            f"--targets must be among {', '.join(known)}, with + between several for one engine; "
            f"got {', '.join(wrong)}"
        )
    height, width = contract.input.size_hw
    ranges = parse_shapes(shapes) if shapes else ()
    if ranges and not any(_has_size(one, contract) for one in ranges):
        raise InputError(
            f"--shapes must have the size that is judged, {width}x{height}, inside at least one "
            f"range; got {', '.join(map(str, ranges))}"
        )


def _known_targets() -> tuple[str, ...]:
    can_build = BACKEND.can_build()
    if not can_build.ok:
        raise BackendUnavailable(f"engines cannot be built here: {can_build.reason}")
    known = BACKEND.targets()
    if not known:
        raise BackendUnavailable(
            f"{can_build.reason} builds engines only for the card in its own machine; run: "
            "pip install 'saccade[trt-rtx]'"
        )
    return known


def _has_size(one: ShapeRange, contract: Contract) -> bool:
    axes = slice(1, 3) if contract.input.layout == "nhwc" else slice(2, 4)
    sizes = contract.input.size_hw
    return all(
        a <= size <= b for a, size, b in zip(one.least[axes], sizes, one.most[axes], strict=True)
    )


def shapes_for(model: Model, contract: Contract, *, batch: int, batches: Sequence[int]) -> str:
    """A range over single pictures and the batches of a build; the chosen batch is its best.

    Returns:
        LEAST:BEST:MOST, or "" if the graph fixes every axis.
    """
    seen = [1, batch, batch, max(batch, *batches)]
    return ",".join(map(str, derive_shapes(model, seen, [contract.input.size_hw] * len(seen))))


def try_engines(model: Model, targets: Sequence[str], *, batch: int, shapes: str) -> Engines:
    """Build one engine per target; one that is refused does not take the others with it."""
    files: dict[str, EngineFile] = {}
    refused: dict[str, str] = {}
    for target in targets:
        try:
            files |= build_engines(model, (target,), batch=batch, shapes=shapes)
        except (BackendUnavailable, BuildError, InputError) as exc:
            refused[target] = str(exc)
    return Engines(files, refused)


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
    # No times among the facts: two equal builds write equal manifests.
    return {
        target: EngineFile(
            built.data,
            BACKEND.name,
            built.package,
            facts={
                "shapes": [str(one) for one in built.shapes],
                "warnings": [line for line in built.messages if line.startswith("WARNING")],
            },
            messages=built.messages,
        )
        for target, built in BACKEND.build(model, plan, targets).items()
    }
