"""What a network costs: parameters, arithmetic and memory, from its graph alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saccade.errors import InputError
from saccade.graph.external import num_bytes_of
from saccade.graph.liveness import LiveTensor, peak_of
from saccade.graph.reading import load_proto
from saccade.graph.shapes import Shapes, TensorShape, infer_shapes
from saccade.graph.signature import feed_shapes, picture_input, size_of
from saccade.graph.topology import runnable_order, subgraphs
from saccade.types import Model

if TYPE_CHECKING:
    import onnx

__all__ = ["Cost", "cost_of"]

NUM_LARGEST = 5
MAX_LISTED = 8

CONVOLUTIONS = frozenset(("Conv", "ConvInteger", "FusedConv", "QLinearConv"))
# Where the second matrix or kernel stands among a node's inputs.
KERNEL_INPUT = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3}
PRODUCTS = frozenset(("FusedMatMul", "MatMul", "MatMulInteger", "QLinearMatMul"))
GEMMS = frozenset(("FusedGemm", "Gemm", "QGemm"))
WEIGHT_READERS = frozenset(
    {"BatchNormalization", "ConvTranspose", "DequantizeLinear"} | CONVOLUTIONS | PRODUCTS | GEMMS
)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a network costs at one input size and batch.

    Attributes:
        size_hw: Height and width of the input in pixels.
        batch: Pictures per inference.
        num_parameters: Elements of all weights, bodies included: initializers, and Constant nodes
            that a convolution, product, normalisation or DequantizeLinear reads.
        multiply_adds: Multiplications with addition per picture, of convolutions and matrix
            products; element-wise operators, pooling and resizing are not counted.
        multiply_adds_by_type: The same per operator type, most first.
        weightless_multiply_adds: The part of multiply_adds in which neither operand is a weight
            (attention); some tools leave it out.
        weight_bytes: Stored size of initializers and Constant nodes.
        peak_activation_bytes: Largest sum of activations in memory at once, for the whole batch,
            if nodes run one by one in the order of the file. Weights, and tensors that follow
            from weights alone, are not activations; Identity and Reshape-like nodes share their
            input's memory; nothing is overwritten in place. A runtime's own figure differs by
            its work space, fusions and reuse.
        peak_node: The node that runs at that moment.
        largest_tensors: The five largest tensors at that moment, largest first.
        num_operators: Nodes per operator type, most first; bodies included.
        notes: What was not counted or counted with an assumption.
    """

    size_hw: tuple[int, int]
    batch: int
    num_parameters: int
    multiply_adds: int
    multiply_adds_by_type: Mapping[str, int]
    weightless_multiply_adds: int
    weight_bytes: int
    peak_activation_bytes: int
    peak_node: str
    largest_tensors: tuple[LiveTensor, ...]
    num_operators: Mapping[str, int]
    notes: tuple[str, ...]


def cost_of(model: Model, size_hw: tuple[int, int] | None = None, batch: int = 1) -> Cost:
    """Count parameters, multiply-adds and the memory of activations.

    Args:
        model: From read_model.
        size_hw: Height and width in pixels where the graph leaves them open; None for its own,
            or the trial size of signature_of.
        batch: Pictures per inference.

    Raises:
        InputError: The graph fixes another size or batch.
        ModelError: The model has no single picture input.
    """
    size_hw, _ = size_of(model, size_hw)
    _check_batch(model, batch)
    proto = load_proto(model)
    feeds = feed_shapes(model, size_hw, batch)
    shapes = infer_shapes(proto, feeds, model_path=model.path)
    order = runnable_order(proto.graph)
    nodes = _all_nodes(order)
    constants = _constants(proto.graph, nodes, shapes.constants)
    macs, notes = _multiply_adds(nodes, shapes.tensors)
    free = [node for node in nodes if constants.isdisjoint(node.input)]
    peak = peak_of(proto.graph, order, shapes.tensors, constants)
    if peak.unknown:
        notes.append(f"not in the memory, size unknown: {_listed(peak.unknown)}")
    return Cost(
        size_hw=size_hw,
        batch=batch,
        num_parameters=_num_parameters(proto.graph, nodes),
        multiply_adds=sum(macs.values()) // batch,
        multiply_adds_by_type={name: count // batch for name, count in macs.most_common()},
        weightless_multiply_adds=sum(_multiply_adds(free, shapes.tensors)[0].values()) // batch,
        weight_bytes=_weight_bytes(proto.graph, nodes),
        peak_activation_bytes=peak.num_bytes,
        peak_node=peak.node,
        largest_tensors=peak.tensors[:NUM_LARGEST],
        num_operators=dict(Counter(_kind(node) for node in nodes).most_common()),
        notes=(*_notes_of(proto, nodes, shapes), *notes),
    )


def _check_batch(model: Model, batch: int) -> None:
    own = picture_input(model)[0].shape[0]
    if batch < 1 or (isinstance(own, int) and own != batch):
        must = f"be {own}, which the graph fixes" if isinstance(own, int) else "be at least 1"
        raise InputError(
            f"the batch of {model.path} must {must}, got {batch}; "
            f"pass batch={own if isinstance(own, int) else 1}"
        )


def _kind(node: onnx.NodeProto) -> str:
    is_default = node.domain in ("", "ai.onnx")
    return str(node.op_type) if is_default else f"{node.domain}:{node.op_type}"


def _all_nodes(order: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Nodes and those of their bodies, each once."""
    nodes: list[onnx.NodeProto] = []
    for node in order:
        nodes.append(node)
        for body in subgraphs(node):
            nodes += _all_nodes(list(body.node))
    return nodes


def _constants(
    graph: onnx.GraphProto, nodes: list[onnx.NodeProto], folded: Collection[str]
) -> frozenset[str]:
    """Names of weights and of everything that follows from them alone, bodies included."""
    names = set(folded) | {tensor.name for tensor in _weights(graph, nodes)}
    for node in nodes:
        is_random = node.op_type.startswith(("Random", "Multinomial", "Bernoulli"))
        has_body = any(True for _ in subgraphs(node))
        if not is_random and not has_body and all(name in names for name in node.input if name):
            names.update(name for name in node.output if name)
    return frozenset(names)


def _weights(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    """Initializers of the graph and of all bodies."""
    bodies = [body for node in nodes for body in subgraphs(node)]
    for holder in (graph, *bodies):
        yield from holder.initializer
        yield from (sparse.values for sparse in holder.sparse_initializer)


def _constant_nodes(nodes: list[onnx.NodeProto]) -> Iterator[tuple[str, onnx.TensorProto]]:
    """What Constant nodes make, and the tensor stored in each."""
    for node in nodes:
        if node.op_type == "Constant" and node.output:
            yield from ((node.output[0], attr.t) for attr in node.attribute if attr.HasField("t"))


def _num_parameters(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> int:
    read = {name for node in nodes if node.op_type in WEIGHT_READERS for name in node.input}
    total: int = sum(math.prod(tensor.dims) for tensor in _weights(graph, nodes))
    stored = (tensor for name, tensor in _constant_nodes(nodes) if name in read)
    total += sum(math.prod(tensor.dims) for tensor in stored)
    return total


def _weight_bytes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> int:
    stored = [tensor for _, tensor in _constant_nodes(nodes)]
    return sum(num_bytes_of(tensor) for tensor in (*_weights(graph, nodes), *stored))


def _multiply_adds(
    nodes: list[onnx.NodeProto], shapes: Mapping[str, TensorShape]
) -> tuple[Counter[str], list[str]]:
    """Multiply-adds per operator type for the whole batch, and what could not be counted."""
    counts: Counter[str] = Counter()
    unknown: list[str] = []
    for node in nodes:
        if node.op_type not in CONVOLUTIONS | PRODUCTS | GEMMS | {"ConvTranspose"}:
            continue
        num = _multiply_adds_of(node, shapes)
        if num is None:
            unknown.append(node.name or node.output[0])
        else:
            counts[_kind(node)] += num
    notes = [f"multiply-adds not counted, shape unknown: {_listed(unknown)}"] if unknown else []
    return counts, notes


def _multiply_adds_of(node: onnx.NodeProto, shapes: Mapping[str, TensorShape]) -> int | None:
    """Multiply-adds of a convolution or matrix product, or None if a shape is unknown.

    Each output element of a convolution takes one per element of its filter; each input element
    of a transposed convolution likewise; each element of a product one per inner index.
    """
    kernel_input = KERNEL_INPUT.get(node.op_type, 1)
    if len(node.input) <= kernel_input or not node.output:
        return None
    source, kernel = shapes.get(node.input[0]), shapes.get(node.input[kernel_input])
    made = shapes.get(node.output[0])
    if node.op_type == "ConvTranspose":
        made = source
    num_made = made.num_elements if made else None
    num_kernel = kernel.num_elements if kernel else None
    if num_made is None or num_kernel is None or not kernel or not kernel.sizes or not source:
        return None
    if node.op_type in CONVOLUTIONS or node.op_type == "ConvTranspose":
        return num_made * num_kernel // max(int(kernel.sizes[0]), 1)
    flags = {attribute.name: attribute.i for attribute in node.attribute}
    axis = -2 if flags.get("transA", 0) else -1
    inner = source.sizes[axis] if len(source.sizes) >= -axis else "?"
    return num_made * inner if isinstance(inner, int) else None


def _notes_of(
    proto: onnx.ModelProto, nodes: list[onnx.NodeProto], shapes: Shapes
) -> tuple[str, ...]:
    import onnx

    notes = []
    if shapes.complaint:
        notes.append(f"onnx could not infer all shapes: {shapes.complaint}")
    bodies = sorted({_kind(node) for node in nodes if any(True for _ in subgraphs(node))})
    if bodies:
        notes.append(f"bodies counted once, whatever their number of rounds: {_listed(bodies)}")
    opset = max(e.version for e in proto.opset_import if e.domain in ("", "ai.onnx"))
    unknown = sorted(
        {
            _kind(node)
            for node in nodes
            if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type, opset, "")
        }
        - CONVOLUTIONS
    )
    if unknown:
        notes.append(f"operators not of the ONNX standard, not counted: {_listed(unknown)}")
    return tuple(notes)


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:MAX_LISTED])
    more = len(names) - MAX_LISTED
    return f"{shown} and {more} more" if more > 0 else shown
