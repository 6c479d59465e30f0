"""Weights that live in files beside the model: where they may be, and whether they are whole."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from saccade.errors import ModelError

if TYPE_CHECKING:
    import onnx

__all__ = ["Extent", "check_tensors", "element_bits", "extent_of", "num_bytes_of", "read_extent"]


@dataclass(frozen=True, slots=True)
class Extent:
    """Where the bytes of one tensor are.

    Attributes:
        tensor: Name of the tensor.
        location: As stored, relative to the model's folder.
        offset_bytes: Start in that file.
        num_bytes: Length in that file.
    """

    tensor: str
    location: str
    offset_bytes: int
    num_bytes: int


def element_bits(elem_type: int) -> int:
    """Size of one stored element in bits; 0 for strings and types unknown to this onnx.

    Types of 2 and 4 bits are packed.
    """
    import onnx

    name = _type_name(elem_type)
    if name in ("STRING", "UNDEFINED", ""):
        return 0
    if name in ("INT4", "UINT4", "FLOAT4E2M1"):
        return 4
    if name in ("INT2", "UINT2"):
        return 2
    return int(onnx.helper.tensor_dtype_to_np_dtype(elem_type).itemsize) * 8


def _type_name(elem_type: int) -> str:
    import onnx

    known = onnx.TensorProto.DataType
    return str(known.Name(elem_type)) if elem_type in known.values() else ""


def num_bytes_of(tensor: onnx.TensorProto) -> int:
    """Bytes that the tensor's type and dims ask for; 0 for strings."""
    num_elements = math.prod(int(size) for size in tensor.dims)
    return (num_elements * element_bits(tensor.data_type) + 7) // 8


def extent_of(tensor: onnx.TensorProto) -> Extent | None:
    """Where the bytes of a tensor are outside the model file; None if they are inside.

    Raises:
        ModelError: The entries are not a place in a file.
    """
    import onnx

    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return None
    entries = {entry.key: entry.value for entry in tensor.external_data}
    numbers = {}
    for key, default in (("offset", 0), ("length", num_bytes_of(tensor))):
        text = entries.get(key, str(default)).strip()
        if not (text.isascii() and text.isdigit() and len(text) < 19):
            raise ModelError(
                f"the {key} of tensor {tensor.name!r} in its external file must be a number of "
                f"bytes, it is {text[:40]!r}; export the model again"
            )
        numbers[key] = int(text)
    return Extent(tensor.name, entries.get("location", ""), numbers["offset"], numbers["length"])


def check_tensors(tensors: Iterable[onnx.TensorProto], model_path: Path) -> tuple[str, ...]:
    """Check that stored tensors have all their bytes, inside the model file or beside it.

    No file is opened here; external files are looked at (size and kind) only after their place
    has been found to be inside the model's folder.

    Args:
        tensors: All tensors of the model.
        model_path: The model file.

    Returns:
        The external files' locations as stored, each once, sorted.

    Raises:
        ModelError: Names the tensor and the file.
    """
    sizes_bytes: dict[str, int] = {}
    for tensor in tensors:
        _check_dims(tensor)
        extent = extent_of(tensor)
        if extent is None:
            _check_inside(tensor)
            continue
        if extent.location not in sizes_bytes:
            sizes_bytes[extent.location] = _size_of(_place(extent, model_path), extent)
        _check_extent(extent, num_bytes_of(tensor), sizes_bytes[extent.location])
    return tuple(sorted(sizes_bytes))


def _check_dims(tensor: onnx.TensorProto) -> None:
    if any(size < 0 for size in tensor.dims):
        raise ModelError(
            f"the dims of tensor {tensor.name!r} must not be negative, they are "
            f"{list(tensor.dims)}; the file is damaged, export or copy it again"
        )
    if not _type_name(tensor.data_type) or tensor.data_type == 0:
        raise ModelError(
            f"the element type of tensor {tensor.name!r} must be one that onnx knows, it is "
            f"number {tensor.data_type}; upgrade onnx, or export the model again"
        )


def _check_inside(tensor: onnx.TensorProto) -> None:
    wanted = num_bytes_of(tensor)
    if tensor.HasField("raw_data") and len(tensor.raw_data) != wanted:
        raise ModelError(
            f"tensor {tensor.name!r} of dims {list(tensor.dims)} must have {wanted} bytes, it has "
            f"{len(tensor.raw_data)}; the file is damaged, export or copy it again"
        )


def _place(extent: Extent, model_path: Path) -> Path:
    """The external file, found to be inside the model's folder once links are followed.

    A model that is itself a link (download caches do that) may also have its weights in the
    folder of the file it links to.
    """
    location = extent.location
    ask = "keep the weights beside the model and store their location as a plain relative path"
    is_absolute = PurePosixPath(location).is_absolute() or bool(PureWindowsPath(location).drive)
    has_up = ".." in PurePosixPath(location).parts or ".." in PureWindowsPath(location).parts
    if not location or "\0" in location or is_absolute or has_up:
        raise ModelError(
            f"the external file of tensor {extent.tensor!r} must lie in the model's folder, its "
            f"location is {location!r}; {ask}"
        )
    try:
        place = (model_path.parent / location).resolve()
        roots = {model_path.parent.resolve(), model_path.resolve().parent}
    except (OSError, RuntimeError) as exc:
        raise ModelError(
            f"the external file {location!r} of tensor {extent.tensor!r} must be a file in the "
            f"model's folder, its links lead nowhere ({exc}); {ask}"
        ) from exc
    if not any(place.is_relative_to(root) for root in roots):
        raise ModelError(
            f"the external file {location!r} of tensor {extent.tensor!r} must lie in the model's "
            f"folder, it is a link to {str(place)!r}; {ask}"
        )
    return place


def _size_of(place: Path, extent: Extent) -> int:
    what = f"the external file {extent.location!r} with tensor {extent.tensor!r}"
    try:
        is_file = place.is_file()
        size_bytes = place.stat().st_size
    except OSError as exc:
        raise ModelError(
            f"{what} must be in the model's folder, it is missing ({exc.strerror}); "
            "copy it beside the model"
        ) from exc
    if not is_file:
        raise ModelError(
            f"{what} must be a file, it is a folder or a device; copy the weights beside the model"
        )
    return size_bytes


def _check_extent(extent: Extent, wanted_bytes: int, size_bytes: int) -> None:
    if extent.num_bytes != wanted_bytes:
        raise ModelError(
            f"tensor {extent.tensor!r} must have {wanted_bytes} bytes by its type and dims, its "
            f"place in {extent.location!r} has {extent.num_bytes}; export the model again"
        )
    end = extent.offset_bytes + extent.num_bytes
    if end > size_bytes:
        raise ModelError(
            f"the external file {extent.location!r} must have at least {end} bytes for tensor "
            f"{extent.tensor!r}, it has {size_bytes}; it is cut short, copy or export it again"
        )


def read_extent(extent: Extent, model_path: Path) -> bytes:
    """Bytes of one tensor from its external file.

    Raises:
        ModelError: The file is outside the model's folder, gone or too short.
    """
    place = _place(extent, model_path)
    try:
        with place.open("rb") as file:
            file.seek(extent.offset_bytes)
            content = file.read(extent.num_bytes)
    except OSError as exc:
        raise ModelError(
            f"the external file {extent.location!r} with tensor {extent.tensor!r} must be "
            f"readable, reading it failed ({exc}); check the file and its permissions"
        ) from exc
    if len(content) < extent.num_bytes:
        _check_extent(extent, extent.num_bytes, extent.offset_bytes + len(content))
    return content
