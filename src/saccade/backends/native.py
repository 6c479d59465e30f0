"""Our own engine on NVIDIA GPUs: from the ONNX graph to one CUDA graph of kernels chosen here.

The work is done in `saccade.native`. Computes in FP16, BF16 or FP32 with FP32 sums, boxes decoded
in FP32. The first load of a model on a card measures its kernels; the times are kept, and so is
the engine. A bundle's engine is loaded as it is, or refused in words: it is never made anew.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
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

    from saccade.native.seam import Target
    from saccade.native.storing import Request

__all__ = ["BACKEND", "NativeBackend", "StoredEngine"]


# Name of an option to the values it may have; the first is the default.
# libraries: whether cuDNN's kernels compete with our own, where it is installed.
# input: pictures arrive in the graph's element type, or in the plan's.
_OPTIONS = {"libraries": ("0", "1"), "input": ("model", "plan")}
# A folder of engines that `saccade build` wrote; a bundle sets it.
_FOLDER = "engines"
# NumPy has no such type: its bits.
_BITS = {"bfloat16": "uint16"}
# Where a graph leaves the size of pictures open and none is told.
TRIAL_SIZE_HW = (640, 640)


@dataclass(frozen=True, slots=True)
class StoredEngine:
    """An engine for a bundle.

    Attributes:
        target: Its name there.
        data: The engine.
        key: What it was built for: name to value.
    """

    target: str
    data: bytes
    key: Mapping[str, str]


class NativeBackend:
    """The engine of `saccade.native`, fed with arrays (`load`) or pointers (`load_device`)."""

    name = "native"
    precisions: tuple[Precision, ...] = ("fp16", "bf16", "fp32")

    def probe(self) -> Availability:
        try:
            from saccade.cuda.compile import nvrtc_version
            from saccade.cuda.runtime import Device
            from saccade.native.kernels.registry import KERNELS

            major, minor = nvrtc_version()
            with Device(0) as device:
                # All that an engine's bytes depend on: a bundle compares these words.
                told = f"kernels {KERNELS.version} with NVRTC {major}.{minor} on {device.name}"
                return Availability(True, told)
        except SaccadeError as exc:
            return Availability(False, str(exc))

    def supports(self, model: Model) -> Availability:
        probed, covered = self.probe(), self.covers(model)
        if covered.ok:
            return probed
        return covered if probed.ok else Availability(False, f"{probed.reason}; {covered.reason}")

    def covers(self, model: Model) -> Availability:
        """Say whether there are rules for all of a model's nodes and, where a card is, kernels for
        what they become. Never raises."""
        try:
            from saccade.native.covering import check_covered
            from saccade.native.kernels.registry import KERNELS

            plan = Plan(self.name, "fp16", default_batch(model), device="cuda:0")
            shapes = _shapes(model, plan, TRIAL_SIZE_HW)
            check_covered(_read(model), shapes, plan.precision, KERNELS, _target())
        except SaccadeError as exc:
            return Availability(False, str(exc))
        return Availability(True, "every node has a rule")

    def load(self, model: Model, plan: Plan) -> Engine:
        _check(self.probe(), model, plan)
        return HostEngine(model, plan)

    def load_device(self, model: Model, plan: Plan, size_hw: tuple[int, int]) -> DeviceEngine:
        _check(self.probe(), model, plan)
        return _engine_of(model, plan, size_hw)

    def stored(self, model: Model, plan: Plan, size_hw: tuple[int, int]) -> StoredEngine | None:
        """The engine that loading this gives, from the user's cache folder; None if none is kept.

        Args:
            model: The file.
            plan: As it was loaded with.
            size_hw: As it was loaded with.

        Raises:
            BackendUnavailable: There is no such card.
        """
        from saccade.cuda.driver import device_index
        from saccade.cuda.runtime import Device
        from saccade.native.build import key_of
        from saccade.native.kernels.registry import KERNELS
        from saccade.native.storing import cached_bytes

        request = _request(model, plan, size_hw)
        raw = cached_bytes(request, KERNELS)
        if raw is None:
            return None
        with Device(device_index(plan.device)) as device:
            return StoredEngine(request.target(device.arch), raw, key_of(device, KERNELS))


def _check(probed: Availability, model: Model, plan: Plan) -> None:
    if not probed.ok:
        raise BackendUnavailable(f"back end 'native' cannot be used: {probed.reason}")
    for name, value in plan.options:
        if name != _FOLDER and value not in _OPTIONS.get(name, ()):
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


def _target() -> Target | None:
    from saccade.cuda.runtime import Device
    from saccade.native.build import target_of

    try:
        with Device(0) as device:
            return dataclasses.replace(target_of(device), has_device=False)
    except BackendUnavailable:
        return None


def _request(model: Model, plan: Plan, size_hw: tuple[int, int]) -> Request:
    from saccade.native.storing import Request

    options = dict(plan.options)
    return Request(
        digest=model.digest,
        shapes=_shapes(model, plan, size_hw),
        plan=plan,
        libraries=options.get("libraries") == "1",
        half_inputs=options.get("input") == "plan",
    )


def _engine_of(model: Model, plan: Plan, size_hw: tuple[int, int]) -> DeviceEngine:
    """From a bundle, from the cache folder, or measured and built."""
    from saccade.native.kernels.registry import KERNELS
    from saccade.native.storing import from_folder, obtain

    request = _request(model, plan, size_hw)
    folder = dict(plan.options).get(_FOLDER)
    if folder is not None:
        return from_folder(request, Path(folder), KERNELS)
    try:
        return obtain(request, lambda: _read(model), KERNELS)[0]
    except BuildError as exc:
        raise BuildError(f"{exc}. {_others(model)}") from exc.__cause__


def _others(model: Model) -> str:
    """Which other back ends run a model here, as a sentence."""
    from saccade import backends

    able = [
        name
        for name in backends.names()
        if name not in ("native", "null") and backends.get(name).supports(model).ok
    ]
    return f"Back ends that run this model here: {', '.join(able) or 'none'}"


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


def _narrow(given: np.ndarray, into: np.ndarray, dtype: str) -> None:
    """Round values to a plan's type, to the nearest, ties to even."""
    if dtype != "bfloat16":
        np.copyto(into, given, casting="same_kind")
        return
    # The upper half of a float32; values that are no numbers do not come from pictures.
    bits = given.astype(np.float32, copy=False).view(np.uint32)
    np.copyto(into, (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16, casting="unsafe")


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
            name: self._pinned[name]
            .array.view(_BITS.get(buffer.dtype, buffer.dtype))
            .reshape(buffer.shape)
            for name, buffer in (*engine.inputs.items(), *engine.outputs.items())
        }
        # Callers write the graph's type, whatever the engine is fed with.
        self.inputs: Mapping[str, np.ndarray] = {
            spec.name: self._arrays[spec.name]
            if engine.inputs[spec.name].dtype == spec.dtype
            else np.zeros(engine.inputs[spec.name].shape, spec.dtype)
            for spec in model.inputs
        }

    def close(self) -> None:
        """Release the pinned memory; the arrays must not be used afterwards."""
        self._device.close()

    def run(self, num: int) -> Mapping[str, np.ndarray]:
        engine, stream = self._engine, self._stream
        with self._lock:
            self._device.make_current()
            for name, buffer in engine.inputs.items():
                if self.inputs[name] is not self._arrays[name]:
                    _narrow(self.inputs[name], self._arrays[name], buffer.dtype)
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
