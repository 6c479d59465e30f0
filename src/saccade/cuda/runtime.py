"""Devices, streams, events, pinned memory, one arena and graphs: what a path holds at load.

Nothing here allocates after load. Sizes are known before anything is reserved, so what does not
fit is refused with the number of bytes that are missing.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

from saccade.cuda import driver
from saccade.cuda.driver import call
from saccade.errors import BackendUnavailable, EngineError

__all__ = ["ALIGNMENT", "Arena", "Device", "Event", "Graph", "Kernel", "Pinned", "Stream", "plan"]

ALIGNMENT = 256


@dataclass(frozen=True, slots=True)
class Region:
    """Where one buffer lies in an arena: bytes from its start, and size in bytes."""

    offset: int
    num_bytes: int


def plan(sizes: Mapping[str, int]) -> tuple[dict[str, Region], int]:
    """Lay buffers out one after another.

    Args:
        sizes: Bytes by name.

    Returns:
        Regions by name, each aligned to 256 bytes, and the bytes of all.
    """
    regions, at = {}, 0
    for name, num_bytes in sizes.items():
        regions[name] = Region(at, num_bytes)
        at += -(-max(num_bytes, 1) // ALIGNMENT) * ALIGNMENT
    return regions, at


class Device:
    """One GPU, opened by its number. Owns all that is made through it.

    The primary context is used, the one that other libraries in the process share.

    Attributes:
        index: The N of "cuda:N".
        name: As the driver has it.
        capability: Major and minor compute capability.
        num_multiprocessors: How many.
        shared_bytes: Most shared memory that one block can have.
        num_allocations: Blocks of device and pinned memory reserved so far.
        allocated_bytes: Of device memory.
        pinned_bytes: Of pinned memory.
    """

    def __init__(self, index: int) -> None:
        driver.start()
        cuda = self._cuda = driver.bindings()
        count = int(call("counting devices", cuda.cuDeviceGetCount))
        if not 0 <= index < count:
            there = ", ".join(f"cuda:{i}" for i in range(count)) or "none"
            raise BackendUnavailable(
                f"the device must be one of {there}, it is cuda:{index}; choose another --device"
            )
        self.index = index
        self._handle = call("opening the device", cuda.cuDeviceGet, index)
        raw = call("asking for the device's name", cuda.cuDeviceGetName, 128, self._handle)
        self.name = bytes(raw).split(b"\0")[0].decode(errors="replace")
        what = cuda.CUdevice_attribute
        self.capability = (
            self._attribute(what.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
            self._attribute(what.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
        )
        self.num_multiprocessors = self._attribute(what.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
        self.shared_bytes = self._attribute(
            what.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
        )
        if self.capability < driver.MIN_CAPABILITY:
            wanted = ".".join(map(str, driver.MIN_CAPABILITY))
            raise BackendUnavailable(
                f"cuda:{index} must have FP16 and BF16 tensor cores (compute capability {wanted} "
                f"or higher), {self.name} has "
                f"{self.capability[0]}.{self.capability[1]}; choose another --device"
            )
        self.num_allocations = 0
        self.allocated_bytes = 0
        self.pinned_bytes = 0
        self._exit = contextlib.ExitStack()
        try:
            self._context = call(
                "opening the device's context", cuda.cuDevicePrimaryCtxRetain, self._handle
            )
        except EngineError as exc:
            raise BackendUnavailable(f"cuda:{index} ({self.name}) cannot be used: {exc}") from exc
        self._exit.callback(cuda.cuDevicePrimaryCtxRelease, self._handle)
        self.make_current()

    def _attribute(self, attribute: Any) -> int:
        return int(
            call(
                "asking for an attribute", self._cuda.cuDeviceGetAttribute, attribute, self._handle
            )
        )

    @property
    def arch(self) -> str:
        """Architecture for the compiler, e.g. "sm_90"."""
        return f"sm_{self.capability[0]}{self.capability[1]}"

    def make_current(self) -> None:
        """Bind this thread to the device; needed once per thread."""
        call("selecting the device", self._cuda.cuCtxSetCurrent, self._context)

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of the device."""
        free, total = call("asking for free memory", self._cuda.cuMemGetInfo)
        return int(free), int(total)

    def stream(self, *, is_urgent: bool = False) -> Stream:
        """A new stream that does not wait for the default one.

        Args:
            is_urgent: Whether its kernels go before those of other streams that wait for room.
        """
        flag = self._cuda.CUstream_flags.CU_STREAM_NON_BLOCKING
        least, most = call("asking for priorities", self._cuda.cuCtxGetStreamPriorityRange)
        make, priority = self._cuda.cuStreamCreateWithPriority, most if is_urgent else least
        handle = call("making a stream", make, flag, priority)
        self._exit.callback(self._cuda.cuStreamDestroy, handle)
        return Stream(int(handle))

    def event(self, *, is_timed: bool = False) -> Event:
        """A new event; a timed one costs a little more."""
        flags = self._cuda.CUevent_flags
        flag = flags.CU_EVENT_DEFAULT if is_timed else flags.CU_EVENT_DISABLE_TIMING
        handle = call("making an event", self._cuda.cuEventCreate, flag)
        self._exit.callback(self._cuda.cuEventDestroy, handle)
        return Event(handle)

    def pinned(self, num_bytes: int) -> Pinned:
        """Host memory that the device can reach, as an array of bytes, all zero."""
        flag = self._cuda.CU_MEMHOSTALLOC_PORTABLE
        address = int(
            call(
                f"reserving {num_bytes} bytes of pinned memory",
                self._cuda.cuMemHostAlloc,
                max(num_bytes, 1),
                flag,
            )
        )
        self._exit.callback(self._cuda.cuMemFreeHost, address)
        self.num_allocations += 1
        self.pinned_bytes += num_bytes
        raw = (ctypes.c_uint8 * num_bytes).from_address(address)
        array = np.ctypeslib.as_array(raw) if num_bytes else np.empty(0, np.uint8)
        array[...] = 0
        return Pinned(address, array)

    def arena(self, sizes: Mapping[str, int]) -> Arena:
        """Reserve one block for all buffers of a path.

        Raises:
            EngineError: It does not fit; the message says how much is missing.
        """
        regions, total = plan(sizes)
        free, _ = self.memory()
        if total > free:
            largest = max(sizes, key=lambda name: sizes[name])
            raise EngineError(
                f"the buffers of this path need {_mib(total)} on cuda:{self.index}, "
                f"{_mib(free)} are free (the largest is {largest!r}, {_mib(sizes[largest])}); "
                "lower the batch or the number of slots, or end other programs on the card"
            )
        base = int(call(f"reserving {_mib(total)}", self._cuda.cuMemAlloc, max(total, ALIGNMENT)))
        self._exit.callback(self._cuda.cuMemFree, base)
        self.num_allocations += 1
        self.allocated_bytes += total
        return Arena(base, regions, total)

    def load(self, cubin: bytes) -> Module:
        """Load compiled kernels."""
        handle = call("loading kernels", self._cuda.cuModuleLoadData, cubin)
        self._exit.callback(self._cuda.cuModuleUnload, handle)
        return Module(handle)

    def synchronize(self) -> None:
        """Wait for everything on the device."""
        call("waiting for the device", self._cuda.cuCtxSynchronize)

    def share(self) -> Device:
        """The same device for one owner, which releases by `close` what it has made and no more."""
        shared = copy.copy(self)
        shared._exit = contextlib.ExitStack()
        shared.num_allocations = shared.allocated_bytes = shared.pinned_bytes = 0
        return shared

    def close(self) -> None:
        """Release all; closing twice is no error. Nothing made by this device may be used."""
        with contextlib.suppress(EngineError):  # a lost device cannot be waited for
            self.make_current()
            self.synchronize()
        self._exit.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MiB"


@dataclass(frozen=True, slots=True)
class Event:
    """A point in a stream."""

    handle: Any

    def record(self, stream: Stream) -> None:
        """Set it behind the work enqueued so far."""
        call("recording an event", driver.bindings().cuEventRecord, self.handle, stream.handle)

    def wait(self) -> None:
        """Block this thread until the device has passed it."""
        call("waiting for the device", driver.bindings().cuEventSynchronize, self.handle)

    def is_done(self) -> bool:
        """Whether the device has passed it."""
        cuda = driver.bindings()
        (code,) = cuda.cuEventQuery(self.handle)
        if code == cuda.CUresult.CUDA_ERROR_NOT_READY:
            return False
        if code != 0:
            raise driver.error_of("asking for an event", code)
        return True

    def ms_since(self, earlier: Event) -> float:
        """Milliseconds between two timed events that have passed."""
        elapsed = driver.bindings().cuEventElapsedTime
        return float(call("reading a timer", elapsed, earlier.handle, self.handle))


@dataclass(frozen=True, slots=True)
class Stream:
    """A queue of work on the device.

    Attributes:
        handle: A cudaStream_t as an integer.
    """

    handle: int

    def wait_for(self, event: Event) -> None:
        """Let later work of this stream wait for an event."""
        wait = driver.bindings().cuStreamWaitEvent
        call("ordering two streams", wait, self.handle, event.handle, 0)

    def synchronize(self) -> None:
        """Block this thread until the stream is empty."""
        call("waiting for the device", driver.bindings().cuStreamSynchronize, self.handle)

    def upload(self, target: int, source: Pinned, num_bytes: int, *, at: int = 0) -> None:
        """Copy from pinned memory, from byte `at` on, to a device address."""
        copy = driver.bindings().cuMemcpyHtoDAsync
        call("copying to the device", copy, target, source.address + at, num_bytes, self.handle)

    def download(self, target: Pinned, source: int, num_bytes: int, *, at: int = 0) -> None:
        """Copy from a device address to pinned memory, to byte `at`."""
        copy = driver.bindings().cuMemcpyDtoHAsync
        call("copying from the device", copy, target.address + at, source, num_bytes, self.handle)

    def fill(self, target: int, value: int, num_words: int) -> None:
        """Set 32-bit words at a device address."""
        fill = driver.bindings().cuMemsetD32Async
        call("filling memory", fill, target, value, num_words, self.handle)

    @contextlib.contextmanager
    def capture(self) -> Iterator[Capture]:
        """Record what is enqueued inside instead of running it.

        Raises:
            EngineError: Something inside cannot be captured.
        """
        cuda = driver.bindings()
        mode = cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        call("beginning a graph", cuda.cuStreamBeginCapture, self.handle, mode)
        captured = Capture()
        try:
            yield captured
        except BaseException:
            # End the recording, so that the stream can be used again.
            cuda.cuStreamEndCapture(self.handle)
            raise
        recorded = call("ending a graph", cuda.cuStreamEndCapture, self.handle)
        captured.graph = Graph(call("building a graph", cuda.cuGraphInstantiate, recorded, 0))
        call("releasing a graph's recording", cuda.cuGraphDestroy, recorded)


class Capture:
    """What a capture gives once it has ended."""

    graph: Graph


@dataclass(frozen=True, slots=True)
class Graph:
    """Recorded work that is launched with one call."""

    handle: Any

    def launch(self, stream: Stream) -> None:
        """Enqueue it."""
        call("launching a graph", driver.bindings().cuGraphLaunch, self.handle, stream.handle)

    def close(self) -> None:
        """Release it."""
        call("releasing a graph", driver.bindings().cuGraphExecDestroy, self.handle)


@dataclass(frozen=True, slots=True)
class Pinned:
    """Page-locked host memory.

    Attributes:
        address: The same on host and device.
        array: Its bytes.
    """

    address: int
    array: np.ndarray


@dataclass(frozen=True, slots=True)
class Arena:
    """One block of device memory, cut up at load.

    Attributes:
        base: Its address.
        regions: By name.
        num_bytes: Of all.
    """

    base: int
    regions: Mapping[str, Region]
    num_bytes: int

    def address(self, name: str) -> int:
        """Device address of a buffer."""
        return self.base + self.regions[name].offset


@dataclass(frozen=True, slots=True)
class Module:
    """Loaded kernels."""

    handle: Any

    def kernel(self, name: str, *, shared_bytes: int = 0) -> Kernel:
        """Find a kernel, and allow it that much dynamic shared memory."""
        cuda = driver.bindings()
        function = call(
            f"finding kernel {name!r}", cuda.cuModuleGetFunction, self.handle, name.encode()
        )
        if shared_bytes > 48 * 1024:
            most = cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            call("allowing shared memory", cuda.cuFuncSetAttribute, function, most, shared_bytes)
        return Kernel(function, shared_bytes)


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel and its dynamic shared memory in bytes."""

    function: Any
    shared_bytes: int

    def launch(
        self,
        stream: Stream,
        grid: tuple[int, int, int],
        threads: int,
        args: Sequence[ctypes._SimpleCData[Any] | ctypes.Structure | ctypes.Array[Any]],
    ) -> None:
        """Enqueue it. The arguments are ctypes values; they are copied before this returns."""
        pointers = (ctypes.c_void_p * len(args))(*(ctypes.addressof(arg) for arg in args))
        call(
            "launching a kernel",
            driver.bindings().cuLaunchKernel,
            self.function,
            *grid,
            *(threads, 1, 1),
            self.shared_bytes,
            stream.handle,
            ctypes.addressof(pointers),
            0,
        )
