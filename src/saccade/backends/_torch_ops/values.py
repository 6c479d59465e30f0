"""What a rule sees of a node, and the table that rules enter themselves into."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import fx

__all__ = ["RULES", "Lacking", "Op", "Rule", "Symbol", "Value", "int_list", "rule"]

Kind = Literal["heavy", "plain", "exact"]


class Lacking(Exception):
    """A node asks for something that no rule does; the program turns this into a BuildError."""


@dataclass(frozen=True, slots=True, eq=False)
class Symbol:
    """A value that depends on the picture.

    Attributes:
        node: The call that makes it.
        meta: A tensor without memory that has its shape and element type.
    """

    node: fx.Node
    meta: torch.Tensor


# A tensor is the same for every picture; None is an optional operand left out.
Value: TypeAlias = Symbol | torch.Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """One node.

    Attributes:
        kind: The operator.
        opset: Version of the operator set, which decides what attributes mean.
        attributes: As stored in the file.
        inputs: Operands, empty while nodes are only being checked.
        num_inputs: Operands that the node names.
        outputs: Names, "" for one that nobody reads.
    """

    kind: str
    opset: int
    attributes: Mapping[str, Any]
    inputs: Sequence[Value]
    num_inputs: int
    outputs: Sequence[str]

    def get(self, index: int) -> Value:
        """The operand at a place, or None if it was left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def symbol_or_tensor(self, index: int = 0) -> Symbol | torch.Tensor:
        """An operand that must be there."""
        value = self.get(index)
        if value is None:
            raise Lacking(f"input {index} must be given, it is left out")
        return value

    def fixed(self, index: int) -> torch.Tensor | None:
        """An operand that must not depend on the picture."""
        value = self.get(index)
        if isinstance(value, Symbol):
            raise Lacking(f"input {index} must not depend on the picture, it does")
        return value

    def text(self, name: str, default: str) -> str:
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def number(self, name: str, default: float) -> float:
        return float(self.attributes.get(name, default))

    def integer(self, name: str, default: int) -> int:
        return int(self.attributes.get(name, default))


def int_list(op: Op, index: int, attribute: str) -> list[int] | None:
    """Integers that older operator sets keep in an attribute and newer ones in an operand."""
    if attribute in op.attributes:
        return [int(number) for number in op.attributes[attribute]]
    stored = op.fixed(index)
    return None if stored is None else [int(number) for number in stored.flatten().tolist()]


Lower = Callable[[Any, Op], Any]


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """How one operator becomes torch calls.

    Attributes:
        lower: (lowering, op) to one value or a list of values.
        attributes: Those it understands; any other one is refused.
        max_inputs: More operands than this are refused.
        max_outputs: Likewise for outputs that somebody may read.
        kind: "heavy" computes in the plan's precision, "exact" in FP32, "plain" in the type of
            its operands.
        fixed: Operands that must be the same for every picture and keep their type.
        check: Says in words which attribute value it lacks, or "".
    """

    lower: Lower
    attributes: frozenset[str]
    max_inputs: int
    max_outputs: int
    kind: Kind
    fixed: frozenset[int]
    check: Callable[[Op], str]


RULES: dict[str, Rule] = {}


def rule(
    names: str,
    attributes: str = "",
    *,
    inputs: int = 1,
    outputs: int = 1,
    kind: Kind = "plain",
    fixed: Sequence[int] = (),
    check: Callable[[Op], str] = lambda op: "",
) -> Callable[[Lower], Lower]:
    """Enter a function into the table under operator names separated by spaces."""

    def enter(lower: Lower) -> Lower:
        for name in names.split():
            RULES[name] = Rule(
                lower,
                frozenset(attributes.split()),
                inputs,
                outputs,
                kind,
                frozenset(fixed),
                check,
            )
        return lower

    return enter
