"""Which tensors must share a scale so that moving them takes no arithmetic."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from saccade.graph.passes.parts import is_move, moved, parts_of
from saccade.graph.topology import producers, reads

if TYPE_CHECKING:
    import onnx

__all__ = ["ScaleGroups", "scale_groups"]


class ScaleGroups:
    """Tensors that share a scale, as disjoint sets.

    Attributes:
        roots: Tensors that are rounded: what convolutions and moves read that no move makes.
        movers: Names of the moves between roots and convolutions; they move INT8 codes.
        exact: Tensors that something reads which must see what was computed, not what was
            rounded: the head, the stem, nodes that are kept, outputs of the graph.
    """

    def __init__(self) -> None:
        self.roots: set[str] = set()
        self.movers: set[str] = set()
        self.exact: frozenset[str] = frozenset()
        self._parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        """The tensor that stands for this one's group."""
        while self._parent.setdefault(name, name) != name:
            self._parent[name] = name = self._parent[self._parent[name]]
        return name

    def join(self, one: str, other: str) -> None:
        """Put two tensors into one group."""
        first, second = sorted((self.find(one), self.find(other)))
        self._parent[second] = first

    def groups(self) -> list[list[str]]:
        """All tensors of each group, roots and moved ones, sorted."""
        found: dict[str, list[str]] = {}
        for name in sorted(self._parent):
            found.setdefault(self.find(name), []).append(name)
        return list(found.values())


def scale_groups(
    graph: onnx.GraphProto, chosen: Sequence[onnx.NodeProto], kept: Collection[str]
) -> ScaleGroups:
    """Walk back from what the chosen nodes read, through moves, to what is computed or stored.

    Args:
        graph: Tidy.
        chosen: Weighted nodes that will compute in INT8.
        kept: Names of nodes that stay in floating point.
    """
    makers = producers(graph)
    groups = ScaleGroups()
    groups.exact = _exact_tensors(graph, kept)
    pending = [node.input[0] for node in chosen]
    seen: set[str] = set()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        groups.find(name)
        maker = makers.get(name)
        if maker is None or not is_move(maker):
            groups.roots.add(name)
            continue
        groups.movers.add(maker.name)
        # All that a Split makes has its codes moved, read by a convolution or not.
        for other in (*moved(maker), *maker.output):
            groups.join(name, other)
        pending += moved(maker)
    return groups


def _exact_tensors(graph: onnx.GraphProto, kept: Collection[str]) -> frozenset[str]:
    parts = parts_of(graph)
    names = {value.name for value in graph.output}
    for node in reversed(graph.node):
        is_float = node.name in kept or node.name in parts.head or node.name in parts.first
        # A move whose values are wanted needs the values of its sources.
        if is_float or (is_move(node) and not names.isdisjoint(node.output)):
            names.update(reads(node))
    return frozenset(names)
