"""What goes between a job and its processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saccade.pipeline.sources import SourceItem
from saccade.types import Contract, Detections, Model, Plan, Result, Thresholds

if TYPE_CHECKING:
    from saccade.pipeline.run import RunOptions

__all__ = ["Job", "packed", "unpacked"]

_COLUMNS = ("boxes_xyxy", "scores", "classes", "keypoints_xy")


@dataclass(frozen=True, slots=True)
class Job:
    """What a process loads and how it runs.

    Attributes:
        model: The network.
        contract: How pictures go in and outputs are read.
        plan: Back end, precision and device; batch, streams and threads as the options say.
        thresholds: What is kept.
        options: How to run; for one device.
        gpu_memory: Device memory it may take, or None.
    """

    model: Model
    contract: Contract
    plan: Plan
    thresholds: Thresholds
    options: RunOptions
    gpu_memory: int | None = None


def packed(results: Sequence[Result]) -> Any:
    """Results as few arrays: what is sent costs a fraction of one message per picture."""
    found = [r.detections for r in results if r.detections is not None]
    columns = {}
    for name in _COLUMNS:
        arrays = [getattr(one, name) for one in found]
        has_it = bool(arrays) and arrays[0] is not None
        columns[name] = np.concatenate(arrays) if has_it else None
    heads = [
        (r.size_wh, -1 if r.detections is None else len(r.detections), r.error) for r in results
    ]
    return heads, columns


def unpacked(told: Any, items: Sequence[SourceItem]) -> list[Result]:
    """What `packed` made, with the names of the pictures: the first so many of items."""
    heads, columns = told
    results, at = [], 0
    for (size_wh, count, error), item in zip(heads, items, strict=False):
        found = None
        if count >= 0:
            part = slice(at, at + count)
            at += count
            points = columns["keypoints_xy"]
            found = Detections(
                columns["boxes_xyxy"][part],
                columns["scores"][part],
                columns["classes"][part],
                None if points is None else points[part],
            )
        results.append(Result(item.index, item.name, size_wh, found, error))
    return results
