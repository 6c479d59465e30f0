"""Bring a graph into the one form that the other passes expect. Its meaning does not change.

Afterwards weights are initializers and not inputs, functions are written out, every node has a
name of its own and comes after those it reads from, convolutions have swallowed their batch
norms, the opset is 13 or newer, and no shapes are noted that may be out of date.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from saccade.errors import BuildError
from saccade.graph.passes.fold_norm import fold_norm
from saccade.graph.topology import runnable_order, subgraphs

if TYPE_CHECKING:
    import onnx

__all__ = ["MIN_OPSET", "drop_unread_weights", "opset_of", "tidy"]

# The first opset whose DequantizeLinear takes one scale per channel.
MIN_OPSET = 13
# The IR version that came with opset 13.
_MIN_IR = 7


def tidy(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A tidy copy of a model whose weights are all loaded.

    Node names that are unique stay. A node without a name gets one from what it makes, so that
    the same file always gives the same names.

    Raises:
        BuildError: onnx cannot raise the opset of this graph.
    """
    import onnx
    import onnx.inliner

    made = onnx.ModelProto()
    made.CopyFrom(proto)
    if made.functions:
        made = onnx.inliner.inline_local_functions(made)
    made.ir_version = max(made.ir_version, _MIN_IR)
    _drop_weight_inputs(made.graph)
    _sort(made.graph)
    _name_nodes(made.graph)
    if opset_of(made) < MIN_OPSET:
        made = _raised(made)
        _name_nodes(made.graph)
    _store_constants(made.graph)
    fold_norm(made.graph)
    drop_unread_weights(made.graph)
    del made.graph.value_info[:]
    return made


def opset_of(proto: onnx.ModelProto) -> int:
    """Version of the default operator set."""
    return int(
        max(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    )


def _drop_weight_inputs(graph: onnx.GraphProto) -> None:
    weights = {tensor.name for tensor in graph.initializer}
    fed = [value for value in graph.input if value.name not in weights]
    del graph.input[:]
    graph.input.extend(fed)


def _sort(graph: onnx.GraphProto) -> None:
    import onnx

    order = [onnx.NodeProto.FromString(node.SerializeToString()) for node in runnable_order(graph)]
    del graph.node[:]
    graph.node.extend(order)


def _name_nodes(graph: onnx.GraphProto) -> None:
    taken: set[str] = set()
    for node in graph.node:
        name = node.name or f"{node.op_type}:{next(filter(None, node.output), '')}"
        unique, number = name, 1
        while unique in taken:
            number += 1
            unique = f"{name}#{number}"
        taken.add(unique)
        node.name = unique


def _raised(proto: onnx.ModelProto) -> onnx.ModelProto:
    import onnx

    try:
        return onnx.version_converter.convert_version(proto, MIN_OPSET)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as exc:
        reason = " ".join(str(exc).split())[:300]
        raise BuildError(
            f"the opset must be {MIN_OPSET} or newer for lower precision, it is "
            f"{opset_of(proto)}, and onnx cannot raise it ({reason}); export the model with a "
            "newer opset"
        ) from exc


def _store_constants(graph: onnx.GraphProto) -> None:
    """Turn Constant nodes that hold a tensor into initializers."""
    outputs = {value.name for value in graph.output}
    kept = []
    for node in graph.node:
        tensor = _stored(node)
        if tensor is None or node.output[0] in outputs:
            kept.append(node)
            continue
        weight = graph.initializer.add()
        weight.CopyFrom(tensor)
        weight.name = node.output[0]
    nodes = [type(node).FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(nodes)


def _stored(node: onnx.NodeProto) -> onnx.TensorProto | None:
    import onnx

    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or not node.attribute:
        return None
    attribute = node.attribute[0]
    if attribute.name == "value":
        return attribute.t
    if attribute.name in ("value_float", "value_floats"):
        return onnx.helper.make_tensor(
            "", onnx.TensorProto.FLOAT, *_flat(attribute.name, attribute.f, attribute.floats)
        )
    if attribute.name in ("value_int", "value_ints"):
        return onnx.helper.make_tensor(
            "", onnx.TensorProto.INT64, *_flat(attribute.name, attribute.i, attribute.ints)
        )
    return None


def _flat(name: str, one: float, several: list[float]) -> tuple[list[int], list[float]]:
    return ([len(several)], list(several)) if name.endswith("s") else ([], [one])


def drop_unread_weights(graph: onnx.GraphProto) -> None:
    read = {value.name for value in graph.output} | set(_all_reads(graph))
    weights = [tensor for tensor in graph.initializer if tensor.name in read]
    copies = [type(tensor).FromString(tensor.SerializeToString()) for tensor in weights]
    del graph.initializer[:]
    graph.initializer.extend(copies)


def _all_reads(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from node.input
        for body in subgraphs(node):
            yield from _all_reads(body)
            yield from (value.name for value in body.output)
