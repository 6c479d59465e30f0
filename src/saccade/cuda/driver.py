"""The CUDA driver: the one file that imports it, and what its errors mean to a user."""

from __future__ import annotations

import functools
import os
from typing import Any

from saccade.errors import BackendUnavailable, EngineError, InputError

__all__ = [
    "MIN_CAPABILITY",
    "MIN_DRIVER",
    "bindings",
    "call",
    "device_index",
    "has_own_queues",
    "start",
]

# CUDA 13.0, the first whose cubins and bindings this package is made for.
MIN_DRIVER = 13000
# Tensor cores for FP16 and BF16 that add in FP32, and copies that do not pass through registers.
MIN_CAPABILITY = (8, 0)

# Streams share the device's queues, eight by default, and what waits at the head of a queue holds
# up the streams behind it: nvJPEG's wait three times as long, or for ever. See
# docs/performance/cuda-path.md.
_CONNECTIONS = 32
_VARIABLE = "CUDA_DEVICE_MAX_CONNECTIONS"

# The device does not come back from these in this process.
_FATAL = {
    "CUDA_ERROR_ILLEGAL_ADDRESS",
    "CUDA_ERROR_LAUNCH_FAILED",
    "CUDA_ERROR_LAUNCH_TIMEOUT",
    "CUDA_ERROR_ECC_UNCORRECTABLE",
    "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    "CUDA_ERROR_MISALIGNED_ADDRESS",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    "CUDA_ERROR_INVALID_PC",
    "CUDA_ERROR_CONTEXT_IS_DESTROYED",
    "CUDA_ERROR_DEVICE_UNAVAILABLE",
    "CUDA_ERROR_ASSERT",
    "CUDA_ERROR_UNKNOWN",
}


@functools.cache
def device_index(device: str) -> int:
    """The N of "cuda:N"; "cuda" alone is the first.

    Raises:
        InputError: It is not the name of a GPU.
    """
    name, _, number = device.partition(":")
    if name != "cuda" or not (number or "0").isdecimal():
        raise InputError(
            f"a device must be cpu or cuda:N, got {device!r}; choose one that saccade doctor lists"
        )
    return int(number or 0)


@functools.cache
def bindings() -> Any:
    """The module cuda.bindings.driver; looked for once, since each call to the driver asks for it.

    Raises:
        BackendUnavailable: It is not installed.
    """
    try:
        from cuda.bindings import driver
    except ImportError as exc:
        raise BackendUnavailable(
            f"the CUDA path needs the package cuda-bindings, which cannot be imported ({exc}); "
            "install saccade[cuda]"
        ) from exc
    return driver


def start() -> None:
    """Load the driver and check its version; cheap after the first call.

    Raises:
        BackendUnavailable: There is no driver, or it is too old.
    """
    cuda = bindings()
    try:
        has_own_queues()
        (code,) = cuda.cuInit(0)
    except Exception as exc:
        # The bindings raise several kinds of their own where libcuda cannot be loaded.
        raise BackendUnavailable(
            f"a CUDA device needs NVIDIA's driver, which cannot be loaded ({_first_line(exc)}); "
            "install the driver, or run on the CPU with --device cpu"
        ) from exc
    if code != cuda.CUresult.CUDA_SUCCESS:
        raise BackendUnavailable(
            f"NVIDIA's driver must find a GPU that works, it says {_name(code)}; look at "
            "nvidia-smi, or run on the CPU with --device cpu"
        )
    version = int(call("asking for the driver's version", cuda.cuDriverGetVersion))
    if version < MIN_DRIVER:
        raise BackendUnavailable(
            f"NVIDIA's driver must support CUDA {_spelled(MIN_DRIVER)} or newer, this one supports "
            f"{_spelled(version)}; update the driver to 580 or newer"
        )


@functools.cache
def has_own_queues() -> bool:
    """Whether the device has as many queues as this package asks for, in this process.

    It has not where another library started the driver first, or where the environment says
    otherwise: the driver looks at the environment once, when it starts.
    """
    cuda = bindings()
    code, _ = cuda.cuDeviceGetCount()
    if code == cuda.CUresult.CUDA_ERROR_NOT_INITIALIZED:
        os.environ.setdefault(_VARIABLE, str(_CONNECTIONS))
    wanted = os.environ.get(_VARIABLE, "")
    return wanted.isdecimal() and int(wanted) >= _CONNECTIONS


def call(doing: str, function: Any, *args: Any) -> Any:
    """Call a function of the driver and return what it returns besides its status.

    Args:
        doing: For the error, e.g. "copying to the device".
        function: Of cuda.bindings.driver.
        args: Its arguments.

    Raises:
        EngineError: The status is not success.
    """
    code, *values = function(*args)
    if code != 0:
        raise error_of(doing, code)
    return values[0] if len(values) == 1 else tuple(values) if values else None


def error_of(doing: str, code: Any) -> EngineError:
    """What a status means and what to do."""
    name = _name(code)
    if name == "CUDA_ERROR_OUT_OF_MEMORY":
        return EngineError(
            f"{doing}: the device must have enough free memory, it has not ({name}); lower the "
            "batch or the number of slots, or end other programs on the card"
        )
    if name in _FATAL:
        return EngineError(
            f"{doing}: the device was lost ({name}), its memory cannot be used any more; "
            "start the program again, and look at dmesg for Xid messages if it comes back"
        )
    return EngineError(f"{doing}: the CUDA driver must report success, it reports {name}")


def _name(code: Any) -> str:
    return str(getattr(code, "name", code))


def _spelled(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _first_line(exc: BaseException) -> str:
    return str(exc).strip().split("\n")[0]
