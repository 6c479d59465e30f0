"""Clients' shared memory, by the names under which they registered it."""

from __future__ import annotations

import os
from typing import Any

from saccade.errors import InputError
from saccade.server.problems import Problem
from saccade.server.regions import FOLDER, check_key
from saccade.server.wire import Region

__all__ = ["SharedMemory"]

_MAX_REGIONS = 4096


class SharedMemory:
    """System shared memory: a name, the memory object, and which part of it is meant."""

    def __init__(self) -> None:
        self._regions: dict[str, Region] = {}

    def register(self, name: str, key: str, offset: int, num_bytes: int) -> None:
        """Register a part of a POSIX shared memory object.

        Raises:
            Problem: There is no such memory, or the name is taken.
        """
        if not name or len(name) > 256:
            raise Problem(
                "input",
                "a region's name must have 1 to 256 characters",
                f"it has {len(name)}",
                "choose another",
            )
        if name in self._regions:
            raise Problem(
                "conflict",
                "a region must be registered once",
                f"{name[:80]!r} is registered",
                "unregister it first, or choose another name",
            )
        if len(self._regions) >= _MAX_REGIONS:
            raise Problem(
                "overloaded",
                f"at most {_MAX_REGIONS} regions may be registered",
                "they are",
                "unregister those that are not needed",
                retry_after_s=1,
            )
        size = _size_of(key)
        if offset < 0 or num_bytes < 1 or offset + num_bytes > size:
            raise Problem(
                "input",
                f"a region must lie within the {size} bytes of shared memory {key[:80]!r}",
                f"it has {num_bytes} bytes from {offset}",
                "correct offset or byte_size",
            )
        self._regions[name] = Region(key, offset, num_bytes, name)

    def unregister(self, name: str = "") -> list[str]:
        """Forget a region, or all; returns the keys that nobody uses any more."""
        gone = [name] if name else list(self._regions)
        keys = {region.key for n in gone if (region := self._regions.pop(n, None)) is not None}
        return sorted(keys - {region.key for region in self._regions.values()})

    def everything(self) -> dict[str, Region]:
        """All that is registered, by name."""
        return dict(self._regions)

    def replace(self, regions: dict[str, Region]) -> None:
        """Have these regions and no others."""
        self._regions = dict(regions)

    def status(self, name: str = "") -> list[dict[str, Any]]:
        """What is registered.

        Raises:
            Problem: There is no region of that name.
        """
        if name and name not in self._regions:
            raise _unknown(name)
        return [
            {
                "name": region.name,
                "key": region.key,
                "offset": region.offset,
                "byte_size": region.num_bytes,
            }
            for region in self._regions.values()
            if name in ("", region.name)
        ]

    def find(self, name: str, offset: int, num_bytes: int) -> Region:
        """A part of a registered region.

        Raises:
            Problem: It is not registered, or does not reach that far.
        """
        region = self._regions.get(name)
        if region is None:
            raise _unknown(name)
        if offset < 0 or num_bytes < 0 or offset + num_bytes > region.num_bytes:
            raise Problem(
                "input",
                f"a tensor must lie within the {region.num_bytes} bytes of region {name[:80]!r}",
                f"it has {num_bytes} bytes from {offset}",
                "correct its parameters, or register more",
            )
        return Region(region.key, region.offset + offset, num_bytes, name)


def _unknown(name: str) -> Problem:
    return Problem(
        "not_found",
        "a region must be registered before it is used",
        f"{name[:80]!r} is not",
        "register it",
    )


def _size_of(key: str) -> int:
    try:
        return os.stat(os.path.join(FOLDER, check_key(key))).st_size
    except OSError as exc:
        raise InputError(
            f"shared memory {key[:80]!r} must exist on the server's machine, it does not "
            f"({exc.strerror}); create it first"
        ) from exc
