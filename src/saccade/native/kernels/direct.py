"""Any convolution, one thread per value: direct.cu."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from saccade.native.kernels.sources import C_TYPES, activation_defines, literal, source
from saccade.native.ops import Conv
from saccade.native.seam import Argument, Built, Launch, OfView, OfWeight, Source, Target
from saccade.native.tensors import View

__all__ = ["DirectWay", "direct_ways"]

_LIMITS = {"int8": (-128.0, 127.0), "uint8": (0.0, 255.0)}


@dataclass(frozen=True, slots=True)
class DirectWay:
    """direct.cu for one step."""

    step: Conv

    @property
    def name(self) -> str:
        return "direct"

    def build(self, weights: Mapping[str, np.ndarray]) -> Built:
        """Describe the launch; weights stay as they are."""
        step = self.step
        # Weights of FP16 layers are rounded like those of every other way.
        half = {"float16": np.float16}.get(step.x.dtype)
        kernel = weights[step.weight]
        if kernel.dtype != np.int8 and half is not None:
            with np.errstate(over="ignore"):
                kernel = kernel.astype(half)
        elif kernel.dtype != np.int8:
            kernel = kernel.astype(np.float32)
        arrays = [np.ascontiguousarray(kernel)]
        places: dict[str, OfWeight] = {}
        for name in (step.bias, step.weight_scale):
            if name is not None:
                places[name] = OfWeight(len(arrays))
                arrays.append(weights[name].astype(np.float32))
        nothing = OfWeight(0)
        arguments: tuple[Argument, ...] = (
            OfView(step.x),
            OfView(step.second) if step.second is not None else nothing,
            OfWeight(0),
            places[step.bias] if step.bias is not None else nothing,
            places[step.weight_scale] if step.weight_scale is not None else nothing,
            OfView(step.residual) if step.residual is not None else nothing,
            OfView(step.y),
        )
        made = Source(
            source("common.cuh", "activation.cuh", "direct.cu"), self._defines(kernel.dtype.name)
        )
        blocks = -(-step.y.num_elements // 256)
        return Built(
            (made,), tuple(arrays), (Launch(0, "direct", (blocks, 1, 1), (256, 1, 1), arguments),)
        )

    def _defines(self, weight_dtype: str) -> tuple[str, ...]:
        step = self.step
        up = 2 if step.is_upsampled else 1
        low, high = _LIMITS.get(step.y.dtype, (0.0, 0.0))
        residual = 0 if step.residual is None else 2 if step.residual_after else 1
        second, added = step.second or step.x, step.residual or step.y
        (kh, kw), (sh, sw), (dh, dw) = step.kernel, step.stride, step.dilation
        return (
            f"X_TYPE={C_TYPES[step.x.dtype]}", f"SECOND_TYPE={C_TYPES[second.dtype]}",
            f"W_TYPE={C_TYPES[weight_dtype]}", f"RES_TYPE={C_TYPES[added.dtype]}",
            f"Y_TYPE={C_TYPES[step.y.dtype]}",
            f"N={step.y.n}", f"OH={step.y.h}", f"OW={step.y.w}", f"K={step.y.c}",
            f"H={step.x.h * up}", f"W={step.x.w * up}", f"FIRST={step.x.c}",
            f"C={step.x.c + (step.second.c if step.second is not None else 0)}",
            f"GROUPS={step.groups}", f"KH={kh}", f"KW={kw}", f"SH={sh}", f"SW={sw}",
            f"DH={dh}", f"DW={dw}", f"PT={step.pads[0]}", f"PL={step.pads[1]}",
            f"X_UP={int(step.is_upsampled)}", f"SECOND_UP={int(step.second_is_upsampled)}",
            *_strides("X", step.x), *_strides("S", second), *_strides("R", added),
            *_strides("Y", step.y),
            f"X_SCALE={literal(step.x_scale)}", f"Y_SCALE={literal(step.y_scale)}",
            f"HAS_BIAS={int(step.bias is not None)}",
            f"HAS_WEIGHT_SCALE={int(step.weight_scale is not None)}", f"RESIDUAL={residual}",
            f"IS_QUANTISED={int(step.y.dtype in _LIMITS)}",
            f"LOW={literal(low)}", f"HIGH={literal(high)}", f"SCALE={literal(step.scale)}",
            *activation_defines("ACT", step.activation),
            *activation_defines("AFTER", step.after),
        )  # fmt: skip


def _strides(name: str, view: View) -> tuple[str, ...]:
    return tuple(
        f"{name}_{axis}={stride}LL" for axis, stride in zip("NHWC", view.strides, strict=True)
    )


def direct_ways(step: Conv, target: Target) -> tuple[DirectWay, ...]:
    """The one way, unless element types have no kernel."""
    views = [v for v in (step.x, step.y, step.second, step.residual) if v is not None]
    covered = all(view.dtype in C_TYPES and view.dtype != "float8_e4m3" for view in views)
    return (DirectWay(step),) if covered and step.residual_scale == 1.0 and not step.y_units else ()
