"""A model file into a tidy graph with all its weights, and a graph into a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from saccade.errors import BuildError
from saccade.graph.external import extent_of, read_extent
from saccade.graph.passes.tidy import tidy
from saccade.graph.reading import load_proto
from saccade.graph.topology import tensors
from saccade.types import Model

if TYPE_CHECKING:
    import onnx

__all__ = ["WEIGHTS_FILE", "load_tidy", "write_proto"]

# Protocol Buffers end at 2 GiB; beyond this, weights go into a file of their own.
MAX_INSIDE_BYTES = 1 << 30
WEIGHTS_FILE = "weights.bin"
_ALIGNMENT_BYTES = 4096
_MIN_OUTSIDE_BYTES = 1024


def load_tidy(model: Model) -> onnx.ModelProto:
    """The model's graph in the form that passes expect, weights from external files included.

    Raises:
        ModelError: A file has gone or changed.
        BuildError: The graph cannot be brought into that form.
    """
    proto = load_proto(model)
    for tensor in tensors(proto.graph):
        extent = extent_of(tensor)
        if extent is not None:
            content = read_extent(extent, model.path)
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = content
    return tidy(proto)


def write_proto(
    proto: onnx.ModelProto, path: Path, max_inside_bytes: int = MAX_INSIDE_BYTES
) -> None:
    """Write a graph; equal graphs give equal bytes.

    Args:
        proto: Changed if its weights are moved out.
        path: The ONNX file. Weights beyond max_inside_bytes go into a file beside it.
        max_inside_bytes: Largest sum of weights that stay inside.

    Raises:
        BuildError: The files cannot be written.
    """
    try:
        weights = [t for t in proto.graph.initializer if len(t.raw_data) >= _MIN_OUTSIDE_BYTES]
        if sum(len(tensor.raw_data) for tensor in weights) > max_inside_bytes:
            _move_out(weights, path.parent / WEIGHTS_FILE)
        path.write_bytes(proto.SerializeToString(deterministic=True))
    except OSError as exc:
        raise BuildError(
            f"the folder {path.parent} must be writable, writing the model failed ({exc}); "
            "free some space or choose another folder"
        ) from exc


def _move_out(weights: list[onnx.TensorProto], path: Path) -> None:
    import onnx

    with path.open("wb") as file:
        for tensor in weights:
            file.write(b"\0" * (-file.tell() % _ALIGNMENT_BYTES))
            place = {
                "location": path.name,
                "offset": str(file.tell()),
                "length": str(len(tensor.raw_data)),
            }
            file.write(tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in place.items():
                tensor.external_data.add(key=key, value=value)
