"""Arrays of a device for the tests: poisoned before, fetched after, compared in levels."""

from __future__ import annotations

import numpy as np

from saccade.cuda.runtime import Device
from saccade.types import DeviceBuffer, InputRule


def back(device: Device, buffer: DeviceBuffer) -> np.ndarray:
    pinned = device.pinned(buffer.num_bytes)
    stream = device.stream()
    stream.download(pinned, buffer.pointer, buffer.num_bytes)
    stream.synchronize()
    dtype = "uint16" if buffer.dtype == "bfloat16" else buffer.dtype
    raw = pinned.array.view(dtype).reshape(buffer.shape).copy()
    if buffer.dtype == "bfloat16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    return raw


def poisoned(upload, rule: InputRule, num: int, dtype: str = "float32") -> DeviceBuffer:  # type: ignore[no-untyped-def]
    channels, (h, w) = rule.num_channels, rule.size_hw
    shape = (num, channels, h, w) if rule.layout == "nchw" else (num, h, w, channels)
    bits = np.uint16 if dtype == "bfloat16" else np.dtype(dtype)
    poison = np.full(int(np.prod(shape)) * np.dtype(bits).itemsize, 0xAB, np.uint8)
    return upload(poison.view(bits).reshape(shape), dtype=dtype)


def levels_off(got: np.ndarray, want: np.ndarray, rule: InputRule) -> float:
    shape = (-1, 1, 1) if rule.layout == "nchw" else (1, 1, -1)
    std = np.asarray(rule.std[: rule.num_channels]).reshape(shape)
    return float(np.abs((got.astype(np.float64) - want.astype(np.float64)) * std).max())
