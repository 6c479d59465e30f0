"""JPEG on the GPU, many pictures a call: the one file that talks to nvJPEG.

The card's own JPEG engine is used where it has one (then decoding takes nothing from the network),
else the decoder that runs on its cores. Both do baseline JPEG of one or three channels; anything
else is for the CPU, see `shape_for_gpu`.
"""

from __future__ import annotations

import ctypes
import enum
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from saccade.cuda import driver
from saccade.cuda.runtime import Device, Stream
from saccade.errors import BackendUnavailable, EngineError, SaccadeError
from saccade.vision.exif import orientation_of_block

__all__ = [
    "INTERPOLATE",
    "NO_PIPELINE",
    "Engine",
    "JpegBatchError",
    "JpegDecoder",
    "MappedJpeg",
    "nvjpeg_version",
    "shape_for_gpu",
]

_STATUS = (
    "success", "not initialised", "invalid parameter", "bad JPEG", "JPEG not supported",
    "allocator failure", "execution failed", "architecture mismatch", "internal error",
    "implementation not supported", "incomplete bitstream",
)  # fmt: skip
# By device: two calls at once, of two decoders in two threads, have waited for ever inside of the
# library beside a busy network; see docs/performance/cuda-path.md.
_ONE_CALL: dict[int, threading.Lock] = {}
_BASELINE = 0xC0
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_NOT_SEGMENTS = frozenset((0x00, 0x01, 0xFF, *range(0xD0, 0xDA)))
# Columns and rows of luma for each of chroma that the card's JPEG engine does.
_SAMPLINGS = (0x11, 0x21, 0x22, 0x12)
_RGB_INTERLEAVED = 5
# Chroma is enlarged with weights 3 and 1, as libjpeg-turbo does it, instead of repeated.
INTERPOLATE = 1 << 5
# One picture after another, which costs a fifth, but waits for nobody where queues are shared.
NO_PIPELINE = 1


class Engine(enum.IntEnum):
    """Who decodes, by nvJPEG's numbers."""

    CPU_HUFFMAN = 1
    CORES = 2
    HARDWARE = 3


class JpegBatchError(SaccadeError):
    """A batch was refused as a whole; at least one picture of it is not what it seems."""


class MappedJpeg(NamedTuple):
    """A file in memory that is mapped, which is not copied to be decoded.

    Attributes:
        address: Where it starts.
        view: Its bytes, which keep the map alive.
    """

    address: int
    view: memoryview


class _Image(ctypes.Structure):
    _fields_ = (("channel", ctypes.c_void_p * 4), ("pitch", ctypes.c_size_t * 4))


_Malloc = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_void_p
)
_Free = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p
)


class _Allocator(ctypes.Structure):
    _fields_ = (("malloc", _Malloc), ("free", _Free), ("context", ctypes.c_void_p))


def nvjpeg_version() -> tuple[int, int, int]:
    """Major, minor and patch version of the library.

    Raises:
        BackendUnavailable: It cannot be loaded.
    """
    library, numbers = _load_library(), (ctypes.c_int * 3)()
    for part in range(3):
        library.nvjpegGetProperty(part, ctypes.byref(numbers, part * ctypes.sizeof(ctypes.c_int)))
    return numbers[0], numbers[1], numbers[2]


def shape_for_gpu(data: Any) -> tuple[int, int] | None:
    """Width and height of a JPEG that nvJPEG's batches can do, or None.

    That is baseline, 8 bits, gray or Y Cb Cr in one scan, chroma whole or halved, and stored
    upright. A file that does not end with its end marker, or whose header does not make sense, is
    left to the CPU, whose decoder is the judge of what is broken.
    """
    if data[:3] != b"\xff\xd8\xff" or bytes(data[-2:]) != b"\xff\xd9":
        return None
    at, end = 2, len(data)
    found: tuple[int, int] | None = None
    num, is_jfif, is_ycc = 0, False, True
    while at + 10 <= end and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xDA:
            is_one_scan = data[at + 4] == num
            return found if is_one_scan and (is_ycc or is_jfif or num == 1) else None
        after = at + 2 + (data[at + 2] << 8 | data[at + 3])
        if marker in _SOF:
            if marker != _BASELINE or after > end:
                return None
            num, is_named_rgb = data[at + 9], data[at + 10 : at + 19 : 3] == b"RGB"
            found = _frame(data, at)
            if found is None:
                return None
            is_ycc = is_ycc and not is_named_rgb
        elif marker == 0xE0:
            is_jfif = is_jfif or data[at + 4 : at + 9] == b"JFIF\0"
        elif marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            if orientation_of_block(bytes(data[at + 10 : after])) != 1:
                return None
        elif marker == 0xEE and data[at + 4 : at + 9] == b"Adobe":
            is_ycc = after <= end and after - at >= 16 and data[at + 15] == 1
        elif marker in _NOT_SEGMENTS:
            return None
        at = after
    return None


def _frame(data: Any, at: int) -> tuple[int, int] | None:
    """Width and height in a frame header at `at`, if it is of a kind that can be decoded."""
    height, width = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
    if data[at + 4] != 8 or not width or not height:
        return None
    if data[at + 9] == 1:
        return width, height
    factors = data[at + 11], data[at + 14], data[at + 17]
    if data[at + 9] != 3 or factors[0] not in _SAMPLINGS or factors[1:] != (0x11, 0x11):
        return None
    return width, height


class JpegDecoder:
    """Decodes batches to packed RGB in device memory. One thread at a time.

    Decoders of one device take turns.

    Args:
        device: Where.
        batch: Pictures per call at most.
        engine: Who decodes; None takes the card's JPEG engine, or its cores if it has none.
        flags: nvJPEG's; None takes what makes the pixels of the CPU's decoder, and does not wait
            for the network's queues.

    Attributes:
        engine: Who decodes.
        num_allocations: Buffers that nvJPEG asked for so far, on the device and pinned.
        allocated_bytes: Device memory it holds now.

    Raises:
        BackendUnavailable: The library is missing, or cannot do what is asked.
    """

    def __init__(
        self,
        device: Device,
        batch: int,
        *,
        engine: Engine | None = None,
        flags: int | None = None,
    ) -> None:
        self._library = _load_library()
        self._device = device
        if flags is None:
            flags = INTERPOLATE | (0 if driver.has_own_queues() else NO_PIPELINE)
        self._flags = flags
        self._one_call = _ONE_CALL.setdefault(device.index, threading.Lock())
        self.num_allocations = 0
        self.allocated_bytes = 0
        self._callbacks = self._make_allocators()
        self._handle = ctypes.c_void_p()
        self._state = ctypes.c_void_p()
        for candidate in [engine] if engine is not None else [Engine.HARDWARE, Engine.CORES]:
            status = self._create(candidate)
            if status == 0:
                self.engine = candidate
                break
        else:
            raise BackendUnavailable(
                f"nvJPEG must be able to decode on {device.name}, it says "
                f"{_spelled(status)!r} for {candidate.name}; decode on the CPU"
            )
        self._pointers = (ctypes.c_void_p * batch)()
        self._lengths = (ctypes.c_size_t * batch)()
        self._images = (_Image * batch)()
        words = np.frombuffer(memoryview(self._images).cast("B"), np.uint64).reshape(batch, 2, 4)
        self._addresses, self._pitches = words[:, 0, 0], words[:, 1, 0]
        self._initialised_for = 0

    def _create(self, engine: Engine) -> int:
        on_device, pinned = self._callbacks[:2]
        status = self._library.nvjpegCreateExV2(
            int(engine),
            ctypes.byref(on_device),
            ctypes.byref(pinned),
            self._flags,
            ctypes.byref(self._handle),
        )
        if status:
            return int(status)
        return int(self._library.nvjpegJpegStateCreate(self._handle, ctypes.byref(self._state)))

    def decode(
        self,
        stream: Stream,
        pictures: Sequence[bytes | MappedJpeg],
        addresses: np.ndarray,
        pitches: np.ndarray,
        *,
        threads: int = 1,
    ) -> None:
        """Decode a batch; it is done when this returns.

        The targets must not be in use: with the card's JPEG engine the library writes to them at
        once, whatever the stream holds. The stream is waited for, so that no work of the library is
        under way beside what others enqueue: that has stood still.

        Args:
            stream: Of the library's kernels.
            pictures: Files that `shape_for_gpu` accepts.
            addresses: (n,) device address of each picture.
            pitches: (n,) bytes from row to row.
            threads: CPU threads that the library may use.

        Raises:
            JpegBatchError: The batch was refused; none of the targets may be used.
            EngineError: The device failed.
        """
        num = len(pictures)
        for i, data in enumerate(pictures):
            if isinstance(data, bytes):
                self._pointers[i] = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p)
                self._lengths[i] = len(data)
            else:
                self._pointers[i] = data.address
                self._lengths[i] = len(data.view)
        self._addresses[:num] = addresses
        self._pitches[:num] = pitches
        with self._one_call:
            if self._initialised_for != num:
                self._check(
                    self._library.nvjpegDecodeBatchedInitialize(
                        self._handle, self._state, num, threads, _RGB_INTERLEAVED
                    )
                )
                self._initialised_for = num
            status = self._library.nvjpegDecodeBatched(
                self._handle,
                self._state,
                self._pointers,
                self._lengths,
                self._images,
                ctypes.c_void_p(stream.handle),
            )
            self._check(status)
            stream.synchronize()

    def _check(self, status: int) -> None:
        if not status:
            return
        # What a refused batch leaves behind in the library is not known.
        self._initialised_for = 0
        self._device.synchronize()  # a device that was lost is told as that, not as a bad batch
        if status in (5, 6, 7, 8):
            raise EngineError(
                f"nvJPEG must decode on {self._device.name}, it says {_spelled(status)!r}; lower "
                "the batch if memory is short, else decode on the CPU"
            )
        raise JpegBatchError(f"a batch of JPEGs was refused: {_spelled(status)}")

    def _make_allocators(self) -> tuple[_Allocator, _Allocator]:
        cuda = driver.bindings()

        def allocate(function: Any, size: int, out: Any, *flags: Any) -> int:
            code, address = function(max(size, 1), *flags)
            if code != 0:
                return 1
            self.num_allocations += 1
            out[0] = int(address)
            return 0

        def device_malloc(_: Any, out: Any, size: int, __: Any) -> int:
            self.allocated_bytes += size
            return allocate(cuda.cuMemAlloc, size, out)

        def device_free(_: Any, address: Any, size: int, __: Any) -> int:
            self.allocated_bytes -= size
            return int(cuda.cuMemFree(address or 0)[0])

        def pinned_malloc(_: Any, out: Any, size: int, __: Any) -> int:
            return allocate(cuda.cuMemHostAlloc, size, out, cuda.CU_MEMHOSTALLOC_PORTABLE)

        def pinned_free(_: Any, address: Any, __: int, ___: Any) -> int:
            return int(cuda.cuMemFreeHost(address or 0)[0])

        return (
            _Allocator(_Malloc(device_malloc), _Free(device_free), None),
            _Allocator(_Malloc(pinned_malloc), _Free(pinned_free), None),
        )

    def close(self) -> None:
        """Release the library's memory; closing twice is no error."""
        if self._state:
            self._library.nvjpegJpegStateDestroy(self._state)
            self._state = ctypes.c_void_p()
        if self._handle:
            self._library.nvjpegDestroy(self._handle)
            self._handle = ctypes.c_void_p()


def _spelled(status: int) -> str:
    return _STATUS[status] if 0 <= status < len(_STATUS) else f"status {status}"


def _load_library() -> ctypes.CDLL:
    reasons = []
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        return ctypes.CDLL(str(load_nvidia_dynamic_lib("nvjpeg").abs_path))
    except Exception as exc:
        # The finder raises several kinds of its own; the system's loader may know better.
        reasons.append(str(exc).strip().split("\n")[0])
    for name in ("libnvjpeg.so.13", "libnvjpeg.so"):
        try:
            return ctypes.CDLL(name)
        except OSError as exc:
            reasons.append(str(exc))
    raise BackendUnavailable(
        f"JPEG on the GPU needs nvJPEG, which cannot be loaded ({'; '.join(reasons)}); install "
        "nvidia-nvjpeg, or decode on the CPU"
    )
