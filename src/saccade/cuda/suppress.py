"""From raw outputs in device memory to final boxes in pinned memory: two launches per batch."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from saccade.cuda.compile import compile_kernels, kernel_source
from saccade.cuda.head import DeviceHead
from saccade.cuda.prepare import as_float
from saccade.cuda.runtime import Device, Stream
from saccade.errors import BuildError, EngineError, InputError
from saccade.types import Detections, DeviceBuffer, Thresholds

__all__ = [
    "MAX_CANDIDATES",
    "FinalBoxes",
    "Suppressor",
    "Workspace",
    "suppress_defines",
    "suppress_source",
]

# The power of two above vision.suppress.MAX_CANDIDATES.
MAX_CANDIDATES = 32768
_MAX_KEPT = 1024
_SELECT_THREADS = 128
_FINISH_THREADS = 256
_HEADER = 4
_TYPES = {"float32": "float", "float16": "f16", "bfloat16": "bf16"}


def suppress_source(head: DeviceHead) -> str:
    """CUDA C++ of both kernels for a head; it needs the macros of `suppress_defines`."""
    return kernel_source(
        "common.cuh",
        "select.cu",
        "cells.cuh",
        f"heads/{head.file}",
        "select_kernel.cu",
        "finish.cu",
    )


@dataclass(frozen=True, slots=True)
class Workspace:
    """Sizes that follow from a head, thresholds and a device.

    Attributes:
        capacity: Candidates per picture that can be kept; a power of two.
        sort_shared: Candidates that are sorted in shared memory.
        max_kept: Boxes per picture at most.
        record: Numbers per box in the results.
        shared_bytes: Dynamic shared memory of the second kernel.
        batch: Pictures.
    """

    capacity: int
    sort_shared: int
    max_kept: int
    record: int
    shared_bytes: int
    batch: int

    @property
    def keys_bytes(self) -> int:
        """Device memory for candidates."""
        return self.batch * self.capacity * 8

    @property
    def counts_bytes(self) -> int:
        """Device memory for counters."""
        return self.batch * 4

    @property
    def results_bytes(self) -> int:
        """Pinned memory for final boxes."""
        return self.batch * (_HEADER + self.max_kept * self.record) * 4


def workspace_of(
    head: DeviceHead,
    thresholds: Thresholds,
    batch: int,
    shared_bytes: int,
    *,
    max_candidates: int = MAX_CANDIDATES,
) -> Workspace:
    """Plan the buffers of a suppression.

    Where each row gives one candidate at most, all of them fit; else max_candidates do.

    Raises:
        InputError: max_detections is too large.
    """
    if not 0 <= thresholds.max_detections <= _MAX_KEPT:
        raise InputError(
            f"max_detections must be 0 to {_MAX_KEPT} on the GPU, it is "
            f"{thresholds.max_detections}; lower it, or run on the CPU"
        )
    per_row = head.num_classes if thresholds.multi_label or head.key_is_rank else 1
    capacity = _power_of_two(min(max(head.num_rows * per_row, 64), max_candidates))
    max_kept = max(thresholds.max_detections, 1)
    fixed = max_kept * 28 + 64 * (16 + 4 + 8) + 64
    sort_shared = capacity
    while sort_shared > 64 and fixed + sort_shared * 8 > min(shared_bytes, 96 * 1024):
        sort_shared //= 2
    return Workspace(
        capacity,
        sort_shared,
        max_kept,
        6 + 2 * head.num_points,
        fixed + sort_shared * 8,
        batch,
    )


def _power_of_two(num: int) -> int:
    return 1 << (num - 1).bit_length()


def suppress_defines(
    head: DeviceHead,
    thresholds: Thresholds,
    size_hw: tuple[int, int],
    workspace: Workspace,
    *,
    class_agnostic: bool = False,
) -> tuple[str, ...]:
    """Macros that make the kernels follow a head and thresholds."""
    # Anything but softmax scores of a set prediction may give several classes per row.
    is_multi = thresholds.multi_label or head.key_is_rank
    macros = {
        "ELEMENT": _TYPES[head.dtype],
        "NUM_ROWS": head.num_rows,
        "NUM_CLASSES": head.num_classes,
        "IN_H": size_hw[0],
        "IN_W": size_hw[1],
        "SCORE": as_float(thresholds.score),
        "IOU": repr(float(thresholds.iou)),
        "MULTI_LABEL": int(is_multi),
        "KEY_IS_RANK": int(head.key_is_rank),
        "IS_FINAL": int(head.is_final),
        "IS_AGNOSTIC": int(class_agnostic),
        "IN_SOURCE": int(head.in_source),
        "FIRST_ONLY": head.first_only or 2**31 - 1,
        "NUM_POINTS": head.num_points,
        "CAPACITY": workspace.capacity,
        "SORT_SHARED": workspace.sort_shared,
        "MAX_KEPT": workspace.max_kept,
        "STRIDES": 8,
        "NUM_STRIDES": 1,
        **head.macros,
    }
    return tuple(f"{name}={value}" for name, value in macros.items())


class _Outputs(ctypes.Structure):
    _fields_ = (("at", ctypes.c_uint64 * 16),)


class Suppressor:
    """The compiled kernels for one head, one set of thresholds and one engine's outputs.

    Args:
        device: Where.
        head: Of `read_head`.
        outputs: Of the engine, by name.
        thresholds: What is kept.
        size_hw: Height and width of the input in pixels.
        class_agnostic: As in HeadRule.
        max_candidates: Per picture, where rows may give several.

    Attributes:
        workspace: Sizes of what the caller reserves.
    """

    def __init__(
        self,
        device: Device,
        head: DeviceHead,
        outputs: Mapping[str, DeviceBuffer],
        thresholds: Thresholds,
        size_hw: tuple[int, int],
        *,
        class_agnostic: bool = False,
        max_candidates: int = MAX_CANDIDATES,
    ) -> None:
        batch = outputs[head.outputs[0]].shape[0]
        self._limit = thresholds.max_detections
        self.head = head
        self.workspace = workspace_of(
            head, thresholds, batch, device.shared_bytes, max_candidates=max_candidates
        )
        if self.workspace.shared_bytes > device.shared_bytes:
            raise BuildError(
                f"max_detections {thresholds.max_detections} needs {self.workspace.shared_bytes} "
                f"bytes of shared memory, {device.name} has {device.shared_bytes}; lower it"
            )
        defines = suppress_defines(
            head, thresholds, size_hw, self.workspace, class_agnostic=class_agnostic
        )
        module = device.load(compile_kernels(suppress_source(head), device.arch, defines))
        self._select = module.kernel("select")
        self._finish = module.kernel("finish", shared_bytes=self.workspace.shared_bytes)
        self._outputs = _Outputs()
        for place, name in enumerate(head.outputs):
            self._outputs.at[place] = outputs[name].pointer
        self._grid = (-(-head.num_rows // _SELECT_THREADS), batch, 1)

    def set_constants(self, pointer: int) -> None:
        """Say where the head's table lies in device memory."""
        self._outputs.at[len(self.head.outputs)] = pointer

    def enqueue(self, stream: Stream, table: int, keys: int, counts: int, results: int) -> None:
        """Suppress one batch.

        Args:
            stream: Where to launch.
            table: Device address of the pictures, as for Preparer.
            keys: Device address of workspace.keys_bytes.
            counts: Device address of workspace.counts_bytes.
            results: Address of workspace.results_bytes of pinned memory.
        """
        stream.fill(counts, 0, self.workspace.batch)
        where = [ctypes.c_uint64(address) for address in (table, keys, counts, results)]
        self._select.launch(stream, self._grid, _SELECT_THREADS, (self._outputs, *where[:3]))
        grid = (self.workspace.batch, 1, 1)
        self._finish.launch(stream, grid, _FINISH_THREADS, (self._outputs, *where))

    def final_boxes(self, results: np.ndarray) -> FinalBoxes:
        """A reader of the pinned results, to be made once and used after each launch."""
        return FinalBoxes(results, self.workspace, self._limit, self.head.num_points)


class FinalBoxes:
    """Reads what the second kernel wrote. Views are made once: a single call has no time for it.

    Args:
        results: Bytes of workspace.results_bytes, pinned.
        work: Sizes.
        limit: Boxes per picture at most.
        num_points: Key points per box.
    """

    def __init__(self, results: np.ndarray, work: Workspace, limit: int, num_points: int) -> None:
        values = results.view(np.float32).reshape(work.batch, -1)
        self._heads = values[:, :_HEADER].view(np.int32)
        self._records = values[:, _HEADER:].reshape(work.batch, work.max_kept, work.record)
        self._classes = self._records.view(np.int32)[:, :, 5]
        self._capacity = work.capacity
        self._limit = limit
        self._num_points = num_points

    def read(self, position: int) -> Detections:
        """Final boxes of one picture, copied.

        Raises:
            EngineError: More candidates passed the threshold than fit.
        """
        num, found, overflowed, _ = self._heads[position].tolist()
        if overflowed:
            raise EngineError(
                f"at most {self._capacity} candidates per picture fit on the GPU, {found} passed "
                "the score threshold; raise the threshold or max_candidates"
            )
        num = min(num, self._limit)
        records, points = self._records[position, :num], None
        if self._num_points:
            points = records[:, 6:].reshape(num, self._num_points, 2).copy()
        return Detections(
            boxes_xyxy=records[:, :4].copy(),
            scores=records[:, 4].copy(),
            classes=self._classes[position, :num].copy(),
            keypoints_xy=points,
        )
