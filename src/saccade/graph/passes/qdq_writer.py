"""Writes quantisers into a graph: each tensor's once, each right behind what makes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from saccade.errors import BuildError
from saccade.graph.passes.tidy import drop_unread_weights

if TYPE_CHECKING:
    import onnx

__all__ = ["LEVELS", "QdqWriter", "coded_weight"]

# Codes run from -127 to 127, so that negating a value negates its code.
LEVELS = 127
# A tensor that is zero in all pictures has no range of its own.
_MIN_RANGE = 1e-6
_ZERO = "int8_zero"
# Far below the rounding of anything, but not 0.
_NOTHING = 1e-20


class QdqWriter:
    """Adds QuantizeLinear and DequantizeLinear nodes; `finish` puts them into the graph.

    Args:
        graph: Changed in place.
        ranges: Largest absolute value per tensor.
    """

    def __init__(self, graph: onnx.GraphProto, ranges: Mapping[str, float]) -> None:
        self._graph = graph
        self._ranges = ranges
        self._scales: dict[str, np.float32] = {}
        self._behind: dict[str, list[onnx.NodeProto]] = {}
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._rounded_weights: dict[tuple[str, int], str] = {}
        self._weight_nodes: list[onnx.NodeProto] = []
        self._made: set[str] = set()
        self._twins: dict[str, onnx.NodeProto] = {}

    def set_scale(self, roots: Sequence[str], members: Sequence[str]) -> None:
        """Give the tensors of a group one scale, that of its widest root.

        Raises:
            BuildError: A root has no range.
        """
        missing = [name for name in roots if name not in self._ranges]
        if missing:
            raise BuildError(
                f"every rounded tensor must have a measured range, {missing[0]!r} has none; "
                "calibrate this very model again"
            )
        widest = max(_MIN_RANGE, *(float(self._ranges[name]) for name in roots))
        self._scales.update(dict.fromkeys(members, np.float32(widest / LEVELS)))

    def code(self, name: str) -> str:
        """The name of a tensor's INT8 codes, which `quantize` or a move makes."""
        return f"{name}:int8"

    def quantize(self, name: str) -> None:
        """Make the codes of a tensor from its values."""
        from onnx import helper

        inputs = [name, *self._grid(name)]
        node = helper.make_node("QuantizeLinear", inputs, [self.code(name)], f"{name}:quantize")
        self._behind.setdefault(name, []).append(node)

    def rounded(self, name: str) -> str:
        """The name of a tensor's values after rounding, made from its codes."""
        from onnx import helper

        made = f"{name}:rounded"
        if made not in self._made:
            self._made.add(made)
            inputs = [self.code(name), *self._grid(name)]
            node = helper.make_node("DequantizeLinear", inputs, [made], f"{name}:dequantize")
            self._behind.setdefault(self.code(name), []).append(node)
        return made

    def _grid(self, name: str) -> tuple[str, str]:
        scale = self._store(f"{name}:scale", np.asarray(self._scales[name]))
        return scale, self._store(_ZERO, np.zeros((), np.int8))

    def twin(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """A copy of a node, to be placed behind it."""
        twin = type(node)()
        twin.CopyFrom(node)
        twin.name = f"{node.name}:int8"
        self._twins[node.name] = twin
        return twin

    def round_output(self, name: str) -> None:
        """Round an output of the graph; it keeps its name."""
        exact, rounded = f"{name}:exact", self.rounded(name)
        self._behind[exact] = self._behind.pop(name)
        self._behind[exact][0].input[0] = exact
        for node in self._graph.node:
            node.output[:] = [exact if made == name else made for made in node.output]
            node.input[:] = [name if read == rounded else read for read in node.input]
        self._behind[self.code(name)][0].output[0] = name

    def quantize_weight(self, node: onnx.NodeProto) -> None:
        """Store a node's weight as INT8 codes, one scale per output channel.

        Raises:
            BuildError: The weight is not finite.
        """
        from onnx import helper, numpy_helper

        name = node.input[1]
        axis = _channel_axis(node, len(self._weights[name].dims))
        if (name, axis) not in self._rounded_weights:
            weight = numpy_helper.to_array(self._weights[name])
            try:
                code, scale = coded_weight(weight, axis)
            except ValueError as exc:
                raise BuildError(
                    f"weights must be finite to be quantised, {name!r} of node {node.name!r} "
                    "holds NaN or infinity; export the model again"
                ) from exc
            inputs = [
                self._store(f"{name}:int8_{axis}", code),
                self._store(f"{name}:scale_{axis}", scale),
                self._store(f"{name}:zero_{axis}", np.zeros(len(scale), np.int8)),
            ]
            made = f"{name}:rounded_{axis}"
            self._weight_nodes.append(
                helper.make_node(
                    "DequantizeLinear", inputs, [made], f"{made}:dequantize", axis=axis
                )
            )
            self._rounded_weights[name, axis] = made
        node.input[1] = self._rounded_weights[name, axis]

    def give_bias(self, node: onnx.NodeProto) -> None:
        """Give a convolution without a bias one that changes nothing.

        OpenVINO 2026.4 computes wrong values behind an INT8 convolution by groups that has no
        bias, if floating-point pooling or Concat follows. A bias of 0 it takes away again.
        """
        if len(node.input) > 2 and node.input[2]:
            return
        dims = self._weights[node.input[1]].dims
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        num = dims[0] if node.op_type == "Conv" else dims[1] * groups
        del node.input[2:]
        node.input.append(self._store(f"{node.name}:bias", np.full(num, _NOTHING, np.float32)))

    def _store(self, name: str, array: np.ndarray) -> str:
        from onnx import numpy_helper

        if name not in self._weights:
            self._graph.initializer.append(numpy_helper.from_array(array, name))
            self._weights[name] = self._graph.initializer[-1]
        return name

    def finish(self) -> None:
        """Put the new nodes in their places and drop weights that nothing reads any more."""
        nodes = list(self._weight_nodes)
        for value in (*self._graph.input, *self._graph.initializer):
            self._append_behind(nodes, value.name)
        for node in self._graph.node:
            self._append_node(nodes, node)
            if node.name in self._twins:
                self._append_node(nodes, self._twins[node.name])
        copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
        del self._graph.node[:]
        self._graph.node.extend(copies)
        drop_unread_weights(self._graph)

    def _append_node(self, nodes: list[onnx.NodeProto], node: onnx.NodeProto) -> None:
        nodes.append(node)
        for name in node.output:
            self._append_behind(nodes, name)

    def _append_behind(self, nodes: list[onnx.NodeProto], name: str) -> None:
        for node in self._behind.get(name, []):
            nodes.append(node)
            self._append_behind(nodes, node.output[0])


def _channel_axis(node: onnx.NodeProto, num_axes: int) -> int:
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    return num_axes - 1


def coded_weight(weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """INT8 codes of a weight, and the float32 scale of each channel along an axis.

    Raises:
        ValueError: The weight is not finite.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    widest = np.abs(weight.astype(np.float64)).max(axis=others, initial=0)
    if not np.isfinite(widest).all():
        raise ValueError("not finite")
    scale = (np.where(widest > 0, widest, 1) / LEVELS).astype(np.float32)
    # A channel of denormal weights would have scale 0.
    scale = np.maximum(scale, np.finfo(np.float32).tiny)
    shape = [1] * weight.ndim
    shape[axis] = -1
    code = np.clip(np.rint(weight / scale.reshape(shape)), -LEVELS, LEVELS)
    return code.astype(np.int8), scale
