"""Launches with their addresses filled in: compiled, loaded, ready to be enqueued or captured."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from saccade.cuda import driver
from saccade.cuda.compile import compile_kernels
from saccade.cuda.driver import call
from saccade.cuda.runtime import Device
from saccade.errors import BuildError
from saccade.native.seam import (
    Argument,
    Blob,
    Built,
    Kernels,
    Launch,
    LibraryLaunch,
    OfView,
    OfWeight,
    OfWorkspace,
    Scalar,
    Source,
    TensorMap,
)
from saccade.native.tensors import SIZES, View

__all__ = ["Addresses", "Bound", "Loader", "compile_all", "put", "zero"]

MAX_WORKERS = 16
_KINDS: Mapping[str, Any] = {
    "i32": ctypes.c_int32,
    "u32": ctypes.c_uint32,
    "i64": ctypes.c_int64,
    "u64": ctypes.c_uint64,
    "f32": ctypes.c_float,
    "u8": ctypes.c_uint8,
}
_TENSOR_TYPES = {
    "uint8": "UINT8",
    "int8": "UINT8",
    "int32": "INT32",
    "float16": "FLOAT16",
    "float32": "FLOAT32",
    "bfloat16": "BFLOAT16",
}


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a step's operands are on the device.

    Attributes:
        buffers: Buffer number to the address of its element 0.
        weights: Of the prepared arrays, in order.
        workspace: Of the step's scratch memory.
    """

    buffers: Mapping[int, int]
    weights: Sequence[int]
    workspace: int

    def view(self, view: View) -> int:
        """Of a view's first element."""
        return self.buffers[view.buffer] + view.offset * SIZES[view.dtype]

    def of(self, what: OfView | OfWeight | OfWorkspace) -> int:
        if isinstance(what, OfView):
            return self.view(what.view)
        if isinstance(what, OfWeight):
            return self.weights[what.index] + what.offset
        return self.workspace + what.offset


@dataclass(frozen=True, slots=True, eq=False)
class Bound:
    """One launch that needs nothing but a stream.

    Attributes:
        enqueue: Takes a stream, and whether the kernel may start while the one before it ends.
        is_own: Whether it is a kernel of ours, which waits by itself for the one before it.
    """

    enqueue: Callable[[int, bool], None]
    is_own: bool


class Loader:
    """Compiles and loads kernels once, and binds launches.

    Args:
        device: Where.
        kernels: Opens libraries' plans.
        cubins: What was compiled before, by source.
    """

    def __init__(
        self, device: Device, kernels: Kernels, cubins: Mapping[Source, bytes] | None = None
    ) -> None:
        self._device = device
        self._kernels = kernels
        self._cubins = dict(cubins or {})
        self._modules: dict[Source, Any] = {}
        self._functions: dict[tuple[Source, str, int], Any] = {}
        self._opened: dict[bytes, Any] = {}

    def cubin(self, source: Source) -> bytes:
        """Machine code of a source."""
        if source not in self._cubins:
            self._cubins[source] = compile_kernels(source.text, self._device.arch, source.defines)
        return self._cubins[source]

    def bind(self, built: Built, addresses: Addresses) -> list[Bound]:
        """The launches of one step at given addresses."""
        return [
            self._library(launch, addresses)
            if isinstance(launch, LibraryLaunch)
            else self._own(built, launch, addresses)
            for launch in built.launches
        ]

    def _library(self, launch: LibraryLaunch, addresses: Addresses) -> Bound:
        if launch.plan not in self._opened:
            self._opened[launch.plan] = self._kernels.open_library(launch)
        run = self._opened[launch.plan]
        pointers = {number: addresses.of(of) for number, of in launch.pointers}

        def enqueue(stream: int, is_chained: bool) -> None:
            del is_chained
            run(stream, pointers, addresses.workspace)

        return Bound(enqueue, False)

    def _function(self, source: Source, launch: Launch) -> Any:
        key = (source, launch.function, launch.shared_bytes)
        if key not in self._functions:
            if source not in self._modules:
                self._modules[source] = self._device.load(self.cubin(source))
            kernel = self._modules[source].kernel(launch.function, shared_bytes=launch.shared_bytes)
            self._functions[key] = kernel.function
        return self._functions[key]

    def _own(self, built: Built, launch: Launch, addresses: Addresses) -> Bound:
        cuda = driver.bindings()
        function = self._function(built.sources[launch.source], launch)
        held = [_argument(argument, addresses) for argument in launch.arguments]
        pointers = (ctypes.c_void_p * len(held))(*(ctypes.addressof(item) for item in held))
        configs = [_config(launch, is_chained) for is_chained in (False, True)]

        def enqueue(stream: int, is_chained: bool) -> None:
            config = configs[is_chained]
            config.hStream = stream
            call(
                f"launching {launch.function}",
                cuda.cuLaunchKernelEx,
                config,
                function,
                ctypes.addressof(pointers),
                0,
            )

        # The arguments must live as long as the launch.
        enqueue.held = held  # type: ignore[attr-defined]
        return Bound(enqueue, True)


def _config(launch: Launch, is_chained: bool) -> Any:
    cuda = driver.bindings()
    config = cuda.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = launch.grid
    config.blockDimX, config.blockDimY, config.blockDimZ = launch.block
    config.sharedMemBytes = launch.shared_bytes
    names = cuda.CUlaunchAttributeID
    attributes = []
    if is_chained:
        value = cuda.CUlaunchAttributeValue()
        value.programmaticStreamSerializationAllowed = 1
        name = names.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        attributes.append(_attribute(name, value))
    if launch.cluster != (1, 1, 1):
        value = cuda.CUlaunchAttributeValue()
        value.clusterDim.x, value.clusterDim.y, value.clusterDim.z = launch.cluster
        attributes.append(_attribute(names.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, value))
    if attributes:
        config.attrs = attributes
        config.numAttrs = len(attributes)
    return config


def _attribute(name: Any, value: Any) -> Any:
    made = driver.bindings().CUlaunchAttribute()
    made.id = name
    made.value = value
    return made


def _argument(argument: Argument, addresses: Addresses) -> Any:
    if isinstance(argument, Scalar):
        value = argument.value if argument.kind == "f32" else int(argument.value)
        return _KINDS[argument.kind](value)
    if isinstance(argument, Blob):
        data = bytearray(argument.data)
        for at, of in argument.pointers:
            data[at : at + 8] = addresses.of(of).to_bytes(8, "little")
        return (ctypes.c_uint8 * len(data)).from_buffer(data)
    if isinstance(argument, TensorMap):
        return _tensor_map(argument, addresses)
    return ctypes.c_uint64(addresses.of(argument))


def _tensor_map(argument: TensorMap, addresses: Addresses) -> Any:
    """An encoded CUtensorMap, 128 bytes aligned to 64."""
    cuda = driver.bindings()
    if argument.im2col is not None:
        raise BuildError("tensor maps in im2col mode are not covered; use the tiled mode")
    kind = getattr(
        cuda.CUtensorMapDataType,
        f"CU_TENSOR_MAP_DATA_TYPE_{_TENSOR_TYPES[argument.dtype]}",
    )
    swizzle = "NONE" if argument.swizzle == 0 else f"{argument.swizzle}B"
    rank = len(argument.sizes)
    encoded = call(
        "describing a tensor",
        cuda.cuTensorMapEncodeTiled,
        kind,
        rank,
        addresses.of(argument.of),
        [cuda.cuuint64_t(size) for size in argument.sizes],
        [cuda.cuuint64_t(stride) for stride in argument.strides],
        [cuda.cuuint32_t(size) for size in argument.box],
        [cuda.cuuint32_t(step) for step in argument.element_strides or (1,) * rank],
        cuda.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        getattr(cuda.CUtensorMapSwizzle, f"CU_TENSOR_MAP_SWIZZLE_{swizzle}"),
        cuda.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
        cuda.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )
    raw = (ctypes.c_uint8 * 192)()
    start = -ctypes.addressof(raw) % 64
    aligned = (ctypes.c_uint8 * 128).from_buffer(raw, start)
    ctypes.memmove(aligned, int(encoded.getPtr()), 128)
    return aligned


def put(array: np.ndarray, at: int) -> None:
    """Copy an array to a device address and wait for it."""
    array = np.ascontiguousarray(array)
    if array.nbytes:
        copy = driver.bindings().cuMemcpyHtoD
        call("copying to the device", copy, at, array.ctypes.data, array.nbytes)


def zero(at: int, num_bytes: int) -> None:
    """Set bytes at a device address to 0."""
    if num_bytes:
        call("filling memory", driver.bindings().cuMemsetD8, at, 0, num_bytes)


def compile_all(sources: Iterable[Source], arch: str) -> dict[Source, str]:
    """Compile into the cache, on all cores, in processes of their own.

    Returns:
        The compiler's message for each source that it refuses.
    """
    wanted = sorted(set(sources), key=lambda source: (source.text, source.defines))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = max(1, min(cores or 1, MAX_WORKERS, len(wanted) // 4))
    workers = []
    for index in range(count):
        share = wanted[index::count]
        worker = subprocess.Popen(
            [sys.executable, "-m", "saccade.native.launching", arch],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        workers.append((worker, share))
    # Text is sent once per worker: sources differ mostly in their macros.
    for worker, share in workers:
        assert worker.stdin is not None
        texts = list(dict.fromkeys(source.text for source in share))
        tasks = [(texts.index(source.text), source.defines) for source in share]
        json.dump({"texts": texts, "tasks": tasks}, worker.stdin)
        worker.stdin.close()
    refused = {}
    for worker, share in workers:
        assert worker.stdout is not None
        with worker.stdout:
            answer = worker.stdout.read()
        if worker.wait() != 0:
            raise BuildError(
                f"compiling kernels must end with status 0, a worker ended with "
                f"{worker.returncode}; look at what it wrote above"
            )
        pairs = zip(share, json.loads(answer), strict=True)
        refused.update({source: error for source, error in pairs if error})
    return refused


def _work(arch: str) -> None:
    given = json.load(sys.stdin)
    errors = []
    for text, defines in given["tasks"]:
        try:
            compile_kernels(given["texts"][text], arch, tuple(defines))
            errors.append("")
        except BuildError as exc:
            errors.append(str(exc))
    json.dump(errors, sys.stdout)


if __name__ == "__main__":
    _work(sys.argv[1])
