"""Detection heads, one file per family. The file name is the family; nothing else lists it."""

from __future__ import annotations

from typing import cast

from saccade import registry
from saccade.types import Head

__all__ = ["get", "names"]


def names() -> tuple[str, ...]:
    """Names of all head families, importing none of them."""
    return registry.names(__name__)


def get(name: str) -> Head:
    """Return the head family called name.

    Raises:
        InputError: There is none of that name.
    """
    return cast(Head, registry.get(__name__, name, "HEAD", "head family"))
