"""Which nodes must stay in FP32 when the plan says less.

Coordinates reach the size of the picture: at 640, FP16 has steps of half a pixel and BF16 of four.
So everything behind the last heavy operators, where boxes are decoded, is computed in FP32. Between
them FP32 holds from any operator that needs it to the next heavy one (see `Lowering.aligned`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING

from saccade.backends._torch_ops.values import RULES

if TYPE_CHECKING:
    import onnx

__all__ = ["tail_of"]

# An expectation over a box distribution (Source: Generalized Focal Loss, Li et al. 2020) may be
# written as a product with as many stored numbers as the distribution has bins.
MAX_EXPECTATION_WEIGHTS = 256
LAYOUT_ONLY = ("Reshape", "Transpose", "Unsqueeze", "Squeeze", "Flatten")


def tail_of(
    nodes: Sequence[onnx.NodeProto], outputs: Set[str], num_weights: Mapping[str, int]
) -> set[int]:
    """Indices of the nodes whose results reach the outputs through no heavy operator.

    Args:
        nodes: In runnable order.
        outputs: Names of the graph's outputs.
        num_weights: Number of elements of each stored tensor.
    """
    makers = {name: node for node in nodes for name in node.output if name}
    readers: dict[str, list[int]] = defaultdict(list)
    for index, node in enumerate(nodes):
        for name in node.input:
            readers[name].append(index)
    tail: set[int] = set()
    for index in reversed(range(len(nodes))):
        node = nodes[index]
        after = {reader for name in node.output if name for reader in readers[name]}
        reaches = after <= tail and (after or outputs & set(node.output))
        if reaches and not _is_heavy(node, makers, num_weights):
            tail.add(index)
    return tail


def _is_heavy(
    node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto], num_weights: Mapping[str, int]
) -> bool:
    found = RULES.get(node.op_type)
    if found is None or found.kind != "heavy":
        return False
    if num_weights.get(node.input[1], MAX_EXPECTATION_WEIGHTS + 1) > MAX_EXPECTATION_WEIGHTS:
        return True
    maker = makers.get(node.input[0])
    while maker is not None and maker.op_type in LAYOUT_ONLY:
        maker = makers.get(maker.input[0])
    return maker is None or maker.op_type != "Softmax"
