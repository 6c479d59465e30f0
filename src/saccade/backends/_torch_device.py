"""The torch engine on a CUDA device: static buffers, a stream of its own, a graph of its own.

Every launch goes to the engine's own stream, tied to the caller's by two events: torch's allocator
hands memory out again only on the stream it was freed on, so one stream means one workspace.

    caller's stream   --record--+                                  +--wait-->
                                |                                  |
    engine's stream             +--wait-- program, copies --record-+

If the caller is capturing, the program is launched into the capture; otherwise the engine's own
graph is replayed. Both work in the same private pool of memory, which load has filled.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Mapping
from typing import Any

import torch

from saccade.backends._torch_exported import Exported, module_of
from saccade.backends._torch_ops.program import Source, lower
from saccade.backends.torch import translated
from saccade.errors import BackendUnavailable, EngineError
from saccade.types import DeviceBuffer, Fallback, Plan, TensorSpec

__all__ = ["TorchDeviceEngine", "module_for", "prepare_program"]

WARM_UPS = 3
# The engine captures its own graph, so inductor must not.
INDUCTOR: Mapping[str, Mapping[str, bool]] = {
    "inductor": {"triton.cudagraphs": False},
    "tuned": {"triton.cudagraphs": False, "coordinate_descent_tuning": True},
    "max-autotune": {
        "triton.cudagraphs": False,
        "coordinate_descent_tuning": True,
        "max_autotune": True,
    },
}
HALVES = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}


class TorchDeviceEngine:
    """See saccade.types.DeviceEngine. One caller at a time, in the order of one stream.

    Args:
        source: A checked graph, or an exported program.
        plan: The plan.
        options: Of the back end, complete.
        shapes: Input name to shape.
    """

    def __init__(
        self,
        source: Source | Exported,
        plan: Plan,
        options: Mapping[str, str],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self.plan = plan
        self.fallbacks: tuple[Fallback, ...] = ()
        self._device = _device(plan)
        self._is_open = True
        with torch.cuda.device(self._device), torch.inference_mode():
            _release_unused()
            reserved_bytes = torch.cuda.memory_reserved()
            self._stream = torch.cuda.Stream(self._device)
            self._pool = torch.cuda.MemPool()
            self._fed = {
                spec.name: _fed(spec, shapes[spec.name], plan, options["input"])
                for spec in source.model.inputs
            }
            module, self._program = prepare_program(source, plan, options, shapes)
            stored = (*module.buffers(), *module.parameters())
            self.weight_bytes = sum(b.numel() * b.element_size() for b in stored)
            self._given: dict[str, torch.Tensor] = {}
            self._warm_up([spec.name for spec in source.model.outputs])
            self._graph = self._captured()
            torch.cuda.empty_cache()
            self.reserved_bytes = torch.cuda.memory_reserved() - reserved_bytes
        self.inputs: Mapping[str, DeviceBuffer] = _buffers(self._fed)
        self.outputs: Mapping[str, DeviceBuffer] = _buffers(self._given)
        # What the allocator holds for this engine, in its own granules.
        buffers = (*self.inputs.values(), *self.outputs.values())
        named_bytes = self.weight_bytes + sum(buffer.num_bytes for buffer in buffers)
        self.workspace_bytes = max(self.reserved_bytes - named_bytes, 0)

    def enqueue(self, stream: int) -> None:
        """Launch one inference of the whole batch behind what the stream already holds."""
        if not self._is_open:
            raise EngineError("this engine is closed; load the model again")
        with translated("run", EngineError), torch.cuda.device(self._device):
            caller = torch.cuda.ExternalStream(stream, device=self._device)
            with torch.cuda.stream(caller):
                is_capturing = torch.cuda.is_current_stream_capturing()
            if not is_capturing:
                with torch.cuda.stream(caller):
                    self._graph.replay()
                return
            self._stream.wait_event(caller.record_event())
            self._launch()
            caller.wait_event(self._stream.record_event())

    def close(self) -> None:
        """Release the device memory. The buffers must not be used afterwards."""
        if not self._is_open:
            return
        self._is_open = False
        try:
            with torch.cuda.device(self._device):
                torch.cuda.synchronize()
                self._graph.reset()
        except RuntimeError:
            # The device was lost. Giving the pool back would end the process, in a destructor.
            _keep_for_ever(self._pool, self._graph, self._program, self._fed, self._given)
            return
        self._fed, self._given = {}, {}
        del self._program, self._graph, self._pool
        with torch.cuda.device(self._device):
            _release_unused()

    def _launch(self) -> None:
        """The program and the copies into the output buffers, on the engine's own stream."""
        with (
            torch.inference_mode(),
            torch.cuda.stream(self._stream),
            torch.cuda.use_mem_pool(self._pool, self._device),
        ):
            answers = self._program(*self._fed.values())
            for buffer, answer in zip(self._given.values(), answers, strict=True):
                buffer.copy_(answer)

    def _warm_up(self, names: list[str]) -> None:
        """Compile, let libraries choose their algorithms, then fill the pool.

        The first run is outside the pool: what choosing took is given back afterwards.
        """
        with torch.cuda.stream(self._stream):
            answers = self._program(*self._fed.values())
            self._given = {
                name: torch.empty_like(answer, memory_format=torch.contiguous_format)
                for name, answer in zip(names, answers, strict=True)
            }
            del answers
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        for _ in range(WARM_UPS):
            self._launch()
        torch.cuda.synchronize()

    def _captured(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool.id, stream=self._stream):
            answers = self._program(*self._fed.values())
            for buffer, answer in zip(self._given.values(), answers, strict=True):
                buffer.copy_(answer)
            del answers
        return graph


def prepare_program(
    source: Source | Exported,
    plan: Plan,
    options: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[torch.nn.Module, Callable[..., Any]]:
    """The module on the plan's device, and what to call: it, or what inductor made of it."""
    device = _device(plan)
    # Both are process-wide settings of torch; each load sets what its plan says.
    torch.backends.cuda.matmul.allow_tf32 = options["tf32"] == "1"
    torch.backends.cudnn.allow_tf32 = options["tf32"] == "1"
    torch.backends.cudnn.benchmark = True
    half = HALVES[plan.precision]
    module = module_for(source, shapes, device, half)
    if options["compile"] == "none":
        return module, module
    compiled: Callable[..., Any] = torch.compile(
        module, options=dict(INDUCTOR[options["compile"]]), fullgraph=True, dynamic=False
    )
    return module, compiled


def module_for(
    source: Source | Exported,
    shapes: Mapping[str, tuple[int, ...]],
    device: torch.device | str,
    half: torch.dtype | None = None,
) -> torch.nn.Module:
    """The module of a graph or of an exported program, on a device."""
    if isinstance(source, Exported):
        return module_of(source, torch.device(device), half)
    is_on_gpu = torch.device(device).type != "cpu"
    return lower(source, shapes, half=half, is_channels_last=is_on_gpu).to(device)


def _keep_for_ever(*objects: object) -> None:
    """Let nobody release these, not even at the end of the process."""
    for one in objects:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(one))


def _release_unused() -> None:
    """Give back what closed engines held; compiled programs are circles of references."""
    gc.collect()
    torch.cuda.empty_cache()


def _device(plan: Plan) -> torch.device:
    if not torch.cuda.is_available():
        raise BackendUnavailable(
            f"device {plan.device!r} needs a CUDA device and a torch built for CUDA; torch "
            f"{torch.__version__} sees none; check nvidia-smi and install torch with CUDA"
        )
    name, _, number = plan.device.partition(":")
    num = torch.cuda.device_count()
    if name != "cuda" or not (number or "0").isdigit() or int(number or 0) >= num:
        raise BackendUnavailable(
            f"device must be 'cuda:N' with N below {num}, got {plan.device!r}; "
            "choose one that saccade doctor lists"
        )
    return torch.device("cuda", int(number or 0))


def _fed(spec: TensorSpec, shape: tuple[int, ...], plan: Plan, way: str) -> torch.Tensor:
    """The buffer of an input; axes in the graph's order, whatever their order in memory."""
    dtype: torch.dtype = getattr(torch, spec.dtype)
    half = HALVES[plan.precision]
    if way != "model" and half is not None and dtype.is_floating_point:
        dtype = half
    is_last = way == "channels_last" and len(shape) == 4 and dtype.is_floating_point
    order = torch.channels_last if is_last else torch.contiguous_format
    return torch.zeros(shape, dtype=dtype, device=_device(plan)).to(memory_format=order)


def _buffers(tensors: Mapping[str, torch.Tensor]) -> dict[str, DeviceBuffer]:
    return {name: _buffer(tensor) for name, tensor in tensors.items()}


def _buffer(tensor: torch.Tensor) -> DeviceBuffer:
    # As the bytes lie: an array with channels last has shape (b, h, w, c).
    laid = tensor if tensor.is_contiguous() else tensor.permute(0, 2, 3, 1)
    return DeviceBuffer(
        pointer=laid.data_ptr(),
        shape=tuple(laid.shape),
        dtype=str(tensor.dtype).removeprefix("torch."),
        num_bytes=tensor.numel() * tensor.element_size(),
    )
