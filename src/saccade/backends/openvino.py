"""OpenVINO on the CPU. FP32 is the default; BF16 only where the plan says so.

On processors with BF16 instructions OpenVINO computes in BF16 unless told otherwise, which moves
boxes by pixels. So the precision hint is always set, and what the compiled model reports is
compared with it.

On x86 processors without VNNI its INT8 kernels cut off sums, which moves answers by a tenth of
their spread and more; without these kernels it reads some Q/DQ graphs wrong in other ways (AP .004
in place of .104). There it refuses them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np

from saccade.backends._shapes import check_batch, default_batch, has_fixed_batch, static_shape
from saccade.errors import BackendUnavailable, BuildError, EngineError, InputError, SaccadeError
from saccade.graph.passes.fold_focus import runtime_source
from saccade.processor import cuts_off_int8_sums
from saccade.types import Availability, Engine, Fallback, Model, Plan, Precision, Slot

_INSTALL = "pip install 'saccade[openvino]'"
_HINTS = {"fp32": "f32", "bf16": "bf16"}
_BF16_CPU_FLAG = "BF16"


class OpenVinoBackend:
    """OpenVINO's CPU device."""

    name = "openvino"
    precisions: tuple[Precision, ...] = ("fp32", "bf16")

    def probe(self) -> Availability:
        if importlib.util.find_spec("openvino") is None:
            return Availability(False, f"package openvino is not installed; run: {_INSTALL}")
        try:
            import openvino

            version = openvino.get_version().split("-")[0]
            devices = openvino.Core().available_devices
        except (ImportError, RuntimeError) as exc:
            return Availability(False, f"package openvino is broken ({exc}); run: {_INSTALL}")
        if "CPU" not in devices:
            return Availability(False, f"openvino {version} offers no CPU device, only {devices}")
        return Availability(True, f"openvino {version}")

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
        check_batch(model, plan.batch)
        return OpenVinoEngine(model, plan, _compile(model, plan))


def _compile(model: Model, plan: Plan) -> Any:
    import openvino

    hint = _HINTS.get(plan.precision)
    if hint is None:
        raise BuildError(
            f"precision of back end 'openvino' must be one of {', '.join(_HINTS)}, "
            f"got {plan.precision!r}; choose another back end"
        )
    if plan.device != "cpu" or plan.options:
        raise InputError(
            "back end 'openvino' takes device 'cpu' and no further options, "
            f"got device {plan.device!r} and options {dict(plan.options)}"
        )
    core = openvino.Core()
    if hint == "bf16" and _BF16_CPU_FLAG not in core.get_property(
        "CPU", "OPTIMIZATION_CAPABILITIES"
    ):
        raise BuildError(
            "precision bf16 needs a processor with BF16 instructions, this one has none; use fp32"
        )
    config = {
        "INFERENCE_PRECISION_HINT": hint,
        "NUM_STREAMS": str(plan.streams),
        "INFERENCE_NUM_THREADS": plan.streams * plan.threads,
        "ENABLE_CPU_PINNING": False,
    }
    try:
        graph = core.read_model(runtime_source(model))
        if cuts_off_int8_sums() and _is_quantised(graph):
            raise BuildError(
                "INT8 operators of a Q/DQ graph need a processor with VNNI (avx512_vnni, avx_vnni) "
                "in back end 'openvino', this one has none and answers would be wrong; use back "
                "end 'onnxruntime', which is right here, or the model before quantisation"
            )
        return core.compile_model(graph, "CPU", config)
    except RuntimeError as exc:
        raise BuildError(f"openvino cannot load this model: {_reason(exc)}") from exc


def _is_quantised(graph: Any) -> bool:
    # Reading an ONNX file turns its quantisers into this operator.
    return any(node.get_type_name() == "FakeQuantize" for node in graph.get_ops())


def _reason(exc: Exception) -> str:
    """The line of OpenVINO's report that says what is wrong; the others are source positions."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return " ".join(told[:2]) if told else type(exc).__name__


class OpenVinoEngine:
    """A compiled model; each slot is one infer request with its own tensors."""

    def __init__(self, model: Model, plan: Plan, compiled: Any) -> None:
        self.plan = plan
        self._model = model
        self._compiled: Any = compiled
        self.fallbacks: tuple[Fallback, ...] = _precision_fallback(compiled, plan)

    def open_slot(self, size_hw: tuple[int, int]) -> Slot:
        if self._compiled is None:
            raise EngineError("this engine is closed; load the model again")
        return OpenVinoSlot(self._compiled, self._model, self.plan.batch, size_hw)

    def close(self) -> None:
        self._compiled = None


def _precision_fallback(compiled: Any, plan: Plan) -> tuple[Fallback, ...]:
    got = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    wanted = _HINTS[plan.precision]
    return () if got == wanted else (Fallback("precision", wanted, got),)


class OpenVinoSlot:
    """One infer request over static input arrays (shared, not copied)."""

    def __init__(self, compiled: Any, model: Model, batch: int, size_hw: tuple[int, int]) -> None:
        import openvino

        self.inputs: Mapping[str, np.ndarray] = {
            spec.name: np.zeros(static_shape(spec.shape, batch, size_hw), spec.dtype)
            for spec in model.inputs
        }
        self._batch = batch
        self._is_fixed = has_fixed_batch(model)
        self._request = compiled.create_infer_request()
        # Positions, not names: OpenVINO may rename tensors, their order it keeps.
        self._ports = list(range(len(model.outputs)))
        self._names = [spec.name for spec in model.outputs]
        self._tensor = openvino.Tensor
        self._set_inputs(batch)

    def _set_inputs(self, num: int) -> None:
        for index, array in enumerate(self.inputs.values()):
            view = array if num == self._batch else array[:num]
            self._request.set_input_tensor(index, self._tensor(view, shared_memory=True))

    def run(self, num: int) -> Mapping[str, np.ndarray]:
        is_partial = num < self._batch and not self._is_fixed
        try:
            if is_partial:
                self._set_inputs(num)
            self._request.infer(share_outputs=True)
            return {
                name: self._request.get_output_tensor(port).data
                for name, port in zip(self._names, self._ports, strict=True)
            }
        except RuntimeError as exc:
            raise EngineError(f"openvino failed while running: {_reason(exc)}") from exc
        finally:
            if is_partial:
                self._set_inputs(self._batch)


BACKEND = OpenVinoBackend()
