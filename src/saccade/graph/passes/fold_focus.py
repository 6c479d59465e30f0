"""Fold a stem that takes its picture apart into four into one convolution.

YOLOv5's first releases and YOLOX begin with "Focus": four strided slices of the picture (even and
odd rows and columns), joined as channels, then a convolution. The same sums come out of one
convolution on the picture itself, with a kernel twice as high and wide, twice the strides and
twice the padding: kernel value (u, v) of the slice that starts at row r and column c moves to
(2u + r, 2v + c). The runtimes copy the slices in slow generic loops; the convolution is fast.

Source of the stem: Ge et al., YOLOX, arXiv:2107.08430; Jocher et al., YOLOv5, release 1 to 5.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from saccade.graph.reading import load_proto
from saccade.graph.topology import producers, reads
from saccade.types import Model

if TYPE_CHECKING:
    import onnx

__all__ = ["fold_focus", "runtime_source"]

_AXES_HW = (2, 3)
_NUM_SLICES = 4


class _Part(NamedTuple):
    """One strided slice: which tensor, and at which row and column it starts."""

    source: str
    row: int
    column: int


def runtime_source(model: Model) -> str | bytes:
    """What a runtime that reads ONNX should be given: the path of the file, or, where there is a
    stem to fold, the changed file's bytes.

    A model with weights in other files stays as it is: a runtime finds those by the path.
    """
    if model.external_files:
        return str(model.path)
    proto = load_proto(model)
    return proto.SerializeToString() if fold_focus(proto) else str(model.path)


def fold_focus(proto: onnx.ModelProto) -> int:
    """Replace each Focus stem by one convolution, in place.

    Equal up to the order in which the runtime adds. Only a picture of known, even height and width
    is touched: with an odd one the slices would differ in size, which is the model's own error.

    Returns:
        How many stems were replaced.
    """
    graph = proto.graph
    makers = producers(graph)
    counts = Counter(name for node in graph.node for name in reads(node))
    counts.update(value.name for value in graph.output)
    even = {value.name for value in graph.input if _is_even(value)}
    consts = _Constants(graph, makers)
    num = 0
    for conv in [node for node in graph.node if node.op_type == "Conv"]:
        join = makers.get(conv.input[0])
        if join is None or counts[conv.input[0]] != 1:
            continue
        parts = _parts(join, makers, consts)
        if parts is None or parts[0].source not in even or not _is_plain(conv):
            continue
        kernel = consts.array(conv.input[1])
        if kernel is None or kernel.ndim != len(_AXES_HW) + 2:
            continue
        _replace(graph, conv, parts, kernel)
        num += 1
    if num:
        _drop_unread_nodes(graph)
    return num


class _Constants:
    """Stored tensors by name, whether initializers or Constant nodes."""

    def __init__(self, graph: onnx.GraphProto, makers: Mapping[str, onnx.NodeProto]) -> None:
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._makers = makers

    def array(self, name: str) -> np.ndarray | None:
        import onnx

        tensor = self._stored.get(name)
        if tensor is None:
            node = self._makers.get(name)
            if node is None or node.op_type != "Constant":
                return None
            tensor = next((a.t for a in node.attribute if a.name == "value"), None)
        if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
            return None
        return np.asarray(onnx.numpy_helper.to_array(tensor))

    def ints(self, name: str) -> list[int] | None:
        array = self.array(name)
        return None if array is None or array.dtype.kind != "i" else [int(v) for v in array.flat]


def _is_even(value: onnx.ValueInfoProto) -> bool:
    dims = value.type.tensor_type.shape.dim
    sizes = [dims[axis].dim_value if len(dims) == 4 else 0 for axis in _AXES_HW]
    return all(size > 0 and size % 2 == 0 for size in sizes)


def _parts(
    join: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto], consts: _Constants
) -> list[_Part] | None:
    """The four slices that a Concat joins as channels, in its order; None if it is not that."""
    if join.op_type != "Concat" or _attribute(join, "axis", 0) not in (1, -3):
        return None
    parts = [_part(name, makers, consts) for name in join.input]
    found = [part for part in parts if part is not None]
    starts = {(part.row, part.column) for part in found}
    sources = {part.source for part in found}
    if (
        len(parts) != len(found)
        or len(found) != _NUM_SLICES
        or len(starts) != _NUM_SLICES
        or len(sources) != 1
    ):
        return None
    return found


def _part(name: str, makers: Mapping[str, onnx.NodeProto], consts: _Constants) -> _Part | None:
    """Follow strided slices up to what they all cut from."""
    starts: dict[int, int] = {}
    node = makers.get(name)
    while node is not None and node.op_type == "Slice":
        cuts = _cuts(node, consts)
        if cuts is None or starts.keys() & cuts.keys():
            return None
        starts |= cuts
        name = node.input[0]
        node = makers.get(name)
    if set(starts) != set(_AXES_HW):
        return None
    return _Part(name, starts[2], starts[3])


def _cuts(node: onnx.NodeProto, consts: _Constants) -> dict[int, int] | None:
    """Axis to start of a slice with step 2 that runs to the end; None for any other slice."""
    if len(node.input) != 1 + 4:
        return None
    lists = [consts.ints(name) for name in node.input[1:]]
    if any(values is None for values in lists):
        return None
    starts, ends, axes, steps = (values or [] for values in lists)
    cuts = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=False):
        axis = axis + 4 if axis < 0 else axis
        if start not in (0, 1) or step != 2 or end < np.iinfo(np.int32).max:
            return None
        if axis not in _AXES_HW or axis in cuts:
            return None
        cuts[axis] = start
    return cuts or None


def _is_plain(conv: onnx.NodeProto) -> bool:
    """Whether padding is given in numbers and nothing is dilated or in groups."""
    return (
        _attribute(conv, "group", 1) == 1
        and all(value == 1 for value in _attribute(conv, "dilations", [1]))
        and _attribute(conv, "auto_pad", b"NOTSET") in (b"NOTSET", b"")
    )


def _replace(
    graph: onnx.GraphProto, conv: onnx.NodeProto, parts: Sequence[_Part], kernel: np.ndarray
) -> None:
    import onnx

    num_out, num_in, height, width = kernel.shape
    channels = num_in // len(parts)
    spread = np.zeros((num_out, channels, 2 * height, 2 * width), kernel.dtype)
    for index, part in enumerate(parts):
        own = kernel[:, index * channels : (index + 1) * channels]
        spread[:, :, part.row :: 2, part.column :: 2] = own
    name = f"{conv.input[1]}:focus:{conv.output[0]}"
    graph.initializer.append(onnx.numpy_helper.from_array(spread, name))
    strides = _attribute(conv, "strides", [1, 1])
    pads = _attribute(conv, "pads", [0, 0, 0, 0])
    changed = {
        "kernel_shape": [2 * height, 2 * width],
        "strides": [2 * value for value in strides],
        "pads": [2 * value for value in pads],
    }
    kept = [attribute for attribute in conv.attribute if attribute.name not in changed]
    kept = [type(attribute).FromString(attribute.SerializeToString()) for attribute in kept]
    del conv.attribute[:]
    conv.attribute.extend(kept)
    for key, values in changed.items():
        conv.attribute.append(onnx.helper.make_attribute(key, values))
    conv.input[0] = parts[0].source
    conv.input[1] = name


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    import onnx

    found = next((a for a in node.attribute if a.name == name), None)
    return default if found is None else onnx.helper.get_attribute_value(found)


def _drop_unread_nodes(graph: onnx.GraphProto) -> None:
    wanted = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            wanted.update(reads(node))
            kept.append(node)
    copies = [type(node).FromString(node.SerializeToString()) for node in reversed(kept)]
    del graph.node[:]
    graph.node.extend(copies)
