"""Fold a batch norm into the convolution before it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from saccade.graph.topology import reads

if TYPE_CHECKING:
    import onnx

__all__ = ["fold_norm"]

_EPSILON = 1e-5


def fold_norm(graph: onnx.GraphProto) -> None:
    """Replace Conv -> BatchNormalization by one Conv, in place.

    With scale s, shift t, mean m and variance v, norm(Wx + b) is (W g) x + (b - m) g + t for
    g = s / sqrt(v + epsilon). Computed in float64, so that nothing is lost but the last rounding.
    """
    weights = {tensor.name: tensor for tensor in graph.initializer}
    counts = Counter(name for node in graph.node for name in reads(node))
    counts.update(value.name for value in graph.output)
    convs = {node.output[0]: node for node in graph.node if node.op_type == "Conv"}
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        conv = convs.get(norm.input[0])
        if conv is None or counts[norm.input[0]] != 1 or not _is_plain(norm):
            continue
        names = [*conv.input[1:], *norm.input[1:]]
        if all(name in weights for name in names):
            _merge(graph, conv, norm, weights)


def _is_plain(norm: onnx.NodeProto) -> bool:
    training = any(a.name == "training_mode" and a.i for a in norm.attribute)
    return not training and len([name for name in norm.output if name]) == 1


def _merge(
    graph: onnx.GraphProto,
    conv: onnx.NodeProto,
    norm: onnx.NodeProto,
    weights: Mapping[str, onnx.TensorProto],
) -> None:
    import onnx

    def array(name: str) -> np.ndarray:
        return np.asarray(onnx.numpy_helper.to_array(weights[name]), np.float64)

    scale, shift, mean, variance = (array(name) for name in norm.input[1:5])
    epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), _EPSILON)
    gain = scale / np.sqrt(variance + epsilon)
    kernel = array(conv.input[1])
    bias = array(conv.input[2]) if len(conv.input) > 2 else np.zeros(len(kernel))
    folded = {
        f"{norm.name}:kernel": kernel * gain.reshape(-1, *[1] * (kernel.ndim - 1)),
        f"{norm.name}:bias": (bias - mean) * gain + shift,
    }
    dtype = onnx.numpy_helper.to_array(weights[conv.input[1]]).dtype
    for name, value in folded.items():
        graph.initializer.append(onnx.numpy_helper.from_array(value.astype(dtype), name))
    del conv.input[1:]
    conv.input.extend(folded)
    conv.output[0] = norm.output[0]
    graph.node.remove(norm)
