"""Element types of the Open Inference Protocol, without NumPy: the front does not load it.

Source: KServe, Open Inference Protocol v2, "Tensor Data Types" and the binary extension.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from saccade.server.problems import Problem

__all__ = [
    "ITEM_BYTES",
    "datatype_of",
    "join_strings",
    "num_items",
    "numpy_name",
    "split_strings",
    "to_bytes",
    "to_list",
]

assert sys.byteorder == "little", "tensors on the wire are little-endian"

_NUMPY = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BYTES": "object",
    "BF16": "bfloat16",
}
_OF_NUMPY = {name: datatype for datatype, name in _NUMPY.items()} | {"str": "BYTES"}
ITEM_BYTES = {
    "BOOL": 1,
    "UINT8": 1,
    "INT8": 1,
    "UINT16": 2,
    "INT16": 2,
    "FP16": 2,
    "BF16": 2,
    "UINT32": 4,
    "INT32": 4,
    "FP32": 4,
    "UINT64": 8,
    "INT64": 8,
    "FP64": 8,
}
_CODES = {
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP32": "f",
    "FP64": "d",
}


def datatype_of(numpy_name: str) -> str:
    """KServe's name of a NumPy type."""
    return _OF_NUMPY[numpy_name]


def numpy_name(datatype: str) -> str:
    """NumPy's name of a KServe type."""
    return _NUMPY[datatype]


def num_items(shape: Iterable[int]) -> int:
    """Elements of a tensor."""
    product = 1
    for size in shape:
        product *= size
    return product


def to_bytes(name: str, datatype: str, shape: Sequence[int], data: Any) -> bytes:
    """A JSON tensor, nested or flat, as bytes.

    Raises:
        Problem: Its values do not fit its type or shape.
    """
    flat = _flat(name, data)
    if len(flat) != num_items(shape):
        raise Problem(
            "input",
            f"tensor {name!r} of shape {list(shape)} must have {num_items(shape)} values",
            f"it has {len(flat)}",
            "correct shape or data",
        )
    try:
        return _packed(datatype, flat)
    except (TypeError, ValueError, OverflowError, struct.error, UnicodeEncodeError) as exc:
        raise Problem(
            "input",
            f"values of tensor {name!r} must be {datatype}",
            f"one is not ({exc})",
            "correct data or datatype",
        ) from exc


def _flat(name: str, data: Any) -> Sequence[Any]:
    if not isinstance(data, list):
        raise Problem(
            "input",
            f"data of tensor {name!r} must be a list",
            f"it is {type(data).__name__}",
            "send a list, flat or nested, or use the binary extension",
        )
    depth = 0
    while data and isinstance(data[0], list):
        depth += 1
        if depth > 16 or not all(isinstance(row, list) for row in data):
            raise Problem(
                "input",
                f"data of tensor {name!r} must be a list or lists of equal depth",
                "it is not",
                "send a flat list",
            )
        data = list(chain.from_iterable(data))
    flat: list[Any] = data
    return flat


def _packed(datatype: str, flat: Sequence[Any]) -> bytes:
    if datatype == "BYTES":
        return join_strings(v.encode() if isinstance(v, str) else _refused(v) for v in flat)
    if datatype == "BOOL":
        return bytes(1 if _bool(value) else 0 for value in flat)
    if any(isinstance(value, bool | str) or value is None for value in flat):
        raise TypeError("a number is needed")
    if datatype == "FP16":
        return struct.pack(f"<{len(flat)}e", *flat)
    if datatype == "BF16":
        return b"".join(_bf16(float(value)) for value in flat)
    if datatype not in ("FP32", "FP64"):
        flat = [_whole(value) for value in flat]
    return array(_CODES[datatype], flat).tobytes()


def _whole(value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is no whole number")
    return value


def _bool(value: Any) -> bool:
    if value is True or value is False or value in (0, 1):
        return bool(value)
    raise TypeError(f"{value!r} is neither true nor false")


def _refused(value: Any) -> bytes:
    raise TypeError(f"{value!r} is no text; bytes need the binary extension")


def _bf16(value: float) -> bytes:
    """To nearest, ties to even."""
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    if value != value:
        return b"\xc0\x7f"
    return struct.pack("<H", ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) & 0xFFFF)


def to_list(datatype: str, data: bytes | memoryview) -> list[Any]:
    """Bytes of a tensor as JSON values, flat.

    Raises:
        Problem: JSON cannot hold them.
    """
    if datatype == "BYTES":
        try:
            return [text.decode() for text in split_strings(data)]
        except UnicodeDecodeError as exc:
            raise Problem(
                "input",
                "an output of type BYTES must be UTF-8 to be sent as JSON",
                "this one is not",
                "ask for it with the binary extension",
            ) from exc
    if datatype == "BOOL":
        return [byte != 0 for byte in bytes(data)]
    if datatype == "FP16":
        return [_finite(v) for v in struct.unpack(f"<{len(data) // 2}e", data)]
    if datatype == "BF16":
        wide = struct.unpack(f"<{len(data) // 2}H", data)
        return [_finite(v) for v in array("f", array("I", [v << 16 for v in wide]).tobytes())]
    values = array(_CODES[datatype])
    values.frombytes(data)
    return [_finite(v) for v in values] if datatype in ("FP32", "FP64") else values.tolist()


def _finite(value: float) -> float | None:
    # JSON has no word for them; null is what other servers send.
    return value if value - value == 0 else None


def join_strings(items: Iterable[bytes]) -> bytes:
    """Byte strings as a BYTES tensor: each behind its length in 4 bytes."""
    return b"".join(struct.pack("<I", len(item)) + item for item in items)


def split_strings(data: bytes | memoryview) -> list[bytes]:
    """The byte strings of a BYTES tensor.

    Raises:
        Problem: A length does not fit.
    """
    found, at, end = [], 0, len(data)
    while at < end:
        length = int.from_bytes(data[at : at + 4], "little")
        if at + 4 + length > end or at + 4 > end:
            raise Problem(
                "input",
                "each string of a BYTES tensor must follow its length in 4 bytes",
                f"the one at byte {at} reaches past the end",
                "correct the tensor",
            )
        found.append(bytes(data[at + 4 : at + 4 + length]))
        at += 4 + length
    return found
