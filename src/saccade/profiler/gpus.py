"""The GPUs of this machine: cards, driver, and the libraries that the CUDA path needs.

Nothing here opens a context on a card, so looking costs no device memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from saccade import backends
from saccade.cuda import driver
from saccade.cuda.driver import MIN_CAPABILITY, call
from saccade.errors import BackendUnavailable, SaccadeError
from saccade.types import Availability

__all__ = [
    "Gpu",
    "GpuMemory",
    "GpuReport",
    "look_at_cards",
    "look_at_gpus",
    "memory_of_gpu",
    "uuid_of",
]


@dataclass(frozen=True, slots=True)
class Gpu:
    """One card.

    Attributes:
        index: The N of "cuda:N".
        name: As the driver has it.
        uuid: As nvidia-smi lists it.
        capability: Major and minor compute capability.
        num_multiprocessors: How many.
        memory_bytes: Of the card.
        used_bytes: By all programs, or None where nvidia-ml-py is not installed.
        link: How it is connected, e.g. "PCIe 5 x16", or "" if that is not known.
        problem: Why the CUDA path cannot use it, or "".
    """

    index: int
    name: str
    uuid: str
    capability: tuple[int, int]
    num_multiprocessors: int
    memory_bytes: int
    used_bytes: int | None
    link: str
    problem: str


@dataclass(frozen=True, slots=True)
class GpuReport:
    """What there is of GPUs and what they need.

    Attributes:
        problem: Why there is no usable GPU, with the fix, or "".
        driver: Version of the driver and the newest CUDA it supports, or "".
        gpus: The cards.
        libraries: Name to version, or to what is missing and the fix.
    """

    problem: str
    driver: str
    gpus: tuple[Gpu, ...]
    libraries: dict[str, Availability]


def look_at_gpus() -> GpuReport:
    """Look at the cards, the driver and the libraries. Never raises."""
    libraries = {name: look() for name, look in _LIBRARIES.items()}
    try:
        cards = look_at_cards()
    except SaccadeError as exc:
        return GpuReport(str(exc), "", (), libraries)
    problems = [card.problem for card in cards if card.problem]
    problem = problems[0] if len(problems) == len(cards) and problems else ""
    return GpuReport(problem, _driver_version(), cards, libraries)


def look_at_cards() -> tuple[Gpu, ...]:
    """The cards, in the order of their numbers.

    Raises:
        BackendUnavailable: There is no driver, it is too old, or it finds no card that works.
    """
    driver.start()
    return tuple(_cards())


def _cards() -> Iterator[Gpu]:
    cuda = driver.bindings()
    what = cuda.CUdevice_attribute
    for index in range(int(call("counting devices", cuda.cuDeviceGetCount))):
        handle = call("opening a device", cuda.cuDeviceGet, index)

        def ask(attribute: Any, handle: Any = handle) -> int:
            doing = "asking for an attribute"
            return int(call(doing, cuda.cuDeviceGetAttribute, attribute, handle))

        capability = (
            ask(what.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
            ask(what.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
        )
        raw = call("asking for a device's name", cuda.cuDeviceGetName, 128, handle)
        name = bytes(raw).split(b"\0")[0].decode(errors="replace")
        uuid = _uuid(call("asking for a device's UUID", cuda.cuDeviceGetUuid, handle))
        memory = memory_of_gpu(uuid)
        yield Gpu(
            index=index,
            name=name,
            uuid=uuid,
            capability=capability,
            num_multiprocessors=ask(what.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT),
            memory_bytes=int(call("asking for memory", cuda.cuDeviceTotalMem, handle)),
            used_bytes=memory.used_bytes if memory else None,
            link=memory.link if memory else "",
            problem=_problem(index, name, capability),
        )


def uuid_of(index: int) -> str:
    """The UUID of cuda:N as NVML knows it, or "" if there is no such card."""
    try:
        driver.start()
        cuda = driver.bindings()
        handle = call("opening a device", cuda.cuDeviceGet, index)
        return _uuid(call("asking for a device's UUID", cuda.cuDeviceGetUuid, handle))
    except SaccadeError:
        return ""


def _uuid(raw: Any) -> str:
    digits = bytes(raw.bytes)[:16].hex()
    return f"GPU-{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _problem(index: int, name: str, capability: tuple[int, int]) -> str:
    if capability >= MIN_CAPABILITY:
        return ""
    wanted, has = (".".join(map(str, pair)) for pair in (MIN_CAPABILITY, capability))
    return (
        f"cuda:{index} must have FP16 and BF16 tensor cores (compute capability {wanted} or "
        f"higher), {name} has {has}; choose another --device, or run on the CPU"
    )


def _driver_version() -> str:
    cuda = driver.bindings()
    version = int(call("asking for the driver's version", cuda.cuDriverGetVersion))
    supports = f"CUDA {version // 1000}.{version % 1000 // 10}"
    with _nvml() as nvml:
        if nvml is not None:
            return f"{_text(nvml.nvmlSystemGetDriverVersion())} ({supports})"
    return supports


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """What NVML says of a card.

    Attributes:
        used_bytes: Device memory in use, by all programs.
        total_bytes: Of the card.
        own_bytes: By this process, or None where the system hides that.
        link: How the card is connected.
    """

    used_bytes: int
    total_bytes: int
    own_bytes: int | None
    link: str


def memory_of_gpu(uuid: str) -> GpuMemory | None:
    """Ask NVML about a card; None where nvidia-ml-py or NVML itself is missing.

    Args:
        uuid: From `Gpu`, since NVML does not number cards as CUDA does.
    """
    with _nvml() as nvml:
        if nvml is None:
            return None
        try:
            handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
            told = nvml.nvmlDeviceGetMemoryInfo(handle)
            return GpuMemory(
                int(told.used), int(told.total), _own(nvml, handle), _link(nvml, handle)
            )
        except nvml.NVMLError:
            return None


def _own(nvml: Any, handle: Any) -> int | None:
    import os

    try:
        running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except nvml.NVMLError:
        return None
    for process in running:
        if process.pid == os.getpid() and process.usedGpuMemory:
            return int(process.usedGpuMemory)
    return None  # containers have process numbers of their own


def _link(nvml: Any, handle: Any) -> str:
    try:
        generation = nvml.nvmlDeviceGetMaxPcieLinkGeneration(handle)
        width = nvml.nvmlDeviceGetMaxPcieLinkWidth(handle)
    except nvml.NVMLError:
        return ""
    return f"PCIe {generation} x{width}"


@contextlib.contextmanager
def _nvml() -> Iterator[Any]:
    """The module pynvml between its start and end, or None where it cannot be used."""
    try:
        import pynvml
    except ImportError:
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _bindings() -> Availability:
    try:
        driver.bindings()
        return Availability(True, importlib.metadata.version("cuda-bindings"))
    except BackendUnavailable as exc:
        return Availability(False, str(exc))
    except importlib.metadata.PackageNotFoundError:
        return Availability(True, "version unknown")


def _nvrtc() -> Availability:
    from saccade.cuda.compile import nvrtc_version

    try:
        return Availability(True, ".".join(map(str, nvrtc_version())))
    except SaccadeError as exc:
        return Availability(False, str(exc))


def _nvjpeg() -> Availability:
    from saccade.cuda.nvjpeg import nvjpeg_version

    try:
        return Availability(True, ".".join(map(str, nvjpeg_version())))
    except SaccadeError as exc:
        return Availability(False, str(exc))


def _ml() -> Availability:
    try:
        return Availability(True, importlib.metadata.version("nvidia-ml-py"))
    except importlib.metadata.PackageNotFoundError:
        return Availability(
            False,
            "package nvidia-ml-py is not installed, so memory is not measured from outside; run: "
            "pip install 'saccade[cuda]'",
        )


def _cudnn() -> Availability:
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        library = ctypes.CDLL(str(load_nvidia_dynamic_lib("cudnn").abs_path))
    except Exception as exc:
        # The finder raises several kinds of its own.
        reason = (str(exc).strip() or type(exc).__name__).splitlines()[0]
        return Availability(
            False, f"cuDNN cannot be loaded ({reason}); it comes with torch: run: {_TORCH}"
        )
    library.cudnnGetVersion.restype = ctypes.c_size_t
    version = int(library.cudnnGetVersion())
    return Availability(True, f"{version // 10000}.{version // 100 % 100}.{version % 100}")


_TORCH = "pip install 'saccade[torch]'"


def _engine(name: str) -> Callable[[], Availability]:
    def probe() -> Availability:
        runtime: Any = backends.get(name)
        found: Availability = runtime.probe_device()
        return found

    return probe


_LIBRARIES = {
    "cuda-bindings": _bindings,
    "NVRTC": _nvrtc,
    "nvJPEG": _nvjpeg,
    "cuDNN": _cudnn,
    "NVML": _ml,
    "torch": _engine("torch"),
    "onnxruntime": _engine("onnxruntime"),
}
