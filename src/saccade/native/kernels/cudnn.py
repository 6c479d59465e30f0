"""Convolutions through cuDNN's graph API: several plans per step, each a way of its own.

The one file that imports cudnn (nvidia-cudnn-frontend). Plans are found and built on the card, so
there are none where the target has no device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from saccade.errors import BackendUnavailable, BuildError, EngineError
from saccade.native.kernels.packing import as_bits
from saccade.native.ops import IDENTITY, Conv
from saccade.native.seam import Built, LibraryLaunch, OfView, OfWeight, OfWorkspace, Target
from saccade.native.tensors import View

__all__ = ["CudnnWay", "cudnn_version", "cudnn_ways", "open_plan"]

_X, _WEIGHT, _BIAS, _RESIDUAL, _Y, _WORKSPACE = 1, 2, 3, 4, 5, 0
_MAX_PLANS = 6
_MAX_WORKSPACE = 64 * 2**20
_ACTIVATIONS = {
    "none", "relu", "clip", "leaky_relu", "silu", "sigmoid", "tanh", "gelu", "gelu_tanh",
}  # fmt: skip


def _library() -> Any:
    try:
        import cudnn  # type: ignore[import-not-found, unused-ignore]
    except Exception as exc:
        # The package loads cuDNN itself when imported, and fails in ways of its own.
        raise BackendUnavailable(
            f"cuDNN's plans need the package nvidia-cudnn-frontend and cuDNN, they cannot be "
            f"loaded ({str(exc).strip().splitlines()[:1]}); install saccade[cudnn]"
        ) from exc
    return cudnn


def cudnn_version() -> str:
    """Versions of the frontend and of cuDNN, for keys of caches; "" if they cannot be loaded."""
    try:
        cudnn = _library()
        return f"{cudnn.__version__} {cudnn.backend_version()}"
    except BackendUnavailable:
        return ""


@functools.cache
def _handle(_context: int) -> Any:
    return _library().create_handle()


def _current_handle() -> Any:
    from saccade.cuda import driver

    context = driver.call("asking for the context", driver.bindings().cuCtxGetCurrent)
    handle = _handle(int(context))
    # The library looks at the handle's stream, which may have been destroyed since.
    _library().set_stream(handle, 0)
    return handle


def _dims(view: View) -> tuple[list[int], list[int]]:
    """Sizes and strides in cuDNN's order (n, c, h, w); sizes of 1 get the stride of dense ones."""
    n, h, w, c = view.shape
    sn, sh, sw, sc = view.strides
    sc = sc if c > 1 else 1
    sw = sw if w > 1 else max(c, 1)
    sh = sh if h > 1 else sw * w
    sn = sn if n > 1 else sh * h
    return [n, c, h, w], [sn, sc, sh, sw]


@functools.lru_cache(256)
def _graph(step: Conv) -> Any:
    """The step as a graph of the library, with its plans proposed but not built."""
    cudnn = _library()
    types = {
        "float16": cudnn.data_type.HALF,
        "bfloat16": cudnn.data_type.BFLOAT16,
        "float32": cudnn.data_type.FLOAT,
    }
    try:
        graph = cudnn.pygraph(
            io_data_type=types[step.x.dtype],
            intermediate_data_type=cudnn.data_type.FLOAT,
            compute_data_type=cudnn.data_type.FLOAT,
            handle=_current_handle(),
        )

        def tensor(uid: int, dim: list[int], stride: list[int], dtype: str) -> Any:
            return graph.tensor(
                dim=dim, stride=stride, data_type=types[dtype], uid=uid, name=f"t{uid}"
            )

        x = tensor(_X, *_dims(step.x), step.x.dtype)
        (kh, kw), c, k = step.kernel, step.x.c // step.groups, step.y.c
        weight = tensor(_WEIGHT, [k, c, kh, kw], [kh * kw * c, 1, kw * c, c], step.x.dtype)
        y = graph.conv_fprop(
            image=x,
            weight=weight,
            pre_padding=list(step.pads[:2]),
            post_padding=list(step.pads[2:]),
            stride=list(step.stride),
            dilation=list(step.dilation),
            compute_data_type=cudnn.data_type.FLOAT,
        )
        if step.bias is not None:
            y = graph.bias(input=y, bias=tensor(_BIAS, [1, k, 1, 1], [k, 1, k, k], "float32"))
        added = None
        if step.residual is not None:
            added = tensor(_RESIDUAL, *_dims(step.residual), step.residual.dtype)
        if added is not None and not step.residual_after:
            y = graph.add(a=y, b=added)
        y = _activated(graph, y, step.activation.kind, step.activation.a, step.activation.b)
        if added is not None and step.residual_after:
            y = graph.add(a=y, b=added)
            y = _activated(graph, y, step.after.kind, step.after.a, step.after.b)
        dim, stride = _dims(step.y)
        y.set_output(True).set_data_type(types[step.y.dtype]).set_uid(_Y)
        y.set_dim(dim)
        y.set_stride(stride)
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A])
    except BackendUnavailable:
        raise
    except Exception as exc:
        # What the library raises is not documented; each of them means that it has no plan.
        raise BuildError(f"cuDNN has no plan for {step.label!r}: {_first_line(exc)}") from exc
    return graph


def _activated(graph: Any, y: Any, kind: str, a: float, b: float) -> Any:
    if kind == "relu":
        return graph.relu(input=y)
    if kind == "clip":
        return graph.relu(input=y, lower_clip=a, upper_clip=b)
    if kind == "leaky_relu":
        return graph.leaky_relu(input=y, negative_slope=a)
    if kind == "none":
        return y
    names = {"silu": "swish", "sigmoid": "sigmoid", "tanh": "tanh", "gelu": "gelu",
             "gelu_tanh": "gelu_approx_tanh"}  # fmt: skip
    return getattr(graph, names[kind])(input=y)


def _first_line(exc: BaseException) -> str:
    return (str(exc).strip() or type(exc).__name__).splitlines()[0]


@dataclass(frozen=True, slots=True)
class CudnnWay:
    """One plan of the library for one step."""

    step: Conv
    plan: int

    @property
    def name(self) -> str:
        return f"cudnn {self.plan}"

    def build(self, weights: Mapping[str, np.ndarray]) -> Built:
        """Build and serialise the plan; needs the card.

        Raises:
            BuildError: The library refuses.
        """
        graph = _graph(_anonymous(self.step))
        try:
            if self.plan >= graph.get_execution_plan_count():
                raise BuildError(f"cuDNN has {graph.get_execution_plan_count()} plans")
            graph.build_plan_at_index(self.plan)
            workspace = int(graph.get_workspace_size())
            blob = bytes(graph.serialize(as_bytes=True))
        except BuildError:
            raise
        except Exception as exc:
            raise BuildError(
                f"cuDNN's plan {self.plan} cannot be built: {_first_line(exc)}"
            ) from exc
        if workspace > _MAX_WORKSPACE:
            raise BuildError(f"cuDNN's plan {self.plan} needs {workspace} bytes of workspace")
        step = self.step
        arrays = [as_bits(weights[step.weight], step.x.dtype)]
        pointers: list[tuple[int, OfView | OfWeight | OfWorkspace]] = [
            (_X, OfView(step.x)), (_WEIGHT, OfWeight(0)), (_Y, OfView(step.y)),
        ]  # fmt: skip
        if step.bias is not None:
            arrays.append(weights[step.bias].astype(np.float32))
            pointers.append((_BIAS, OfWeight(1)))
        if step.residual is not None:
            pointers.append((_RESIDUAL, OfView(step.residual)))
        launch = LibraryLaunch("cudnn", blob, tuple(pointers))
        return Built((), tuple(arrays), (launch,), workspace)


def _anonymous(step: Conv) -> Conv:
    """The step without names and places, so that equal layers share plans."""

    def nowhere(view: View) -> View:
        return replace(view, buffer=0, offset=0)

    return replace(
        step, label="", weight="w", bias=None if step.bias is None else "b",
        x=nowhere(step.x), y=nowhere(step.y),
        residual=None if step.residual is None else nowhere(step.residual),
    )  # fmt: skip


def cudnn_ways(step: Conv, target: Target) -> tuple[CudnnWay, ...]:
    """The library's first plans for a step, () if it cannot do the step or is not there."""
    views = [step.x, step.y, *([] if step.residual is None else [step.residual])]
    # Of pictures that lie apart, 9.19 computes wrong answers: it takes them for one matrix.
    can = (
        target.has_device
        and step.second is None
        and not step.is_upsampled
        and step.scale == 1.0
        and step.weight_scale is None
        and step.x.dtype in ("float16", "bfloat16")
        and step.y.dtype in (step.x.dtype, "float32")
        and {step.activation.kind, step.after.kind} <= _ACTIVATIONS
        and not (step.residual is None and step.after != IDENTITY)
        and all(view.is_packed and view.alignment == 16 for view in views)
        and step.x.c % 8 == 0
        and step.y.c % 8 == 0
    )
    if not can:
        return ()
    try:
        count = _graph(_anonymous(step)).get_execution_plan_count()
    except (BuildError, BackendUnavailable):
        return ()
    return tuple(CudnnWay(step, plan) for plan in range(min(count, _MAX_PLANS)))


def open_plan(launch: LibraryLaunch) -> Callable[[int, Mapping[int, int], int], None]:
    """Load a serialised plan on the current device.

    Returns:
        A function of a stream, addresses by number, and the workspace's address.

    Raises:
        EngineError: The plan cannot be loaded, e.g. because it is of another version.
    """
    cudnn = _library()
    handle = _current_handle()
    graph = cudnn.pygraph(handle=handle)
    try:
        graph.deserialize(handle, launch.plan)
    except Exception as exc:
        raise EngineError(
            f"cuDNN cannot load a plan ({_first_line(exc)}); build again on this machine"
        ) from exc

    def run(stream: int, addresses: Mapping[int, int], workspace: int) -> None:
        cudnn.set_stream(handle, stream)
        try:
            graph.execute(dict(addresses), workspace, handle=handle)
        except Exception as exc:
            raise EngineError(f"cuDNN refuses to run a plan: {_first_line(exc)}") from exc
        finally:
            handle.stream = None  # set again by the next call, whatever its stream is

    return run
