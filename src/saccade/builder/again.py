"""The same deployment once more: on another machine, or with other versions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from saccade.backends.tensorrt import BACKEND as TENSORRT
from saccade.builder.build import BuildOptions
from saccade.builder.candidates import plan_in
from saccade.builder.engines import with_engines
from saccade.builder.records import Candidate, Recipe
from saccade.bundles import Bundle, read_bundle
from saccade.errors import InputError
from saccade.graph.reading import read_model

__all__ = ["Again", "from_bundle"]


@dataclass(frozen=True, slots=True)
class Again:
    """What a bundle was built from.

    Attributes:
        model: The FP32 network.
        contract: TOML file that says how it is fed and read.
        options: As they were, but only the bundle's own candidate is tried.
    """

    model: Path
    contract: Path
    options: BuildOptions


def from_bundle(
    folder: Path, model: Path | None, changes: Mapping[str, Any], backend: str = ""
) -> Again:
    """Read from a bundle how to build it again.

    The answers are judged and the speed is measured anew: a plan that was right elsewhere is not
    trusted here.

    Args:
        folder: The bundle.
        model: The FP32 network, if it is not where it was.
        changes: Fields of BuildOptions to set, such as where the pictures are now.
        backend: Run the bundle's network in this back end in place of its own. With "tensorrt" the
            engines of the bundle are what is judged, if it has some.

    Raises:
        ModelError: The bundle or the model cannot be read.
        InputError: The model is not the one that the bundle was built from.
    """
    bundle = read_bundle(folder)
    settings = dict(bundle.manifest.settings)
    told = settings.pop("model", "")
    path = model or Path(told)
    if not path.is_file():
        raise InputError(
            f"the network that {folder} was built from must be there, {told or 'an unnamed one'} "
            f"is not; name it: saccade build MODEL --from {folder}"
        )
    wanted, digest = bundle.manifest.model["digest"], read_model(path).digest
    if digest != wanted:
        raise InputError(
            f"the network must be the one that {folder} was built from (sha256 {wanted[:12]}), "
            f"{path} is another (sha256 {digest[:12]}); give that one, or build without --from"
        )
    try:
        options = msgspec.convert(
            settings, BuildOptions, strict=False, dec_hook=lambda kind, value: kind(value)
        )
    except msgspec.ValidationError as exc:
        raise InputError(
            f"{folder} must say how it was built, it does not ({exc}); build without --from"
        ) from exc
    only = _candidate(bundle, backend)
    if dict(only.plan.options).get("engines") and "targets" not in changes:
        changes = {**changes, "targets": (), "shapes": ""}  # the engines at hand are judged
    backends = tuple(dict.fromkeys(("onnxruntime", only.plan.backend)))
    options = dataclasses.replace(options, **changes, only=only, backends=backends)
    return Again(path, bundle.contract_path, options)


def _candidate(bundle: Bundle, backend: str) -> Candidate:
    manifest = bundle.manifest
    plan = plan_in(backend, manifest.plan) if backend else manifest.plan
    # TensorRT's engines are what is judged; those of back end native are made for each card.
    ready = {engine["backend"] for engine in manifest.engines.values()}
    if plan.backend == TENSORRT.name and plan.backend in ready:
        plan = with_engines(plan, bundle)
    recipe = msgspec.convert(manifest.recipe, Recipe)
    return Candidate(recipe, plan, manifest.workers, manifest.scaled_decode)
