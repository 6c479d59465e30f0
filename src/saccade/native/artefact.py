"""An engine as bytes: plan, machine code, weights, choices; read again without a compiler.

    magic, SHA-256 of the rest, then MessagePack: versions, plan, what runs each step, arrays

Only the record types of this package are read; nothing in a file is executed but the kernels
themselves. A file of another card or of other versions is refused, with what differs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, cast

import msgspec
import numpy as np

from saccade.errors import BuildError
from saccade.native import ops, plan, seam, tensors
from saccade.native.engine import Options
from saccade.native.plan import Plan
from saccade.native.seam import Built, Source

__all__ = ["Artefact", "packed", "unpacked"]

_MAGIC = b"saccade-native-1\n"
_KINDS: Mapping[str, type] = {
    kind.__name__: kind
    for module in (ops, plan, seam, tensors)
    for kind in vars(module).values()
    if isinstance(kind, type) and is_dataclass(kind)
} | {"Options": Options}


@dataclass(frozen=True, slots=True, eq=False)
class Artefact:
    """What an engine is made from.

    Attributes:
        key: What it was built for: name to value, e.g. {"device": "NVIDIA H200"}.
        plan: Steps and places.
        built: What runs each step.
        ways: Its name, per step.
        us: Microseconds, per step, as measured.
        cubins: Machine code by source.
        options: How launches are put together.
    """

    key: Mapping[str, str]
    plan: Plan
    built: tuple[Built, ...]
    ways: tuple[str, ...]
    us: tuple[float, ...]
    cubins: Mapping[Source, bytes]
    options: Options


def packed(artefact: Artefact) -> bytes:
    """The bytes of an artefact; equal ones give equal bytes."""
    store: dict[str, bytes] = {}
    sources = list(artefact.cubins)
    numbers = {source: index for index, source in enumerate(sources)}

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            raw = np.ascontiguousarray(value).tobytes()
            name = hashlib.sha256(raw).hexdigest()
            store[name] = raw
            return {"#": "array", "dtype": str(value.dtype), "shape": value.shape, "raw": name}
        if isinstance(value, Source):
            return {"#": "source", "at": numbers[value]}
        if is_dataclass(value) and not isinstance(value, type):
            made = {field.name: plain(getattr(value, field.name)) for field in fields(value)}
            return {"#": type(value).__name__, **made}
        if isinstance(value, tuple | list):
            return [plain(item) for item in value]
        if isinstance(value, Mapping):
            return {"#": "map", "items": [[plain(k), plain(v)] for k, v in value.items()]}
        return value

    body = {
        "key": dict(artefact.key),
        # The weights are in what was built from them, as the kernels want them.
        "plan": plain(_without_weights(artefact.plan)),
        "built": plain(artefact.built),
        "ways": list(artefact.ways),
        "us": list(artefact.us),
        "cubins": [artefact.cubins[source] for source in sources],
        "options": plain(artefact.options),
    }
    raw = msgspec.msgpack.encode({**body, "arrays": store})
    return _MAGIC + hashlib.sha256(raw).digest() + raw


def _without_weights(given: Plan) -> Plan:
    return replace(given, weights={})


def unpacked(raw: bytes, key: Mapping[str, str]) -> Artefact:
    """Read an artefact.

    Args:
        raw: From `packed`.
        key: What this machine is.

    Raises:
        BuildError: The bytes are damaged, or were built for something else.
    """
    head = len(_MAGIC) + 32
    if raw[: len(_MAGIC)] != _MAGIC or hashlib.sha256(raw[head:]).digest() != raw[head - 32 : head]:
        raise BuildError(
            "a native engine must be the file that saccade build wrote, this one is damaged or "
            "of another version; build again"
        )
    body = msgspec.msgpack.decode(raw[head:])
    different = {n: (body["key"].get(n), v) for n, v in key.items() if body["key"].get(n) != v}
    if different:
        told = "; ".join(f"{n}: built for {a}, here is {b}" for n, (a, b) in different.items())
        raise BuildError(
            f"a native engine runs on the card and versions that it was built for; {told}; "
            "build again on this machine"
        )
    sources = [Source(f"cubin {index}") for index in range(len(body["cubins"]))]
    read = _reader(sources, body["arrays"])
    return Artefact(
        key=body["key"],
        plan=cast(Plan, read(body["plan"])),
        built=cast(Any, read(body["built"])),
        ways=tuple(body["ways"]),
        us=tuple(body["us"]),
        cubins=dict(zip(sources, body["cubins"], strict=True)),
        options=cast(Options, read(body["options"])),
    )


def _reader(sources: list[Source], store: Mapping[str, bytes]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if isinstance(value, list):
            return tuple(read(item) for item in value)
        if not isinstance(value, dict):
            return value
        kind = value["#"]
        if kind == "array":
            array = np.frombuffer(store[value["raw"]], np.dtype(value["dtype"]))
            return array.reshape(value["shape"])
        if kind == "source":
            return sources[value["at"]]
        if kind == "map":
            return {read(k): read(v) for k, v in value["items"]}
        if kind not in _KINDS:
            raise BuildError(
                f"a native engine must hold records that this version knows, it has {kind!r}; "
                "build again"
            )
        made = {name: read(inner) for name, inner in value.items() if name != "#"}
        try:
            return _KINDS[kind](**made)
        except TypeError as exc:
            raise BuildError(
                f"a native engine must hold records as this version writes them, its {kind!r} is "
                f"of another version ({exc}); build again"
            ) from exc

    return read
