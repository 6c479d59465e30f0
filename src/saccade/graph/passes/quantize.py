"""Explicit INT8: QuantizeLinear and DequantizeLinear written into the graph.

Symmetric and signed with zero point 0, because that is what every runtime reads alike: a scale
per output channel for weights, which are stored as INT8, and one per tensor for activations.
Biases stay in floating point: an INT32 bias behind a DequantizeLinear is refused by TensorRT.

Activations are rounded where they are made. What is put together by moves (Concat, MaxPool,
Slice, Resize by repetition and so on) on its way to a convolution shares one scale, and the moves
themselves move INT8 codes: DequantizeLinear comes behind them, right before the convolution.
OpenVINO 2026.4 computes wrong values if signed quantisers come right before or right behind a
Concat (it turns codes into unsigned ones and loses the offset), so their place is not a matter of
taste. A move whose values are wanted as well, by a node that is kept, say, is doubled. What the
head, an activation function or a residual sum reads is not rounded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from saccade.errors import BuildError
from saccade.graph.passes.elements import elem_types
from saccade.graph.passes.parts import SIZE_READERS, WEIGHTED, moved, parts_of
from saccade.graph.passes.qdq_writer import QdqWriter
from saccade.graph.passes.scale_groups import ScaleGroups, scale_groups

if TYPE_CHECKING:
    import onnx

__all__ = ["is_quantized", "quantizable_nodes", "quantized_tensors", "to_qdq"]

_FLOAT = 1
_CONVOLUTIONS = frozenset(("Conv", "ConvTranspose"))
# fmt: off
_QUANTIZERS = frozenset((
    "ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv",
    "QLinearMatMul", "QuantizeLinear",
))
# fmt: on


def is_quantized(proto: onnx.ModelProto) -> bool:
    """Whether a graph has been quantised already."""
    return any(node.op_type in _QUANTIZERS for node in proto.graph.node)


def quantizable_nodes(graph: onnx.GraphProto) -> tuple[str, ...]:
    """Names of the nodes of a tidy graph that compute in INT8 if none is kept, in graph order.

    Not the first ones, which read pixels, and not the head. Matrix products are taken only in
    graphs whose body is made of them: beside convolutions they are few and sensitive (attention,
    box refinement).
    """
    parts = parts_of(graph)
    nodes = {node.name: node for node in graph.node}
    dims = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    names = [name for name in parts.weighted if name not in parts.first]
    convs = [name for name in names if nodes[name].op_type in _CONVOLUTIONS]
    return tuple(convs or [name for name in names if dims[nodes[name].input[1]] == 2])


def quantized_tensors(
    proto: onnx.ModelProto, *, kept: Collection[str] = (), everything: bool = False
) -> tuple[str, ...]:
    """Names of the tensors whose ranges `to_qdq` asks for, sorted."""
    if everything:
        return tuple(sorted(_all_tensors(proto)))
    stored = {tensor.name for tensor in proto.graph.initializer}
    groups = scale_groups(proto.graph, _chosen(proto.graph, kept), kept)
    return tuple(sorted(groups.roots - stored))


def to_qdq(
    proto: onnx.ModelProto,
    ranges: Mapping[str, float],
    kept: Collection[str] = (),
    *,
    everything: bool = False,
) -> onnx.ModelProto:
    """A quantised copy of a tidy graph.

    Args:
        proto: From `tidy`.
        ranges: Largest absolute value per tensor, at least for `quantized_tensors`.
        kept: Names of nodes that stay in floating point.
        everything: Round every tensor, with the first layer, the head and the outputs.

    Raises:
        BuildError: A name in kept is no node, nothing is left to quantise, a range is missing.
    """
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(proto)
    _check_kept(made.graph, kept)
    if everything:
        writer = QdqWriter(made.graph, ranges)
        _quantize_all(made, writer, kept)
    else:
        chosen = _chosen(made.graph, kept)
        groups = scale_groups(made.graph, chosen, kept)
        writer = QdqWriter(made.graph, _with_stored(made.graph, ranges, groups.roots))
        _quantize_body(made.graph, writer, chosen, groups)
    writer.finish()
    return made


def _with_stored(
    graph: onnx.GraphProto, ranges: Mapping[str, float], names: Collection[str]
) -> Mapping[str, float]:
    """Ranges with those of stored tensors that are put together with activations."""
    from onnx import numpy_helper

    found = dict(ranges)
    for tensor in graph.initializer:
        if tensor.name in names:
            values = numpy_helper.to_array(tensor).astype(np.float64)
            found[tensor.name] = float(np.abs(values).max(initial=0))
    return found


def _check_kept(graph: onnx.GraphProto, kept: Collection[str]) -> None:
    unknown = sorted(set(kept) - {node.name for node in graph.node})
    if unknown:
        raise BuildError(
            f"nodes kept in FP32 must be nodes of the graph, {', '.join(unknown[:5])} are none; "
            "take the names from a build of this very model"
        )


def _chosen(graph: onnx.GraphProto, kept: Collection[str]) -> list[onnx.NodeProto]:
    names = set(quantizable_nodes(graph)) - set(kept)
    if not names:
        raise BuildError(
            "a graph must have a convolution or product with stored weights behind its first one "
            "to be quantised, none is left here; use fp16, or keep fewer nodes in FP32"
        )
    return [node for node in graph.node if node.name in names]


def _quantize_body(
    graph: onnx.GraphProto,
    writer: QdqWriter,
    chosen: Sequence[onnx.NodeProto],
    groups: ScaleGroups,
) -> None:
    for members in groups.groups():
        writer.set_scale([name for name in members if name in groups.roots], members)
    for name in sorted(groups.roots):
        writer.quantize(name)
    movers = [node for node in graph.node if node.name in groups.movers]
    replaced = [node for node in movers if groups.exact.isdisjoint(node.output)]
    coded = {name for node in replaced for name in node.output}
    chosen_names = {node.name for node in chosen}
    for node in graph.node:
        if node.name in chosen_names:
            node.input[0] = writer.rounded(node.input[0])
            if node.op_type in _CONVOLUTIONS:
                writer.give_bias(node)
            writer.quantize_weight(node)
        elif node.name not in groups.movers:
            use = writer.code if node.op_type in SIZE_READERS else writer.rounded
            node.input[:] = [use(name) if name in coded else name for name in node.input]
    for node in movers:
        if node not in replaced:
            node = writer.twin(node)
        for index, name in enumerate(moved(node)):
            node.input[index] = writer.code(name)
        node.output[:] = [writer.code(name) for name in node.output]


def _quantize_all(proto: onnx.ModelProto, writer: QdqWriter, kept: Collection[str]) -> None:
    graph = proto.graph
    names = set(_all_tensors(proto))
    # The last axis of a matrix is its output channel; a vector has none.
    weights = {tensor.name for tensor in graph.initializer if len(tensor.dims) > 1}
    makers = {name: node.name for node in graph.node for name in node.output}
    for name in sorted(names):
        writer.set_scale([name], [name])
        writer.quantize(name)
    for node in graph.node:
        if node.name in kept:
            continue
        node.input[:] = [writer.rounded(name) if name in names else name for name in node.input]
        if node.op_type in WEIGHTED and len(node.input) > 1 and node.input[1] in weights:
            writer.quantize_weight(node)
    for value in graph.output:
        if value.name in names and makers.get(value.name) not in (None, *kept):
            writer.round_output(value.name)


def _all_tensors(proto: onnx.ModelProto) -> list[str]:
    """Every floating-point tensor that depends on the inputs, these included."""
    types = elem_types(proto)
    shapes = parts_of(proto.graph).shapes
    names = [value.name for value in proto.graph.input]
    names += [out for node in proto.graph.node if node.name not in shapes for out in node.output]
    return [name for name in names if name and types[name] == _FLOAT]
