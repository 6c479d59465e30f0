"""Element type of every tensor of a tidy graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saccade.errors import BuildError
from saccade.graph.topology import describe, reads

if TYPE_CHECKING:
    import onnx

__all__ = ["elem_types"]


def elem_types(proto: onnx.ModelProto) -> dict[str, int]:
    """Tensor name to onnx's number of its element type.

    Raises:
        BuildError: onnx cannot tell what a node makes; names it.
    """
    import onnx

    graph = proto.graph
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(proto)
    # Weights as mere inputs: their values say nothing about types and are large.
    large = [tensor for tensor in skeleton.graph.initializer if len(tensor.raw_data) > 4096]
    for tensor in large:
        value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        skeleton.graph.input.append(value)
        skeleton.graph.initializer.remove(tensor)
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton).graph
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        reason = " ".join(str(exc).split())[:300]
        raise BuildError(
            "the element type of every tensor must be known to change precision, onnx cannot "
            f"infer them ({reason}); export the model with known operators"
        ) from exc
    types = {tensor.name: int(tensor.data_type) for tensor in graph.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        if value.type.HasField("tensor_type") and value.type.tensor_type.elem_type:
            types.setdefault(value.name, int(value.type.tensor_type.elem_type))
    for node in graph.node:
        for name in filter(None, node.output):
            if name in types:
                continue
            if not all(read in types for read in reads(node)) or node.domain:
                raise BuildError(
                    f"the element type of every tensor must be known to change precision, onnx "
                    f"cannot tell that of {name!r}, made by {describe(node)}; export the model "
                    "without this operator"
                )
            types[name] = types[node.input[0]] if node.input else onnx.TensorProto.FLOAT
    return types
