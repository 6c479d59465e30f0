"""An ONNX file into a torch.fx.GraphModule for inputs of fixed sizes."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from saccade.backends._torch_ops import (  # noqa: F401  (importing them enters their rules)
    elementwise,
    resampling,
    shaping,
    sums,
    windows,
)
from saccade.backends._torch_ops.elementwise import ELEMENT_TYPES
from saccade.backends._torch_ops.lowering import Lowering
from saccade.backends._torch_ops.precision import tail_of
from saccade.backends._torch_ops.values import RULES, Lacking, Op, Symbol, Value
from saccade.errors import BuildError
from saccade.types import Model

if TYPE_CHECKING:
    import onnx

__all__ = ["Source", "lower", "read_source"]

MAX_OPSET = 23
MAX_NAMED = 4
ADVICE = "choose another back end, or export the model without it"


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A graph whose every node has a rule.

    Attributes:
        model: What was read.
        nodes: In runnable order.
        weights: Stored tensors by name.
    """

    model: Model
    nodes: Sequence[onnx.NodeProto]
    weights: Mapping[str, torch.Tensor]


def read_source(model: Model) -> Source:
    """Read a model and check that every node can be lowered; nothing is built yet.

    Raises:
        BuildError: Names the nodes that lack a rule, with their operator, opset and attribute.
    """
    import onnx

    proto = onnx.load(str(model.path))
    nodes = _runnable_order(proto.graph)
    lacking = [text for node in nodes if (text := _lack(node, model.opset))]
    if model.opset > MAX_OPSET:
        lacking.insert(0, f"opset {model.opset} (known up to {MAX_OPSET})")
    if proto.graph.sparse_initializer:
        lacking.append(f"sparse weights ({proto.graph.sparse_initializer[0].values.name!r})")
    if lacking:
        more = f" and {len(lacking) - MAX_NAMED} more" if len(lacking) > MAX_NAMED else ""
        raise BuildError(
            f"torch cannot load this model: every node needs a rule, there is none for "
            f"{'; '.join(lacking[:MAX_NAMED])}{more}; {ADVICE}"
        )
    weights = {tensor.name: _tensor(tensor) for tensor in proto.graph.initializer}
    return Source(model, nodes, weights)


def _tensor(stored: onnx.TensorProto) -> torch.Tensor:
    import onnx

    array = onnx.numpy_helper.to_array(stored)
    if stored.data_type == onnx.TensorProto.BFLOAT16:
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    if stored.data_type not in ELEMENT_TYPES:
        raise BuildError(
            f"torch cannot load this model: weights must be of a type that torch computes with, "
            f"{stored.name!r} is {array.dtype}; {ADVICE}"
        )
    # A copy: the file's bytes may not be written to, and torch wants memory it may.
    return torch.from_numpy(np.array(array))


def _runnable_order(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Nodes so that each comes after those it reads; the stored order wherever that will do."""
    nodes = list(graph.node)
    maker = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    needs = [{maker[name] for name in node.input if name in maker} for node in nodes]
    readers: list[list[int]] = [[] for _ in nodes]
    for index, need in enumerate(needs):
        for earlier in need:
            readers[earlier].append(index)
    waiting = [len(need) for need in needs]
    ready = [index for index, count in enumerate(waiting) if not count]
    order = []
    while ready:
        index = heapq.heappop(ready)
        order.append(nodes[index])
        for reader in readers[index]:
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, reader)
    return order


def _described(node: onnx.NodeProto, opset: int) -> str:
    kind = f"{node.domain}:{node.op_type}" if node.domain else node.op_type
    name = repr(node.name) if node.name else f"that makes {', '.join(map(repr, node.output))}"
    return f"{kind} node {name} (opset {opset})"


def _lack(node: onnx.NodeProto, opset: int) -> str:
    """What no rule does about a node, or ""."""
    rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if rule is None:
        return _described(node, opset)
    attributes = _attributes(node)
    unknown = sorted(set(attributes) - rule.attributes)
    if unknown:
        return f"attribute {', '.join(unknown)} of {_described(node, opset)}"
    if len(node.input) > rule.max_inputs:
        return f"input {rule.max_inputs} of {_described(node, opset)}"
    used = [name for name in node.output if name]
    if len(used) > rule.max_outputs and node.op_type != "BatchNormalization":
        return f"output {rule.max_outputs} of {_described(node, opset)}"
    op = Op(node.op_type, opset, attributes, (), len(node.input), node.output)
    wrong = rule.check(op)
    return f"{wrong} of {_described(node, opset)}" if wrong else ""


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    import onnx

    found = {}
    for attribute in node.attribute:
        stored = onnx.helper.get_attribute_value(attribute)
        is_tensor = isinstance(stored, onnx.TensorProto)
        found[attribute.name] = _tensor(stored) if is_tensor else stored
    return found


def lower(
    source: Source,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    half: torch.dtype | None = None,
    is_channels_last: bool = False,
) -> torch.fx.GraphModule:
    """Write the torch program for inputs of given shapes.

    What does not depend on the picture is computed here; no size is left open.

    Args:
        source: A checked graph.
        shapes: Input name to shape.
        half: torch.float16 or torch.bfloat16 for the heavy operators; None keeps the graph's types.
        is_channels_last: Store pictures and weights of convolutions with channels last.

    Returns:
        A module from inputs, in the model's order, to a tuple of outputs, in the model's order and
        the model's element types. Weights are buffers on the CPU.

    Raises:
        BuildError: A node asks for what depends on the picture, or does not fit its operands.
    """
    low = Lowering(half, is_channels_last)
    values: dict[str, Value] = {"": None, **source.weights}
    for place, spec in enumerate(source.model.inputs):
        meta = torch.empty(shapes[spec.name], dtype=getattr(torch, spec.dtype), device="meta")
        fed: Any = low.placeholder(f"input_{place}", meta)
        if half is not None and meta.is_floating_point():
            fed = low.cast(fed, half)
        if is_channels_last and meta.ndim == 4:
            fed = low.emit(_channels_last, fed)
        values[spec.name] = fed
    outputs = {spec.name for spec in source.model.outputs}
    sizes = {name: math.prod(tensor.shape) for name, tensor in source.weights.items()}
    tail = tail_of(source.nodes, outputs, sizes) if half is not None else set()
    for index, node in enumerate(source.nodes):
        values.update(_results(low, node, source.model.opset, values, index in tail))
    answers = []
    for spec in source.model.outputs:
        answer = values[spec.name]
        assert answer is not None
        answers.append(low.cast(answer, getattr(torch, spec.dtype)))
    return low.finish(answers)


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _results(
    low: Lowering,
    node: onnx.NodeProto,
    opset: int,
    values: Mapping[str, Value],
    is_tail: bool,
) -> Iterator[tuple[str, Value]]:
    rule = RULES[node.op_type]
    operands = [values[name] for name in node.input]
    operands = low.aligned(operands, "exact" if is_tail else rule.kind, rule.fixed)
    op = Op(node.op_type, opset, _attributes(node), operands, len(node.input), node.output)
    try:
        made = rule.lower(low, op)
    except (Lacking, RuntimeError, ValueError, TypeError, IndexError, ZeroDivisionError) as exc:
        raise BuildError(
            f"torch cannot load this model: {_described(node, opset)} with inputs of shapes "
            f"{[_shape(value) for value in operands]} cannot be built: "
            f"{' '.join(str(exc).split())[:300]}; {ADVICE}"
        ) from exc
    results = made if isinstance(made, (list, tuple)) else [made]
    yield from zip(node.output, results, strict=False)


def _shape(value: Value) -> list[int] | None:
    if value is None:
        return None
    return list(value.meta.shape if isinstance(value, Symbol) else value.shape)
