"""FP16 written into the graph: weights, activations, and casts only where precisions meet.

The graph is strongly typed, so it means the same in every runtime. What FP16 cannot hold stays in
FP32, as islands:

    the head           box coordinates: from 512 to 1024 pixels FP16 has steps of half a pixel
    computed sizes     anchors, grids and scales that do not depend on the picture
    wide operators     exponentials, powers, sums and the like, which overflow or cancel
    large constants    beyond 65504, FP16's largest number
    ordering           TopK, NonMaxSuppression: ties appear where FP16 rounds scores together
    control flow       If, Loop, Scan, with what they read

The inputs and outputs of the graph keep their types.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np

from saccade.errors import BuildError
from saccade.graph.passes.elements import elem_types
from saccade.graph.passes.parts import is_move, parts_of
from saccade.graph.passes.tidy import drop_unread_weights
from saccade.graph.topology import producers, reads, subgraphs

if TYPE_CHECKING:
    import onnx

__all__ = ["MAX_FP16", "islands_of", "to_fp16"]

MAX_FP16 = 65504.0
_FLOAT, _FLOAT16 = 1, 10
# fmt: off
_WIDE = frozenset((
    "BatchNormalization", "CumSum", "DynamicQuantizeLinear", "Exp", "GlobalAveragePool",
    "GridSample", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "Log",
    "LogSoftmax", "LpNormalization", "MeanVarianceNormalization", "Multinomial",
    "NonMaxSuppression", "Pow", "QuantizeLinear", "RandomNormal", "RandomNormalLike",
    "RandomUniform", "RandomUniformLike", "Range", "Reciprocal", "ReduceL1", "ReduceL2",
    "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare",
    "RoiAlign", "Softmax", "Sqrt", "TopK",
))
# fmt: on
# Inputs that are FP32 by the operator's definition, in FP16 graphs too.
_ALWAYS_FP32 = {"Resize": (1, 2), "Upsample": (1,)}


def to_fp16(proto: onnx.ModelProto, kept: Collection[str] = ()) -> onnx.ModelProto:
    """A copy of a tidy graph that computes in FP16.

    Args:
        proto: From `tidy`.
        kept: Names of nodes that stay in FP32, besides those that always do.

    Raises:
        BuildError: A name in kept is no node, or nothing is left for FP16.
    """
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(proto)
    islands = islands_of(made, kept)
    if all(node.name in islands for node in made.graph.node):
        raise BuildError(
            "a graph must have a node that FP16 does not harm to be converted, all stay in FP32 "
            "here; use fp32, or keep fewer nodes"
        )
    _Converter(made, islands).convert()
    return made


def islands_of(proto: onnx.ModelProto, kept: Collection[str] = ()) -> frozenset[str]:
    """Names of the nodes of a tidy graph that stay in FP32."""
    graph = proto.graph
    unknown = sorted(set(kept) - {node.name for node in graph.node})
    if unknown:
        raise BuildError(
            f"nodes kept in FP32 must be nodes of the graph, {', '.join(unknown[:5])} are none; "
            "take the names from a build of this very model"
        )
    parts = parts_of(graph)
    wide_weights = _wide_weights(graph)
    islands = set(kept) | parts.head | parts.shapes
    for node in graph.node:
        is_foreign = node.domain not in ("", "ai.onnx")
        has_body = any(True for _ in subgraphs(node))
        if node.op_type in _WIDE or is_foreign or has_body or wide_weights & set(node.input):
            islands.add(node.name)
    return frozenset(islands | _enclosed(graph, islands))


def _wide_weights(graph: onnx.GraphProto) -> set[str]:
    from onnx import numpy_helper

    names = set()
    for tensor in graph.initializer:
        if tensor.data_type == _FLOAT:
            values = np.abs(numpy_helper.to_array(tensor))
            # A number that FP16 makes zero (an epsilon) is as wrong as one that it cannot reach.
            smallest = values[values > 0].min(initial=np.inf)
            is_lost = smallest < 2.0**-25 and values.size == 1
            if is_lost or not (values.max(initial=0) <= MAX_FP16):
                names.add(tensor.name)
    return names


def _enclosed(graph: onnx.GraphProto, islands: Collection[str]) -> set[str]:
    """Moves and sums between islands: converting there and back would gain nothing."""
    makers = producers(graph)
    weighted = set(parts_of(graph).weighted)
    readers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in reads(node):
            readers.setdefault(name, []).append(node.name)
    found: set[str] = set()
    for node in graph.node:
        before = [makers[name].name for name in reads(node) if name in makers]
        after = [reader for name in node.output for reader in readers.get(name, [])]
        if node.name in weighted or node.name in islands or not before or not after:
            continue
        if all(name in islands or name in found for name in before) and (
            is_move(node) or all(name in islands for name in after)
        ):
            found.add(node.name)
    return found


class _Converter:
    """Converts one graph in place."""

    def __init__(self, proto: onnx.ModelProto, islands: Collection[str]) -> None:
        self._graph = proto.graph
        self._islands = islands
        self._types: Mapping[str, int] = elem_types(proto)
        self._weights = {tensor.name: tensor for tensor in proto.graph.initializer}
        self._halves = {
            name
            for node in proto.graph.node
            if node.name not in islands
            for name in node.output
            if self._types.get(name) == _FLOAT
        }
        self._casts: dict[tuple[str, int], onnx.NodeProto] = {}

    def convert(self) -> None:
        """Retype nodes, weights and borders."""
        for node in self._graph.node:
            is_island = node.name in self._islands
            fixed = _ALWAYS_FP32.get(node.op_type, ())
            for index, name in enumerate(node.input):
                if name and self._types.get(name) == _FLOAT:
                    keep = is_island or index in fixed
                    node.input[index] = self._as(name, _FLOAT if keep else _FLOAT16)
            if is_island:
                self._fix_bodies(node)
            else:
                _retype(node)
        self._fix_outputs()
        self._place_casts()
        drop_unread_weights(self._graph)

    def _as(self, name: str, elem_type: int) -> str:
        """The name under which a FP32 tensor of the original graph is found in a type."""
        has = _FLOAT16 if name in self._halves else _FLOAT
        if has == elem_type:
            return name
        if name in self._weights:
            return self._half_weight(name)
        made = f"{name}:{'fp16' if elem_type == _FLOAT16 else 'fp32'}"
        if (name, elem_type) not in self._casts:
            from onnx import helper

            self._casts[name, elem_type] = helper.make_node(
                "Cast", [name], [made], f"{made}:cast", to=elem_type
            )
        return made

    def _half_weight(self, name: str) -> str:
        from onnx import numpy_helper

        made = f"{name}:fp16"
        if made not in self._weights:
            value = numpy_helper.to_array(self._weights[name]).astype(np.float16)
            self._graph.initializer.append(numpy_helper.from_array(value, made))
            self._weights[made] = self._graph.initializer[-1]
        return made

    def _fix_bodies(self, node: onnx.NodeProto) -> None:
        """Let the bodies of control flow read FP32 versions of what they take from outside."""
        for body in subgraphs(node):
            for inner in body.node:
                inner.input[:] = [
                    self._as(name, _FLOAT) if name in self._halves else name for name in inner.input
                ]
                self._fix_bodies(inner)
            for value in body.output:
                if value.name in self._halves:
                    value.name = self._as(value.name, _FLOAT)

    def _fix_outputs(self) -> None:
        """Outputs of the graph stay FP32 under their names: what made them is renamed."""
        from onnx import helper

        for value in self._graph.output:
            if value.name not in self._halves:
                continue
            name, half = value.name, f"{value.name}:fp16"
            for node in self._graph.node:
                node.output[:] = [half if made == name else made for made in node.output]
                # Nodes of FP16 read the half; islands read the cast, which is the output itself.
                own = half if node.name not in self._islands else name
                node.input[:] = [own if read == name else read for read in node.input]
                node.input[:] = [name if read == f"{name}:fp32" else read for read in node.input]
            self._casts.pop((name, _FLOAT), None)
            cast = helper.make_node("Cast", [half], [name], f"{name}:cast", to=_FLOAT)
            self._casts[half, _FLOAT] = cast

    def _place_casts(self) -> None:
        behind: dict[str, list[onnx.NodeProto]] = {}
        for cast in self._casts.values():
            behind.setdefault(cast.input[0], []).append(cast)
        nodes = [cast for value in self._graph.input for cast in behind.pop(value.name, [])]
        for node in self._graph.node:
            nodes.append(node)
            for name in node.output:
                nodes += behind.pop(name, [])
        copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
        del self._graph.node[:]
        self._graph.node.extend(copies)


def _retype(node: onnx.NodeProto) -> None:
    """Turn FP32 in a node's attributes into FP16."""
    from onnx import numpy_helper

    for attribute in node.attribute:
        if attribute.name in ("to", "dtype") and attribute.i == _FLOAT:
            attribute.i = _FLOAT16
        if attribute.HasField("t") and attribute.t.data_type == _FLOAT:
            value = numpy_helper.to_array(attribute.t).astype(np.float16)
            attribute.t.CopyFrom(numpy_helper.from_array(value, attribute.t.name))
