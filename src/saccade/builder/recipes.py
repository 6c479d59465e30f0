"""From a recipe to an ONNX file: precision lives in the graph, and the contract stays."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from saccade.builder.calibration import Calibration
from saccade.builder.histograms import CALIBRATORS
from saccade.builder.records import Recipe
from saccade.errors import BuildError, InputError
from saccade.graph.passes.fp16 import MAX_FP16, islands_of, to_fp16
from saccade.graph.passes.loading import load_tidy, write_proto
from saccade.graph.passes.quantize import (
    is_quantized,
    quantizable_nodes,
    quantized_tensors,
    to_qdq,
)
from saccade.graph.reading import read_model
from saccade.graph.topology import reads
from saccade.types import Contract, Model

if TYPE_CHECKING:
    import onnx

__all__ = [
    "MODEL_FILE",
    "calibration_tensors",
    "candidate_recipes",
    "make_model",
    "why_not",
]

MODEL_FILE = "model.onnx"
# Half of what FP16 holds: other pictures than those of the calibration may reach further.
_SAFE_FP16 = MAX_FP16 / 2


def make_model(
    model: Model,
    contract: Contract,
    recipe: Recipe,
    folder: Path,
    calibration: Calibration | None = None,
) -> Path:
    """Write the ONNX file of a recipe; the same arguments always give the same bytes.

    Args:
        model: The network as it came.
        contract: How it is fed and read; the new file is fed and read likewise.
        recipe: What to make.
        folder: Made if missing. Every file goes into it.
        calibration: Needed for int8. For fp16 it shows which tensors pass FP16's largest number.

    Returns:
        The new file.

    Raises:
        BuildError: The graph cannot be converted, or the result is fed or read otherwise.
        InputError: The recipe needs a calibration, or names an unknown calibrator.
        ModelError: A file of the model has gone or changed.
    """
    path = folder / MODEL_FILE
    if recipe.precision == "fp32":
        _copy(model, path)
        return path
    reason = why_not(model).get(recipe.precision)
    if reason is not None:
        raise BuildError(f"recipe {recipe.label!r} must suit the graph: {reason}")
    proto = load_tidy(model)
    if recipe.precision == "fp16":
        kept = set(recipe.kept) | _beyond_fp16(proto, calibration)
        made = to_fp16(proto, sorted(kept))
    else:
        ranges = _ranges(recipe, calibration)
        made = to_qdq(proto, ranges, recipe.kept, everything=recipe.everything)
    _make_folder(folder)
    write_proto(made, path)
    _check_contract(model, contract, path)
    return path


def candidate_recipes(model: Model, contract: Contract) -> tuple[Recipe, ...]:
    """What is worth trying for this graph, FP32 first; `why_not` says what is left out."""
    del contract
    refused = why_not(model)
    recipes = [Recipe()]
    if "fp16" not in refused:
        recipes.append(Recipe("fp16"))
    if "int8" not in refused:
        recipes += [Recipe("int8", calibrator) for calibrator in CALIBRATORS]
        if _more_with_everything(model):
            recipes.append(Recipe("int8", CALIBRATORS[0], everything=True))
    return tuple(recipes)


def _more_with_everything(model: Model) -> bool:
    """Whether the head or the first layer leave something that only the reckless quantise."""
    proto = load_tidy(model)
    return set(quantized_tensors(proto, everything=True)) != set(quantized_tensors(proto))


def why_not(model: Model) -> dict[str, str]:
    """Precisions that make no sense for this graph, and why."""
    try:
        proto = load_tidy(model)
    except BuildError as exc:
        return {"fp16": str(exc), "int8": str(exc)}
    if is_quantized(proto):
        reason = "the graph is quantised already; it is used as it is"
        return {"fp16": reason, "int8": reason}
    halves = [spec.name for spec in model.inputs if spec.dtype in ("float16", "bfloat16")]
    if halves:
        reason = f"the graph is in half precision already (input {halves[0]!r})"
        return {"fp16": reason, "int8": reason}
    refused = {}
    if not quantizable_nodes(proto.graph):
        refused["int8"] = (
            "no convolution or product with stored weights comes behind the first one; "
            "there is nothing to quantise"
        )
    if len(islands_of(proto)) == len(proto.graph.node):
        refused["fp16"] = "every operator would have to stay in FP32"
    return refused


def calibration_tensors(model: Model, *, everything: bool = False) -> tuple[str, ...]:
    """Tensors whose ranges INT8 recipes of this model need, whatever nodes they keep.

    Args:
        model: The network.
        everything: For recipes that quantise every operator too.

    Raises:
        BuildError: There is nothing to quantise.
    """
    proto = load_tidy(model)
    names = set(quantized_tensors(proto))
    if everything:
        names |= set(quantized_tensors(proto, everything=True))
    return tuple(sorted(names))


def _ranges(recipe: Recipe, calibration: Calibration | None) -> Mapping[str, float]:
    if calibration is None:
        raise InputError(
            f"recipe {recipe.label!r} must have a calibration, there is none; give pictures to "
            "calibrate on"
        )
    return calibration.ranges(recipe.calibrator)


def _beyond_fp16(proto: onnx.ModelProto, calibration: Calibration | None) -> set[str]:
    """Nodes that make or read a tensor which was seen to come near FP16's largest number."""
    largest = calibration.largest() if calibration is not None else {}
    wide = {name for name, value in largest.items() if value > _SAFE_FP16}
    return {
        node.name
        for node in proto.graph.node
        if not wide.isdisjoint(node.output) or not wide.isdisjoint(reads(node))
    }


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise BuildError(
            f"the folder {folder} must be writable, making it failed ({exc}); choose another"
        ) from exc


def _copy(model: Model, path: Path) -> None:
    """Copy the model with its external files, which were found to lie in its folder."""
    _make_folder(path.parent)
    try:
        for location in model.external_files:
            place = path.parent / location
            if place == path:
                raise BuildError(
                    f"the external file of a model must not be called {MODEL_FILE}, "
                    f"{model.path.name} has such a one; export the model again"
                )
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(model.path.parent / location, place)
        shutil.copyfile(model.path, path)
    except OSError as exc:
        raise BuildError(
            f"the model must be copied to {path.parent}, copying failed ({exc}); free some space "
            "or choose another folder"
        ) from exc


def _check_contract(model: Model, contract: Contract, path: Path) -> None:
    """Check that the new file is fed and read as the old one."""
    old, new = read_model(model.path), read_model(path)
    for role, before, after in (
        ("inputs", old.inputs, new.inputs),
        ("outputs", old.outputs, new.outputs),
    ):
        if before != after:
            raise BuildError(
                f"the {role} of the graph must stay {'; '.join(map(str, before))}, they became "
                f"{'; '.join(map(str, after))}; report this with the model"
            )
    names = {spec.name for spec in new.outputs}
    missing = sorted(set(contract.head.outputs.values()) - names)
    if missing:
        raise BuildError(
            f"the contract must name outputs of the graph, it has no {', '.join(missing)}; "
            "resolve the contract for this model"
        )
