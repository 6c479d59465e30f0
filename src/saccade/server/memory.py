"""Clients' shared memory, by the names under which they registered it."""

from __future__ import annotations

import os
from typing import Any

from saccade.errors import InputError
from saccade.server.problems import Problem
from saccade.server.regions import FOLDER, check_key, device_key, is_on_device
from saccade.server.wire import Region

__all__ = ["SharedMemory"]

_MAX_REGIONS = 4096
_HANDLE_BYTES = 64


class SharedMemory:
    """Of each region a name, the memory object or a GPU's memory, and which part of it is meant."""

    def __init__(self) -> None:
        self._regions: dict[str, Region] = {}

    def register(self, name: str, key: str, offset: int, num_bytes: int) -> None:
        """Register a part of a POSIX shared memory object.

        Raises:
            Problem: There is no such memory, or the name is taken.
        """
        self._check_name(name)
        size = _size_of(key)
        if offset < 0 or num_bytes < 1 or offset + num_bytes > size:
            raise Problem(
                "input",
                f"a region must lie within the {size} bytes of shared memory {key[:80]!r}",
                f"it has {num_bytes} bytes from {offset}",
                "correct offset or byte_size",
            )
        self._regions[name] = Region(key, offset, num_bytes, name)

    def register_on_device(self, name: str, handle: bytes, device: int, num_bytes: int) -> Region:
        """Register memory of a GPU.

        Args:
            name: What requests call it.
            handle: The 64 bytes of a cudaIpcMemHandle_t.
            device: Number of the GPU.
            num_bytes: Of it.

        Raises:
            Problem: It cannot be, or the name is taken.
        """
        self._check_name(name)
        if len(handle) != _HANDLE_BYTES or num_bytes < 1 or not 0 <= device < 1 << 16:
            raise Problem(
                "input",
                f"memory of a GPU must have a handle of {_HANDLE_BYTES} bytes, a device of 0 or "
                "more and a size of at least 1",
                f"they are {len(handle)} bytes, {device} and {num_bytes}",
                "correct raw_handle, device_id or byte_size",
            )
        region = self._regions[name] = Region(device_key(device, handle), 0, num_bytes, name)
        return region

    def _check_name(self, name: str) -> None:
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

    def unregister(self, name: str = "", *, on_device: bool = False) -> list[str]:
        """Forget a region, or all of a kind; returns the keys that nobody uses any more."""
        gone = [
            region
            for region in self._regions.values()
            if name in ("", region.name) and is_on_device(region.key) == on_device
        ]
        for region in gone:
            del self._regions[region.name]
        keys = {region.key for region in gone}
        return sorted(keys - {region.key for region in self._regions.values()})

    def everything(self) -> dict[str, Region]:
        """All that is registered, by name."""
        return dict(self._regions)

    def replace(self, regions: dict[str, Region]) -> None:
        """Have these regions and no others."""
        self._regions = dict(regions)

    def status(self, name: str = "", *, on_device: bool = False) -> list[dict[str, Any]]:
        """What is registered, of system memory or of GPUs.

        Raises:
            Problem: There is no such region of that name.
        """
        kind = {
            n: region
            for n, region in self._regions.items()
            if is_on_device(region.key) == on_device
        }
        if name and name not in kind:
            raise _unknown(name)
        return [
            {
                "name": region.name,
                **(
                    {"device_id": int(region.key.split("/")[1])}
                    if on_device
                    else {"key": region.key, "offset": region.offset}
                ),
                "byte_size": region.num_bytes,
            }
            for region in kind.values()
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
