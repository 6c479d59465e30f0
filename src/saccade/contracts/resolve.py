"""From a graph's signature to a contract."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saccade import heads
from saccade.contracts.files import (
    HeadOverlay,
    Overlay,
    ThresholdsOverlay,
    preset_names,
    read_overlay,
    read_preset,
)
from saccade.errors import ContractError, InputError
from saccade.types import (
    Contract,
    HeadRule,
    InputRule,
    Recognition,
    Signature,
    TensorSpec,
    Thresholds,
)

__all__ = ["picture_spec", "resolve"]

_PICTURE_KEYS = ("color", "resize", "mean", "std")
_FLOAT_DTYPES = ("float16", "float32", "float64", "uint8", "uint16")


def resolve(
    signature: Signature,
    *,
    preset: str | None = None,
    contract: str | Path | None = None,
    labels: tuple[str, ...] = (),
) -> Contract:
    """Say how a model is fed and read.

    Args:
        signature: What is seen of the graph.
        preset: Name of a preset to lay over it.
        contract: Path of a TOML file to lay over it.
        labels: Class names that replace all others.

    Raises:
        ContractError: Nothing fits, several things fit, or the overlay does not fit the graph.
        InputError: The call is wrong.
    """
    if preset is not None and contract is not None:
        raise InputError("name a preset or a contract file, not both")
    overlay, source = Overlay(), "recognised"
    if preset is not None:
        overlay, source = read_preset(preset), f"preset {preset}"
    elif contract is not None:
        overlay, source = read_overlay(contract), f"file {Path(contract).name}"
    recognition = _recognition(signature, overlay, source)
    made = Contract(
        input=_input_rule(signature, recognition, overlay, source),
        head=_head_rule(recognition.head, overlay.head),
        detect=_thresholds(recognition.detect, overlay.detect),
        evaluate=_thresholds(recognition.evaluate, overlay.evaluate),
        labels=labels or tuple(overlay.labels or recognition.labels),
        source=source,
        reasons=_reasons(signature, recognition, overlay, source),
    )
    _check(made, signature)
    return made


def _recognition(signature: Signature, overlay: Overlay, source: str) -> Recognition:
    head = overlay.head
    if head.family and head.outputs and head.num_classes is not None:
        rule = HeadRule(head.family, head.outputs, head.num_classes)
        return Recognition(rule, {}, Thresholds(), Thresholds(), ())
    if head.family:
        found = heads.get(head.family).recognise(signature)
        if found is None:
            raise ContractError(
                f"{source} says that the head is {head.family!r}, but the outputs do not look like "
                f"it: {_seen(signature)}; choose another preset "
                f"({', '.join(preset_names())}) or name outputs and num_classes in a file"
            )
        return found
    return _only_match(signature)


def _only_match(signature: Signature) -> Recognition:
    matches = {n: r for n in heads.names() if (r := heads.get(n).recognise(signature)) is not None}
    if len(matches) == 1:
        return next(iter(matches.values()))
    if matches:
        told = "; ".join(f"{name} because {', '.join(r.seen)}" for name, r in matches.items())
        raise ContractError(
            f"exactly one head family must fit the outputs, {len(matches)} do: {told}. "
            f"Name a preset ({', '.join(_presets_of(tuple(matches)))})"
        )
    raise ContractError(
        f"no head family fits this model. Seen: {_seen(signature)}. "
        f"Nearest presets: {', '.join(_nearest(signature))}. Name one with --preset, "
        "or describe the model in a TOML file with --contract (docs/contracts.md)"
    )


def _seen(signature: Signature) -> str:
    inputs = ", ".join(map(str, signature.inputs))
    return f"inputs {inputs}; outputs {', '.join(map(str, signature.outputs))}"


def _presets_of(families: tuple[str, ...]) -> list[str]:
    return [name for name in preset_names() if read_preset(name).head.family in families]


def _nearest(signature: Signature) -> list[str]:
    """Presets whose usual outputs look most like these: same number, like names and ranks."""
    shape = _shape_words([(spec.name, len(spec.shape)) for spec in signature.outputs])
    ranked = sorted(
        preset_names(),
        key=lambda n: difflib.SequenceMatcher(
            None, shape, _shape_words(_usual_outputs(read_preset(n)))
        ).ratio(),
        reverse=True,
    )
    return ranked[:4]


def _usual_outputs(overlay: Overlay) -> list[tuple[str, int]]:
    """Names and ranks from the preset's source line, e.g. "output0:3 labels:2"."""
    pairs = [word.rsplit(":", 1) for word in overlay.source.split() if ":" in word]
    return [(name, int(rank)) for name, rank in pairs if rank.isdigit()]


def _shape_words(outputs: list[tuple[str, int]]) -> list[str]:
    return sorted(f"rank{rank}" for _, rank in outputs) + sorted(name for name, _ in outputs)


def picture_spec(signature: Signature, name: str | None = None) -> TensorSpec:
    """The input that takes the picture: the one named, or the only one with four axes."""
    if name is not None:
        named = [spec for spec in signature.inputs if spec.name == name]
        if not named:
            raise ContractError(
                f"input must be one of {', '.join(s.name for s in signature.inputs)}, got {name!r}"
            )
        return named[0]
    pictures = [spec for spec in signature.inputs if len(spec.shape) == 4]
    if len(pictures) != 1:
        raise ContractError(
            "a detector must have one input of four axes for the picture, this one has "
            f"{len(pictures)}: {', '.join(map(str, signature.inputs))}; "
            "name it in a contract file ([input] name)"
        )
    return pictures[0]


def _input_rule(
    signature: Signature, recognition: Recognition, overlay: Overlay, source: str
) -> InputRule:
    given = {
        k: v
        for k in overlay.input.__struct_fields__
        if (v := getattr(overlay.input, k)) is not None
    }
    if recognition.input is None and not all(key in given for key in _PICTURE_KEYS):
        family = recognition.head.family
        raise ContractError(
            f"the head is recognised as {family!r} ({'; '.join(recognition.seen)}), but how "
            "pictures go in cannot be seen in the graph: colour order, resize rule, mean and "
            f"std. Name a preset ({', '.join(_presets_of((family,))) or 'none knows it'}) with "
            "--preset, or give [input] in a TOML file with --contract"
        )
    spec = picture_spec(signature, given.get("name"))
    seen: dict[str, Any] = {
        "name": spec.name,
        "dtype": spec.dtype,
        "layout": _layout(spec),
        "size_hw": signature.size_hw,
    }
    sizes = [s.name for s in signature.inputs if s.name != spec.name]
    if sizes and "size_input" not in given:
        seen["size_input"] = sizes[0]
    merged = {**seen, **(recognition.input or {}), **given}
    if source != "recognised" and not signature.size_is_free:
        merged["size_hw"] = _fixed_size(given.get("size_hw"), signature.size_hw, source)
    return InputRule(**merged)


def _fixed_size(
    given: tuple[int, int] | None, graph: tuple[int, int], source: str
) -> tuple[int, int]:
    if given is not None and tuple(given) != graph:
        raise ContractError(
            f"size_hw in {source} must be {list(graph)}, to which the graph is fixed, "
            f"it is {list(given)}; leave it out or export the model with free height and width"
        )
    return graph


def _layout(spec: TensorSpec) -> str:
    return "nhwc" if spec.shape[3] in (1, 3) and spec.shape[1] not in (1, 3) else "nchw"


def _head_rule(rule: HeadRule, overlay: HeadOverlay) -> HeadRule:
    changes: dict[str, Any] = {}
    if overlay.outputs is not None:
        changes["outputs"] = overlay.outputs
    if overlay.num_classes is not None:
        changes["num_classes"] = overlay.num_classes
    if overlay.class_agnostic is not None:
        changes["class_agnostic"] = overlay.class_agnostic
    if overlay.options is not None:
        changes["options"] = {**rule.options, **overlay.options}
    return dataclasses.replace(rule, **changes)


def _thresholds(base: Thresholds, overlay: ThresholdsOverlay) -> Thresholds:
    given = {k: v for k in overlay.__struct_fields__ if (v := getattr(overlay, k)) is not None}
    return dataclasses.replace(base, **given)


def _reasons(
    signature: Signature, recognition: Recognition, overlay: Overlay, source: str
) -> tuple[str, ...]:
    reasons = [f"seen: {reason}" for reason in recognition.seen]
    if recognition.input:
        reasons += [f"assumed by convention: {reason}" for reason in recognition.assumed]
    if source != "recognised":
        keys = [
            k
            for part in ("input", "head", "detect", "evaluate")
            for k, v in _given(getattr(overlay, part)).items()
            if v is not None
        ]
        about = f" ({overlay.about})" if overlay.about else ""
        reasons.append(f"from {source}{about}: {', '.join(keys) or 'nothing'}")
    if signature.size_is_free:
        height, width = signature.size_hw
        reasons.append(
            f"width and height are free in the graph: {width}x{height} is used; "
            "change it with --size"
        )
    return tuple(reasons)


def _given(overlay: Any) -> Mapping[str, Any]:
    return {key: getattr(overlay, key) for key in overlay.__struct_fields__}


def _check(contract: Contract, signature: Signature) -> None:
    """Refuse a contract that contradicts the graph or itself."""
    rule = contract.input
    outputs = [spec.name for spec in signature.outputs]
    missing = sorted(set(contract.head.outputs.values()) - set(outputs))
    if missing:
        raise ContractError(
            f"outputs of the head must be among {', '.join(outputs)}; the contract names "
            f"{', '.join(missing)}"
        )
    heads.get(contract.head.family)
    if rule.dtype not in _FLOAT_DTYPES:
        raise ContractError(
            f"dtype of picture input {rule.name!r} must be one of {', '.join(_FLOAT_DTYPES)}, "
            f"it is {rule.dtype}; convert the model's input"
        )
    for key in ("mean", "std"):
        values = getattr(rule, key)
        if len(values) != rule.num_channels:
            raise ContractError(
                f"{key} must have {rule.num_channels} values for color {rule.color!r}, "
                f"it has {len(values)}"
            )
    if any(value == 0 for value in rule.std):
        raise ContractError(f"std must not be zero, it is {list(rule.std)}")
    spec = picture_spec(signature, rule.name)
    channels = spec.shape[3 if rule.layout == "nhwc" else 1]
    if isinstance(channels, int) and channels != rule.num_channels:
        raise ContractError(
            f"picture input {rule.name!r} has {channels} channels, but color {rule.color!r} has "
            f"{rule.num_channels}; set color to {'gray' if channels == 1 else 'rgb or bgr'}"
        )
    known = {spec.name for spec in signature.inputs}
    if rule.size_input is not None and rule.size_input not in known:
        raise ContractError(
            f"size_input must be one of {', '.join(sorted(known))}, it is {rule.size_input!r}"
        )
    if contract.labels and contract.head.num_classes not in (0, len(contract.labels)):
        raise ContractError(
            f"labels must name {contract.head.num_classes} classes, they name "
            f"{len(contract.labels)}"
        )
    for thresholds in (contract.detect, contract.evaluate):
        check_thresholds(thresholds)


def check_thresholds(thresholds: Thresholds) -> None:
    """Refuse thresholds out of range.

    Raises:
        InputError: Which one, what it must be and what it is.
    """
    if not -1 <= thresholds.score <= 1:
        raise InputError(f"score threshold must lie in 0 to 1, got {thresholds.score}")
    if not 0 <= thresholds.iou <= 1:
        raise InputError(f"IoU threshold must lie in 0 to 1, got {thresholds.iou}")
    if thresholds.max_detections < 1:
        raise InputError(f"max_detections must be at least 1, got {thresholds.max_detections}")
