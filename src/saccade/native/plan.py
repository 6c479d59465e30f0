"""A plan: steps on buffers, with the weights they name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import numpy as np

from saccade.native.ops import Level, Step, reads, writes
from saccade.native.tensors import Buffer, View

__all__ = ["Draft", "Plan", "Spec", "readers_of", "with_views", "writers_of"]


@dataclass(frozen=True, slots=True)
class Spec:
    """A buffer that is seen from outside.

    Attributes:
        name: In the graph.
        buffer: Its number.
        dtype: Element type there.
        shape: As the bytes lie.
    """

    name: str
    buffer: int
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What runs, in an order that works, with every byte placed.

    Attributes:
        buffers: By number.
        steps: In order.
        weights: By the names that steps use; float32, or int8 with scales aside.
        constants: Contents of constant buffers, by number.
        inputs: What is fed.
        outputs: What comes out.
        arena_bytes: Of all arena buffers together.
    """

    buffers: tuple[Buffer, ...]
    steps: tuple[Step, ...]
    weights: Mapping[str, np.ndarray]
    constants: Mapping[int, np.ndarray]
    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]
    arena_bytes: int


@dataclass(slots=True)
class DraftBuffer:
    """A buffer before it has a place.

    Attributes:
        name: For people.
        dtype: Of all views of it.
        num_elements: Size.
        kind: As in `Buffer`.
    """

    name: str
    dtype: str
    num_elements: int
    kind: str = "arena"


class Draft:
    """A plan in the making: passes change `steps` and `buffers` in place.

    Attributes:
        buffers: By number; unused ones are dropped at the end.
        steps: In order.
        weights: As in Plan.
        constants: As in Plan.
        inputs: Name to the view that is fed, in the graph's axes.
        outputs: Name to the view that comes out, in the graph's axes.
    """

    def __init__(self) -> None:
        self.buffers: list[DraftBuffer] = []
        self.steps: list[Step] = []
        self.weights: dict[str, np.ndarray] = {}
        self.constants: dict[int, np.ndarray] = {}
        self.inputs: dict[str, View] = {}
        self.outputs: dict[str, View] = {}

    def buffer(self, name: str, dtype: str, num_elements: int, kind: str = "arena") -> int:
        """A new buffer's number."""
        self.buffers.append(DraftBuffer(name, dtype, num_elements, kind))
        return len(self.buffers) - 1

    def new(
        self, name: str, shape: Sequence[int], dtype: str, order: Sequence[int] | None = None
    ) -> View:
        """A view of a new buffer, axes lying in the given order (default: as they are listed)."""
        shape = tuple(shape)
        order = tuple(range(len(shape))) if order is None else tuple(order)
        strides = [0] * len(shape)
        step = 1
        for axis in reversed(order):
            strides[axis] = step
            step *= shape[axis]
        number = self.buffer(name, dtype, step)
        return View(number, cast(Any, dtype), shape, tuple(strides))

    def constant(self, array: np.ndarray, name: str) -> View:
        """A view of a stored array."""
        dtype = str(array.dtype)
        number = self.buffer(name, dtype, array.size, "constant")
        self.constants[number] = np.ascontiguousarray(array).reshape(-1)
        strides = [1] * array.ndim
        for axis in range(array.ndim - 2, -1, -1):
            strides[axis] = strides[axis + 1] * array.shape[axis + 1]
        return View(number, cast(Any, dtype), array.shape, tuple(strides))

    def weight(self, name: str, array: np.ndarray) -> str:
        """Store weights; the name they got."""
        unique, number = name, 1
        while unique in self.weights:
            number += 1
            unique = f"{name}#{number}"
        self.weights[unique] = array
        return unique

    def readers(self) -> dict[int, list[int]]:
        """Buffer to the indices of the steps that read it."""
        return readers_of(self.steps)

    def writers(self) -> dict[int, list[int]]:
        """Buffer to the indices of the steps that write it."""
        return writers_of(self.steps)

    def output_buffers(self) -> set[int]:
        return {view.buffer for view in self.outputs.values()}

    def drop_dead(self) -> None:
        """Remove steps that nothing reads."""
        wanted = self.output_buffers()
        kept: list[Step] = []
        for step in reversed(self.steps):
            if any(view.buffer in wanted for view in writes(step)):
                wanted |= {view.buffer for view in reads(step)}
                kept.append(step)
        self.steps = kept[::-1]

    def copy(self) -> Draft:
        """Another draft of the same; arrays are shared."""
        made = Draft()
        made.buffers = [replace(buffer) for buffer in self.buffers]
        made.steps = list(self.steps)
        made.weights, made.constants = dict(self.weights), dict(self.constants)
        made.inputs, made.outputs = dict(self.inputs), dict(self.outputs)
        return made

    def retyped(self) -> None:
        """Give every view the element type of its buffer."""

        def retype(view: View) -> View:
            dtype = self.buffers[view.buffer].dtype
            return view if view.dtype == dtype else replace(view, dtype=cast(Any, dtype))

        self.steps = [with_views(step, retype) for step in self.steps]
        self.inputs = {name: retype(view) for name, view in self.inputs.items()}
        self.outputs = {name: retype(view) for name, view in self.outputs.items()}


def readers_of(steps: Sequence[Step]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for index, step in enumerate(steps):
        for number in dict.fromkeys(view.buffer for view in reads(step)):
            found.setdefault(number, []).append(index)
    return found


def writers_of(steps: Sequence[Step]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for index, step in enumerate(steps):
        for number in dict.fromkeys(view.buffer for view in writes(step)):
            found.setdefault(number, []).append(index)
    return found


def with_views(step: Step, change: Callable[[View], View]) -> Step:
    """A step with each of its views replaced."""
    changed: dict[str, Any] = {}
    for field in fields(step):
        value = getattr(step, field.name)
        if isinstance(value, View):
            changed[field.name] = change(value)
        elif isinstance(value, tuple) and value and isinstance(value[0], View):
            changed[field.name] = tuple(change(item) for item in value)
        elif isinstance(value, tuple) and value and isinstance(value[0], Level):
            changed[field.name] = tuple(replace(item, x=change(item.x)) for item in value)
    return replace(step, **changed) if changed else step
