"""A device engine behind the interface of those that take arrays: copies there and back.

It is what the ordinary pipeline, the build's probes and `Detector.timed` use on a GPU. The fast
path does not come this way: there pictures never leave the device.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from saccade.backends._shapes import has_fixed_batch
from saccade.cuda.driver import device_index
from saccade.errors import BuildError, EngineError
from saccade.types import DeviceBuffer, DeviceEngine, Fallback, Model, Plan, Slot

if TYPE_CHECKING:
    from saccade.cuda.runtime import Device, Stream

__all__ = ["HostFedEngine"]

LoadDevice = Callable[[Model, Plan, tuple[int, int]], DeviceEngine]


class HostFedEngine:
    """One device engine per input size, shared by all slots, which take turns.

    Args:
        model: The network.
        plan: With a device "cuda:N". Its option "input" is left out: arrays come as the graph says.
        load: Makes the device engine.
    """

    def __init__(self, model: Model, plan: Plan, load: LoadDevice) -> None:
        from saccade.cuda.runtime import Device

        self.plan = plan
        self.fallbacks: tuple[Fallback, ...] = ()
        self._model = model
        self._load = load
        self._lock = threading.Lock()
        self._engines: dict[tuple[int, int], DeviceEngine] = {}
        self._device: Device | None = Device(device_index(plan.device))
        try:
            if all(isinstance(size, int) for spec in model.inputs for size in spec.shape[1:]):
                # Sizes are known, so whether the engine can be built is known now.
                self._engine((0, 0))
        except BaseException:
            self._device.close()
            raise

    def _engine(self, size_hw: tuple[int, int]) -> DeviceEngine:
        key = (0, 0) if (0, 0) in self._engines else size_hw
        if key not in self._engines:
            options = tuple(pair for pair in self.plan.options if pair[0] != "input")
            plan = dataclasses.replace(self.plan, options=options)
            self._engines[key] = engine = self._load(self._model, plan, size_hw)
            self.fallbacks += engine.fallbacks
        return self._engines[key]

    def open_slot(self, size_hw: tuple[int, int]) -> Slot:
        with self._lock:
            if self._device is None:
                raise EngineError("this engine is closed; load the model again")
            engine = self._engine(size_hw)
            is_fixed = has_fixed_batch(self._model)
            return HostFedSlot(self._device, engine, self._lock, is_fixed=is_fixed)

    def close(self) -> None:
        with self._lock:
            for engine in self._engines.values():
                engine.close()
            self._engines = {}
            if self._device is not None:
                self._device.close()
                self._device = None


class HostFedSlot:
    """Pinned arrays of one batch. The whole batch always runs, so shapes never change."""

    def __init__(
        self, device: Device, engine: DeviceEngine, lock: threading.Lock, *, is_fixed: bool
    ) -> None:
        device.make_current()
        self._device = device
        self._engine = engine
        self._lock = lock
        self._is_fixed = is_fixed
        self._stream: Stream = device.stream()
        self._pinned = {
            name: device.pinned(buffer.num_bytes)
            for name, buffer in (*engine.inputs.items(), *engine.outputs.items())
        }
        self.inputs: Mapping[str, np.ndarray] = self._arrays(engine.inputs)
        self._outputs = self._arrays(engine.outputs)

    def _arrays(self, buffers: Mapping[str, DeviceBuffer]) -> dict[str, np.ndarray]:
        for name, buffer in buffers.items():
            if buffer.dtype == "bfloat16":
                raise BuildError(
                    f"inputs and outputs must be of types that NumPy has, {name!r} is bfloat16; "
                    "cast it to float32 in the graph"
                )
        return {
            name: self._pinned[name].array.view(buffer.dtype).reshape(buffer.shape)
            for name, buffer in buffers.items()
        }

    def run(self, num: int) -> Mapping[str, np.ndarray]:
        engine = self._engine
        with self._lock:  # the engine's buffers are one set
            self._device.make_current()
            for name, buffer in engine.inputs.items():
                self._stream.upload(buffer.pointer, self._pinned[name], buffer.num_bytes)
            engine.enqueue(self._stream.handle)
            for name, buffer in engine.outputs.items():
                self._stream.download(self._pinned[name], buffer.pointer, buffer.num_bytes)
            self._stream.synchronize()
        batch = engine.plan.batch
        if num == batch or self._is_fixed:
            return self._outputs
        return {
            name: array[:num] if array.ndim and len(array) == batch else array
            for name, array in self._outputs.items()
        }
