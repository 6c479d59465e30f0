"""Tensors through the network of a session, beside its batches of pictures.

The network is on the card once. Arrays are copied to its inputs, and its outputs back, between two
batches of pictures, in the same stream.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np

from saccade.cuda.batches import Batches
from saccade.cuda.runtime import Device, Event, Graph, Pinned, Stream
from saccade.errors import InputError
from saccade.types import DeviceBuffer, DeviceEngine, Fallback, Model, Plan, TensorSpec

__all__ = ["SharedEngine", "SharedSlot"]


class SharedEngine:
    """A session's engine behind the interface of those that take arrays.

    Slots take turns on one set of pinned memory.

    Args:
        model: The network; arrays have its types and layouts, whatever the engine's own are.
        plan: How it runs.
        size_hw: Height and width that the engine was loaded for.
        device: Where.
        engine: The loaded network. It is not closed here.
        batches: Whose stream is used.
    """

    def __init__(
        self,
        model: Model,
        plan: Plan,
        size_hw: tuple[int, int],
        device: Device,
        engine: DeviceEngine,
        batches: Batches,
    ) -> None:
        self.plan = plan
        self.fallbacks: tuple[Fallback, ...] = engine.fallbacks
        self._model = model
        self._size_hw = size_hw
        self._lock = threading.Lock()
        self._device = device
        self._engine = engine
        self._batches = batches
        self._pinned: dict[str, Pinned] = {}
        self._graph: Graph
        self._done: Event

    def open_slot(self, size_hw: tuple[int, int]) -> SharedSlot:
        """Arrays of one batch.

        Raises:
            InputError: The network is loaded for another size.
        """
        if any(isinstance(s, str) for spec in self._model.inputs for s in spec.shape[1:]) and (
            size_hw != self._size_hw
        ):
            height, width = self._size_hw
            raise InputError(
                f"pictures in a tensor must be {width} x {height} pixels for this model on a GPU, "
                f"they are {size_hw[1]} x {size_hw[0]}; resize them, or load the model with "
                f"--size {size_hw[1]}x{size_hw[0]}"
            )
        shapes = {
            spec.name: _graph_shape(spec, self._engine.inputs[spec.name].shape)
            for spec in self._model.inputs
        }
        return SharedSlot(self, self._model, shapes)

    def run(self, inputs: Mapping[str, np.ndarray], num: int) -> dict[str, np.ndarray]:
        """Infer the first num items; see `SharedSlot.run`."""
        engine = self._engine
        with self._lock:
            self._device.make_current()
            self._reserve()
            for name, buffer in engine.inputs.items():
                _fill(_as_array(self._pinned[name], buffer), inputs[name], num)
            self._batches.enqueue(self._launch)
            self._done.wait()
            dtypes = {spec.name: spec.dtype for spec in self._model.outputs}
            specs = self._model.inputs
            is_whole = any(isinstance(spec.shape[0], int) for spec in specs if spec.shape)
            wanted = engine.plan.batch if is_whole else num
            return {
                name: _result(self._pinned[name], buffer, dtypes[name], wanted)
                for name, buffer in engine.outputs.items()
            }

    def _reserve(self) -> None:
        """Take pinned memory and record the work, before the first tensors."""
        if self._pinned:
            return
        device, engine = self._device, self._engine
        buffers = (*engine.inputs.items(), *engine.outputs.items())
        pinned = {name: device.pinned(buffer.num_bytes) for name, buffer in buffers}
        stream = device.stream()
        with stream.capture() as captured:
            for name, buffer in engine.inputs.items():
                stream.upload(buffer.pointer, pinned[name], buffer.num_bytes)
            engine.enqueue(stream.handle)
            for name, buffer in engine.outputs.items():
                stream.download(pinned[name], buffer.pointer, buffer.num_bytes)
        self._graph = captured.graph
        self._done = device.event()
        self._pinned = pinned

    def _launch(self, stream: Stream) -> None:
        self._graph.launch(stream)
        self._done.record(stream)

    def close(self) -> None:
        """Release the recorded work; the session has the engine, the device the memory."""
        with self._lock:
            if self._pinned:
                self._graph.close()
                self._pinned = {}


class SharedSlot:
    """Ordinary arrays of one batch, as the graph has them.

    Attributes:
        inputs: By name, (batch, ...); memory is taken where it is written.
    """

    def __init__(
        self, engine: SharedEngine, model: Model, shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        self._engine = engine
        self.inputs: Mapping[str, np.ndarray] = {
            spec.name: np.zeros(shapes[spec.name], spec.dtype) for spec in model.inputs
        }

    def run(self, num: int) -> Mapping[str, np.ndarray]:
        """Infer the first num items.

        Returns:
            Every output by name, in the graph's types, (num, ...) unless the graph fixes its batch.

        Raises:
            EngineError: The device failed.
        """
        return self._engine.run(self.inputs, num)


def _graph_shape(spec: TensorSpec, shape: tuple[int, ...]) -> tuple[int, ...]:
    """An input's shape as the graph has it, from that of an engine that may keep channels last."""
    is_nchw = len(spec.shape) == 4 and spec.shape[1] in (1, 3) and spec.shape[3] not in (1, 3)
    if is_nchw and shape[1] != spec.shape[1]:
        return shape[0], shape[3], shape[1], shape[2]
    return shape


def _as_array(pinned: Pinned, buffer: DeviceBuffer) -> np.ndarray:
    dtype = "uint16" if buffer.dtype == "bfloat16" else buffer.dtype
    return pinned.array.view(dtype).reshape(buffer.shape)


def _fill(target: np.ndarray, source: np.ndarray, num: int) -> None:
    """Copy the first num items, in the target's type and order of axes."""
    if target.shape != source.shape:  # the engine keeps channels last
        target = target.transpose(0, 3, 1, 2)
    np.copyto(target[:num], source[:num], casting="unsafe")


def _result(pinned: Pinned, buffer: DeviceBuffer, dtype: str, num: int) -> np.ndarray:
    array = _as_array(pinned, buffer)
    if array.ndim and array.shape[0] >= num:
        array = array[:num]
    if buffer.dtype == "bfloat16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(dtype)  # a copy: the next run writes over it
