"""What a head needs to see of a graph: its picture input, filled-in outputs, and their tails."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from saccade.errors import InputError, ModelError
from saccade.graph.reading import free_rank, load_proto
from saccade.graph.shapes import Shapes, infer_shapes
from saccade.graph.topology import producers, reads
from saccade.types import Layout, Model, Signature, TensorSpec

if TYPE_CHECKING:
    import onnx

__all__ = ["feed_shapes", "picture_input", "signature_of", "size_of"]

TRIAL_SIZE_HW = (640, 640)
MAX_SIDE_PX = 65536
MAX_TAIL = 200
PIXEL_DTYPES = frozenset(
    ("float16", "bfloat16", "float32", "float64", "uint8", "int8", "uint16", "int32")
)
# Where a walk back from an output ends: the operators that hold the weights.
# fmt: off
WEIGHTED = frozenset((
    "Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "FusedConv", "MatMul",
    "MatMulInteger", "QLinearMatMul", "FusedMatMul", "Gemm", "FusedGemm", "QGemm",
))
# fmt: on


def picture_input(model: Model) -> tuple[TensorSpec, Layout]:
    """The input that takes pictures: four axes, 1 or 3 channels in second or last place.

    With all axes free (and with 3 or 1 in both places) channels are taken to come second.

    Raises:
        ModelError: No input looks like pictures, or several do.
    """
    found = [(spec, layout) for spec in model.inputs if (layout := _layout(spec)) is not None]
    if len(found) == 1:
        return found[0]
    listed = "; ".join(map(str, model.inputs)) or "none"
    wanted = "one input with four axes, 1 or 3 channels in second or last place (NCHW or NHWC)"
    if not found:
        raise ModelError(
            f"{model.path}: a vision model must have {wanted}; its inputs are: {listed}; "
            "export the model with a batch of pictures as its input"
        )
    names = ", ".join(spec.name for spec, _ in found)
    raise ModelError(
        f"{model.path}: a vision model must have exactly {wanted}; {names} all look like "
        "pictures; export the model with a single picture input"
    )


def _layout(spec: TensorSpec) -> Layout | None:
    if len(spec.shape) != 4 or spec.dtype not in PIXEL_DTYPES:
        return None
    second, last = spec.shape[1], spec.shape[3]
    if 3 in (second, last):
        return "nchw" if second == 3 else "nhwc"
    if 1 in (second, last):
        return "nchw" if second == 1 else "nhwc"
    return "nchw" if isinstance(second, str) else None


def size_of(model: Model, size_hw: tuple[int, int] | None = None) -> tuple[tuple[int, int], bool]:
    """Height and width to use, and whether the graph leaves them open.

    The graph's own sizes come first, then size_hw, then the file's metadata "imgsz", then 640x640.

    Raises:
        InputError: size_hw is not a size, or contradicts the graph.
        ModelError: The model has no single picture input.
    """
    spec, layout = picture_input(model)
    axes = (2, 3) if layout == "nchw" else (1, 2)
    own = [spec.shape[axis] for axis in axes]
    if size_hw is not None:
        _check_size(model, own, size_hw)
    trial = size_hw or _size_in_metadata(model.metadata) or TRIAL_SIZE_HW
    height, width = (side if isinstance(side, int) else trial[i] for i, side in enumerate(own))
    return (height, width), any(isinstance(side, str) for side in own)


def _check_size(model: Model, own: list[int | str], size_hw: tuple[int, int]) -> None:
    if len(size_hw) != 2 or not all(1 <= side <= MAX_SIDE_PX for side in size_hw):
        raise InputError(
            f"size_hw must be (height, width) from 1 to {MAX_SIDE_PX} pixels, got {size_hw}"
        )
    if any(
        isinstance(side, int) and side != wanted for side, wanted in zip(own, size_hw, strict=True)
    ):
        raise InputError(
            f"the input size of {model.path} must be {own[1]}x{own[0]} (width x height), which "
            f"the graph fixes, got {size_hw[1]}x{size_hw[0]}; leave the size out, or export the "
            "model with free height and width"
        )


def _size_in_metadata(metadata: Mapping[str, str]) -> tuple[int, int] | None:
    sides = [int(text) for text in re.findall(r"\d{1,5}", metadata.get("imgsz", ""))]
    if len(sides) not in (1, 2) or not all(1 <= side <= MAX_SIDE_PX for side in sides):
        return None
    return sides[0], sides[-1]


def feed_shapes(
    model: Model, size_hw: tuple[int, int], batch: int
) -> dict[str, tuple[int | str, ...]]:
    """Sizes of all inputs for a batch of pictures; what the graph fixes stays.

    The first axis of every input is taken for the batch. An axis of another input that shares its
    name with one of the picture's gets the same size; others stay open.
    """
    spec, layout = picture_input(model)
    height, width = size_hw
    wanted = (batch, 3, height, width) if layout == "nchw" else (batch, height, width, 3)
    named = {
        axis: size
        for axis, size in zip(spec.shape, wanted, strict=True)
        if isinstance(axis, str) and axis != "?"
    }
    shapes: dict[str, tuple[int | str, ...]] = {}
    for other in model.inputs:
        if other == spec:
            free: tuple[int | str, ...] = wanted
        else:
            free = tuple(
                named.get(axis, batch if i == 0 else axis) if isinstance(axis, str) else axis
                for i, axis in enumerate(other.shape)
            )
        if not free_rank(other):
            shapes[other.name] = tuple(
                axis if isinstance(axis, int) else size
                for axis, size in zip(other.shape, free, strict=True)
            )
    return shapes


def signature_of(model: Model, size_hw: tuple[int, int] | None = None) -> Signature:
    """Look at a graph from outside, as a head does.

    Outputs are inferred with a batch of one and of two pictures: an axis that differs is free. An
    axis that cannot be inferred is as the file declares it.

    Args:
        model: From read_model.
        size_hw: Height and width in pixels, used where the graph leaves them open.

    Raises:
        InputError: size_hw contradicts the graph.
        ModelError: The model has no single picture input.
    """
    size_hw, is_free = size_of(model, size_hw)
    proto = load_proto(model)
    one, two = (
        infer_shapes(proto, feed_shapes(model, size_hw, batch), model_path=model.path)
        for batch in (1, 2)
    )
    outputs = tuple(
        TensorSpec(spec.name, spec.dtype, _merge(spec, one, two)) for spec in model.outputs
    )
    return Signature(
        inputs=model.inputs,
        outputs=outputs,
        size_hw=size_hw,
        size_is_free=is_free,
        tails=_tails(proto.graph, one.constants),
        metadata=dict(model.metadata),
    )


def _merge(spec: TensorSpec, of_one: Shapes, of_two: Shapes) -> tuple[int | str, ...]:
    """One output's shape from its declaration and the shapes inferred for two batch sizes."""
    one, two = of_one.tensors.get(spec.name), of_two.tensors.get(spec.name)
    if one is None or two is None or len(one.sizes) != len(two.sizes):
        return spec.shape
    declared: tuple[int | str, ...] = spec.shape
    if len(declared) != len(one.sizes):
        declared = ("?",) * len(one.sizes)
    merged: list[int | str] = []
    for axis, first, second in zip(declared, one.sizes, two.sizes, strict=True):
        if isinstance(first, int) and first == second:
            merged.append(first)
        elif isinstance(first, int) and isinstance(second, int):
            merged.append(axis if isinstance(axis, str) else "?")
        else:
            merged.append(axis)
    return tuple(merged)


def _tails(graph: onnx.GraphProto, constants: Collection[str]) -> dict[str, tuple[str, ...]]:
    makers = {name: node for name, node in producers(graph).items() if name not in constants}
    return {output.name: _tail(output.name, makers) for output in graph.output}


def _tail(name: str, makers: Mapping[str, onnx.NodeProto]) -> tuple[str, ...]:
    """Operator types from an output back to the last weighted operators, nearest first.

    What does not depend on the picture (constants, computed shapes) is not in makers.
    """
    types: list[str] = []
    queue = deque([name])
    seen: set[int] = set()
    while queue and len(types) < MAX_TAIL:
        node = makers.get(queue.popleft())
        if node is None or id(node) in seen or node.op_type == "Constant":
            continue
        seen.add(id(node))
        types.append(node.op_type)
        if node.op_type not in WEIGHTED:
            queue.extend(reads(node))
    return tuple(types)
