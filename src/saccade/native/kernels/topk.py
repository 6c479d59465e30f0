"""The k best of rows: topk.cu."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from saccade.native.kernels.sources import C_TYPES, source
from saccade.native.kernels.strided import coordinates, cut_view, offset
from saccade.native.ops import TopK
from saccade.native.seam import Built, Launch, OfView, Source, Target

__all__ = ["TopKWay", "topk_ways"]

_MAX_SHORT = 512
# So many keys are sorted by counting, for each, those before it.
_MAX_RANKED = 1024


@dataclass(frozen=True, slots=True)
class TopKWay:
    """One block per row: a radix search for the k-th best, then a sort of the chosen.

    Radix selection as in Alabi et al., Fast k-selection algorithms for GPUs, 2012.

    Attributes:
        step: What it computes.
        is_short: One warp per row instead, which takes the best of its registers k times.
    """

    step: TopK
    is_short: bool = False

    @property
    def name(self) -> str:
        return "topk warp" if self.is_short else "topk ranked" if self.is_ranked else "topk sorted"

    @property
    def _chosen(self) -> int:
        length = self.step.x.shape[-1]
        return length if length <= _MAX_RANKED else max(self.step.k, 2)

    @property
    def is_ranked(self) -> bool:
        """Whether few are sorted."""
        return self._chosen <= _MAX_RANKED

    @property
    def sorted_keys(self) -> int:
        """Keys that are sorted in shared memory: an even number, where many a power of two."""
        if self.is_ranked:
            return -(-self._chosen // 2) * 2
        return 1 << (self._chosen - 1).bit_length()

    def build(self, weights: Mapping[str, np.ndarray]) -> Built:
        """Generate the kernel."""
        step = self.step
        last = len(step.x.shape) - 1
        kept, xs, (length,), (x_step,) = cut_view(step.x, [last])
        values, indices = step.values or step.x, step.indices or step.x
        _, vs, _, (value_step,) = cut_view(values, [last])
        _, ids, _, (index_step,) = cut_view(indices, [last])
        defines = (
            f"X_TYPE={C_TYPES[step.x.dtype]}", f"VALUE_TYPE={C_TYPES[values.dtype]}",
            f"INDEX_TYPE={C_TYPES[indices.dtype] if step.indices is not None else 'int'}",
            f"LENGTH={length}", f"SORTED={self.sorted_keys}", f"K={step.k}",
            f"LARGEST={int(step.largest)}", f"X_STEP={x_step}", f"VALUE_STEP={value_step}",
            f"INDEX_STEP={index_step}", f"HAS_VALUES={int(step.values is not None)}",
            f"HAS_INDICES={int(step.indices is not None)}",
            f"IS_SHORT={int(self.is_short)}", f"ROWS={math.prod(kept)}LL",
            f"IS_RANKED={int(self.is_ranked)}", f"THREADS={_threads(length)}",
        )  # fmt: skip
        text = source("topk.cu").replace(
            "ROW\n", coordinates(kept or [1], "linear", "k", wide=True) + "\n"
        )
        text = text.replace("X_AT", offset(xs, "k")).replace("VALUES_AT", offset(vs, "k"))
        text = text.replace("INDICES_AT", offset(ids, "k"))
        made = Source(source("common.cuh") + text, defines)
        rows = math.prod(kept)
        grid, threads, shared = (rows, 1, 1), _threads(length), self.sorted_keys * 8
        if self.is_short:
            grid, threads, shared = (-(-rows // 4), 1, 1), 128, 0
        arguments = (OfView(step.x), OfView(values), OfView(indices))
        launch = Launch(0, "topk", grid, (threads, 1, 1), arguments, shared)
        return Built((made,), (), (launch,))


def _threads(length: int) -> int:
    return 1024 if length > 512 else max(-(-length // 32) * 32, 32)


def topk_ways(step: TopK, target: Target) -> tuple[TopKWay, ...]:
    """Ways for rows of this length, () where the chosen do not fit in shared memory."""
    if step.x.dtype not in ("float16", "bfloat16", "float32"):
        return ()
    way = TopKWay(step)
    ways = [way] if way.sorted_keys * 8 <= target.shared_bytes else []
    if step.x.shape[-1] <= _MAX_SHORT and step.k <= 32:
        ways.insert(0, TopKWay(step, is_short=True))
    return tuple(ways)
