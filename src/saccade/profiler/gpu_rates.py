"""A quick measurement of one GPU: how fast bytes get there and back, and how fast JPEGs decode.

It takes a second or two and says what a machine can do, not how fast a job is: for that there is
`saccade bench`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from saccade.cuda import driver
from saccade.cuda.driver import call
from saccade.cuda.nvjpeg import JpegDecoder
from saccade.cuda.runtime import Device, Stream
from saccade.errors import SaccadeError

__all__ = ["GpuRates", "measure_gpu"]

_COPY_BYTES = 256 << 20
_ROUNDS = 7
_BATCH = 32
_DECODES = 12


@dataclass(frozen=True, slots=True)
class GpuRates:
    """What one card did.

    Attributes:
        index: The N of "cuda:N".
        to_device_gb_s: From pinned memory, in 1e9 bytes per second.
        to_device_pageable_gb_s: From ordinary memory.
        from_device_gb_s: To pinned memory.
        on_device_gb_s: From device memory to device memory, read plus written.
        decoder: Who decodes JPEGs, or why nobody does.
        decodes_per_s: JPEGs of 640 x 480 per second, decoding alone, in batches of 32.
    """

    index: int
    to_device_gb_s: float
    to_device_pageable_gb_s: float
    from_device_gb_s: float
    on_device_gb_s: float
    decoder: str
    decodes_per_s: float | None


def measure_gpu(index: int, jpeg: bytes, wh: tuple[int, int]) -> GpuRates:
    """Measure one card.

    Args:
        index: The N of "cuda:N".
        jpeg: A baseline JPEG to decode.
        wh: Its width and height.

    Raises:
        BackendUnavailable: The card cannot be used.
        EngineError: It has too little free memory, or failed.
    """
    with Device(index) as device:
        stream = device.stream()
        num = min(_COPY_BYTES, device.memory()[0] // 8)
        arena = device.arena({"a": num, "b": num})
        pinned = device.pinned(num)
        pinned.array[:] = np.arange(num, dtype=np.uint8)  # zeros may be faster than data
        pageable = pinned.array.copy()
        a, b = arena.address("a"), arena.address("b")
        cuda = driver.bindings()

        def across() -> None:
            call("copying", cuda.cuMemcpyDtoDAsync, b, a, num, stream.handle)

        def from_pageable() -> None:
            call("copying", cuda.cuMemcpyHtoDAsync, a, pageable.ctypes.data, num, stream.handle)

        to_s = _seconds(device, stream, lambda: stream.upload(a, pinned, num))
        pageable_s = _seconds(device, stream, from_pageable)
        across_s = _seconds(device, stream, across)
        from_s = _seconds(device, stream, lambda: stream.download(pinned, b, num))
        decoder, per_s = _decodes(device, stream, jpeg, wh)
    return GpuRates(
        index=index,
        to_device_gb_s=num / to_s / 1e9,
        to_device_pageable_gb_s=num / pageable_s / 1e9,
        from_device_gb_s=num / from_s / 1e9,
        on_device_gb_s=2 * num / across_s / 1e9,
        decoder=decoder,
        decodes_per_s=per_s,
    )


def _seconds(device: Device, stream: Stream, work: Callable[[], None]) -> float:
    """Median seconds of some work between two events, the first round left out."""
    start, stop = device.event(is_timed=True), device.event(is_timed=True)
    times = []
    for _ in range(_ROUNDS):
        start.record(stream)
        work()
        stop.record(stream)
        stream.synchronize()
        times.append(stop.ms_since(start) / 1e3)
    return statistics.median(times[1:])


def _decodes(
    device: Device, stream: Stream, jpeg: bytes, wh: tuple[int, int]
) -> tuple[str, float | None]:
    import time

    item = -(-wh[0] * wh[1] * 3 // 4096) * 4096 + 4096
    try:
        decoder = JpegDecoder(device, _BATCH)
    except SaccadeError as exc:
        return str(exc), None
    try:
        arena = device.arena({str(i): item for i in range(_BATCH)})
        addresses = np.array([arena.address(str(i)) for i in range(_BATCH)], np.uint64)
        pitches = np.full(_BATCH, 3 * wh[0], np.int64)
        pictures = [jpeg] * _BATCH
        for _ in range(2):
            decoder.decode(stream, pictures, addresses, pitches)
        began_s = time.perf_counter()
        for _ in range(_DECODES):
            decoder.decode(stream, pictures, addresses, pitches)
        taken_s = time.perf_counter() - began_s
        names = {"HARDWARE": "the card's JPEG engine", "CORES": "nvJPEG on the card's cores"}
        name = decoder.engine.name
        return names.get(name, name), _DECODES * _BATCH / taken_s
    finally:
        decoder.close()
