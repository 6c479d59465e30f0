"""Protocol-buffer text format: the little of it that a configuration needs.

Source: https://protobuf.dev/reference/protobuf/textformat-spec/
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = ["Enum", "Fields", "text_of"]

# (name, value) in order; a value is a string, a number, a truth value, an Enum, a list of whole
# numbers, or the fields of a message inside. A repeated field is given once per element.
Fields: TypeAlias = Sequence[tuple[str, Any]]


@dataclass(frozen=True, slots=True)
class Enum:
    """A value that is written without quotes."""

    name: str


def text_of(fields: Fields, *, comment: Sequence[str] = ()) -> str:
    """A message as text.

    Args:
        fields: What is in it.
        comment: Lines to put first.
    """
    lines = [*(f"# {line}" for line in comment), *_lines(fields, "")]
    return "\n".join(lines) + "\n"


def _lines(fields: Fields, indent: str) -> Iterator[str]:
    for name, value in fields:
        if isinstance(value, str | int | Enum):
            yield f"{indent}{name}: {_scalar(value)}"
        elif value and all(isinstance(item, int) for item in value):
            yield f"{indent}{name}: [ {', '.join(map(str, value))} ]"
        else:
            yield f"{indent}{name} {{"
            yield from _lines(value, indent + "  ")
            yield f"{indent}}}"


def _scalar(value: str | int | Enum) -> str:
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    return '"' + "".join(map(_escaped, value)) + '"'


def _escaped(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    if char.isprintable():
        return char
    # Octal escapes of bytes, which every reader knows; \u escapes came later.
    return "".join(f"\\{byte:03o}" for byte in char.encode("utf-8", "surrogateescape"))
