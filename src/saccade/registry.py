"""A folder is a registry: one file per back end or head, and nothing else lists it."""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil
from typing import Any

from saccade.errors import InputError

__all__ = ["get", "names"]


@functools.cache
def names(package: str) -> tuple[str, ...]:
    """Names of the public files in a package's folder, sorted; importing none of them."""
    path = importlib.import_module(package).__path__
    return tuple(sorted(m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_")))


@functools.cache
def get(package: str, name: str, attribute: str, noun: str) -> Any:
    """Import one file of the folder and return its registered object.

    Args:
        package: The folder, e.g. "saccade.backends".
        name: The file, without its ending.
        attribute: The object in the file, e.g. "BACKEND".
        noun: What to call it in an error, e.g. "backend".

    Raises:
        InputError: No file has that name.
    """
    known = names(package)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise InputError(f"{noun} must be one of {', '.join(known)}; got {name!r}{hint}")
    return getattr(importlib.import_module(f"{package}.{name}"), attribute)
