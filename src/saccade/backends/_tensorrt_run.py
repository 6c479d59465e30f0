"""TensorRT engines on a card, fed from the host or with device pointers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saccade.backends._shapes import check_batch, static_shape
from saccade.backends._tensorrt_build import (
    HERE,
    build_one,
    check_plan,
    check_zero_points,
    planned_shapes,
)
from saccade.backends._tensorrt_library import (
    card_at,
    errors_of,
    for_card,
    imported,
    installed_names,
    is_rtx,
    library_of,
    logger_of,
    version_of,
)
from saccade.errors import BackendUnavailable, BuildError, EngineError
from saccade.types import DeviceBuffer, Fallback, Model, Plan, Slot

if TYPE_CHECKING:
    from saccade.cuda.runtime import Device, Stream

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}


class Loaded:
    """An engine in the memory of one card."""

    def __init__(self, model: Model, plan: Plan) -> None:
        check_plan(plan)
        check_batch(model, plan.batch)
        index = _device_index(plan)
        self.library = library_of(plan)
        card_at(index)
        from saccade.cuda.runtime import Device

        self.device: Device = Device(index)
        try:
            if "package" not in dict(plan.options):
                installed = [imported(name) for name in installed_names()]
                self.library = for_card(installed, self.device.name, self.device.capability)
            self.logger, self.kept = logger_of(self.library)
            data = _engine_bytes(model, plan, self.device, self.library)
            self.runtime = self.library.Runtime(self.logger)
            self.engine = self.runtime.deserialize_cuda_engine(data)
            if self.engine is None:
                raise BuildError(
                    f"{version_of(self.library)} cannot load this engine on {self.device.name}: "
                    f"{errors_of(self.kept)}; build it again with the version that is here"
                )
        except BaseException:
            self.device.close()
            raise

    def close(self) -> None:
        self.engine = self.runtime = None
        self.device.close()


def _device_index(plan: Plan) -> int:
    kind, _, number = plan.device.partition(":")
    if kind != "cuda" or not number.isdecimal():
        raise BuildError(
            f"device of back end 'tensorrt' must be cuda:N, got {plan.device!r}; "
            "choose another back end for that device"
        )
    return int(number)


def _engine_bytes(model: Model, plan: Plan, device: Device, library: Any) -> bytes:
    """The engine for this card: from the folder that the plan names, else built now."""
    capability = device.capability
    target = f"sm{capability[0]}{capability[1]}"
    folder = dict(plan.options).get("engines")
    if folder is None:
        aim = target if is_rtx(library) else HERE
        check_zero_points(model)
        return build_one(library, model, plan, aim, planned_shapes(model, plan)).data
    there = sorted(Path(folder).glob("*.engine"))
    for path in there:
        if target in path.stem.split("+"):
            return path.read_bytes()
    raise BackendUnavailable(
        f"there must be an engine for {target} ({device.name}), there are engines for "
        f"{', '.join(path.stem for path in there) or 'nothing'}; build one with "
        "'saccade build --from BUNDLE'"
    )


class TrtDeviceEngine:
    """One execution context over buffers that never move. See `DeviceEngine`."""

    def __init__(self, loaded: Loaded, model: Model, plan: Plan, size_hw: tuple[int, int]) -> None:
        self.plan = plan
        self.fallbacks: tuple[Fallback, ...] = ()
        self._loaded: Loaded | None = loaded
        engine = loaded.engine
        wanted = {s.name: static_shape(s.shape, plan.batch, size_hw) for s in model.inputs}
        shapes = {n: s for n, s in wanted.items() if min(engine.get_tensor_shape(n)) < 0}
        self._context = engine.create_execution_context()
        if self._context is None:
            raise EngineError(f"tensorrt cannot make a context: {errors_of(loaded.kept)}")
        stream = loaded.device.stream()
        profile = _profile_for(engine, shapes)
        self._must(self._context.set_optimization_profile_async(profile, stream.handle), "profile")
        stream.synchronize()
        for name, shape in shapes.items():
            self._must(self._context.set_input_shape(name, shape), f"shape of {name}")
        self.inputs: Mapping[str, DeviceBuffer] = self._buffers([s.name for s in model.inputs])
        self.outputs: Mapping[str, DeviceBuffer] = self._buffers([s.name for s in model.outputs])
        self.workspace_bytes = int(engine.get_device_memory_size_for_profile_v2(profile))

    def _must(self, is_ok: bool, doing: str) -> None:
        if not is_ok:
            kept = self._loaded.kept if self._loaded else ()
            raise EngineError(f"tensorrt failed ({doing}): {errors_of(kept)}")

    def _buffers(self, names: Sequence[str]) -> dict[str, DeviceBuffer]:
        assert self._loaded is not None
        engine, kinds = self._loaded.engine, {}
        for name in names:
            shape = tuple(int(size) for size in self._context.get_tensor_shape(name))
            if any(size < 0 for size in shape):
                raise BuildError(
                    f"the size of output {name!r} must follow from the inputs, it is "
                    f"{list(shape)}; take the suppression out of the graph"
                )
            dtype = engine.get_tensor_dtype(name)
            num_bytes = int(np.prod(shape, dtype=np.int64)) * int(dtype.itemsize)
            kinds[name] = (shape, _DTYPES[dtype.name], num_bytes)
        arena = self._loaded.device.arena({name: kind[2] for name, kind in kinds.items()})
        made = {name: DeviceBuffer(arena.address(name), *kind) for name, kind in kinds.items()}
        for name, buffer in made.items():
            self._must(self._context.set_tensor_address(name, buffer.pointer), f"address of {name}")
        return made

    def enqueue(self, stream: int) -> None:
        if self._loaded is None:
            raise EngineError("this engine is closed; load the model again")
        self._must(self._context.execute_async_v3(stream), "enqueue")

    def close(self) -> None:
        if self._loaded is not None:
            self._context = None
            self._loaded.close()
            self._loaded = None


def _profile_for(engine: Any, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The first profile whose ranges hold the shapes of the inputs that are free."""
    told = []
    for index in range(engine.num_optimization_profiles):
        ranges = {name: engine.get_tensor_profile_shape(name, index) for name in shapes}
        if all(_holds(ranges[name], shape) for name, shape in shapes.items()):
            return index
        told.append(", ".join(f"{n} {tuple(r[0])} to {tuple(r[2])}" for n, r in ranges.items()))
    raise BuildError(
        f"the engine must be built for the plan's shapes {dict(shapes)}, it is built for "
        f"{'; '.join(told)}; build it again with these shapes"
    )


def _holds(least_best_most: Sequence[Any], shape: Sequence[int]) -> bool:
    least, _, most = least_best_most
    return all(a <= size <= b for a, size, b in zip(least, shape, most, strict=True))


class TrtEngine:
    """A loaded engine; each slot has its own context, buffers and stream."""

    def __init__(self, model: Model, plan: Plan, loaded: Loaded) -> None:
        self.plan = plan
        self.fallbacks: tuple[Fallback, ...] = ()
        self._model = model
        self._loaded: Loaded | None = loaded

    def open_slot(self, size_hw: tuple[int, int]) -> Slot:
        if self._loaded is None:
            raise EngineError("this engine is closed; load the model again")
        return TrtSlot(self._loaded, self._model, self.plan, size_hw)

    def close(self) -> None:
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = None


class TrtSlot:
    """Pinned arrays on the host, copied there and back round each inference.

    The whole batch always runs: shapes then never change, and what is computed for items beyond
    `num` is not looked at.
    """

    def __init__(self, loaded: Loaded, model: Model, plan: Plan, size_hw: tuple[int, int]) -> None:
        loaded.device.make_current()
        self._device = loaded.device
        self._core = TrtDeviceEngine(loaded, model, plan, size_hw)
        self._stream: Stream = loaded.device.stream()
        self._pinned = {
            name: loaded.device.pinned(buffer.num_bytes)
            for name, buffer in (*self._core.inputs.items(), *self._core.outputs.items())
        }
        self.inputs: Mapping[str, np.ndarray] = self._arrays(self._core.inputs)
        self._outputs = self._arrays(self._core.outputs)

    def _arrays(self, buffers: Mapping[str, DeviceBuffer]) -> dict[str, np.ndarray]:
        strange = [n for n, b in buffers.items() if b.dtype == "bfloat16"]
        if strange:
            raise BuildError(
                f"inputs and outputs must be of types that NumPy has, {strange[0]!r} is bfloat16; "
                "cast it to float32 in the graph"
            )
        return {
            name: self._pinned[name].array.view(buffer.dtype).reshape(buffer.shape)
            for name, buffer in buffers.items()
        }

    def run(self, num: int) -> Mapping[str, np.ndarray]:
        self._device.make_current()
        for name, buffer in self._core.inputs.items():
            self._stream.upload(buffer.pointer, self._pinned[name], buffer.num_bytes)
        self._core.enqueue(self._stream.handle)
        for name, buffer in self._core.outputs.items():
            self._stream.download(self._pinned[name], buffer.pointer, buffer.num_bytes)
        self._stream.synchronize()
        return self._outputs
