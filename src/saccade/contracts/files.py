"""Contracts as TOML: what a file or a preset may say, and how a contract is written down.

Every key is optional in an overlay; what it leaves out comes from the graph. A written contract
has every key, so that reading it back needs no recognition.
"""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import msgspec

from saccade.errors import ContractError, InputError
from saccade.types import Contract, InputRule, Thresholds

__all__ = [
    "HeadOverlay",
    "InputOverlay",
    "Overlay",
    "ThresholdsOverlay",
    "preset_names",
    "read_overlay",
    "to_toml",
]

_SCHEMA = 1


class InputOverlay(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The keys of [input]; see InputRule."""

    name: str | None = None
    size_hw: tuple[int, int] | None = None
    color: Literal["rgb", "bgr", "gray"] | None = None
    layout: Literal["nchw", "nhwc"] | None = None
    dtype: str | None = None
    bits: Literal[8, 16] | None = None
    resize: Literal["letterbox", "stretch"] | None = None
    anchor: Literal["center", "top_left"] | None = None
    pad_value: float | None = None
    interpolation: Literal["linear", "area", "nearest", "cubic", "antialias"] | None = None
    enlarge: bool | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size_input: str | None = None
    size_order: Literal["wh", "hw"] | None = None


class HeadOverlay(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The keys of [head]; see HeadRule."""

    family: str | None = None
    outputs: dict[str, str] | None = None
    num_classes: int | None = None
    options: dict[str, Any] | None = None
    class_agnostic: bool | None = None


class ThresholdsOverlay(
    msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True
):
    """The keys of [detect] and [evaluate]; see Thresholds."""

    score: float | None = None
    iou: float | None = None
    max_detections: int | None = None
    multi_label: bool | None = None


class Overlay(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """A contract file. `about` says in a sentence what it is for."""

    schema: int = _SCHEMA
    about: str = ""
    source: str = ""
    labels: list[str] | None = None
    input: InputOverlay = msgspec.field(default_factory=InputOverlay)
    head: HeadOverlay = msgspec.field(default_factory=HeadOverlay)
    detect: ThresholdsOverlay = msgspec.field(default_factory=ThresholdsOverlay)
    evaluate: ThresholdsOverlay = msgspec.field(default_factory=ThresholdsOverlay)


def preset_names() -> tuple[str, ...]:
    """Names of the presets that come with the package, sorted."""
    folder = resources.files("saccade.contracts") / "presets"
    return tuple(sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".toml")))


def read_preset(name: str) -> Overlay:
    """Read a preset.

    Raises:
        InputError: There is none of that name.
    """
    known = preset_names()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise InputError(f"preset must be one of {', '.join(known)}; got {name!r}{hint}")
    text = (resources.files("saccade.contracts") / "presets" / f"{name}.toml").read_bytes()
    return _parse(text, f"preset {name}")


def read_overlay(path: str | Path) -> Overlay:
    """Read a contract file.

    Raises:
        InputError: The file cannot be read.
        ContractError: The file is not TOML, or a key or a value in it is wrong.
    """
    try:
        text = Path(path).read_bytes()
    except OSError as exc:
        raise InputError(
            f"contract must be a readable TOML file, {path} is not ({exc.strerror}); check the path"
        ) from exc
    return _parse(text, f"contract file {path}")


def _parse(text: bytes, what: str) -> Overlay:
    try:
        overlay = msgspec.toml.decode(text, type=Overlay)
    except msgspec.MsgspecError as exc:
        raise ContractError(f"{what} is wrong: {exc}; see docs/contracts.md for its keys") from exc
    if overlay.schema != _SCHEMA:
        raise ContractError(
            f"{what} must have schema = {_SCHEMA}, it has {overlay.schema}; "
            "use the version of saccade that wrote it"
        )
    return overlay


def to_toml(contract: Contract) -> str:
    """Write a contract with every key, readable by `read_overlay`."""
    lines = [f"schema = {_SCHEMA}", f"source = {_value(contract.source)}"]
    lines += [f"# {reason}".replace("\n", " ") for reason in contract.reasons]
    lines.append(f"labels = {_value(list(contract.labels))}")
    rule = contract.input
    lines += ["", "[input]"]
    for key in InputRule.__slots__:
        value = getattr(rule, key)
        if value is not None:
            lines.append(f"{key} = {_value(value)}")
    head = contract.head
    lines += [
        "",
        "[head]",
        f"family = {_value(head.family)}",
        f"num_classes = {head.num_classes}",
        f"class_agnostic = {_value(head.class_agnostic)}",
        f"outputs = {_value(dict(head.outputs))}",
        f"options = {_value(dict(head.options))}",
    ]
    for name, thresholds in (("detect", contract.detect), ("evaluate", contract.evaluate)):
        lines += ["", f"[{name}]"]
        lines += [f"{key} = {_value(getattr(thresholds, key))}" for key in Thresholds.__slots__]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    """One TOML value. JSON's strings, numbers and booleans are valid TOML."""
    if isinstance(value, dict):
        pairs = (f"{_value(str(k))} = {_value(v)}" for k, v in value.items() if v is not None)
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return msgspec.json.encode(value).decode()
