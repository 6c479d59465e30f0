"""Kernels of the engine: one file per family, found by the kind of a step.

`EngineKernels` is what a plan's executor asks (`saccade.native.seam.Kernels`).
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
from collections.abc import Callable, Mapping
from typing import Any

from saccade.native import ops
from saccade.native.kernels.conv import conv_ways
from saccade.native.kernels.cudnn import cudnn_version, cudnn_ways, open_plan
from saccade.native.kernels.depthwise import depthwise_ways
from saccade.native.kernels.direct import direct_ways
from saccade.native.kernels.places import (
    boxes_ways,
    gather_ways,
    grid_sample_ways,
    roi_align_ways,
)
from saccade.native.kernels.pointwise import pointwise_ways
from saccade.native.kernels.products import attention_ways, matmul_ways
from saccade.native.kernels.rows import norm_ways, reduce_ways, softmax_ways, topk_ways
from saccade.native.kernels.stem import stem_ways
from saccade.native.kernels.windows import chain_ways, pool_ways, resize_ways
from saccade.native.seam import LibraryLaunch, Target, Way

__all__ = ["EngineKernels"]


def _convolutions(step: ops.Conv, target: Target) -> tuple[Way, ...]:
    fast: tuple[Way, ...] = (
        *depthwise_ways(step, target),
        *stem_ways(step, target),
        *conv_ways(step, target),
        *cudnn_ways(step, target),
    )
    # One thread per value is never the fastest where another kernel can do the step.
    return fast or direct_ways(step, target)


_FAMILIES: dict[type, Callable[[Any, Target], tuple[Way, ...]]] = {
    ops.Conv: _convolutions,
    ops.MatMul: matmul_ways,
    ops.Pool: pool_ways,
    ops.PoolChain: chain_ways,
    ops.Resize: resize_ways,
    ops.Pointwise: pointwise_ways,
    ops.Copy: pointwise_ways,
    ops.Fill: pointwise_ways,
    ops.Softmax: softmax_ways,
    ops.Norm: norm_ways,
    ops.Attention: attention_ways,
    ops.Reduce: reduce_ways,
    ops.TopK: topk_ways,
    ops.Gather: gather_ways,
    ops.GridSample: grid_sample_ways,
    ops.RoiAlign: roi_align_ways,
    ops.Boxes: boxes_ways,
}


@functools.cache
def _digest() -> str:
    """Digest of this folder: whatever changes a kernel changes it."""
    folder = importlib.resources.files(__name__)
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith((".cu", ".cuh", ".py")):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


class EngineKernels:
    """All implementations there are: our own, and cuDNN's where it is installed.

    Attributes:
        version: Changes when any kernel or library does.
    """

    @property
    def version(self) -> str:
        return f"{_digest()} cudnn {cudnn_version()}"

    def ways(self, step: ops.Step, target: Target) -> tuple[Way, ...]:
        """Ways to run a step, always in one order, most promising first; () if there is none."""
        return _FAMILIES[type(step)](step, target)

    def open_library(self, launch: LibraryLaunch) -> Callable[[int, Mapping[int, int], int], None]:
        """Load a library's plan on the current device.

        Returns:
            A function of a stream, addresses by the library's numbers, and the workspace's
            address. It may be captured.
        """
        return open_plan(launch)
