"""ONNX Runtime: the reference numerics on the CPU, and its CUDA provider.

One session serves all slots. Its weights are then in memory (and in the shared cache) once, and
`InferenceSession.run_with_iobinding` may be called from several threads at the same time.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from saccade.backends._shapes import (
    check_batch,
    default_batch,
    has_fixed_batch,
    known_shape,
    static_shape,
)
from saccade.errors import BackendUnavailable, BuildError, EngineError, InputError, SaccadeError
from saccade.graph.passes.fold_focus import runtime_source
from saccade.types import Availability, DeviceEngine, Engine, Fallback, Model, Plan, Precision, Slot

_INSTALL = "pip install 'saccade[cpu]'"
_PROVIDER = "CPUExecutionProvider"
_PACKAGES = ("onnxruntime", "onnxruntime-gpu")
_ERROR_SEVERITY = 3
_EXACT_INT8 = "session.x64quantprecision"
# Options that a plan may carry, and what ONNX Runtime calls them.
_CONFIG_ENTRIES = {"spinning": "session.intra_op.allow_spinning"}


class OrtBackend:
    """ONNX Runtime's CPU execution provider (`load`), and CUDA's (`load_device`).

    Attributes:
        precision_is_in_graph: On a GPU, FP16 is what the graph casts to.
    """

    name = "onnxruntime"
    precisions: tuple[Precision, ...] = ("fp32",)
    precision_is_in_graph = True

    def probe(self) -> Availability:
        if importlib.util.find_spec("onnxruntime") is None:
            return Availability(False, f"package onnxruntime is not installed; run: {_INSTALL}")
        found = [name for name in _PACKAGES if _version(name) is not None]
        if len(found) > 1:
            return Availability(
                False,
                "packages onnxruntime and onnxruntime-gpu are both installed and overwrite each "
                "other's files; run: pip uninstall onnxruntime onnxruntime-gpu, then "
                f"{_INSTALL}",
            )
        try:
            import onnxruntime
        except ImportError as exc:
            return Availability(False, f"package onnxruntime is broken ({exc}); run: {_INSTALL}")
        return Availability(True, f"onnxruntime {onnxruntime.__version__}")

    def supports(self, model: Model) -> Availability:
        probed = self.probe()
        if not probed.ok:
            return probed
        try:
            self.load(model, Plan(self.name, batch=default_batch(model))).close()
        except SaccadeError as exc:
            return Availability(False, str(exc))
        return probed

    def load(self, model: Model, plan: Plan) -> Engine:
        probed = self.probe()
        if not probed.ok:
            raise BackendUnavailable(f"back end {self.name!r} cannot be used: {probed.reason}")
        if plan.device != "cpu":
            from saccade.backends._host_fed import HostFedEngine

            self._check_device_plan(model, plan)
            return HostFedEngine(model, plan, self.load_device)
        _check_plan(self, plan)
        check_batch(model, plan.batch)
        return OrtEngine(model, plan, _open_session(model, plan))

    def probe_device(self) -> Availability:
        """Say whether the installed package can run on a GPU. Never raises."""
        probed = self.probe()
        if not probed.ok:
            return probed
        from saccade.backends._onnxruntime_device import probe_device

        return probe_device()

    def load_device(self, model: Model, plan: Plan, size_hw: tuple[int, int]) -> DeviceEngine:
        """Load a model on plan.device, fed with device pointers. See `DeviceBackend`."""
        probed = self.probe()
        if not probed.ok:
            raise BackendUnavailable(f"back end {self.name!r} cannot be used: {probed.reason}")
        self._check_device_plan(model, plan)
        from saccade.backends._onnxruntime_device import OrtDeviceEngine

        return OrtDeviceEngine(model, plan, size_hw, _translated)

    def _check_device_plan(self, model: Model, plan: Plan) -> None:
        from saccade.backends._onnxruntime_device import device_options

        if plan.precision != "fp32":
            raise BuildError(
                f"precision of back end {self.name!r} must be fp32 here, got {plan.precision!r}; "
                "give it a model that was converted to that precision"
            )
        device_options(plan)
        check_batch(model, plan.batch)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _check_plan(backend: OrtBackend, plan: Plan) -> None:
    if plan.precision not in backend.precisions:
        raise BuildError(
            f"precision of back end {backend.name!r} must be one of "
            f"{', '.join(backend.precisions)}, got {plan.precision!r}; choose another back end or "
            "give it a model that was converted to that precision"
        )
    if plan.device != "cpu":
        raise BuildError(
            f"device of back end {backend.name!r} must be 'cpu', got {plan.device!r}; "
            "choose another back end"
        )
    unknown = sorted({name for name, _ in plan.options} - set(_CONFIG_ENTRIES))
    if unknown:
        raise InputError(
            f"options of back end {backend.name!r} are {', '.join(_CONFIG_ENTRIES)}; "
            f"got {', '.join(unknown)}"
        )


def _open_session(model: Model, plan: Plan) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = plan.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERROR_SEVERITY
    # With one thread per inference the parallelism is between slots. Spinning would only take
    # the core that another slot or a decoder wants.
    spinning = dict(plan.options).get("spinning", "1" if plan.threads > 1 else "0")
    options.add_session_config_entry(_CONFIG_ENTRIES["spinning"], spinning)
    # Without VNNI, sums of two products of 8-bit numbers are cut off at 16 bits where weights are
    # signed: wrong answers without a word. With this they are shifted to unsigned first.
    options.add_session_config_entry(_EXACT_INT8, "1")
    with _translated("load", BuildError):
        return onnxruntime.InferenceSession(runtime_source(model), options, providers=[_PROVIDER])


@contextlib.contextmanager
def _translated(doing: str, failure: type[SaccadeError]) -> Iterator[None]:
    """Re-raise ONNX Runtime's errors as ours; anything else is a bug and passes through."""
    from onnxruntime.capi import onnxruntime_pybind11_state as ort

    try:
        yield
    except (
        ort.EPFail,
        ort.Fail,
        ort.InvalidArgument,
        ort.InvalidGraph,
        ort.InvalidProtobuf,
        ort.NoSuchFile,
        ort.NotImplemented,
        ort.RuntimeException,
    ) as exc:
        raise failure(f"onnxruntime cannot {doing} this model: {_first_line(exc)}") from exc


def _first_line(exc: Exception) -> str:
    text = str(exc).strip() or type(exc).__name__
    return text.splitlines()[0]


class OrtEngine:
    """One session, shared by all slots."""

    def __init__(self, model: Model, plan: Plan, session: Any) -> None:
        self.plan = plan
        self.fallbacks: tuple[Fallback, ...] = ()
        self._model = model
        self._session: Any = session

    def open_slot(self, size_hw: tuple[int, int]) -> Slot:
        if self._session is None:
            raise EngineError("this engine is closed; load the model again")
        return OrtSlot(self._session, self._model, self.plan.batch, size_hw)

    def close(self) -> None:
        self._session = None


class OrtSlot:
    """Static inputs, and static outputs where the graph tells their shapes."""

    def __init__(self, session: Any, model: Model, batch: int, size_hw: tuple[int, int]) -> None:
        self.inputs: Mapping[str, np.ndarray] = {
            spec.name: np.zeros(static_shape(spec.shape, batch, size_hw), spec.dtype)
            for spec in model.inputs
        }
        self._session = session
        self._batch = batch
        self._is_fixed = has_fixed_batch(model)
        self._names = [spec.name for spec in model.outputs]
        self._outputs: dict[str, np.ndarray] = {}
        self._binding = session.io_binding()
        for name, array in self.inputs.items():
            self._binding.bind_cpu_input(name, array)
        for spec in model.outputs:
            shape = known_shape(spec, model, batch)
            if shape is None:
                self._binding.bind_output(spec.name, "cpu")
                continue
            array = np.zeros(shape, spec.dtype)
            self._outputs[spec.name] = array
            self._binding.bind_output(
                spec.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data
            )

    def run(self, num: int) -> Mapping[str, np.ndarray]:
        with _translated("run", EngineError):
            if num < self._batch and not self._is_fixed:
                feeds = {name: array[:num] for name, array in self.inputs.items()}
                return dict(zip(self._names, self._session.run(None, feeds), strict=True))
            self._session.run_with_iobinding(self._binding)
            if len(self._outputs) == len(self._names):
                return self._outputs
            values = self._binding.get_outputs()
            return {name: v.numpy() for name, v in zip(self._names, values, strict=True)}


BACKEND = OrtBackend()
