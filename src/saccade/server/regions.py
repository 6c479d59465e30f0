"""Shared memory of clients, mapped when it is first used."""

from __future__ import annotations

import mmap
import os
import threading
from typing import TYPE_CHECKING

from saccade.errors import InputError
from saccade.server.wire import Region

if TYPE_CHECKING:
    from saccade.server.device_regions import DeviceRegions

__all__ = ["FOLDER", "Regions", "check_key", "device_key", "is_on_device"]

FOLDER = "/dev/shm"
_ON_DEVICE = "cuda/"


def check_key(key: str) -> str:
    """The name of a POSIX shared memory object without its slash.

    Raises:
        InputError: It is no such name.
    """
    name = key.removeprefix("/")
    if not name or "/" in name or "\0" in name or name in (".", "..") or len(name) > 255:
        raise InputError(
            "the key of a shared memory region must be the name of a POSIX shared memory object, "
            f"it is {key[:80]!r}; use a name such as '/pictures'"
        )
    return name


def device_key(device: int, handle: bytes) -> str:
    """The key of memory of a GPU: no name of a shared memory object has a slash within."""
    return f"{_ON_DEVICE}{device}/{handle.hex()}"


def is_on_device(key: str) -> bool:
    """Whether a key names memory of a GPU."""
    return key.startswith(_ON_DEVICE)


class Regions:
    """Maps of shared memory objects, by key; and memory of GPUs, which is copied."""

    def __init__(self) -> None:
        self._maps: dict[str, memoryview] = {}
        self._lock = threading.Lock()
        self._opened: DeviceRegions | None = None

    def _on_device(self) -> DeviceRegions:
        if self._opened is None:
            from saccade.server.device_regions import DeviceRegions

            self._opened = DeviceRegions()
        return self._opened

    def open(self, region: Region) -> None:
        """Look whether a piece of a client's memory can be used.

        Raises:
            InputError: There is no such memory, or it is shorter.
        """
        if is_on_device(region.key):
            self._on_device().open(region)
        else:
            self.view(region)

    def view(self, region: Region) -> memoryview:
        """A piece of a client's memory; of a GPU's a copy.

        Raises:
            InputError: There is no such memory, or it is shorter.
            EngineError: The device failed.
        """
        if is_on_device(region.key):
            return self._on_device().read(region)
        with self._lock:
            memory = self._maps.get(region.key)
            if memory is None or len(memory) < region.offset + region.num_bytes:
                memory = self._maps[region.key] = _mapped(region.key)
        end = region.offset + region.num_bytes
        if end > len(memory):
            raise InputError(
                f"shared memory {region.key!r} must reach to byte {end}, it has {len(memory)}; "
                "make it larger or register less of it"
            )
        return memory[region.offset : end]

    def write(self, region: Region, data: memoryview, name: str) -> None:
        """Write an output into a client's memory.

        Raises:
            InputError: It does not fit.
        """
        if len(data) > region.num_bytes:
            raise InputError(
                f"the shared memory for output {name!r} must have at least {len(data)} bytes, "
                f"the request gives it {region.num_bytes}; give it more"
            )
        if is_on_device(region.key):
            self._on_device().write(region, data)
        else:
            self.view(region)[: len(data)] = data

    def forget(self, key: str) -> None:
        """Unmap, once the last reader has let go."""
        if is_on_device(key):
            self._on_device().forget(key)
            return
        with self._lock:
            self._maps.pop(key, None)


def _mapped(key: str) -> memoryview:
    try:
        fd = os.open(os.path.join(FOLDER, check_key(key)), os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        raise InputError(
            f"shared memory {key!r} must exist and be readable and writable here, it is not "
            f"({exc.strerror}); create it before it is used, on the server's machine"
        ) from exc
    try:
        return memoryview(mmap.mmap(fd, os.fstat(fd).st_size))
    except (OSError, ValueError) as exc:
        raise InputError(
            f"shared memory {key!r} must not be empty, mapping it failed ({exc}); set its size"
        ) from exc
    finally:
        os.close(fd)
