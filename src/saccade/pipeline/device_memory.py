"""Device memory of a session: predicted before the engine is loaded, measured after.

What is predicted, and from what:

    weights           the graph's parameters, in the precision of the plan
    buffers           the engine's inputs and outputs, whose shapes are known
    workspace         the graph's largest sum of living activations, times what the back end adds
    slots             pictures, tables, candidates of each batch in flight: laid out as in the path
    decoder           nvJPEG's buffers, by the size of a batch
    context and code  what opening the card took, measured before anything is predicted, and the
                      libraries' kernels that are loaded when they are first used

The factors for workspace and code are measurements of one card (docs/gpu.md says which).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from saccade.cuda.head import read_head
from saccade.cuda.path import DevicePath, PathOptions
from saccade.cuda.prepare import PICTURE
from saccade.cuda.runtime import Device
from saccade.cuda.runtime import plan as lay_out
from saccade.cuda.slots import SlotSizes, path_regions
from saccade.cuda.suppress import workspace_of
from saccade.errors import BuildError, SaccadeError
from saccade.graph.cost import cost_of
from saccade.profiler.gpus import memory_of_gpu, uuid_of
from saccade.types import Contract, DeviceBuffer, DeviceEngine, Model, Plan, Thresholds

__all__ = ["MemoryBook", "MemoryPart", "check_limit", "path_options", "predict"]

MIB = 1 << 20
_ITEM_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
_TYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
# Room for a batch of Full HD, and for pictures that the CPU decodes.
_FULL_HD_BYTES = 1920 * 1080 * 3 + 256 * 16
_STAGING_BYTES = 32 * MIB


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """One row of the table.

    Attributes:
        name: What it is.
        predicted_bytes: Before load.
        measured_bytes: After load, or None where it was not measured.
    """

    name: str
    predicted_bytes: int
    measured_bytes: int | None


def path_options(batch: int, *, num_slots: int, max_pixels: int) -> PathOptions:
    """The room of a path, told in bytes, so that it can be predicted and a picture's fit known."""
    return PathOptions(
        num_slots=num_slots,
        source_bytes=batch * _FULL_HD_BYTES,
        staging_bytes=max(_STAGING_BYTES, _FULL_HD_BYTES),
        max_pixels=max_pixels,
    )


class MemoryBook:
    """Predicted and measured memory of one session.

    Args:
        index: The N of "cuda:N". Made before the device is opened, to see what opening takes.

    Attributes:
        predicted: Bytes by part.
        measured: Bytes by part; empty before `measure`.
        context_bytes: What opening the card took in this process.
        free_bytes: Of the card, when it was opened.
    """

    def __init__(self, index: int) -> None:
        self.predicted: dict[str, int] = {}
        self.measured: dict[str, int] = {}
        self.context_bytes = 0
        self.free_bytes = self.total_bytes = 0
        self.shared_bytes = 0
        self._uuid = uuid_of(index)
        # NVML tells this process's own share, or, in some containers, the card's sum alone.
        self._counts_own = False
        seen = memory_of_gpu(self._uuid)
        self._before_bytes = seen.used_bytes if seen else None
        self._own_before_bytes = (seen.own_bytes or 0) if seen else 0

    def opened(self, device: Device) -> None:
        """Look at the card now that its context is open."""
        self.free_bytes, self.total_bytes = device.memory()
        self.shared_bytes = device.shared_bytes
        seen = memory_of_gpu(self._uuid)
        if seen is not None and seen.own_bytes:
            self._counts_own, self._before_bytes = True, self._own_before_bytes
        used = self._used(device)
        self.context_bytes = max(used - self._base(used), 0)
        self._after_open_bytes = used

    def _used(self, device: Device) -> int:
        seen = memory_of_gpu(self._uuid)
        if seen is not None:
            return (seen.own_bytes or 0) if self._counts_own else seen.used_bytes
        free, total = device.memory()
        return total - free

    def _base(self, used: int) -> int:
        # Without NVML nobody can look before the context is there: it then counts as nothing.
        return used if self._before_bytes is None else self._before_bytes

    def measure(self, device: Device, engine: DeviceEngine, path: DevicePath) -> None:
        """Measure every part; what is left over is context and code."""
        buffers = (*engine.inputs.values(), *engine.outputs.values())
        weights = int(getattr(engine, "weight_bytes", 0))
        parts = {
            "weights": weights,
            "buffers": sum(b.num_bytes for b in buffers),
            "workspace": engine.workspace_bytes,
            "slots": path.arena.num_bytes,
            "decoder": path.memory_bytes["nvJPEG, device"],
        }
        used = self._used(device)
        total = used - self._base(used) if self._before_bytes is not None else 0
        if not total:
            total = used - self._after_open_bytes
        parts["context and code"] = max(total - sum(parts.values()), 0)
        self.measured = parts

    def parts(self) -> tuple[MemoryPart, ...]:
        """The table, with the sum as its last row."""
        rows = [
            MemoryPart(name, num, self.measured.get(name)) for name, num in self.predicted.items()
        ]
        measured = sum(self.measured.values()) if self.measured else None
        return (*rows, MemoryPart("sum", sum(self.predicted.values()), measured))

    def check(self, limit_bytes: int | None, options: PathOptions) -> None:
        """Refuse a path that does not fit.

        Raises:
            BuildError: It needs more than the limit.
        """
        needed = sum(self.predicted.values())
        if limit_bytes is not None and needed > limit_bytes:
            raise BuildError(
                f"this job must fit into --gpu-memory {_mib(limit_bytes)}, it needs about "
                f"{_mib(needed)} with {options.num_slots} batches in flight "
                f"({_told(self.predicted)}); lower --batch or --streams, or raise the limit"
            )


def _mib(num_bytes: float) -> str:
    return f"{num_bytes / MIB:.0f} MiB"


def _told(parts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {_mib(num)}" for name, num in parts.items())


@dataclass(frozen=True, slots=True)
class _Habits:
    """What a back end takes beyond what the graph says.

    Attributes:
        per_activation: Workspace over the largest sum of living activations.
        fixed: Bytes of workspace whatever the batch.
        code: Bytes of kernels and handles that its libraries load at their first use.
    """

    per_activation: float
    fixed: int
    code: int


# Measured on one H200; see docs/gpu.md.
_HABITS = {
    "torch": _Habits(1.25, 40 * MIB, 200 * MIB),
    "torch, compiled": _Habits(1.0, 20 * MIB, 200 * MIB),
    # Most of it is what cuDNN's search for algorithms leaves in the arena.
    "onnxruntime": _Habits(2.5, 400 * MIB, 30 * MIB),
    # Few buffers are shared, so that steps can run side by side.
    "native": _Habits(3.3, 0, 60 * MIB),
    "tensorrt": _Habits(1.0, 0, 200 * MIB),
}
# nvJPEG's own for a batch on the card's JPEG engine; that it takes past the allocators that it is
# given, so what is measured of it counts as context and code.
_NVJPEG_PER_PICTURE_BYTES = MIB // 4


def predict(
    model: Model,
    contract: Contract,
    plan: Plan,
    thresholds: Thresholds,
    options: PathOptions,
    book: MemoryBook,
) -> dict[str, int]:
    """Device memory by part, before anything of it is reserved.

    Args:
        model: The network.
        contract: How pictures go in and outputs are read.
        plan: Back end, precision, batch.
        thresholds: What is kept.
        options: Of the path, with its room told in bytes.
        book: Of the card, opened.
    """
    habits = _habits_of(plan)
    batch, size_hw = plan.batch, contract.input.size_hw
    parameters, activation_bytes = _cost(model, size_hw, batch)
    item_bytes = _ITEM_BYTES[plan.precision]
    shapes = {
        spec.name: _shape(spec.shape, batch, size_hw) for spec in (*model.inputs, *model.outputs)
    }
    types = {spec.name: spec.dtype for spec in (*model.inputs, *model.outputs)}
    if dict(plan.options).get("input", "model") != "model":
        # The engine takes pictures in the plan's precision.
        types |= {s.name: _TYPES[plan.precision] for s in model.inputs if s.dtype == "float32"}
    buffers = {name: _buffer(shapes[name], dtype) for name, dtype in types.items()}
    return {
        "weights": parameters * item_bytes,
        "buffers": sum(buffer.num_bytes for buffer in buffers.values()),
        "workspace": int(habits.fixed + habits.per_activation * activation_bytes * item_bytes / 4),
        "slots": _slots_bytes(contract, buffers, thresholds, options, batch, book.shared_bytes),
        "decoder": batch * _NVJPEG_PER_PICTURE_BYTES,
        "context and code": book.context_bytes + habits.code,
    }


def _habits_of(plan: Plan) -> _Habits:
    is_compiled = dict(plan.options).get("compile", "none") != "none"
    name = f"{plan.backend}, compiled" if is_compiled else plan.backend
    return _HABITS.get(name, _Habits(1.0, 0, 200 * MIB))


def _cost(model: Model, size_hw: tuple[int, int], batch: int) -> tuple[int, int]:
    """Parameters, and bytes of living activations in FP32."""
    if model.path.suffix == ".pt2":
        # Not looked into: its weights are nearly all of the file, its activations are not known.
        return model.path.stat().st_size // 4, 0
    cost = cost_of(model, size_hw, batch)
    return cost.num_parameters, cost.peak_activation_bytes


def _shape(shape: tuple[int | str, ...], batch: int, size_hw: tuple[int, int]) -> tuple[int, ...]:
    filled = [size if isinstance(size, int) else 0 for size in shape]
    if filled and not filled[0]:
        filled[0] = batch
    if len(filled) == 4:
        is_nhwc = filled[3] in (1, 3) and filled[1] not in (1, 3)
        for axis, size in zip((1, 2) if is_nhwc else (2, 3), size_hw, strict=True):
            filled[axis] = filled[axis] or size
    return tuple(max(size, 1) for size in filled)


def _buffer(shape: tuple[int, ...], dtype: str) -> DeviceBuffer:
    import numpy as np

    item_bytes = 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
    return DeviceBuffer(0, shape, dtype, math.prod(shape) * item_bytes)


def _slots_bytes(
    contract: Contract,
    buffers: Mapping[str, DeviceBuffer],
    thresholds: Thresholds,
    options: PathOptions,
    batch: int,
    shared_bytes: int,
) -> int:
    assert options.source_bytes is not None
    keys = counts = 0
    try:
        head = read_head(contract.head, contract.input.size_hw, buffers, thresholds)
        work = workspace_of(
            head, thresholds, batch, shared_bytes, max_candidates=options.max_candidates
        )
        keys, counts = work.keys_bytes, work.counts_bytes
    except SaccadeError:
        pass  # loading says what is wrong with the head; priors outside the graph are not read here
    sizes = SlotSizes(
        source=options.source_bytes,
        staging=0,
        table=batch * PICTURE.itemsize,
        keys=keys,
        counts=counts,
        results=0,
    )
    return lay_out(path_regions(sizes, options.num_slots))[1]


def check_limit(
    model: Model,
    contract: Contract,
    plan: Plan,
    wanted: Mapping[str, int],
    book: MemoryBook,
    limit_bytes: int | None,
) -> None:
    """Refuse what cannot fit, with the largest batch that does.

    Raises:
        BuildError: Not even one batch in flight fits the limit, or what is free on the card.
    """
    allowed = [(book.free_bytes + book.context_bytes, "free on the card")]
    if limit_bytes is not None:
        allowed.insert(0, (limit_bytes, "allowed by --gpu-memory"))
    needed = sum(wanted.values())
    for most, told in allowed:
        if needed <= most:
            continue
        batch = largest_batch(model, contract, plan, book, most)
        hint = (
            f"the largest batch that fits is {batch}: give --batch {batch}"
            if batch
            else "not even a batch of 1 fits: raise the limit, or end other programs on the card"
        )
        raise BuildError(
            f"batch {plan.batch} on {plan.device} must fit into the {_mib(most)} that are {told}, "
            f"it needs about {_mib(needed)} ({_told(wanted)}); {hint}"
        )


def largest_batch(
    model: Model, contract: Contract, plan: Plan, book: MemoryBook, limit_bytes: int
) -> int:
    """The largest batch of which one fits the limit; 0 if none does.

    A graph that fixes the batch has no other.
    """
    import dataclasses

    fixed = any(isinstance(spec.shape[0], int) for spec in model.inputs if spec.shape)
    if fixed:
        return 0
    low, high = 0, plan.batch
    while high - low > 1:
        middle = (low + high) // 2
        smaller = dataclasses.replace(plan, batch=middle)
        options = path_options(middle, num_slots=1, max_pixels=1)
        parts = predict(model, contract, smaller, contract.detect, options, book)
        low, high = (middle, high) if sum(parts.values()) <= limit_bytes else (low, middle)
    return low
