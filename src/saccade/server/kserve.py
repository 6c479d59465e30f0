"""The Open Inference Protocol's JSON, with the binary tensor extension: read and written.

Source: KServe, "Open Inference Protocol (V2)" and "Binary Tensor Data Extension"; Triton's
"Shared Memory" and "Schedule Policy" extensions for the parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from saccade.server.dtypes import ITEM_BYTES, num_items, to_bytes, to_list
from saccade.server.problems import Problem
from saccade.server.wire import Done, Region, TensorPart

__all__ = ["InferRequest", "Wanted", "read_infer", "write_infer"]

_MAX_AXES = 16


class _Tensor(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: Any = None


class _Wanted(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class _Request(msgspec.Struct):
    inputs: list[_Tensor]
    id: str = ""
    parameters: dict[str, Any] = {}
    outputs: list[_Wanted] = []


class Wanted(msgspec.Struct, frozen=True):
    """One output that a request asks for.

    Attributes:
        name: As the model has it.
        is_binary: Whether its bytes follow the JSON.
        region: Client's memory that it is written to instead.
        num_classes: If not 0, the best so many classes are sent in its place.
    """

    name: str
    is_binary: bool = False
    region: Region | None = None
    num_classes: int = 0


class InferRequest(msgspec.Struct, frozen=True):
    """What a client asks for, checked for itself but not against a model.

    Attributes:
        id: As the client calls it.
        parameters: Of the whole request.
        inputs: With offsets into `parts` laid end to end.
        outputs: What is asked for; empty for all.
        parts: The payload.
        num_bytes: Its length.
        is_binary: Whether outputs that are not named are sent as bytes.
    """

    id: str
    parameters: dict[str, Any]
    inputs: tuple[TensorPart, ...]
    outputs: tuple[Wanted, ...]
    parts: tuple[bytes | memoryview, ...]
    num_bytes: int
    is_binary: bool

    @property
    def has_binary_outputs(self) -> bool:
        """Whether all outputs are sent as bytes."""
        if not self.outputs:
            return self.is_binary
        return all(output.is_binary or output.region for output in self.outputs)


_decode = msgspec.json.Decoder(_Request).decode
_encode = msgspec.json.Encoder().encode


def read_infer(body: bytes, header_bytes: int | None, regions: Any) -> InferRequest:
    """Read the body of an infer request.

    Args:
        body: JSON, and after it the binary tensors.
        header_bytes: Length of the JSON, or None if it is the whole body.
        regions: Finds a client's memory: (name, offset, size) -> Region.

    Raises:
        Problem: It is wrong in itself.
    """
    if header_bytes is not None and not 0 <= header_bytes <= len(body):
        raise Problem(
            "input",
            "inference-header-content-length must be at most the length of the body",
            f"it is {header_bytes} of {len(body)}",
            "correct the header",
        )
    try:
        asked = _decode(body if header_bytes is None else body[:header_bytes])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise Problem(
            "input",
            "the body must be an infer request of the Open Inference Protocol",
            f"it is not ({exc})",
            "correct it, see /openapi.json",
        ) from exc
    view = memoryview(body)
    at = len(body) if header_bytes is None else header_bytes
    offset = 0
    inputs, parts, seen = [], [], set()
    for tensor in asked.inputs:
        if tensor.name in seen:
            raise _twice("input", tensor.name)
        seen.add(tensor.name)
        check_tensor(tensor.name, tensor.datatype, tensor.shape)
        shape = tuple(tensor.shape)
        region, num = None, tensor.parameters.get("binary_data_size")
        if "shared_memory_region" in tensor.parameters:
            region = region_of(tensor.name, tensor.parameters, regions)
            data: bytes | memoryview = b""
            check_size(tensor.name, tensor.datatype, shape, region.num_bytes)
        elif num is not None:
            if type(num) is not int or not 0 <= num <= len(body) - at:
                raise Problem(
                    "input",
                    f"binary_data_size of input {tensor.name!r} must be a number of bytes that "
                    "the body still has",
                    f"it is {num!r} of {len(body) - at}",
                    "correct it",
                )
            data = view[at : at + num]
            at += num
            check_size(tensor.name, tensor.datatype, shape, num)
        else:
            data = to_bytes(tensor.name, tensor.datatype, shape, tensor.data)
        num_bytes = region.num_bytes if region is not None else len(data)
        inputs.append(TensorPart(tensor.name, tensor.datatype, shape, offset, num_bytes, region))
        if len(data):
            parts.append(data)
            offset += len(data)
    if at != len(body):
        raise Problem(
            "input",
            "the body must end after its last tensor",
            f"{len(body) - at} bytes follow",
            "correct binary_data_size",
        )
    return InferRequest(
        asked.id,
        asked.parameters,
        tuple(inputs),
        _wanted(asked, regions),
        tuple(parts),
        offset,
        asked.parameters.get("binary_data_output") is True,
    )


def _wanted(asked: _Request, regions: Any) -> tuple[Wanted, ...]:
    found: list[Wanted] = []
    default = asked.parameters.get("binary_data_output") is True
    for output in asked.outputs:
        if any(w.name == output.name for w in found):
            raise _twice("output", output.name)
        region = None
        if "shared_memory_region" in output.parameters:
            region = region_of(output.name, output.parameters, regions)
        is_binary = output.parameters.get("binary_data", default) is True
        classes = output.parameters.get("classification", 0)
        if type(classes) is not int or classes < 0:
            raise Problem(
                "input",
                f"classification of output {output.name!r} must be a whole number",
                f"it is {classes!r}",
                "correct it",
            )
        found.append(Wanted(output.name, is_binary, region, classes))
    return tuple(found)


def _twice(what: str, name: str) -> Problem:
    return Problem(
        "input",
        f"each {what} must be named once",
        f"{name[:80]!r} is named twice",
        "name it once",
    )


def check_tensor(name: str, datatype: str, shape: Sequence[int]) -> None:
    """Check what can be checked without the data.

    Raises:
        Problem: The type is none, or the shape impossible.
    """
    if datatype not in ITEM_BYTES and datatype != "BYTES":
        raise Problem(
            "input",
            f"datatype of input {name[:80]!r} must be one of {', '.join(ITEM_BYTES)}, BYTES",
            f"it is {datatype[:40]!r}",
            "correct it",
        )
    if len(shape) > _MAX_AXES or any(size < 0 for size in shape):
        raise Problem(
            "input",
            f"shape of input {name[:80]!r} must have at most {_MAX_AXES} sizes, none below 0",
            f"it is {list(shape)[: _MAX_AXES + 1]}",
            "correct it",
        )


def check_size(name: str, datatype: str, shape: Sequence[int], num_bytes: int) -> None:
    """Check that a tensor of numbers has as many bytes as its shape says.

    Raises:
        Problem: It does not.
    """
    if datatype == "BYTES":
        return
    wanted = num_items(shape) * ITEM_BYTES[datatype]
    if wanted != num_bytes:
        raise Problem(
            "input",
            f"input {name[:80]!r} of {datatype} {list(shape)} must have {wanted} bytes",
            f"it has {num_bytes}",
            "correct shape or data",
        )


def region_of(name: str, parameters: dict[str, Any], regions: Any) -> Region:
    """The client's memory that a tensor's parameters name.

    Raises:
        Problem: It is not registered, or the tensor lies outside.
    """
    region = parameters.get("shared_memory_region")
    size = parameters.get("shared_memory_byte_size")
    offset = parameters.get("shared_memory_offset", 0)
    if not isinstance(region, str) or type(size) is not int or type(offset) is not int:
        raise Problem(
            "input",
            f"tensor {name[:80]!r} in shared memory must have shared_memory_region, "
            "shared_memory_byte_size and, if not 0, shared_memory_offset",
            "one is missing or of another type",
            "correct its parameters",
        )
    found: Region = regions(region, offset, size)
    return found


def write_infer(
    name: str,
    version: str,
    request: InferRequest,
    done: Done,
    payload: bytes,
) -> tuple[int | None, bytes]:
    """Write an infer answer.

    Returns:
        The length of its JSON if tensors follow, else None; and the body.
    """
    wanted = {output.name: output for output in request.outputs}
    listed: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for part in done.outputs:
        item: dict[str, Any] = {
            "name": part.name,
            "datatype": part.datatype,
            "shape": part.shape,
        }
        one = wanted.get(part.name)
        if part.region is not None:
            item["parameters"] = {
                "shared_memory_region": part.region.name,
                "shared_memory_byte_size": part.num_bytes,
            }
        else:
            data = payload[part.offset : part.offset + part.num_bytes]
            if one.is_binary if one is not None else request.is_binary:
                item["parameters"] = {"binary_data_size": part.num_bytes}
                tail.append(data)
            else:
                item["data"] = to_list(part.datatype, data)
        listed.append(item)
    answer: dict[str, Any] = {"model_name": name, "model_version": version, "outputs": listed}
    if request.id:
        answer["id"] = request.id
    header = _encode(answer)
    if not tail:
        return None, header
    return len(header), b"".join((header, *tail))
