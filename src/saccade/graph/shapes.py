"""Shapes of all tensors of a graph once its inputs have sizes.

onnx's own inference knows what each operator does to shapes, but follows few of the small integer
computations (Shape, Gather, Div, Concat and so on) that exporters leave in a graph. So two steps
take turns until nothing new is found: onnx infers shapes; then nodes whose inputs are all known
are run and replaced by their results.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saccade.graph.external import extent_of, read_extent
from saccade.graph.topology import runnable_order, subgraphs

if TYPE_CHECKING:
    import onnx

__all__ = ["Shapes", "TensorShape", "declared_outputs", "infer_shapes"]

MAX_KNOWN_ELEMENTS = 4096
MAX_ROUNDS = 40

# Operators that exporters use to compute shapes, anchors and slice bounds.
# fmt: off
FOLDABLE = frozenset((
    "Abs", "Add", "And", "Cast", "Ceil", "Clip", "Concat", "ConstantOfShape", "Div",
    "Equal", "Expand", "Flatten", "Floor", "Gather", "Greater", "GreaterOrEqual",
    "Identity", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or",
    "Pow", "Range", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "Round",
    "Slice", "Sqrt", "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze", "Where",
))
# fmt: on
# What running a node may raise on operands that do not fit; such a node is left as it is.
MISFITS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class TensorShape:
    """Element type (onnx's number, 0 if unknown) and sizes of a tensor; "?" where unknown."""

    elem_type: int
    sizes: tuple[int | str, ...]

    @property
    def num_elements(self) -> int | None:
        """Elements, or None if a size is unknown."""
        known = [size for size in self.sizes if isinstance(size, int)]
        return math.prod(known) if len(known) == len(self.sizes) else None


@dataclass(frozen=True, slots=True)
class Shapes:
    """What inference found.

    Attributes:
        tensors: Tensor name to shape; tensors of unknown rank are left out.
        constants: Names of tensors that are small and the same for every picture.
        complaint: What onnx said when inference failed, or "".
    """

    tensors: Mapping[str, TensorShape]
    constants: frozenset[str]
    complaint: str = ""


def infer_shapes(
    proto: onnx.ModelProto, feeds: Mapping[str, tuple[int | str, ...]], *, model_path: Path
) -> Shapes:
    """Infer the shape of every tensor for inputs of given sizes.

    Shapes stored in the file are not used: they may belong to other input sizes.

    Args:
        proto: The model, weights in external files not loaded. Not changed.
        feeds: Input name to sizes; a string leaves an axis open.
        model_path: The model file, for small tensors that live in external files.
    """
    skeleton = _skeleton(proto, feeds, model_path)
    known = _known_values(skeleton)
    shapes: dict[str, TensorShape] = {}
    for _ in range(MAX_ROUNDS):
        inferred, complaint = _infer(skeleton)
        shapes.update(_collect(inferred.graph))
        found = _fold(skeleton, shapes, known)
        if not found:
            break
        _replace(skeleton, found)
        known.update(found)
    made = [name for node in skeleton.graph.node for name in node.output if name]
    if not complaint and any(name not in shapes for name in made):
        # The lenient inference above steps over contradictions in silence; the strict one tells.
        _, complaint = _infer(skeleton, is_strict=True)
    for name, value in known.items():
        shapes.setdefault(name, TensorShape(_elem_type(value), value.shape))
    return Shapes(shapes, frozenset(known), complaint)


def declared_outputs(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Outputs as the file declares them, completed by inference with the free axes left free."""
    skeleton = _skeleton(proto, {}, None)
    skeleton.graph.value_info.extend(proto.graph.value_info)
    del skeleton.graph.output[:]
    skeleton.graph.output.extend(proto.graph.output)
    inferred, _ = _infer(skeleton)
    return list(inferred.graph.output)


def _infer(skeleton: onnx.ModelProto, *, is_strict: bool = False) -> tuple[onnx.ModelProto, str]:
    import onnx

    try:
        return onnx.shape_inference.infer_shapes(
            skeleton, data_prop=True, strict_mode=is_strict
        ), ""
    except (
        onnx.shape_inference.InferenceError,
        onnx.checker.ValidationError,
        *MISFITS,
    ) as exc:
        return skeleton, " ".join(str(exc).split())[:300]


def _skeleton(
    proto: onnx.ModelProto,
    feeds: Mapping[str, tuple[int | str, ...]],
    model_path: Path | None,
) -> onnx.ModelProto:
    """A copy for inference: nodes in order, weights as mere inputs, only small tensors kept."""
    import onnx

    copy = onnx.ModelProto(ir_version=max(proto.ir_version, 4))
    copy.opset_import.extend(proto.opset_import)
    copy.functions.extend(proto.functions)
    graph, source = copy.graph, proto.graph
    graph.name = source.name or "graph"
    weights = {tensor.name for tensor in source.initializer}
    for value in source.input:
        if value.name not in weights:
            graph.input.add().CopyFrom(value)
            if value.name in feeds:
                _set_sizes(graph.input[-1], feeds[value.name])
    for tensor in source.initializer:
        _add_tensor(graph, tensor, tensor.name, model_path)
    for sparse in source.sparse_initializer:
        _add_weight(graph, sparse.values.name, sparse.values.data_type, sparse.dims)
    for node in runnable_order(source):
        stored = _constant_tensor(node)
        if stored is None:
            graph.node.add().CopyFrom(node)
        else:
            _add_tensor(graph, stored, node.output[0], model_path)
    for value in source.output:
        kept = graph.output.add()
        kept.CopyFrom(value)
        if kept.type.HasField("tensor_type"):
            kept.type.tensor_type.ClearField("shape")
    return copy


def _set_sizes(value: onnx.ValueInfoProto, sizes: tuple[int | str, ...]) -> None:
    shape = value.type.tensor_type.shape
    del shape.dim[:]
    for size in sizes:
        axis = shape.dim.add()
        if isinstance(size, int):
            axis.dim_value = size


def _constant_tensor(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The tensor of a Constant node; other forms of Constant are small and stay nodes."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or len(node.output) != 1:
        return None
    for attribute in node.attribute:
        if attribute.name == "value" and attribute.HasField("t"):
            return attribute.t
    return None


def _add_tensor(
    graph: onnx.GraphProto, tensor: onnx.TensorProto, name: str, model_path: Path | None
) -> None:
    if math.prod(tensor.dims) > MAX_KNOWN_ELEMENTS:
        _add_weight(graph, name, tensor.data_type, tensor.dims)
        return
    extent = extent_of(tensor)
    if extent is not None and model_path is None:
        _add_weight(graph, name, tensor.data_type, tensor.dims)
        return
    kept = graph.initializer.add()
    kept.CopyFrom(tensor)
    kept.name = name
    if extent is not None and model_path is not None:
        kept.ClearField("external_data")
        kept.ClearField("data_location")
        kept.raw_data = read_extent(extent, model_path)


def _add_weight(graph: onnx.GraphProto, name: str, elem_type: int, dims: Any) -> None:
    import onnx

    graph.input.append(onnx.helper.make_tensor_value_info(name, elem_type, list(dims)))


def _known_values(skeleton: onnx.ModelProto) -> dict[str, np.ndarray]:
    import onnx

    known = {}
    for tensor in skeleton.graph.initializer:
        try:
            known[tensor.name] = onnx.numpy_helper.to_array(tensor)
        except MISFITS:
            # A tensor whose lists do not fit its dims cannot be folded; a back end will say so.
            continue
    return known


def _collect(graph: onnx.GraphProto) -> Iterator[tuple[str, TensorShape]]:
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor_type = value.type.tensor_type
        if value.type.HasField("tensor_type") and tensor_type.HasField("shape"):
            sizes = tuple(
                int(dim.dim_value) if dim.HasField("dim_value") and dim.dim_value >= 0 else "?"
                for dim in tensor_type.shape.dim
            )
            yield value.name, TensorShape(tensor_type.elem_type, sizes)
    for tensor in graph.initializer:
        yield tensor.name, TensorShape(tensor.data_type, tuple(tensor.dims))
    for node in graph.node:
        for body in subgraphs(node):
            yield from _collect(body)


def _fold(
    skeleton: onnx.ModelProto,
    shapes: Mapping[str, TensorShape],
    known: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Values of the nodes that can be run now."""
    found: dict[str, np.ndarray] = {}
    values = dict(known)
    opsets = {
        "" if entry.domain == "ai.onnx" else entry.domain: entry.version
        for entry in skeleton.opset_import
    }
    for node in skeleton.graph.node:
        if node.domain not in ("", "ai.onnx") or len(node.output) != 1:
            continue
        if node.op_type in ("Shape", "Size"):
            value = _shape_value(node, shapes)
        else:
            value = _run(node, values, shapes, opsets)
        if value is not None:
            found[node.output[0]] = values[node.output[0]] = value
    return found


def _shape_value(node: onnx.NodeProto, shapes: Mapping[str, TensorShape]) -> np.ndarray | None:
    shape = shapes.get(node.input[0]) if node.input else None
    if shape is None:
        return None
    if node.op_type == "Size":
        count = shape.num_elements
        return None if count is None else np.array(count, np.int64)
    cut = {attribute.name: attribute.i for attribute in node.attribute}
    sizes = shape.sizes[cut.get("start", 0) : cut.get("end", len(shape.sizes))]
    if any(isinstance(size, str) for size in sizes):
        return None
    return np.array(sizes, np.int64)


def _run(
    node: onnx.NodeProto,
    known: Mapping[str, np.ndarray],
    shapes: Mapping[str, TensorShape],
    opsets: dict[str, int],
) -> np.ndarray | None:
    """Run one node if its inputs are known and its output will be small."""
    if node.op_type == "Constant":
        operands: dict[str, np.ndarray] = {}
    elif node.op_type in FOLDABLE and all(name in known for name in node.input if name):
        operands = {name: known[name] for name in node.input if name}
    else:
        return None
    shape = shapes.get(node.output[0])
    count = None if shape is None else shape.num_elements
    if count is None or count > MAX_KNOWN_ELEMENTS:
        return None
    from onnx.reference import ReferenceEvaluator

    try:
        with np.errstate(all="ignore"):
            (value,) = ReferenceEvaluator(_graph_of(node), opsets=opsets).run(None, operands)
    except MISFITS:
        return None
    return np.asarray(value) if np.size(value) == count else None


def _graph_of(node: onnx.NodeProto) -> onnx.GraphProto:
    """A node as a graph: alone, the evaluator would run it as in the newest operator set."""
    import onnx

    return onnx.GraphProto(
        name="node",
        node=[node],
        input=[onnx.ValueInfoProto(name=name) for name in node.input if name],
        output=[onnx.ValueInfoProto(name=name) for name in node.output],
    )


def _replace(skeleton: onnx.ModelProto, found: Mapping[str, np.ndarray]) -> None:
    import onnx

    graph = skeleton.graph
    for index in reversed(range(len(graph.node))):
        outputs = graph.node[index].output
        if len(outputs) == 1 and outputs[0] in found:
            del graph.node[index]
    for name, value in found.items():
        graph.initializer.append(onnx.numpy_helper.from_array(value, name))


def _elem_type(value: np.ndarray) -> int:
    import onnx

    return int(onnx.helper.np_dtype_to_tensor_dtype(value.dtype))
