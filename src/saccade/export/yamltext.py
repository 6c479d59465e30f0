"""YAML, as much of it as manifests need.

Source: https://yaml.org/spec/1.2.2/ (block style; text that could be read as something else is
written as JSON, which is YAML)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["yaml_of"]

# What stays text without quotes: no digit first, nothing with a meaning, none of YAML's words.
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./\-]*")
_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}


def yaml_of(documents: Sequence[Mapping[str, Any]], *, comment: Sequence[str] = ()) -> str:
    """Documents one after the other.

    Args:
        documents: Mappings of plain values; keys stay in order.
        comment: Lines to put first.
    """
    head = "".join(f"# {line}\n" for line in comment)
    return head + "---\n".join("\n".join(_mapping(one, "")) + "\n" for one in documents)


def _mapping(value: Mapping[str, Any], indent: str) -> Iterator[str]:
    for key, item in value.items():
        yield from _entry(f"{indent}{_scalar(key)}:", item, indent)


def _entry(start: str, item: Any, indent: str) -> Iterator[str]:
    if isinstance(item, Mapping) and item:
        yield start
        yield from _mapping(item, indent + "  ")
    elif isinstance(item, list | tuple) and item:
        yield start
        yield from _sequence(item, indent + "  ")
    else:
        yield f"{start} {_scalar(item)}"


def _sequence(items: Sequence[Any], indent: str) -> Iterator[str]:
    for item in items:
        if isinstance(item, Mapping) and item:
            first, *rest = _mapping(item, indent + "  ")
            yield f"{indent}- {first.lstrip()}"
            yield from rest
        else:
            yield f"{indent}- {_scalar(item)}"


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        is_plain = _PLAIN.fullmatch(value) and value.lower() not in _WORDS
        return value if is_plain else json.dumps(value)
    return json.dumps(value)
