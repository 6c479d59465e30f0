"""Dataclasses and mappings as JSON values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import msgspec

__all__ = ["plain"]


def plain(value: Any) -> Any:
    """Dataclasses, mappings, sequences, NumPy numbers and paths as JSON values, keys in order."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # Not dataclasses.asdict: it copies mappings that cannot be copied.
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return msgspec.to_builtins(value, enc_hook=_number)


def _number(value: Any) -> Any:
    """NumPy's numbers and paths."""
    return value.item() if hasattr(value, "item") else str(value)
