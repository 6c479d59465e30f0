"""PyTorch, on the CPU and on CUDA devices: from the ONNX graph by a converter of our own, or from a
program that torch.export wrote (.pt2).

The converter (`_torch_ops`) says which operator it lacks before anything is built. On the CPU it
computes in FP32; on a CUDA device in FP32, FP16 or BF16, with boxes decoded in FP32 whatever the
plan says. The device engine is in `_torch_device`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import re
import threading
from collections.abc import Iterator, Mapping
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
    Signature,
    Slot,
)

if TYPE_CHECKING:
    from saccade.backends._torch_exported import Exported
    from saccade.backends._torch_ops.program import Source

_INSTALL = "pip install 'saccade[torch]'"
# Name of an option to the values it may have; the first is the default.
# compile: launch torch's own kernels; let inductor fuse; let it also time the tiles of what it
#   fuses ("tuned", about a minute); or time its own convolutions against cuDNN's as well.
# input: pictures arrive in the graph's element type, in the plan's, or in the plan's with channels
#   last, (b, h, w, c), which saves a pass over them.
# tf32: let FP32 convolutions and products round their operands to 10 bits.
_DEVICE_OPTIONS = {
    "compile": ("none", "inductor", "tuned", "max-autotune"),
    "input": ("model", "plan", "channels_last"),
    "tf32": ("0", "1"),
}


class TorchBackend:
    """PyTorch on the CPU (`load`) and fed with device pointers (`load_device`).

    Attributes:
        cpu_precisions: Those of `precisions` that the CPU has.
    """

    name = "torch"
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "bf16")
    cpu_precisions: tuple[Precision, ...] = ("fp32",)

    def probe(self) -> Availability:
        # Found, not imported: importing torch takes seconds and hundreds of megabytes.
        if importlib.util.find_spec("torch") is None:
            return Availability(False, f"package torch is not installed; run: {_INSTALL}")
        try:
            return Availability(True, f"torch {importlib.metadata.version('torch')}")
        except importlib.metadata.PackageNotFoundError:
            return Availability(False, f"package torch has no metadata; reinstall it: {_INSTALL}")

    def supports(self, model: Model) -> Availability:
        probed = self.probe()
        if not probed.ok:
            return probed
        try:
            self.load(model, Plan(self.name, batch=default_batch(model))).close()
        except SaccadeError as exc:
            return Availability(False, str(exc))
        return probed

    def read_program(
        self, path: Path, size_hw: tuple[int, int] | None = None
    ) -> tuple[Model, Signature]:
        """Read an exported program (.pt2) and look at it as a head does.

        Raises:
            BackendUnavailable: torch is missing.
            ModelError: The file cannot be used.
        """
        _require(self.probe())
        from saccade.backends._torch_exported import read_exported, signature_of_exported

        exported = read_exported(path)
        return exported.model, signature_of_exported(exported, size_hw)

    def load(self, model: Model, plan: Plan) -> Engine:
        _require(self.probe())
        if plan.device != "cpu":
            from saccade.backends._host_fed import HostFedEngine

            device_options(plan)
            check_batch(model, plan.batch)
            return HostFedEngine(model, plan, self.load_device)
        if plan.options:
            raise InputError(
                "back end 'torch' takes no options on the CPU, got options "
                f"{', '.join(name for name, _ in plan.options)}; leave them out"
            )
        if plan.precision != "fp32":
            raise BuildError(
                "back end 'torch' computes in precision fp32 on device 'cpu', got precision "
                f"{plan.precision!r}; choose a device 'cuda:N' for it"
            )
        check_batch(model, plan.batch)
        return TorchEngine(model, plan, _read(model))

    def probe_device(self) -> Availability:
        """Say whether the installed package is built for CUDA. Never raises."""
        probed = self.probe()
        if not probed.ok:
            return probed
        version = cuda_version()
        if not version:
            return Availability(False, f"{probed.reason} is built without CUDA; run: {_INSTALL}")
        return Availability(True, f"{probed.reason}, built for CUDA {version}")

    def load_device(self, model: Model, plan: Plan, size_hw: tuple[int, int]) -> DeviceEngine:
        _require(self.probe())
        options = device_options(plan)
        check_batch(model, plan.batch)
        source = _read(model)
        with translated("load", BuildError):
            from saccade.backends._torch_device import TorchDeviceEngine

            return TorchDeviceEngine(source, plan, options, input_shapes(model, plan, size_hw))


def cuda_version() -> str:
    """Version of CUDA that the installed torch is built for, or "". Read, not imported."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    try:
        text = (Path(spec.origin).parent / "version.py").read_text()
    except OSError:
        return ""
    match = re.search(r"^cuda\b.*= '([\d.]+)'", text, re.M)
    return match[1] if match else ""


def device_options(plan: Plan) -> dict[str, str]:
    """The plan's options with the defaults filled in.

    Raises:
        InputError: An option or its value is unknown.
    """
    options = {name: values[0] for name, values in _DEVICE_OPTIONS.items()}
    for name, value in plan.options:
        known = _DEVICE_OPTIONS.get(name)
        if known is None or value not in known:
            raise InputError(
                "options of back end 'torch' are "
                + ", ".join(f"{n}={'|'.join(v)}" for n, v in _DEVICE_OPTIONS.items())
                + f"; got {name}={value}"
            )
        options[name] = value
    return options


def input_shapes(model: Model, plan: Plan, size_hw: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    return {spec.name: static_shape(spec.shape, plan.batch, size_hw) for spec in model.inputs}


def _require(probed: Availability) -> None:
    if not probed.ok:
        raise BackendUnavailable(f"back end 'torch' cannot be used: {probed.reason}")


def _read(model: Model) -> Source | Exported:
    try:
        from saccade.backends._torch_exported import is_exported, read_exported
        from saccade.backends._torch_ops.program import read_source
    except (ImportError, OSError) as exc:
        raise BackendUnavailable(
            f"back end 'torch' needs a package torch that can be imported, this one fails ({exc}); "
            f"reinstall it: {_INSTALL}"
        ) from exc
    return read_exported(model.path) if is_exported(model.path) else read_source(model)


@contextlib.contextmanager
def translated(doing: str, failure: type[SaccadeError]) -> Iterator[None]:
    """Re-raise torch's errors as ours; anything else is a bug and passes through."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as exc:
        raise failure(
            f"torch cannot {doing} this model: the device has too little free memory "
            f"({_first_line(exc)}); choose a smaller batch or free memory on the device"
        ) from exc
    except RuntimeError as exc:
        raise failure(f"torch cannot {doing} this model: {_first_line(exc)}") from exc


def _first_line(exc: Exception) -> str:
    text = str(exc).strip() or type(exc).__name__
    return text.splitlines()[0]


class TorchEngine:
    """A checked graph on the CPU; each size of picture gets its program when first asked for."""

    def __init__(self, model: Model, plan: Plan, source: Source | Exported) -> None:
        self.plan = plan
        self.fallbacks: tuple[Fallback, ...] = ()
        self._model = model
        self._source: Source | Exported | None = source
        self._programs: dict[tuple[int, int], Any] = {}
        self._lock = threading.Lock()
        if all(isinstance(size, int) for spec in model.inputs for size in spec.shape[1:]):
            # Sizes are known, so whether the program can be built is known now.
            self._program(source, (0, 0))

    def open_slot(self, size_hw: tuple[int, int]) -> Slot:
        if self._source is None:
            raise EngineError("this engine is closed; load the model again")
        return TorchSlot(self._program(self._source, size_hw), self._model, self.plan, size_hw)

    def close(self) -> None:
        self._source = None
        self._programs = {}

    def _program(self, source: Source | Exported, size_hw: tuple[int, int]) -> Any:
        from saccade.backends._torch_device import module_for

        with self._lock:
            shapes = input_shapes(self._model, self.plan, size_hw)
            key = (0, 0) if (0, 0) in self._programs else size_hw
            if key not in self._programs:
                with translated("load", BuildError):
                    self._programs[key] = module_for(source, shapes, "cpu")
            return self._programs[key]


class TorchSlot:
    """Static inputs that torch reads in place; outputs are new arrays at each run."""

    def __init__(self, program: Any, model: Model, plan: Plan, size_hw: tuple[int, int]) -> None:
        import torch

        shapes = input_shapes(model, plan, size_hw)
        self.inputs: Mapping[str, np.ndarray] = {
            spec.name: np.zeros(shapes[spec.name], spec.dtype) for spec in model.inputs
        }
        self._tensors = [torch.from_numpy(array) for array in self.inputs.values()]
        self._program = program
        self._plan = plan
        self._names = [spec.name for spec in model.outputs]
        self._is_fixed = has_fixed_batch(model)

    def run(self, num: int) -> Mapping[str, np.ndarray]:
        import torch

        if torch.get_num_threads() != self._plan.threads:
            torch.set_num_threads(self._plan.threads)
        with translated("run", EngineError), torch.inference_mode():
            outputs = self._program(*self._tensors)
        arrays = {n: out.numpy() for n, out in zip(self._names, outputs, strict=True)}
        if num == self._plan.batch or self._is_fixed:
            return arrays
        # The program's batch is fixed: the other items were computed as well and are dropped.
        return {name: a[:num] if self._has_batch(a) else a for name, a in arrays.items()}

    def _has_batch(self, array: np.ndarray) -> bool:
        return array.ndim > 0 and array.shape[0] == self._plan.batch


BACKEND = TorchBackend()
