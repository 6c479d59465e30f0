"""ONNX Runtime on a CUDA device: buffers of ours, a stream of ours, a graph of ours.

The session launches on one stream that it is given at load (`user_compute_stream`), does not wait
for the device at the end of a run, and may not put a node on the CPU (`disable_cpu_ep_fallback`):
what its CUDA provider lacks is an error at load. Runs are recorded by us and not by ONNX Runtime
(`enable_cuda_graph`), because CUDA does not launch a finished graph into a recording, and the path
records the network together with what is before and behind it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from saccade.backends._shapes import known_shape, static_shape
from saccade.cuda import driver
from saccade.cuda.driver import call, device_index
from saccade.cuda.runtime import Device, Graph, Stream
from saccade.errors import BackendUnavailable, BuildError, EngineError, InputError, SaccadeError
from saccade.graph.reading import load_proto
from saccade.graph.shapes import infer_shapes
from saccade.types import Availability, DeviceBuffer, Fallback, Model, Plan

__all__ = ["PROVIDER", "OrtDeviceEngine", "device_options", "probe_device"]

PROVIDER = "CUDAExecutionProvider"
_INSTALL = "pip uninstall onnxruntime, then: pip install 'saccade[ort-cuda]'"
_WARM_UPS = 3
_ERROR_SEVERITY = 3
# tf32: let FP32 convolutions and products round their operands to 10 bits.
# layout: the order in which convolutions keep channels.
# search: how cuDNN's algorithms are chosen at load.
_OPTIONS = {
    "tf32": ("0", "1"),
    "layout": ("nchw", "nhwc"),
    "search": ("exhaustive", "heuristic"),
}


def probe_device() -> Availability:
    """Say whether the installed package has a CUDA provider."""
    import onnxruntime

    if PROVIDER in onnxruntime.get_available_providers():
        return Availability(True, f"onnxruntime {onnxruntime.__version__} with CUDA")
    return Availability(
        False, f"onnxruntime {onnxruntime.__version__} has no CUDA provider; run: {_INSTALL}"
    )


def device_options(plan: Plan) -> dict[str, str]:
    """The plan's options with the defaults filled in.

    Raises:
        InputError: An option or its value is unknown.
    """
    options = {name: values[0] for name, values in _OPTIONS.items()}
    for name, value in plan.options:
        if name not in _OPTIONS or value not in _OPTIONS[name]:
            raise InputError(
                "options of back end 'onnxruntime' on a GPU are "
                + ", ".join(f"{n}={'|'.join(v)}" for n, v in _OPTIONS.items())
                + f"; got {name}={value}"
            )
        options[name] = value
    return options


class OrtDeviceEngine:
    """See saccade.types.DeviceEngine. One caller at a time, in the order of one stream.

    Args:
        model: The network, in the precision that is wanted.
        plan: With precision fp32: the graph's own types are the arithmetic.
        size_hw: Height and width of pictures where the graph leaves them free.
        translated: Turns the runtime's errors into ours.

    Attributes:
        weight_bytes: Size of the model's files.
    """

    def __init__(self, model: Model, plan: Plan, size_hw: tuple[int, int], translated: Any) -> None:
        options = device_options(plan)
        probed = probe_device()
        if not probed.ok:
            raise BackendUnavailable(f"device {plan.device!r} cannot be used: {probed.reason}")
        self.plan = plan
        self.fallbacks: tuple[Fallback, ...] = ()
        self._translated = translated
        self._exit = contextlib.ExitStack()
        self._device = self._exit.enter_context(Device(device_index(plan.device)))
        try:
            self._load(model, size_hw, options)
        except BaseException:
            self.close()
            raise

    def _load(self, model: Model, size_hw: tuple[int, int], options: Mapping[str, str]) -> None:
        device, batch = self._device, self.plan.batch
        shapes = {s.name: static_shape(s.shape, batch, size_hw) for s in model.inputs}
        shapes |= _output_shapes(model, shapes, batch)
        dtypes = {s.name: s.dtype for s in (*model.inputs, *model.outputs)}
        sizes = {
            name: math.prod(shape) * np.dtype(dtypes[name]).itemsize
            for name, shape in shapes.items()
        }
        arena = device.arena(sizes)
        buffers = {
            name: DeviceBuffer(arena.address(name), shape, dtypes[name], sizes[name])
            for name, shape in shapes.items()
        }
        self.inputs: Mapping[str, DeviceBuffer] = {s.name: buffers[s.name] for s in model.inputs}
        self.outputs: Mapping[str, DeviceBuffer] = {s.name: buffers[s.name] for s in model.outputs}
        self._stream = device.stream()
        self._before, self._after = device.event(), device.event()
        files = [model.path, *(model.path.parent / name for name in model.external_files)]
        self.weight_bytes = sum(file.stat().st_size for file in files)
        free_bytes = device.memory()[0]
        self._session = _open_session(
            model, device.index, shapes, self._stream, options, self._translated
        )
        self._bind(buffers)
        for _ in range(_WARM_UPS):
            self._launch()
        self._stream.synchronize()
        self._graph: Graph = self._recorded()
        self._exit.callback(self._graph.close)
        taken = free_bytes - device.memory()[0]
        self.workspace_bytes = max(taken - self.weight_bytes, 0)

    def _bind(self, buffers: Mapping[str, DeviceBuffer]) -> None:
        import onnxruntime

        self._binding = self._session.io_binding()
        for bind, some in (
            (self._binding.bind_input, self.inputs),
            (self._binding.bind_output, self.outputs),
        ):
            for name, buffer in some.items():
                kind = np.dtype(buffer.dtype)
                bind(name, "cuda", self._device.index, kind, buffer.shape, buffer.pointer)
        self._run_options = onnxruntime.RunOptions()
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def _recorded(self) -> Graph:
        """One run as a graph of our own: whether that works is known at load."""
        try:
            with self._stream.capture() as captured:
                self._launch()
        except SaccadeError as exc:
            raise BuildError(
                f"onnxruntime must launch this network without waiting for the device, so that it "
                f"can be recorded as a CUDA graph; it does not ({exc}); choose back end torch"
            ) from exc
        return captured.graph

    def _launch(self) -> None:
        with self._translated("run", EngineError):
            self._session.run_with_iobinding(self._binding, self._run_options)

    def enqueue(self, stream: int) -> None:
        """Launch one inference of the whole batch behind what the stream already holds."""
        if self._session is None:
            raise EngineError("this engine is closed; load the model again")
        cuda, caller = driver.bindings(), Stream(stream)
        status = call("asking a stream", cuda.cuStreamIsCapturing, stream)
        if status == cuda.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE:
            self._graph.launch(caller)
            return
        self._before.record(caller)
        self._stream.wait_for(self._before)
        self._launch()
        self._after.record(self._stream)
        caller.wait_for(self._after)

    def close(self) -> None:
        """Release the device memory. The buffers must not be used afterwards."""
        self._binding = self._session = None
        self._exit.close()


def _output_shapes(
    model: Model, feeds: Mapping[str, tuple[int, ...]], batch: int
) -> dict[str, tuple[int, ...]]:
    """Of all outputs; inferred where the graph does not tell them."""
    told = {spec.name: known_shape(spec, model, batch) for spec in model.outputs}
    found = {name: shape for name, shape in told.items() if shape is not None}
    if len(found) < len(told):
        inferred = infer_shapes(load_proto(model), feeds, model_path=model.path).tensors
        for name in told.keys() & inferred.keys() - found.keys():
            sizes = tuple(size for size in inferred[name].sizes if isinstance(size, int))
            if len(sizes) == len(inferred[name].sizes):
                found[name] = sizes
    for spec in model.outputs:
        if spec.name not in found:
            raise BuildError(
                f"the size of output {spec.name!r} must follow from the inputs, it is "
                f"{list(spec.shape)}; take the suppression out of the graph"
            )
    return found


def _open_session(
    model: Model,
    index: int,
    shapes: Mapping[str, tuple[int, ...]],
    stream: Stream,
    options: Mapping[str, str],
    translated: Any,
) -> Any:
    import onnxruntime

    _preload(onnxruntime)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = _ERROR_SEVERITY
    settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    for name, size in _free_axes(model, shapes):
        # With known sizes the nodes that compute shapes, which are for the CPU, fold away.
        settings.add_free_dimension_override_by_name(name, size)
    provider = {
        "device_id": str(index),
        "user_compute_stream": str(stream.handle),
        "do_copy_in_default_stream": "1",
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": options["search"].upper(),
        "use_tf32": options["tf32"],
        "prefer_nhwc": str(int(options["layout"] == "nhwc")),
    }
    with translated("load", BuildError):
        session = onnxruntime.InferenceSession(
            str(model.path),
            settings,
            providers=[(PROVIDER, provider)],
            # Else the package tries again with its CPU provider.
            enable_fallback=0,
        )
    if PROVIDER not in session.get_providers():
        raise BackendUnavailable(
            "onnxruntime's CUDA provider must load, it does not: a library that it needs is "
            f"missing (CUDA, cuBLAS or cuDNN of the version it was built for); run: {_INSTALL}"
        )
    return session


def _free_axes(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, int]]:
    seen = set()
    for spec in model.inputs:
        for axis, size in zip(spec.shape, shapes[spec.name], strict=True):
            if isinstance(axis, str) and axis != "?" and axis not in seen:
                seen.add(axis)
                yield axis, size


def _preload(onnxruntime: Any) -> None:
    """Load CUDA's libraries from the packages that pip installs; where they are on the system's
    path there is nothing to do."""
    preload = getattr(onnxruntime, "preload_dlls", None)
    if preload is not None:
        with contextlib.redirect_stdout(None):
            preload(directory="")
