"""Which part of a detector each node of a tidy graph belongs to.

stem     the first convolution, which reads pixels
body     everything that leads to a weighted operator
head     what comes after the last weighted operators: box decoding, scores
shapes   what does not depend on the values of the inputs
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saccade.graph.topology import producers, reads

if TYPE_CHECKING:
    import onnx

__all__ = ["MOVES", "SIZE_READERS", "WEIGHTED", "Parts", "is_move", "moved", "parts_of"]

# Operators whose second input is a kernel or matrix.
WEIGHTED = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))
# Operators that put values elsewhere without changing them; what is rounded stays on its grid.
# fmt: off
MOVES = frozenset((
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Reshape",
    "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
))
# fmt: on
SIZE_READERS = frozenset(("Shape", "Size"))


@dataclass(frozen=True, slots=True)
class Parts:
    """Names of nodes by part.

    Attributes:
        weighted: Convolutions and products with a weight, in graph order; those that read
            probabilities (a softmax: the expectation over box bins) are counted to the head.
        first: The weighted nodes that no weighted node comes before.
        head: Nodes with no weighted node after them.
        shapes: Nodes that do not depend on the values of the inputs.
    """

    weighted: tuple[str, ...]
    first: frozenset[str]
    head: frozenset[str]
    shapes: frozenset[str]


def parts_of(graph: onnx.GraphProto) -> Parts:
    """Sort the nodes of a tidy graph into parts."""
    makers = producers(graph)
    alive = _depending(graph)
    weights = {tensor.name for tensor in graph.initializer}
    weighted = [
        node
        for node in graph.node
        if node.op_type in WEIGHTED
        and node.name in alive
        and len(node.input) > 1
        and node.input[1] in weights
        and not _reads_probabilities(node, makers)
    ]
    names = {node.name for node in weighted}
    before: set[str] = set()
    for node in reversed(graph.node):
        if any(name in before for name in node.output) or node.name in names:
            before.update(reads(node))
    after: set[str] = set()
    first = set()
    for node in graph.node:
        is_after = any(name in after for name in reads(node))
        if node.name in names and not is_after:
            first.add(node.name)
        if is_after or node.name in names:
            after.update(node.output)
    head = {
        node.name
        for node in graph.node
        if node.name not in names and not any(name in before for name in node.output)
    }
    return Parts(
        weighted=tuple(node.name for node in weighted),
        first=frozenset(first),
        head=frozenset(head),
        shapes=frozenset(node.name for node in graph.node if node.name not in alive),
    )


def is_move(node: onnx.NodeProto) -> bool:
    """Whether a node only puts values of its data inputs elsewhere."""
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "Resize":
        mode = next((a.s for a in node.attribute if a.name == "mode"), b"nearest")
        return bool(mode == b"nearest")
    # MaxPool with indices is no mere move.
    return node.op_type in MOVES and not (node.op_type == "MaxPool" and len(node.output) > 1)


def moved(node: onnx.NodeProto) -> list[str]:
    """The inputs of a move whose values it puts elsewhere."""
    return list(node.input) if node.op_type == "Concat" else list(node.input[:1])


def _depending(graph: onnx.GraphProto) -> set[str]:
    """Nodes that the values of an input reach; sizes of tensors are not values."""
    live = {value.name for value in graph.input}
    names = set()
    for node in graph.node:
        if node.op_type not in SIZE_READERS and any(name in live for name in reads(node)):
            names.add(node.name)
            live.update(node.output)
    return names


def _reads_probabilities(node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether all that a node reads comes straight from softmaxes, through moves at most."""
    return _all_softmax([node.input[0]], makers)


def _all_softmax(names: Iterable[str], makers: Mapping[str, onnx.NodeProto]) -> bool:
    for name in names:
        node = makers.get(name)
        if node is None:
            return False
        if node.op_type == "Softmax":
            continue
        if not is_move(node) or not _all_softmax(moved(node), makers):
            return False
    return True
