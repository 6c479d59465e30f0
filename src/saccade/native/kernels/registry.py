"""All kernels there are, by the kind of a step."""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
from collections.abc import Callable, Mapping
from typing import Any

from saccade.native.kernels import cudnn
from saccade.native.kernels.conv import conv_ways
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
from saccade.native.kernels.rows import norm_ways, reduce_ways, softmax_ways
from saccade.native.kernels.stem import stem_ways
from saccade.native.kernels.topk import topk_ways
from saccade.native.kernels.windows import chain_ways, pool_ways, resize_ways
from saccade.native.ops import (
    Attention,
    Boxes,
    Conv,
    Copy,
    Fill,
    Gather,
    GridSample,
    MatMul,
    Norm,
    Pointwise,
    Pool,
    PoolChain,
    Reduce,
    Resize,
    RoiAlign,
    Softmax,
    Step,
    TopK,
)
from saccade.native.seam import LibraryLaunch, Target, Way

__all__ = ["KERNELS"]

_WAYS: Mapping[type, tuple[Callable[[Any, Target], tuple[Way, ...]], ...]] = {
    Conv: (stem_ways, conv_ways, depthwise_ways, cudnn.cudnn_ways),
    MatMul: (matmul_ways,),
    Attention: (attention_ways,),
    Pool: (pool_ways,),
    PoolChain: (chain_ways,),
    Resize: (resize_ways,),
    Pointwise: (pointwise_ways,),
    Copy: (pointwise_ways,),
    Fill: (pointwise_ways,),
    Softmax: (softmax_ways,),
    Norm: (norm_ways,),
    Reduce: (reduce_ways,),
    TopK: (topk_ways,),
    Boxes: (boxes_ways,),
    Gather: (gather_ways,),
    GridSample: (grid_sample_ways,),
    RoiAlign: (roi_align_ways,),
}


class _Kernels:
    """See saccade.native.seam.Kernels."""

    @functools.cached_property
    def version(self) -> str:
        """Digest of the sources of this folder, and the library's version."""
        digest = hashlib.sha256()
        folder = importlib.resources.files("saccade.native.kernels")
        for file in sorted(folder.iterdir(), key=lambda file: file.name):
            if file.is_file():
                digest.update(file.name.encode() + file.read_bytes())
        return f"{digest.hexdigest()[:24]} {cudnn.cudnn_version()}"

    def ways(self, step: Step, target: Target) -> tuple[Way, ...]:
        """Ways to run a step; () if there is none."""
        found = tuple(way for ways in _WAYS.get(type(step), ()) for way in ways(step, target))
        if not found and isinstance(step, Conv):
            # A thread per value is never the fastest where another kernel can do the step.
            return direct_ways(step, target)
        return found

    def open_library(self, launch: LibraryLaunch) -> Callable[[int, Mapping[int, int], int], None]:
        """Load a library's plan on the current device."""
        return cudnn.open_plan(launch)


KERNELS = _Kernels()
