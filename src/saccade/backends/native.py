"""Our own engine on NVIDIA GPUs: from the ONNX graph to one CUDA graph of kernels chosen here.

The work is done in `saccade.native`. Computes in FP16, BF16 or FP32 with FP32 sums, boxes decoded
in FP32. The first load of a model on a card measures its kernels; the times are kept.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from saccade.backends._shapes import check_batch, default_batch, has_fixed_batch, static_shape
from saccade.errors import BackendUnavailable, BuildError, EngineError, InputError, SaccadeError
from saccade.types import (
    Availability,
    DeviceEngine,
    Engine,
    Fallback,
    Model,
    Plan,
    Precision,
    Slot,
)

if TYPE_CHECKING:
    import onnx

__all__ = ["BACKEND", "NativeBackend"]


# Name of an option to the values it may have; the first is the default.
# libraries: whether cuDNN's kernels compete with our own, where it is installed.
# input: pictures arrive in the graph's element type, or in the plan's.
_OPTIONS = {"libraries": ("0", "1"), "input": ("model", "plan")}
# Where a graph leaves the size of pictures open and none is told.
TRIAL_SIZE_HW = (640, 640)


class NativeBackend:
    """The engine of `saccade.native`, fed with arrays (`load`) or pointers (`load_device`)."""

    name = "native"
    precisions: tuple[Precision, ...] = ("fp16", "bf16", "fp32")

    def probe(self) -> Availability:
        try:
            from saccade.cuda.compile import nvrtc_version
            from saccade.cuda.runtime import Device

            major, minor = nvrtc_version()
            with Device(0) as device:
                return Availability(True, f"NVRTC {major}.{minor} on {device.name}")
        except SaccadeError as exc:
            return Availability(False, str(exc))

    def supports(self, model: Model) -> Availability:
        probed = self.probe()
        if not probed.ok:
            return probed
        try:
            from saccade.native.build import check
            from saccade.native.kernels.registry import KERNELS

            plan = Plan(self.name, "fp16", default_batch(model), device="cuda:0")
            check(_read(model), _shapes(model, plan, TRIAL_SIZE_HW), plan, KERNELS)
        except SaccadeError as exc:
            return Availability(False, str(exc))
        return probed

    def load(self, model: Model, plan: Plan) -> Engine:
        _check(self.probe(), model, plan)
        return HostEngine(model, plan)

    def load_device(self, model: Model, plan: Plan, size_hw: tuple[int, int]) -> DeviceEngine:
        _check(self.probe(), model, plan)
        return _engine_of(model, plan, size_hw)


def _check(probed: Availability, model: Model, plan: Plan) -> None:
    if not probed.ok:
        raise BackendUnavailable(f"back end 'native' cannot be used: {probed.reason}")
    for name, value in plan.options:
        if value not in _OPTIONS.get(name, ()):
            raise InputError(
                "options of back end 'native' are "
                + ", ".join(f"{n}={'|'.join(v)}" for n, v in _OPTIONS.items())
                + f"; got {name}={value}"
            )
    if not plan.device.startswith("cuda:"):
        raise BuildError(
            f"back end 'native' computes on device 'cuda:N', got {plan.device!r}; choose a card, "
            "or another back end"
        )
    check_batch(model, plan.batch)


def _read(model: Model) -> onnx.ModelProto:
    from saccade.graph.passes.fold_focus import fold_focus
    from saccade.graph.passes.loading import load_tidy

    proto = load_tidy(model)
    fold_focus(proto)
    return proto


def _engine_of(model: Model, plan: Plan, size_hw: tuple[int, int]) -> DeviceEngine:
    """From the cache folder, or measured and built."""
    from saccade.native.build import obtain
    from saccade.native.kernels.registry import KERNELS

    shapes = _shapes(model, plan, size_hw)
    options = dict(plan.options)
    engine, _ = obtain(
        model.digest,
        lambda: _read(model),
        shapes,
        plan,
        KERNELS,
        libraries=options.get("libraries") == "1",
        half_inputs=options.get("input") == "plan",
    )
    return engine


def _shapes(model: Model, plan: Plan, size_hw: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    return {spec.name: static_shape(spec.shape, plan.batch, size_hw) for spec in model.inputs}


class HostEngine:
    """The device engine behind arrays: copies there and back around each inference.

    Each size of picture gets its engine when first asked for. Slots take turns on it.
    """

    def __init__(self, model: Model, plan: Plan) -> None:
        self.plan = plan
        self.fallbacks: tuple[Fallback, ...] = ()
        self._model = model
        self._is_open = True
        self._engines: dict[tuple[int, int], Any] = {}
        self._slots: list[HostSlot] = []
        self._lock = threading.Lock()
        if all(isinstance(size, int) for spec in model.inputs for size in spec.shape[1:]):
            # Sizes are known, so whether an engine can be built is known now.
            self._engine((0, 0))

    def open_slot(self, size_hw: tuple[int, int]) -> Slot:
        slot = HostSlot(self._model, self.plan, self._engine(size_hw), self._lock)
        self._slots.append(slot)
        return slot

    def close(self) -> None:
        for held in (*self._slots, *self._engines.values()):
            held.close()
        self._slots, self._engines, self._is_open = [], {}, False

    def _engine(self, size_hw: tuple[int, int]) -> DeviceEngine:
        with self._lock:
            if not self._is_open:
                raise EngineError("this engine is closed; load the model again")
            key = (0, 0) if (0, 0) in self._engines else size_hw
            if key not in self._engines:
                self._engines[key] = _engine_of(self._model, self.plan, size_hw)
            found: DeviceEngine = self._engines[key]
            return found


class HostSlot:
    """Static arrays in pinned memory, copied to the card and back."""

    def __init__(
        self, model: Model, plan: Plan, engine: DeviceEngine, lock: threading.Lock
    ) -> None:
        from saccade.cuda.runtime import Device

        self._device = Device(int(plan.device.partition(":")[2] or 0))
        self._stream = self._device.stream()
        self._engine, self._lock, self._batch = engine, lock, plan.batch
        self._is_fixed = has_fixed_batch(model)
        self._pinned = {
            name: self._device.pinned(buffer.num_bytes)
            for name, buffer in (*engine.inputs.items(), *engine.outputs.items())
        }
        self._arrays = {
            name: self._pinned[name].array.view(buffer.dtype).reshape(buffer.shape)
            for name, buffer in (*engine.inputs.items(), *engine.outputs.items())
        }
        self.inputs: Mapping[str, np.ndarray] = {n: self._arrays[n] for n in engine.inputs}

    def close(self) -> None:
        """Release the pinned memory; the arrays must not be used afterwards."""
        self._device.close()

    def run(self, num: int) -> Mapping[str, np.ndarray]:
        engine, stream = self._engine, self._stream
        with self._lock:
            self._device.make_current()
            for name, buffer in engine.inputs.items():
                stream.upload(buffer.pointer, self._pinned[name], buffer.num_bytes)
            engine.enqueue(stream.handle)
            for name, buffer in engine.outputs.items():
                stream.download(self._pinned[name], buffer.pointer, buffer.num_bytes)
            stream.synchronize()
        arrays = {name: self._arrays[name] for name in engine.outputs}
        if num == self._batch or self._is_fixed:
            return arrays
        return {n: a[:num] if a.ndim and len(a) == self._batch else a for n, a in arrays.items()}


BACKEND = NativeBackend()
