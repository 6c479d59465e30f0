"""Explicit Q/DQ pairs taken out of a graph: what remains computes in floats.

What the pairs said is kept aside, for the pass that decides which tensors travel as 8-bit codes.

Only grids without zero points, one unit per tensor (per output channel for weights), as
`saccade build` writes them. A graph with any other is left as it is: then its roundings are steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from saccade.native.ops import Conv
from saccade.native.plan import Draft

if TYPE_CHECKING:
    import onnx

__all__ = ["Kind", "Units", "mark_units", "without_pairs"]

Kind = Literal["int8", "float8_e4m3"]
_KINDS: Mapping[str, Kind] = {"int8": "int8", "float8_e4m3fn": "float8_e4m3"}
_PAIRS = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """What the pairs of a graph said.

    Attributes:
        kind: Of all codes.
        pictures: Convolution to the real value of one unit of what it reads.
        weights: Convolution to those of its weights, (k,) float32.
    """

    kind: Kind
    pictures: Mapping[str, float]
    weights: Mapping[str, np.ndarray]


def without_pairs(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, Units] | None:
    """A graph without its pairs, and what they said; None if they are not such pairs.

    Args:
        proto: From `tidy`, weights loaded; left as it is.
    """
    import onnx
    from onnx import numpy_helper

    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    pairs = [node for node in proto.graph.node if node.op_type in _PAIRS]
    grids = {node.output[0]: _grid(node, stored) for node in pairs}
    found = [grid for grid in grids.values() if grid is not None]
    if not pairs or len(found) < len(pairs) or len({kind for _, kind in found}) > 1:
        return None
    scales = {name: grid[0] for name, grid in grids.items() if grid is not None}
    renamed: dict[str, str] = {}
    floats: dict[str, np.ndarray] = {}
    for node in pairs:
        name, scale = node.output[0], scales[node.output[0]]
        if node.input[0] in stored:
            codes = numpy_helper.to_array(stored[node.input[0]]).astype(np.float32)
            floats[name] = codes * _along(scale, node, codes.ndim)
        elif scale.size > 1:
            return None
        else:
            renamed[name] = node.input[0]
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    pictures, weights = {}, {}
    for node in made.graph.node:
        if node.op_type == "Conv" and node.input[0] in renamed and node.input[1] in floats:
            k = len(floats[node.input[1]])
            pictures[node.name] = float(scales[node.input[0]].reshape(()))
            weights[node.name] = np.ascontiguousarray(
                np.broadcast_to(scales[node.input[1]].reshape(-1), (k,)), np.float32
            )
    made.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in floats.items()
    )
    _rename(made, renamed)
    return made, Units(found[0][1], pictures, weights)


def mark_units(draft: Draft, units: Units) -> None:
    """Write into a draft's convolutions what is read and kept in codes; weights stay floats."""
    for index, step in enumerate(draft.steps):
        if isinstance(step, Conv) and step.label in units.pictures and step.groups == 1:
            name = draft.weight(f"{step.label}:units", units.weights[step.label])
            draft.steps[index] = replace(
                step, x_scale=units.pictures[step.label], weight_scale=name
            )


def _grid(node: onnx.NodeProto, stored: Mapping[str, Any]) -> tuple[np.ndarray, Kind] | None:
    from onnx import numpy_helper

    if len(node.input) < 3 or not set(node.input[1:]) <= stored.keys():
        return None
    scale, zero = (numpy_helper.to_array(stored[name]) for name in node.input[1:3])
    kind = _KINDS.get(str(zero.dtype))
    if kind is None or scale.dtype != np.float32 or zero.astype(np.float32).any():
        return None
    return scale, kind


def _along(scale: np.ndarray, node: onnx.NodeProto, rank: int) -> np.ndarray:
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1) % max(rank, 1)
    return scale.reshape([-1 if a == axis else 1 for a in range(rank)]) if scale.size > 1 else scale


def _rename(proto: onnx.ModelProto, renamed: dict[str, str]) -> None:
    """Drop the pairs, and moves that were doubled for the sake of their codes."""
    kept: list[onnx.NodeProto] = []
    seen: dict[Any, onnx.NodeProto] = {}
    outputs = {value.name for value in proto.graph.output}
    for node in proto.graph.node:
        if node.op_type in _PAIRS and not outputs & set(node.output):
            continue
        if node.op_type in _PAIRS:
            node.op_type = "Identity"
            del node.attribute[:], node.input[1:]
        for index, name in enumerate(node.input):
            while name in renamed:
                name = renamed[name]
            node.input[index] = name
        key = (node.op_type, tuple(node.input), *(a.SerializeToString() for a in node.attribute))
        twin = seen.setdefault(key, node)
        if twin is not node and not outputs & set(node.output):
            renamed.update(zip(node.output, twin.output, strict=True))
            continue
        kept.append(type(node).FromString(node.SerializeToString()))
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
