"""TensorRT engines for cards that are not here, made ready to go into a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from saccade.backends.tensorrt import BACKEND, ShapeRange, derive_shapes, parse_shapes
from saccade.bundles import Bundle, EngineFile, read_bundle
from saccade.bundles.reading import ENGINES_FOLDER
from saccade.errors import BackendUnavailable, BuildError, InputError
from saccade.types import Contract, Model, Plan

__all__ = [
    "Engines",
    "build_engines",
    "carried",
    "check_asked",
    "shapes_for",
    "try_engines",
    "with_engines",
    "without_engines",
]

_OPTION = "engines"


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


def with_engines(plan: Plan, bundle: Bundle) -> Plan:
    """A plan that runs the engines of a bundle, and does not build its own."""
    folder = str(bundle.path / ENGINES_FOLDER)
    return replace(plan, options=(*without_engines(plan).options, (_OPTION, folder)))


def without_engines(plan: Plan) -> Plan:
    """The plan as a bundle holds it: engines are found beside the manifest, wherever it lies."""
    return replace(plan, options=tuple(pair for pair in plan.options if pair[0] != _OPTION))


def carried(plan: Plan, card: str) -> dict[str, EngineFile]:
    """The engines that a plan ran, for the bundle that is written about it.

    Args:
        plan: From `with_engines`; any other has none.
        card: The target that the gate ran them on, e.g. "sm89": engines for it are verified.
    """
    folder = dict(plan.options).get(_OPTION)
    if folder is None:
        return {}
    bundle = read_bundle(Path(folder).parent)
    known = ("file", "backend", "package", "is_verified")
    return {
        target: EngineFile(
            bundle.engine_paths[target].read_bytes(),
            told["backend"],
            told["package"],
            is_verified=card in target.split("+"),
            facts={name: value for name, value in told.items() if name not in known},
            messages=bundle.manifest.created.get("engines", {}).get(target, ()),
        )
        for target, told in bundle.manifest.engines.items()
        if told["backend"] == BACKEND.name
    }
