"""Runtimes, one file each. The file name is the name; nothing else lists it."""

from __future__ import annotations

from typing import cast

from saccade import registry
from saccade.types import Backend

__all__ = ["get", "names"]


def names() -> tuple[str, ...]:
    """Names of all back ends, importing none of them."""
    return registry.names(__name__)


def get(name: str) -> Backend:
    """Return the back end called name.

    Raises:
        InputError: There is none of that name.
    """
    return cast(Backend, registry.get(__name__, name, "BACKEND", "backend"))
