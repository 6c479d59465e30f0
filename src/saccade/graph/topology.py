"""Who makes and who reads each tensor of a graph, and in which order the nodes can run."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from saccade.errors import ModelError

if TYPE_CHECKING:
    import onnx

__all__ = [
    "check_graph",
    "describe",
    "node_tensors",
    "producers",
    "reads",
    "runnable_order",
    "subgraphs",
    "tensors",
]


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The bodies of If, Loop, Scan and the like."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def reads(node: onnx.NodeProto) -> list[str]:
    """Tensors that a node needs: its inputs and what its bodies take from outside."""
    needed = [name for name in node.input if name]
    for body in subgraphs(node):
        made = _given(body) | {name for inner in body.node for name in inner.output}
        wanted = [name for inner in body.node for name in reads(inner)]
        wanted += [output.name for output in body.output]
        needed += [name for name in wanted if name not in made]
    return list(dict.fromkeys(needed))


def producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Tensor name to the node that makes it."""
    return {name: node for node in graph.node for name in node.output if name}


def describe(node: onnx.NodeProto) -> str:
    """A node in words: its operator, and its name or, without one, what it makes."""
    kind = f"{node.domain}:{node.op_type}" if node.domain else node.op_type
    if node.name:
        return f"{kind} node {node.name!r}"
    made = ", ".join(repr(name) for name in node.output if name) or "nothing"
    return f"nameless {kind} node that makes {made}"


def tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every stored tensor: initializers, sparse ones, attributes, those of bodies too."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    yield from node_tensors(graph.node)


def node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    """Every tensor stored in the attributes of nodes and in their bodies."""
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            sparse_tensors = list(attribute.sparse_tensors)
            if attribute.HasField("sparse_tensor"):
                sparse_tensors.append(attribute.sparse_tensor)
            for sparse in sparse_tensors:
                yield sparse.values
                yield sparse.indices
        for body in subgraphs(node):
            yield from tensors(body)


def check_graph(graph: onnx.GraphProto, outer: frozenset[str] = frozenset()) -> None:
    """Check that every tensor is made once, is there when read, and that no node waits for itself.

    Nodes may be stored in any order.

    Args:
        graph: The main graph or a body.
        outer: Names that a body may take from the graphs around it.

    Raises:
        ModelError: Names the node and the tensor.
    """
    given = _given(graph)
    makers: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        for name in filter(None, node.output):
            if name in makers or name in given:
                other = describe(makers[name]) if name in makers else "an input or a weight"
                raise ModelError(
                    f"each tensor must be made once; {name!r} is made by {describe(node)} and is "
                    f"also {'made by ' if name in makers else ''}{other}; export the model again"
                )
            makers[name] = node
    known = outer | given | makers.keys()
    for node in graph.node:
        for name in node.input:
            if name and name not in known:
                raise ModelError(
                    f"every input of a node must be made by a node, an input or a weight of the "
                    f"graph; {describe(node)} reads {name!r}, which nothing makes; "
                    "export the model again"
                )
        for body in subgraphs(node):
            check_graph(body, frozenset(known))
    _check_outputs(graph, known)
    runnable_order(graph)


def _check_outputs(graph: onnx.GraphProto, known: frozenset[str] | set[str]) -> None:
    counts = Counter(output.name for output in graph.output)
    for name, count in counts.items():
        if count > 1:
            raise ModelError(
                f"the outputs of a graph must differ in name; {name!r} is listed {count} times; "
                "export the model again"
            )
        if name not in known:
            raise ModelError(
                f"every output of the graph must be made by a node; nothing makes {name!r}; "
                "export the model again"
            )


def runnable_order(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Nodes in an order in which each comes after those it reads from; a sorted graph stays as is.

    Raises:
        ModelError: Some nodes wait for each other; names them.
    """
    nodes = list(graph.node)
    maker = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    needs = [{maker[name] for name in reads(node) if name in maker} for node in nodes]
    readers: list[list[int]] = [[] for _ in nodes]
    for index, need in enumerate(needs):
        for earlier in need:
            readers[earlier].append(index)
    num_missing = [len(need) for need in needs]
    ready = [index for index, count in enumerate(num_missing) if count == 0]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for reader in readers[index]:
            num_missing[reader] -= 1
            if num_missing[reader] == 0:
                heapq.heappush(ready, reader)
    if len(order) < len(nodes):
        circle = _find_circle(needs, set(range(len(nodes))) - set(order))
        names = " <- ".join(describe(nodes[index]) for index in circle)
        raise ModelError(
            f"the nodes of a graph must not wait for each other; these do: {names}; "
            "export the model again"
        )
    return [nodes[index] for index in order]


def _find_circle(needs: Sequence[set[int]], stuck: set[int]) -> list[int]:
    """Follow needs among the stuck nodes until one comes round again; at most 8 are kept."""
    walk = [min(stuck)]
    while True:
        step = min(needs[walk[-1]] & stuck)
        if step in walk:
            return [*walk[walk.index(step) :][:8], step]
        walk.append(step)


def _given(graph: onnx.GraphProto) -> set[str]:
    """What a graph has without running a node: its inputs and its weights."""
    names = {value.name for value in graph.input}
    names |= {tensor.name for tensor in graph.initializer}
    return names | {sparse.values.name for sparse in graph.sparse_initializer}
