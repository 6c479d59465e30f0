"""Which tensors are in memory at each step of a graph, and how much they take at the worst."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saccade.graph.external import element_bits
from saccade.graph.shapes import TensorShape
from saccade.graph.topology import describe, reads, subgraphs

if TYPE_CHECKING:
    import onnx

__all__ = ["LiveTensor", "Peak", "peak_of"]

# Operators whose output is their first input seen in another shape, without a copy.
VIEWS = frozenset(("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"))


@dataclass(frozen=True, slots=True)
class LiveTensor:
    """One tensor in memory: its name, sizes and bytes."""

    name: str
    shape: tuple[int, ...]
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Peak:
    """The step of a graph with the most bytes in activations.

    Attributes:
        num_bytes: Activations in memory while the node runs, its inputs and outputs included.
        node: The node that runs then, in words; "" for a graph without nodes.
        tensors: What is in memory then, largest first.
        unknown: Tensors of unknown size, which are not counted.
    """

    num_bytes: int
    node: str
    tensors: tuple[LiveTensor, ...]
    unknown: tuple[str, ...]


def peak_of(
    graph: onnx.GraphProto,
    order: Sequence[onnx.NodeProto],
    shapes: Mapping[str, TensorShape],
    constants: Collection[str],
) -> Peak:
    """Find the peak when nodes run one by one in the given order.

    A tensor is in memory from the node that makes it to the last that reads it; graph inputs from
    the start, graph outputs to the end. Views (VIEWS) share their input's memory. A body (If,
    Loop, Scan) adds its own peak while its node runs. Nothing is reused in place.

    Args:
        graph: The main graph or a body.
        order: Its nodes in an order in which they can run.
        shapes: Of all tensors, for the batch that is meant.
        constants: Weights and what follows from them alone; not activations.
    """
    roots = _roots(order, constants)
    born, dies = _lifetimes(graph, order, roots, constants)
    live_at = _sizes(born, shapes)
    steps = max(len(order), 1)
    change = [0] * (steps + 1)
    for tensor in live_at.values():
        change[max(born[tensor.name], 0)] += tensor.num_bytes
        change[min(dies[tensor.name], steps - 1) + 1] -= tensor.num_bytes
    bodies = [_bodies(node, shapes, constants) for node in order] or [()]
    best, best_bytes, running = 0, -1, 0
    for step in range(steps):
        running += change[step]
        total = running + sum(body.num_bytes for body in bodies[step])
        if total > best_bytes:
            best, best_bytes = step, total
    live = [t for t in live_at.values() if born[t.name] <= best <= dies[t.name]]
    live += [tensor for body in bodies[best] for tensor in body.tensors]
    unknown = [name for name in born if name not in live_at]
    unknown += [name for step in bodies for body in step for name in body.unknown]
    return Peak(
        num_bytes=best_bytes,
        node=describe(order[best]) if order else "",
        tensors=tuple(sorted(live, key=lambda tensor: (-tensor.num_bytes, tensor.name))),
        unknown=tuple(unknown),
    )


def _roots(order: Sequence[onnx.NodeProto], constants: Collection[str]) -> dict[str, str]:
    """Name of each view to the tensor whose memory it shares."""
    roots: dict[str, str] = {}
    for node in order:
        is_view = node.op_type in VIEWS and node.domain in ("", "ai.onnx")
        if is_view and node.input and node.output and node.input[0] not in constants:
            roots[node.output[0]] = roots.get(node.input[0], node.input[0])
    return roots


def _lifetimes(
    graph: onnx.GraphProto,
    order: Sequence[onnx.NodeProto],
    roots: Mapping[str, str],
    constants: Collection[str],
) -> tuple[dict[str, int], dict[str, int]]:
    """First and last step of every activation that owns memory; inputs are born at step -1."""
    born = {value.name: -1 for value in graph.input if value.name not in constants}
    for step, node in enumerate(order):
        for name in node.output:
            if name and name not in roots and name not in constants:
                born[name] = step
    dies = {name: max(step, 0) for name, step in born.items()}
    for step, node in enumerate(order):
        for name in reads(node):
            root = roots.get(name, name)
            if root in born:
                dies[root] = step
    for value in graph.output:
        root = roots.get(value.name, value.name)
        if root in born:
            dies[root] = len(order)
    return born, dies


def _sizes(names: Collection[str], shapes: Mapping[str, TensorShape]) -> dict[str, LiveTensor]:
    sizes: dict[str, LiveTensor] = {}
    for name in names:
        shape = shapes.get(name)
        bits = element_bits(shape.elem_type) if shape else 0
        known = tuple(size for size in shape.sizes if isinstance(size, int)) if shape else ()
        if shape and bits and len(known) == len(shape.sizes):
            sizes[name] = LiveTensor(name, known, (math.prod(known) * bits + 7) // 8)
    return sizes


def _bodies(
    node: onnx.NodeProto, shapes: Mapping[str, TensorShape], constants: Collection[str]
) -> tuple[Peak, ...]:
    """Peaks of a node's bodies; of the branches of an If, only the larger one runs."""
    peaks = [peak_of(body, list(body.node), shapes, constants) for body in subgraphs(node)]
    if node.op_type == "If":
        peaks = sorted(peaks, key=lambda peak: peak.num_bytes)[-1:]
    return tuple(peaks)
