"""Tensors of a request through a network: checked, run in batches, handed back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from saccade.errors import InputError
from saccade.server.dtypes import ITEM_BYTES, datatype_of, numpy_name
from saccade.server.loading import ServedModel
from saccade.server.wire import TensorPart
from saccade.types import Slot, TensorSpec

__all__ = ["TensorRunner", "array_of"]

_MAX_SIZES_KEPT = 4


def array_of(part: TensorPart, data: memoryview) -> np.ndarray:
    """The bytes of a tensor as an array that shares them."""
    flat = np.frombuffer(data, numpy_name(part.datatype))
    return flat.reshape(part.shape)


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
        self._batch = served.plan.batch

    def run(self, feeds: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], int]:
        """Infer.

        Args:
            feeds: Every input, (b, ...) of the network's types.

        Returns:
            Every output, valid until the next call, and b.

        Raises:
            InputError: An input does not fit the network.
            EngineError: The engine failed.
        """
        num = self._check(feeds)
        slot = self._slot(feeds)
        if num <= self._batch:
            return dict(self._run_once(slot, feeds, 0, num)), num
        pieces = [
            {k: np.array(v) for k, v in self._run_once(slot, feeds, at, self._batch).items()}
            for at in range(0, num, self._batch)
        ]
        return {name: np.concatenate([p[name] for p in pieces]) for name in pieces[0]}, num

    def _run_once(
        self, slot: Slot, feeds: Mapping[str, np.ndarray], at: int, size: int
    ) -> Mapping[str, np.ndarray]:
        num = size
        for name, array in feeds.items():
            piece = array[at : at + size] if array.ndim else array
            target = slot.inputs[name]
            num = len(piece) if array.ndim else 1
            if target.shape[1:] != piece.shape[1:] or len(target) < num:
                raise InputError(
                    f"input {name!r} must have shape {list(target.shape)} here, it has "
                    f"{list(piece.shape)}; correct the shape"
                )
            target[:num] = piece
        return slot.run(num)

    def _check(self, feeds: Mapping[str, np.ndarray]) -> int:
        nums = set()
        for name, array in feeds.items():
            spec = self._specs[name]
            if array.dtype != spec.dtype:
                raise InputError(
                    f"input {name!r} must be {datatype_of(spec.dtype)}, it is "
                    f"{datatype_of(str(array.dtype))}; convert it"
                )
            if not _fits(spec, array.shape):
                raise InputError(
                    f"input {name!r} must have shape {_shown(spec)}, it has "
                    f"{list(array.shape)}; correct the shape"
                )
            nums.add(array.shape[0] if array.ndim else 1)
        if len(nums) != 1 or 0 in nums:
            raise InputError(
                f"all inputs must have the same number of items, at least 1; they have "
                f"{sorted(nums)}; correct their shapes"
            )
        return int(nums.pop())

    def _slot(self, feeds: Mapping[str, np.ndarray]) -> Slot:
        size_hw = self._size_hw(feeds)
        slot = self._slots.pop(size_hw, None)
        if slot is None:
            slot = self._served.engine.open_slot(size_hw)
            if len(self._slots) >= _MAX_SIZES_KEPT:
                self._slots.pop(next(iter(self._slots)))
        self._slots[size_hw] = slot
        return slot

    def _size_hw(self, feeds: Mapping[str, np.ndarray]) -> tuple[int, int]:
        for name, spec in self._specs.items():
            if len(spec.shape) == 4 and any(isinstance(s, str) for s in spec.shape[1:]):
                is_nhwc = spec.shape[3] in (1, 3) and spec.shape[1] not in (1, 3)
                shape = feeds[name].shape
                return (shape[1], shape[2]) if is_nhwc else (shape[2], shape[3])
        return self._served.size_hw


def _fits(spec: TensorSpec, shape: Sequence[int]) -> bool:
    return len(shape) == len(spec.shape) and all(
        want == have or not isinstance(want, int)
        for want, have in zip(spec.shape, shape, strict=True)
    )


def _shown(spec: TensorSpec) -> list[int]:
    return [size if isinstance(size, int) else -1 for size in spec.shape]


def num_bytes_of(part: TensorPart) -> int:
    """Bytes that a tensor of numbers has."""
    size = ITEM_BYTES[part.datatype]
    for axis in part.shape:
        size *= axis
    return size
