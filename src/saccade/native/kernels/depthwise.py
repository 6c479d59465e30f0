"""Depthwise convolutions: depthwise.cu."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from saccade.native.kernels.packing import as_bits
from saccade.native.kernels.sources import (
    C_TYPES,
    activation_defines,
    literal,
    places_of,
    source,
    vector_bytes,
)
from saccade.native.ops import IDENTITY, Conv
from saccade.native.seam import Argument, Built, Launch, OfView, OfWeight, Source, Target

__all__ = ["DepthwiseWay", "depthwise_ways"]

_MAX_TAPS = 49


@dataclass(frozen=True, slots=True)
class DepthwiseWay:
    """depthwise.cu with one shape of a thread's work.

    Attributes:
        step: What it computes.
        channels: Per thread.
        run: Output pixels per thread.
        threads: Per block.
    """

    step: Conv
    channels: int
    run: int
    threads: int

    @property
    def name(self) -> str:
        return f"depthwise {self.channels}x{self.run} t{self.threads}"

    def build(self, weights: Mapping[str, np.ndarray]) -> Built:
        """Weights as (taps, channels) float32 of rounded values."""
        step = self.step
        (kh, kw), c = step.kernel, step.x.c
        rounded = _rounded(weights[step.weight], step.x.dtype)
        padded = -(-c // 4) * 4
        kernel = np.zeros((kh * kw, padded), np.float32)
        kernel[:, :c] = rounded.reshape(c, kh * kw).T
        bias = np.zeros(padded, np.float32)
        if step.bias is not None:
            bias[:c] = weights[step.bias]
        residual = 0 if step.residual is None else 2 if step.residual_after else 1
        arguments: tuple[Argument, ...] = (
            OfView(step.x), OfWeight(0), OfWeight(1),
            OfView(step.residual) if step.residual is not None else OfWeight(0),
            OfView(step.y),
        )  # fmt: skip
        (sh, sw), (dh, dw) = step.stride, step.dilation
        defines = (
            f"ELEMENT={C_TYPES[step.x.dtype]}", f"OUT={C_TYPES[step.y.dtype]}",
            f"N={step.y.n}", f"OH={step.y.h}", f"OW={step.y.w}", f"C={c}", f"C_PAD={padded}",
            f"H={step.x.h}", f"W={step.x.w}", f"KH={kh}", f"KW={kw}", f"SH={sh}", f"SW={sw}",
            f"DH={dh}", f"DW={dw}", f"PT={step.pads[0]}", f"PL={step.pads[1]}",
            f"V={self.channels}", f"RUN={self.run}", f"THREADS={self.threads}",
            *places_of("X", step.x), *places_of("Y", step.y), *places_of("RESIDUAL", step.residual),
            f"RESIDUAL={residual}", f"SCALE={literal(step.scale)}",
            *activation_defines("ACT", step.activation),
            *activation_defines("AFTER", step.after),
        )  # fmt: skip
        made = Source(source("common.cuh", "activation.cuh", "depthwise.cu"), defines)
        runs = -(-step.y.w // self.run)
        num = step.y.n * step.y.h * runs * (c // self.channels)
        launch = Launch(
            0, "depthwise", (-(-num // self.threads), 1, 1), (self.threads, 1, 1), arguments
        )
        return Built((made,), (kernel, bias), (launch,))


def _rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """Float32 values as they are after rounding to an element type."""
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    if dtype == "bfloat16":
        return (as_bits(values, dtype).astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def depthwise_ways(step: Conv, target: Target) -> tuple[DepthwiseWay, ...]:
    """Shapes of a thread's work; () if the step is not depthwise."""
    views = [step.x, step.y, *([] if step.residual is None else [step.residual])]
    can = (
        step.groups == step.x.c == step.y.c
        and step.x.dtype in ("float16", "bfloat16", "float32")
        and step.y.dtype in ("float16", "bfloat16", "float32")
        and (step.residual is None or step.residual.dtype == step.x.dtype)
        and all(view.is_pixels for view in views)
        and step.second is None
        and not step.is_upsampled
        and step.weight_scale is None
        and step.kernel[0] * step.kernel[1] <= _MAX_TAPS
        and not (step.residual is None and step.after != IDENTITY)
    )
    if not can:
        return ()
    size = 4 if step.x.dtype == "float32" else 2
    ways = []
    for channels, run, threads in ((8, 2, 128), (8, 4, 128), (8, 1, 128), (4, 4, 128), (4, 2, 256),
                                   (4, 1, 128), (2, 2, 128), (1, 2, 128)):  # fmt: skip
        aligned = all(
            vector_bytes(view) >= min(16, channels * (4 if view.dtype == "float32" else 2))
            for view in views
        )
        if step.x.c % channels == 0 and aligned and channels * size <= 16:
            ways.append(DepthwiseWay(step, channels, run, threads))
    return tuple(ways)
