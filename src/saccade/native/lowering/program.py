"""A graph into a draft: every node by its rule, what does not depend on the picture at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from saccade.errors import BuildError
from saccade.graph.topology import describe, reads, subgraphs
from saccade.native.lowering import (  # noqa: F401  (importing them enters their rules)
    elements,
    moves,
    picks,
    quantised,
    sums,
    windows,
)
from saccade.native.lowering.rules import RULES, Lowering, Node, Refused, Value, narrowed
from saccade.native.ops import Copy
from saccade.native.plan import Draft
from saccade.native.tensors import View

if TYPE_CHECKING:
    import onnx

__all__ = ["lower", "uncovered"]

MAX_NAMED = 4
ADVICE = "choose another back end, or export the model without it"
_MISFITS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_SIZES = ("Shape", "Size")
# Operators whose rule also takes what is stored: onnx computes them for the newest opsets alone.
_BY_RULE = ("DequantizeLinear",)


def uncovered(proto: onnx.ModelProto) -> list[str]:
    """Nodes without a rule that depend on the picture, in words; [] if all can be lowered."""
    live = {value.name for value in proto.graph.input}
    found = []
    for node in proto.graph.node:
        if node.op_type in _SIZES or not any(name in live for name in reads(node)):
            continue
        live.update(node.output)
        is_foreign = node.domain not in ("", "ai.onnx")
        if node.op_type not in RULES or is_foreign or any(True for _ in subgraphs(node)):
            found.append(describe(node))
    return found


def lower(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> Draft:
    """Lower a tidy graph for inputs of given shapes. Everything is FP32 so far.

    Args:
        proto: From `tidy`, weights loaded.
        shapes: Input name to shape.

    Raises:
        BuildError: Names the nodes that are not covered.
    """
    lacking = uncovered(proto)
    if lacking:
        more = f" and {len(lacking) - MAX_NAMED} more" if len(lacking) > MAX_NAMED else ""
        raise BuildError(
            f"every node must have a rule to run on back end 'native', there is none for "
            f"{'; '.join(lacking[:MAX_NAMED])}{more}; {ADVICE}"
        )
    return _Program(proto, shapes).run()


class _Program:
    def __init__(self, proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
        from onnx import numpy_helper

        self._proto = proto
        self._low = Lowering()
        self._opsets = {
            "" if entry.domain == "ai.onnx" else entry.domain: entry.version
            for entry in proto.opset_import
        }
        self._values: dict[str, Value] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer
        }
        for value in proto.graph.input:
            self._feed(value, shapes[value.name])

    def _feed(self, value: onnx.ValueInfoProto, shape: tuple[int, ...]) -> None:
        import onnx

        stored = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        draft = self._low.draft
        inner = str(narrowed(np.empty(0, stored)).dtype)
        view = draft.new(value.name, shape, str(np.dtype(stored)))
        draft.buffers[view.buffer].kind = "input"
        draft.inputs[value.name] = view
        if inner != str(np.dtype(stored)):
            made = draft.new(value.name, shape, inner)
            draft.steps.append(Copy(value.name, view, made))
            view = made
        self._values[value.name] = view

    def run(self) -> Draft:
        for node in self._proto.graph.node:
            operands = [self._values[name] if name else None for name in node.input]
            results: Sequence[Value] | None = self._folded(node, operands)
            if results is None:
                results = self._lowered(node, operands)
            for name, result in zip(node.output, results, strict=False):
                if name:
                    self._values[name] = result
        for value in self._proto.graph.output:
            self._give(value)
        return self._low.draft

    def _folded(
        self, node: onnx.NodeProto, operands: Sequence[Value | None]
    ) -> Sequence[np.ndarray] | None:
        """What a node gives if that is the same for every picture, else None."""
        if node.op_type in _SIZES and operands[0] is not None:
            sizes = np.array(operands[0].shape, np.int64)
            if node.op_type == "Size":
                return [np.array(sizes.prod(), np.int64)]
            cut = {attribute.name: attribute.i for attribute in node.attribute}
            return [sizes[cut.get("start", 0) : cut.get("end", len(sizes))]]
        if any(isinstance(operand, View) for operand in operands) or any(subgraphs(node)):
            return None
        if node.op_type in _BY_RULE:
            return None
        from onnx.reference import ReferenceEvaluator

        feeds = {name: a for name, a in zip(node.input, operands, strict=True) if name}
        try:
            with np.errstate(all="ignore"):
                found = ReferenceEvaluator(_alone(node), opsets=self._opsets).run(None, feeds)
        except _MISFITS as exc:
            raise BuildError(
                f"{describe(node)} must fit its stored operands to be computed at load, it does "
                f"not ({' '.join(str(exc).split())[:200]}); export the model again"
            ) from exc
        return [np.asarray(array) for array in cast(Any, found)]

    def _lowered(self, node: onnx.NodeProto, operands: Sequence[Value | None]) -> Sequence[Value]:
        import onnx

        given = Node(
            op=node.op_type,
            name=node.name,
            attributes={a.name: onnx.helper.get_attribute_value(a) for a in node.attribute},
            inputs=operands,
            wanted=[bool(name) for name in node.output],
            opset=self._opsets.get("", 0),
        )
        try:
            made = RULES[node.op_type](self._low, given)
        except (Refused, *_MISFITS) as exc:
            shapes = [None if value is None else list(value.shape) for value in operands]
            raise BuildError(
                f"every node must be covered to run on back end 'native', {describe(node)} with "
                f"operands of shapes {shapes} is not: {exc}; {ADVICE}"
            ) from exc
        return [made] if isinstance(made, View | np.ndarray) else made

    def _give(self, value: onnx.ValueInfoProto) -> None:
        """Copy a result into an output buffer in C order; later passes write there at once."""
        import onnx

        stored = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        draft = self._low.draft
        view = self._low.view(self._values[value.name], value.name)
        made = draft.new(value.name, view.shape, str(np.dtype(stored)))
        draft.buffers[made.buffer].kind = "output"
        draft.steps.append(Copy(value.name, view, made))
        draft.outputs[value.name] = made


def _alone(node: onnx.NodeProto) -> onnx.GraphProto:
    """A node as a graph: alone, the evaluator would run it as in the newest operator set."""
    import onnx

    return onnx.GraphProto(
        name="node",
        node=[node],
        input=[onnx.ValueInfoProto(name=name) for name in node.input if name],
        output=[onnx.ValueInfoProto(name=name) for name in node.output if name],
    )
