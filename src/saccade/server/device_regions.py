"""Memory of GPUs that clients share with an engine process, opened by its CUDA handle.

Tensors in it are copied by the card's driver, from and to the memory that requests are run from.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from saccade.cuda import driver
from saccade.cuda.driver import call
from saccade.cuda.runtime import Device
from saccade.errors import EngineError, InputError, SaccadeError
from saccade.server.wire import Region

__all__ = ["DeviceRegions"]


class DeviceRegions:
    """Opened memory by key, which is "cuda/N/HANDLE" with the handle in hexadecimal."""

    def __init__(self) -> None:
        self._devices: dict[int, Device] = {}
        # Address and bytes.
        self._opened: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def open(self, region: Region) -> None:
        """Look whether a region can be used.

        Raises:
            InputError: The handle is none of a living process on this machine, or the memory is
                shorter.
        """
        with self._lock:
            self._address(region)

    def read(self, region: Region) -> memoryview:
        """A copy of a region's content.

        Raises:
            InputError: As for `open`.
            EngineError: The device failed.
        """
        content = np.empty(region.num_bytes, np.uint8)
        with self._lock:
            address = self._address(region)
            copy = driver.bindings().cuMemcpyDtoH
            call("reading a client's memory", copy, content.ctypes.data, address, len(content))
        return content.data

    def write(self, region: Region, data: memoryview) -> None:
        """Write to the start of a region.

        Raises:
            InputError: As for `open`.
            EngineError: The device failed.
        """
        content = np.frombuffer(data, np.uint8)
        with self._lock:
            address = self._address(region)
            copy = driver.bindings().cuMemcpyHtoD
            call("writing a client's memory", copy, address, content.ctypes.data, len(content))

    def forget(self, key: str) -> None:
        """Close a handle."""
        with self._lock:
            found = self._opened.pop(key, None)
            if found is not None:
                self._device(key).make_current()
                driver.bindings().cuIpcCloseMemHandle(found[0])

    def _device(self, key: str) -> Device:
        index = int(key.split("/")[1])
        if index not in self._devices:
            self._devices[index] = Device(index)
        return self._devices[index]

    def _address(self, region: Region) -> int:
        try:
            self._device(region.key).make_current()
            if region.key not in self._opened:
                self._opened[region.key] = _opened(bytes.fromhex(region.key.split("/")[2]))
        except SaccadeError as exc:
            raise InputError(
                f"region {region.name!r} must be memory of a GPU of this machine that its owner "
                f"keeps, it cannot be opened ({exc}); register it again from a process that lives"
            ) from exc
        address, num_bytes = self._opened[region.key]
        if region.offset + region.num_bytes > num_bytes:
            raise InputError(
                f"region {region.name!r} must reach to byte {region.offset + region.num_bytes}, "
                f"its memory has {num_bytes}; register less of it"
            )
        return address + region.offset


def _opened(handle: bytes) -> tuple[int, int]:
    """Address and bytes of the allocation that a handle stands for."""
    cuda: Any = driver.bindings()
    raw = cuda.CUipcMemHandle()
    raw.reserved = handle
    flag = cuda.CUipcMem_flags.CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS
    address = call("opening a client's memory", cuda.cuIpcOpenMemHandle, raw, flag)
    try:
        base, num_bytes = call("asking for its size", cuda.cuMemGetAddressRange, address)
    except EngineError:
        cuda.cuIpcCloseMemHandle(address)
        raise
    return int(address), int(base) + int(num_bytes) - int(address)
