"""Tensors of a request through a network: checked, run in batches, handed back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from saccade.errors import InputError
from saccade.server.dtypes import datatype_of, numpy_name
from saccade.server.loading import ServedModel
from saccade.server.wire import Infer, TensorPart
from saccade.types import Slot, TensorSpec

__all__ = ["Known", "TensorRunner", "array_of"]

_MAX_SIZES_KEPT = 4


def array_of(part: TensorPart, data: memoryview) -> np.ndarray:
    """The bytes of a tensor as an array that shares them.

    Raises:
        InputError: They are strings, which no network here takes.
    """
    if part.datatype == "BYTES":
        raise InputError(
            f"input {part.name[:80]!r} must be of numbers, it is BYTES; send numbers, or pictures "
            "to a detector"
        )
    flat = np.frombuffer(data, numpy_name(part.datatype))
    return flat.reshape(part.shape)


Feeds = Mapping[str, np.ndarray]


class Known(NamedTuple):
    """A request that came before, ready to be run again with other bytes.

    Attributes:
        inputs: As in the task.
        wanted: The task's outputs.
        targets: For each input the slot's memory, and where its bytes start and end.
        slot: What runs it.
        num: Its items.
        outputs: What the run gave. Where the next gives the very same object, the slot fills the
            same arrays each time, and what follows is still right.
        views: The outputs' bytes, in the order wanted.
        parts: What the reply says of them.
        num_bytes: Of all views.
    """

    inputs: tuple[TensorPart, ...]
    wanted: tuple[tuple[str, Any], ...]
    targets: tuple[tuple[memoryview, int, int], ...]
    slot: Slot
    num: int
    outputs: Mapping[str, np.ndarray]
    views: tuple[memoryview, ...]
    parts: tuple[TensorPart, ...]
    num_bytes: int


class TensorRunner:
    """Runs one model on tensors. For one thread.

    Slots are opened for the sizes that come; the last few are kept.

    Args:
        served: The model.
    """

    def __init__(self, served: ServedModel) -> None:
        self._served = served
        self._slots: dict[tuple[int, int], Slot] = {}
        self._specs = {spec.name: spec for spec in served.model.inputs}
        self._dtypes = {spec.name: np.dtype(spec.dtype) for spec in served.model.inputs}
        self._batch = served.plan.batch
        self._known: Known | None = None
        names = {spec.shape[0] for spec in served.model.inputs if spec.shape}
        self._is_splittable = served.has_free_batch and all(
            spec.shape and spec.shape[0] in names for spec in served.model.outputs
        )
        self._has_free_size = any(
            len(spec.shape) == 4 and any(isinstance(size, str) for size in spec.shape[1:])
            for spec in served.model.inputs
        )

    def known(self, task: Infer) -> Known | None:
        """The last request, if this one differs from it in the bytes of its tensors only."""
        known = self._known
        if known is None or task.inputs != known.inputs or task.outputs != known.wanted:
            return None
        return known

    def remember(self, task: Infer, feeds: Feeds, num: int, outputs: Mapping[str, Any]) -> None:
        """Keep a request that ran alone, if it can be run again without looking at it.

        Args:
            task: That.
            feeds: Its inputs.
            num: Its items.
            outputs: What the run gave.
        """
        self._known = None
        slot = self._slot(feeds)
        if (
            num > self._batch
            or any(part.region is not None for part in task.inputs)
            or any(region is not None for _, region in task.outputs)
            or any(array.dtype == object for array in feeds.values())
        ):
            return
        targets = []
        for part in task.inputs:
            rows = slot.inputs[part.name][:num]
            if not rows.flags.c_contiguous:
                return
            targets.append((_bytes_of(rows), part.offset, part.offset + part.num_bytes))
        wanted = [outputs[name] for name, _ in task.outputs]
        if not all(array.flags.c_contiguous for array in wanted):
            return
        parts, at = [], 0
        for (name, _), array in zip(task.outputs, wanted, strict=True):
            datatype = datatype_of(array.dtype.name)
            parts.append(TensorPart(name, datatype, array.shape, at, array.nbytes))
            at += array.nbytes
        views = tuple(map(_bytes_of, wanted))
        self._known = Known(
            task.inputs, task.outputs, tuple(targets), slot, num, outputs, views, tuple(parts), at
        )

    def groups(self, fed: Sequence[tuple[Any, Feeds, int]]) -> Iterator[list[Any]]:
        """What can share a run: requests of one size, as many as the batch holds. A network that
        fixes its batch, or has outputs that do not, runs each alone."""
        open_groups: dict[tuple[int, int], tuple[list[Any], int]] = {}
        for item in fed:
            size_hw, num = self._size_hw(item[1]), item[2]
            group, total = open_groups.pop(size_hw, ([], 0))
            if group and (total + num > self._batch or not self._is_splittable):
                yield group
                group, total = [], 0
            group.append(item)
            open_groups[size_hw] = (group, total + num)
        for group, _ in open_groups.values():
            yield group

    def run(self, several: Sequence[Feeds], total: int) -> Mapping[str, np.ndarray]:
        """Infer for one or several requests.

        Args:
            several: For each every input, (b, ...), as `check` let it pass.
            total: Their items in all.

        Returns:
            Every output, valid until the next call; rows in the order of the requests.

        Raises:
            InputError: An input does not fit the network.
            EngineError: The engine failed.
        """
        slot = self._slot(several[0])
        if total <= self._batch:
            at = 0
            for feeds in several:
                at = self._fill(slot, feeds, at)
            return slot.run(total)
        pieces = []
        for start in range(0, total, self._batch):
            part = {k: v[start : start + self._batch] for k, v in several[0].items()}
            num = self._fill(slot, part, 0)
            pieces.append({k: np.array(v) for k, v in slot.run(num).items()})
        return {name: np.concatenate([p[name] for p in pieces]) for name in pieces[0]}

    def _fill(self, slot: Slot, feeds: Feeds, at: int) -> int:
        end = at
        for name, array in feeds.items():
            target = slot.inputs[name]
            num = len(array) if array.ndim else 1
            if target.shape[1:] != array.shape[1:] or len(target) < at + num:
                raise InputError(
                    f"input {name!r} must have shape {list(target.shape)} here, it has "
                    f"{list(array.shape)}; correct the shape"
                )
            target[at : at + num] = array
            end = at + num
        return end

    def check(self, feeds: Feeds) -> int:
        """The items of a request.

        Raises:
            InputError: An input does not fit the network.
        """
        num = -1
        for name, array in feeds.items():
            spec = self._specs[name]
            if array.dtype != self._dtypes[name]:
                raise InputError(
                    f"input {name!r} must be {datatype_of(spec.dtype)}, it is "
                    f"{datatype_of(array.dtype.name)}; convert it"
                )
            if not _fits(spec, array.shape):
                raise InputError(
                    f"input {name!r} must have shape {_shown(spec)}, it has "
                    f"{list(array.shape)}; correct the shape"
                )
            own = array.shape[0] if array.ndim else 1
            if own == 0 or num not in (-1, own):
                raise InputError(
                    "all inputs must have the same number of items, at least 1; "
                    f"they have {num} and {own}; correct their shapes"
                )
            num = own
        return num

    def _slot(self, feeds: Feeds) -> Slot:
        size_hw = self._size_hw(feeds)
        slot = self._slots.pop(size_hw, None)
        if slot is None:
            slot = self._served.engine.open_slot(size_hw)
            if len(self._slots) >= _MAX_SIZES_KEPT:
                self._slots.pop(next(iter(self._slots)))
        self._slots[size_hw] = slot
        return slot

    def _size_hw(self, feeds: Feeds) -> tuple[int, int]:
        if not self._has_free_size:
            return self._served.size_hw
        for name, spec in self._specs.items():
            if len(spec.shape) == 4 and any(isinstance(s, str) for s in spec.shape[1:]):
                is_nhwc = spec.shape[3] in (1, 3) and spec.shape[1] not in (1, 3)
                shape = feeds[name].shape
                return (shape[1], shape[2]) if is_nhwc else (shape[2], shape[3])
        return self._served.size_hw


def _bytes_of(array: np.ndarray) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8).data)


def _fits(spec: TensorSpec, shape: Sequence[int]) -> bool:
    return len(shape) == len(spec.shape) and all(
        want == have or not isinstance(want, int)
        for want, have in zip(spec.shape, shape, strict=True)
    )


def _shown(spec: TensorSpec) -> list[int]:
    return [size if isinstance(size, int) else -1 for size in spec.shape]
