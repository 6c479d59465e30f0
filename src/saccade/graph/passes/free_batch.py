"""Free the batch of a graph that was exported for one picture.

Exporters write the number of pictures into shapes: as the first entry of a Reshape, or merged with
other axes (a channel shuffle that views (1, c, h, w) as (c / 2, 2, h * w)). For each tensor this
pass keeps the axis in which the pictures of a batch lie one after another, follows it through
every node, and writes that axis of each Reshape as -1. A node that would mix pictures, or whose
rule is not known, is named and the graph is refused: nothing is guessed.

At batch n the tracked axis is n times as long, pictures outermost; all other axes stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade.errors import BuildError
from saccade.graph.shapes import Shapes, infer_shapes
from saccade.graph.topology import describe, runnable_order, subgraphs

if TYPE_CHECKING:
    import onnx

__all__ = ["FREE_AXIS", "free_batch"]

FREE_AXIS = "batch"

# fmt: off
_ELEMENTWISE = frozenset((
    "Abs", "Add", "And", "Atan", "Cast", "Ceil", "Clip", "Cos", "DequantizeLinear", "Div",
    "Dropout", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual",
    "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max",
    "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "QuantizeLinear",
    "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sub",
    "Sum", "Tanh", "Where", "Xor",
))
# Each picture by itself as long as the pictures are the whole first axis.
_PER_PICTURE = frozenset((
    "AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "DepthToSpace",
    "GlobalAveragePool", "GlobalMaxPool", "InstanceNormalization", "LRN", "MaxPool",
    "SpaceToDepth",
))
_REDUCTIONS = frozenset((
    "ArgMax", "ArgMin", "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
))
# fmt: on


class _Mixes(Exception):
    """A node that this pass cannot follow; the reason."""


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """One node with what is known at batch 1."""

    node: onnx.NodeProto
    opset: int
    sizes: Mapping[str, tuple[int, ...]]
    axes: Mapping[str, int]
    numbers: Mapping[str, list[int]]

    def attribute(self, name: str, default: Any) -> Any:
        import onnx

        for attribute in self.node.attribute:
            if attribute.name == name:
                return onnx.helper.get_attribute_value(attribute)
        return default

    def given(self, index: int, attribute: str) -> list[int] | None:
        """Integers from an attribute (older operator sets) or a stored operand."""
        stored = self.attribute(attribute, None)
        if stored is not None:
            return [int(number) for number in stored]
        if index >= len(self.node.input) or not self.node.input[index]:
            return None
        if self.node.input[index] not in self.numbers:
            raise _Mixes(f"its input {index} is not stored in the graph")
        return list(self.numbers[self.node.input[index]])

    @property
    def shape(self) -> tuple[int, ...]:
        return self.sizes[self.node.input[0]]

    @property
    def axis(self) -> int:
        if self.node.input[0] not in self.axes:
            raise _Mixes("its first input is the same for all pictures")
        return self.axes[self.node.input[0]]


def free_batch(proto: onnx.ModelProto, *, model_path: Path) -> onnx.ModelProto:
    """A copy of a model for any number of pictures.

    Args:
        proto: A model whose inputs all have 1 as first size. Weights are loaded.
        model_path: Where it came from, for small tensors in external files.

    Raises:
        BuildError: A node mixes the pictures of a batch, or cannot be followed.
    """
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(proto)
    graph = made.graph
    weights = {tensor.name for tensor in graph.initializer}
    fed = [value for value in graph.input if value.name not in weights]
    shapes = infer_shapes(proto, {}, model_path=model_path)
    sizes = {
        name: tuple(int(size) for size in shape.sizes)
        for name, shape in shapes.tensors.items()
        if shape.num_elements is not None
    }
    firsts = {value.name: sizes.get(value.name, (0,))[:1] for value in fed}
    if any(first != (1,) for first in firsts.values()):
        raise BuildError(
            f"a batch can be freed where every input is for 1 picture, these are for {firsts}; "
            "export the model with a free batch axis"
        )
    _rewrite(made, sizes, {value.name: 0 for value in fed})
    for value in (*fed, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = FREE_AXIS
    del graph.value_info[:]
    _check(made, sizes, infer_shapes(made, {v.name: (2, *sizes[v.name][1:]) for v in fed},
                                     model_path=model_path))  # fmt: skip
    return made


def _rewrite(
    made: onnx.ModelProto, sizes: Mapping[str, tuple[int, ...]], axes: dict[str, int]
) -> None:
    import onnx

    graph = made.graph
    opset = max(entry.version for entry in made.opset_import if entry.domain in ("", "ai.onnx"))
    numbers = _stored_numbers(graph)
    counts: set[str] = set()  # what is computed from shapes, and so from the number of pictures
    for node in runnable_order(graph):
        if any(subgraphs(node)):
            raise _refused(node, "it has a body")
        has_pictures = any(name in axes for name in node.input)
        has_counts = any(name in counts for name in node.input)
        if node.op_type in ("Shape", "Size") or not has_pictures:
            counts.update(node.output if has_pictures or has_counts else ())
            continue
        if has_counts and node.op_type != "Reshape":
            raise _refused(node, "it reads what is computed from the number of pictures")
        try:
            rule = _rule_of(node)
            unknown = [name for name in (*node.input, *node.output) if name and name not in sizes]
            if unknown:
                raise _Mixes(f"the shape of {unknown[0]!r} is not known")
            axis = rule(_Step(node, opset, sizes, axes, numbers))
        except _Mixes as exc:
            raise _refused(node, str(exc)) from exc
        axes.update({name: axis for name in node.output if name})
        if node.op_type == "Reshape":
            target = [-1 if i == axis else n for i, n in enumerate(sizes[node.output[0]])]
            name = f"{node.output[0]}_shape_of_any_batch"
            graph.initializer.append(
                onnx.helper.make_tensor(name, onnx.TensorProto.INT64, [len(target)], target)
            )
            node.input[1] = name
    for output in graph.output:
        if axes.get(output.name) != 0 or sizes[output.name][0] != 1:
            raise BuildError(
                "the batch of a graph can be freed if each output has the pictures as first axis, "
                f"{output.name!r} has not; export the model with a free batch axis"
            )


def _refused(node: onnx.NodeProto, reason: str) -> BuildError:
    return BuildError(
        "the batch of a graph can be freed if each node keeps pictures apart; "
        f"{describe(node)} does not, or is not known to: {reason}; "
        "export the model with a free batch axis"
    )


def _check(made: onnx.ModelProto, sizes: Mapping[str, tuple[int, ...]], of_two: Shapes) -> None:
    """At two pictures every output must be twice as long in its first axis, and only there."""
    for output in made.graph.output:
        found = of_two.tensors.get(output.name)
        wanted = (2, *sizes[output.name][1:])
        if found is None or found.sizes != wanted:
            raise BuildError(
                f"with 2 pictures output {output.name!r} must have shape {wanted}, it has "
                f"{found.sizes if found else 'none'} {of_two.complaint}; "
                "export the model with a free batch axis"
            )


def _stored_numbers(graph: onnx.GraphProto) -> dict[str, list[int]]:
    """Small stored tensors as flat lists."""
    import onnx

    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            stored[node.output[0]] = node.attribute[0].t
    return {
        name: onnx.numpy_helper.to_array(tensor).flatten().tolist()
        for name, tensor in stored.items()
        if math.prod(tensor.dims) <= 64
    }


Rule = Callable[[_Step], int]


def _rule_of(node: onnx.NodeProto) -> Rule:
    if node.domain in ("", "ai.onnx"):
        if node.op_type in _ELEMENTWISE:
            return _elementwise
        if node.op_type in _PER_PICTURE:
            return _per_picture
        if node.op_type in _REDUCTIONS:
            return _reduction
        if node.op_type in _RULES:
            return _RULES[node.op_type]
    raise _Mixes("there is no rule for this operator")


def _apart(axis: int, others: list[int], rank: int) -> None:
    if axis in {other % rank for other in others}:
        raise _Mixes(f"it works along axis {axis}, in which the pictures lie")


def _elementwise(step: _Step) -> int:
    """Axes are aligned at the end; what is the same for all pictures must not vary along it."""
    rank = len(step.sizes[step.node.output[0]])
    found = {
        step.axes[name] + rank - len(step.sizes[name])
        for name in step.node.input
        if name in step.axes
    }
    if len(found) != 1:
        raise _Mixes(f"the pictures lie in different axes of its inputs: {sorted(found)}")
    (axis,) = found
    for name in step.node.input:
        shape = step.sizes.get(name, ())
        place = axis - rank + len(shape)
        is_scalar_list = len(shape) < 2 and step.node.op_type.endswith("Linear")
        is_stored = name and name not in step.axes
        if is_stored and place >= 0 and not is_scalar_list and shape[place] != 1:
            raise _Mixes(f"{name!r} varies along axis {axis}, in which the pictures lie")
    return axis


def _per_picture(step: _Step) -> int:
    if step.axis != 0 or step.shape[0] != 1:
        raise _Mixes("it needs the pictures as a first axis of their own")
    if any(name in step.axes for name in step.node.input[1:]):
        raise _Mixes("its weights depend on the picture")
    return 0


def _reduction(step: _Step) -> int:
    rank, axis = len(step.shape), step.axis
    if step.node.op_type.startswith("Arg"):
        over: list[int] | None = [step.attribute("axis", 0)]
    else:
        over = step.given(1, "axes")
    gone = {a % rank for a in (over if over else range(rank))}
    _apart(axis, sorted(gone), rank)
    return axis if step.attribute("keepdims", 1) else axis - sum(a < axis for a in gone)


def _reshape(step: _Step) -> int:
    """The axis that starts where the pictures lie in memory."""
    before = math.prod(step.shape[: step.axis])
    target = step.sizes[step.node.output[0]]
    for axis in range(len(target)):
        if math.prod(target[:axis]) == before:
            return axis
    raise _Mixes(f"no axis of {target} starts where the pictures of {step.shape} lie")


def _flatten(step: _Step) -> int:
    if step.axis != 0 or step.attribute("axis", 1) % len(step.shape) == 0:
        raise _Mixes("it joins the pictures with what they hold")
    return 0


def _transpose(step: _Step) -> int:
    order = step.attribute("perm", list(range(len(step.shape)))[::-1])
    return list(order).index(step.axis)


def _concat(step: _Step) -> int:
    names = list(step.node.input)
    found = {step.axes.get(name) for name in names}
    if len(found) != 1:
        raise _Mixes("the pictures lie in different axes of its inputs, or not in all of them")
    _apart(step.axis, [step.attribute("axis", 1)], len(step.shape))
    return step.axis


def _split(step: _Step) -> int:
    _apart(step.axis, [step.attribute("axis", 0)], len(step.shape))
    return step.axis


def _slice(step: _Step) -> int:
    starts = step.given(1, "starts") or []
    over = step.given(3, "axes") or list(range(len(starts)))
    _apart(step.axis, over, len(step.shape))
    return step.axis


def _gather(step: _Step) -> int:
    index = step.node.input[1]
    if index in step.axes:
        raise _Mixes("which parts it takes depends on the picture")
    axis = step.attribute("axis", 0) % len(step.shape)
    _apart(step.axis, [axis], len(step.shape))
    return step.axis + len(step.sizes[index]) - 1 if axis < step.axis else step.axis


def _softmax(step: _Step) -> int:
    rank = len(step.shape)
    if step.opset >= 13:
        _apart(step.axis, [step.attribute("axis", -1)], rank)
    else:
        _apart(step.axis, list(range(step.attribute("axis", 1) % rank, rank)), rank)
    return step.axis


def _squeeze(step: _Step) -> int:
    over = step.given(1, "axes")
    if over is None:
        raise _Mixes("it drops every axis of size 1")
    gone = [a % len(step.shape) for a in over]
    _apart(step.axis, gone, len(step.shape))
    return step.axis - sum(a < step.axis for a in gone)


def _unsqueeze(step: _Step) -> int:
    rank = len(step.sizes[step.node.output[0]])
    new = {a % rank for a in step.given(1, "axes") or []}
    return [a for a in range(rank) if a not in new][step.axis]


def _pad(step: _Step) -> int:
    pads, rank = step.given(1, "pads") or [], len(step.shape)
    over = [a % rank for a in step.given(3, "axes") or range(rank)]
    changed = [a for i, a in enumerate(over) if pads[i] or pads[i + len(over)]]
    _apart(step.axis, changed, rank)
    return step.axis


def _resize(step: _Step) -> int:
    _per_picture(step)
    if len(step.node.input) > 3 and step.node.input[3]:
        raise _Mixes("its sizes are written out")
    if step.shape[0] != step.sizes[step.node.output[0]][0]:
        raise _Mixes("it resizes along the pictures")
    return 0


def _matmul(step: _Step) -> int:
    left, right = step.node.input[:2]
    rank = len(step.shape)
    if right in step.axes or left not in step.axes:
        both = {
            step.axes[name] + rank - len(step.sizes[name])
            for name in (left, right)
            if name in step.axes
        }
        same_rank = len(step.sizes[left]) == len(step.sizes[right])
        if len(both) != 1 or not same_rank or min(both) >= rank - 2:
            raise _Mixes("the pictures lie in an axis that it sums over or joins")
        return both.pop()
    _apart(step.axis, [rank - 1], rank)
    if len(step.sizes[right]) > 2:
        _elementwise_batch(step, rank)
    return step.axis


def _elementwise_batch(step: _Step, rank: int) -> None:
    shape = step.sizes[step.node.input[1]]
    place = step.axis - rank + len(shape)
    if step.axis < rank - 2 and place >= 0 and shape[place] != 1:
        raise _Mixes(f"its second input varies along axis {step.axis}, in which the pictures lie")


def _gemm(step: _Step) -> int:
    if step.attribute("transA", 0) or any(name in step.axes for name in step.node.input[1:]):
        raise _Mixes("it turns or multiplies pictures with each other")
    _apart(step.axis, [1], 2)
    third = step.sizes.get(step.node.input[2], (1,)) if len(step.node.input) > 2 else (1,)
    if len(third) == 2 and third[0] != 1:
        raise _Mixes("what it adds varies along the pictures")
    return step.axis


_RULES: dict[str, Rule] = {
    "Concat": _concat,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "LogSoftmax": _softmax,
    "MatMul": _matmul,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Upsample": _resize,
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
