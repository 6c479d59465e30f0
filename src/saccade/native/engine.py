"""A plan on a card: buffers that never move, and one CUDA graph of all its launches.

    plan + chosen ways  ->  cubins, weights, arena  ->  launches on one or more streams
                                                    ->  a graph, or part of the caller's capture

Memory is reserved at load, in one block. A step that does not wait for the one before it may run
beside it, on a stream of its own that forks from the caller's and joins it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from saccade.cuda import driver
from saccade.cuda.driver import call
from saccade.cuda.runtime import Device, Graph, Stream
from saccade.errors import EngineError
from saccade.native.depends import depends, scheduled
from saccade.native.launching import Addresses, Bound, Loader, put, zero
from saccade.native.plan import Plan
from saccade.native.seam import Built
from saccade.native.tensors import SIZES
from saccade.types import DeviceBuffer, Fallback
from saccade.types import Plan as Wanted

__all__ = ["NativeEngine", "Options"]


@dataclass(frozen=True, slots=True)
class Options:
    """How launches are put together.

    Attributes:
        num_streams: Steps that may run side by side.
        is_chained: Whether a kernel may start while the one before it ends (sm_90 and newer).
    """

    num_streams: int = 1
    is_chained: bool = False


class NativeEngine:
    """See saccade.types.DeviceEngine. One caller at a time, in the order of one stream.

    Attributes:
        addresses: Of the plan's buffers, by number.

    Args:
        wanted: The plan as the user sees it.
        plan: What runs.
        built: For each step what runs it.
        device: Owned by this engine from here on.
        loader: Loads kernels.
        options: How launches are put together.
    """

    def __init__(
        self,
        wanted: Wanted,
        plan: Plan,
        built: Sequence[Built],
        device: Device,
        loader: Loader,
        options: Options,
    ) -> None:
        self.plan = wanted
        self.fallbacks: tuple[Fallback, ...] = ()
        self._device = device
        self._is_open = True
        arena = device.arena(_sizes(plan, built))
        buffers = {
            number: arena.address("arena") + buffer.offset
            if buffer.kind == "arena"
            else arena.address(f"buffer {number}")
            for number, buffer in enumerate(plan.buffers)
        }
        self.addresses: Mapping[int, int] = buffers
        for number, array in plan.constants.items():
            put(array, buffers[number])
        self.workspace_bytes = plan.arena_bytes + sum(b.workspace_bytes for b in built)
        self.weight_bytes = sum(array.nbytes for item in built for array in item.weights)
        self.arena_bytes = arena.num_bytes
        self.base = arena.base
        self._work: list[list[Bound]] = []
        for index, item in enumerate(built):
            weights = []
            for number, array in enumerate(item.weights):
                address = arena.address(f"weights {index}.{number}")
                put(array, address)
                weights.append(address)
            workspace = arena.address(f"workspace {index}")
            # Some kernels keep counters there that they leave at 0.
            zero(workspace, item.workspace_bytes)
            self._work.append(loader.bind(item, Addresses(buffers, weights, workspace)))
        self.inputs: Mapping[str, DeviceBuffer] = {
            spec.name: _device_buffer(buffers[spec.buffer], spec.shape, spec.dtype)
            for spec in plan.inputs
        }
        self.outputs: Mapping[str, DeviceBuffer] = {
            spec.name: _device_buffer(buffers[spec.buffer], spec.shape, spec.dtype)
            for spec in plan.outputs
        }
        self._needs = depends(plan)
        self._streams: list[Stream] = [device.stream()]
        self._graph: Graph | None = None
        self.arrange(options)

    def arrange(self, options: Options) -> None:
        """Put the launches together in another way; the answers are the same."""
        self.options = options
        self._places = scheduled(self._needs, options.num_streams)
        while len(self._streams) < options.num_streams:
            self._streams.append(self._device.stream())
        waited = {step for place in self._places for step in place.waits}
        ends = {place.stream: index for index, place in enumerate(self._places)}
        self._marks = {step: self._device.event() for step in {*waited, *ends.values()}}
        self._ends = [step for stream, step in ends.items() if stream != 0]
        self._fork = self._device.event()
        if self._graph is not None:
            self._graph.close()
        own = self._streams[0]
        self._launch(own)
        own.synchronize()
        with own.capture() as captured:
            self._launch(own)
        self._graph = captured.graph

    def enqueue(self, stream: int) -> None:
        """Launch one inference of the whole batch behind what the stream already holds."""
        if not self._is_open or self._graph is None:
            raise EngineError("this engine is closed; load the model again")
        caller = Stream(stream)
        if _is_capturing(stream):
            self._launch(caller)
        else:
            self._graph.launch(caller)

    def close(self) -> None:
        """Release the device memory. The buffers must not be used afterwards."""
        if self._is_open:
            self._is_open = False
            if self._graph is not None:
                self._graph.close()
            self._device.close()

    def _launch(self, caller: Stream) -> None:
        """All steps; other streams fork from the caller's and join it."""
        streams = [caller, *self._streams[1:]]
        started = {0}
        last_own: dict[int, bool] = {}
        self._fork.record(caller)
        for index, (work, place) in enumerate(zip(self._work, self._places, strict=True)):
            stream = streams[place.stream]
            waits = list(place.waits)
            if place.stream not in started and not waits:
                stream.wait_for(self._fork)
            started.add(place.stream)
            for step in waits:
                stream.wait_for(self._marks[step])
            for number, bound in enumerate(work):
                is_first = number == 0 and bool(waits)
                can_chain = self.options.is_chained and not is_first
                chained = can_chain and last_own.get(place.stream, False) and bound.is_own
                bound.enqueue(stream.handle, chained)
                last_own[place.stream] = bound.is_own
            if index in self._marks:
                self._marks[index].record(stream)
        for step in self._ends:
            caller.wait_for(self._marks[step])


def _sizes(plan: Plan, built: Sequence[Built]) -> dict[str, int]:
    sizes = {"arena": plan.arena_bytes}
    for number, buffer in enumerate(plan.buffers):
        if buffer.kind != "arena":
            sizes[f"buffer {number}"] = buffer.num_bytes
    for index, item in enumerate(built):
        sizes[f"workspace {index}"] = item.workspace_bytes
        for number, array in enumerate(item.weights):
            sizes[f"weights {index}.{number}"] = array.nbytes
    return sizes


def _device_buffer(address: int, shape: tuple[int, ...], dtype: str) -> DeviceBuffer:
    count = int(np.prod(shape, dtype=np.int64))
    return DeviceBuffer(address, shape, dtype, count * SIZES[dtype])


def _is_capturing(stream: int) -> bool:
    cuda = driver.bindings()
    status = call("asking for a capture", cuda.cuStreamIsCapturing, stream)
    return bool(status != cuda.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE)
