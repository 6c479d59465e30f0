"""What a rule gets, and where rules are listed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from saccade.native.ops import Copy, Fill
from saccade.native.plan import Draft
from saccade.native.tensors import View
from saccade.native.views import image, reshaped, sliding_order

__all__ = ["RULES", "Lowering", "Node", "Refused", "Value", "rule"]

Value = np.ndarray | View


class Refused(Exception):
    """What this engine does not do about a node."""


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One node with its operands.

    Attributes:
        op: Operator.
        name: For people; also names what the node makes.
        attributes: As stored; missing ones are left out.
        inputs: Operands, None where left out.
        num_outputs: How many outputs are listed.
        opset: Version of the operator set.
        wanted: Which outputs have a name.
    """

    op: str
    name: str
    attributes: Mapping[str, Any]
    inputs: Sequence[Value | None]
    wanted: Sequence[bool]
    opset: int

    def get(self, name: str, default: Any) -> Any:
        found = self.attributes.get(name, default)
        return found.decode() if isinstance(found, bytes) else found

    def has(self, index: int) -> bool:
        return index < len(self.inputs) and self.inputs[index] is not None

    def value(self, index: int) -> Value:
        found = self.inputs[index] if index < len(self.inputs) else None
        if found is None:
            raise Refused(f"input {index} is missing")
        return found

    def array(self, index: int, what: str) -> np.ndarray:
        """An operand that must be the same for every picture."""
        found = self.value(index)
        if isinstance(found, View):
            raise Refused(f"{what} must be stored in the graph, input {index} is computed")
        return found

    def ints(self, index: int, attribute: str) -> list[int] | None:
        """Whole numbers from an attribute (older operator sets) or a stored operand."""
        if attribute in self.attributes:
            stored = self.attributes[attribute]
            return [int(number) for number in stored]
        if not self.has(index):
            return None
        return [int(number) for number in self.array(index, attribute).reshape(-1)]


class Lowering:
    """Makes views and steps of a draft."""

    def __init__(self) -> None:
        self.draft = Draft()
        self._stored: dict[int, tuple[np.ndarray, View]] = {}

    def view(self, value: Value, name: str) -> View:
        """A value in a buffer."""
        if isinstance(value, View):
            return value
        if id(value) not in self._stored:
            # The array is kept so that its identity stays its own.
            self._stored[id(value)] = (value, self.draft.constant(narrowed(value), name))
        return self._stored[id(value)][1]

    def operand(self, node: Node, index: int) -> View:
        return self.view(node.value(index), f"{node.name}:{index}")

    def pictures(self, value: Value, name: str) -> View:
        """A value (n, c, h, w) as pixels (n, h, w, c), copied if it lies otherwise."""
        view = self.view(value, name)
        if len(view.shape) != 4:
            raise Refused(f"it needs pictures (n, c, h, w), got shape {view.shape}")
        pixels = image(view.permuted(0, 2, 3, 1))
        if pixels.is_pixels:
            return pixels
        made = self.draft.new(name, pixels.shape, view.dtype)
        self.draft.steps.append(Copy(name, pixels, made))
        return made

    def fill(self, name: str, view: View, value: float) -> None:
        """One number everywhere, before all else: who computes what lies inside may write there."""
        self.draft.steps.insert(0, Fill(name, view, value))

    def new_pictures(self, node: Node, shape: Sequence[int]) -> View:
        """A new buffer of pixels (n, h, w, c)."""
        return self.draft.new(node.name, shape, "float32")

    def new_like(self, name: str, shape: Sequence[int], dtype: str, like: View) -> View:
        """A new buffer whose axes lie in the order of another view of the same rank."""
        order = sliding_order(like) if len(like.shape) == len(shape) else None
        return self.draft.new(name, shape, dtype, order)

    def dense(self, view: View, name: str) -> View:
        """Elements in C order, copied if they do not lie so."""
        if view.is_dense:
            return view
        made = self.draft.new(name, view.shape, view.dtype)
        self.draft.steps.append(Copy(name, view, made))
        return made

    def reshape(self, view: View, shape: Sequence[int], name: str) -> View:
        """Another shape of the same C order, copied if strides cannot say it."""
        found = reshaped(view, shape)
        if found is None:
            found = reshaped(self.dense(view, name), shape)
        return cast(View, found)


def as_graph(pixels: View) -> View:
    """Pixels (n, h, w, c) with the graph's axes (n, c, h, w)."""
    return pixels.permuted(0, 3, 1, 2)


def narrowed(array: np.ndarray) -> np.ndarray:
    """Floats as float32, whole numbers as int64, truth as bool."""
    if array.dtype == np.bool_:
        return array
    kind = np.float32 if array.dtype.kind not in "iu" else np.int64
    return array.astype(kind, copy=False)


Rule = Callable[[Lowering, Node], "Sequence[Value] | Value"]
RULES: dict[str, Rule] = {}


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Enter a rule for some operators."""

    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(ops, function))
        return function

    return enter
