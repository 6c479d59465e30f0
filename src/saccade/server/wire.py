"""Messages between the front and an engine process: lists of them in packets, as MessagePack.

Short tasks travel together, so that neither end pays a system call for each. What is longer than
a packet lies in the arena, in a block that the front took for the request; the engine process
writes its answer over it if it fits, else it sends it in several packets.
"""

from __future__ import annotations

import msgspec

__all__ = [
    "INLINE_BYTES",
    "LINE_SHIFT",
    "MAX_INLINE_WAITING_BYTES",
    "PACKET_BYTES",
    "SHORT_S",
    "Detect",
    "Done",
    "Failed",
    "Infer",
    "Join",
    "Load",
    "Loaded",
    "Open",
    "Piece",
    "Region",
    "Reply",
    "Status",
    "Task",
    "TensorPart",
    "Unload",
]

# Payloads up to here travel in the message.
INLINE_BYTES = 24 << 10
# What waits in the socket at most; beyond it, payloads go through the arena.
MAX_INLINE_WAITING_BYTES = 96 << 10
# An id is made of the number of its line, see `saccade.server.engines`, and a number on that line.
LINE_SHIFT = 40
# The longest packet. Linux lets a packet have about half of the socket's buffer.
PACKET_BYTES = 64 << 10
# Tasks of less than this are done by the thread that waits for them, and answered together: waking
# another thread would take as long.
SHORT_S = 0.0003


class Region(msgspec.Struct, frozen=True, array_like=True):
    """A piece of a client's shared memory.

    Attributes:
        key: What the client calls the memory object.
        offset: Where the piece starts.
        num_bytes: Its length.
        name: Under which the client registered it.
    """

    key: str
    offset: int
    num_bytes: int
    name: str = ""


class TensorPart(msgspec.Struct, frozen=True, array_like=True):
    """One tensor of a request or an answer.

    Attributes:
        name: As the model has it.
        datatype: KServe's name of the element type.
        shape: Sizes.
        offset: Where its bytes start in the payload.
        num_bytes: Their number.
        region: Where its bytes are instead, if the client shares memory.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    offset: int = 0
    num_bytes: int = 0
    region: Region | None = None


class Infer(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Run a network on tensors.

    Attributes:
        id: Comes back in the reply.
        model: Key under which the model was loaded.
        inputs: What is fed.
        outputs: Names of the outputs wanted, each with the region it shall be written to or None.
        payload: The bytes of the inputs if they are few.
        block: Otherwise the offset of the arena block, or -1.
        capacity: Bytes of that block.
        arrived_s: When the request came, by the clock that all processes share.
    """

    id: int
    model: int
    inputs: tuple[TensorPart, ...]
    outputs: tuple[tuple[str, Region | None], ...]
    payload: bytes = b""
    block: int = -1
    capacity: int = 0
    arrived_s: float = 0.0


class Detect(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Find objects in one encoded picture.

    Attributes:
        id: Comes back in the reply.
        model: Key under which the model was loaded.
        num_bytes: Length of the picture.
        form: "json", "arrays", "jpeg" or "png": what is sent back.
        thresholds: score, iou and max_detections, each None for the contract's.
        payload: The picture if it is short.
        block: Otherwise the offset of the arena block, or -1.
        capacity: Bytes of that block.
        region: Where the picture is instead, if the client shares memory.
        arrived_s: As in Infer.
    """

    id: int
    model: int
    num_bytes: int
    form: str = "json"
    thresholds: tuple[float | None, float | None, int | None] = (None, None, None)
    payload: bytes = b""
    block: int = -1
    capacity: int = 0
    region: Region | None = None
    arrived_s: float = 0.0


class Load(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Load a model and warm it up.

    Attributes:
        id: Comes back in the reply.
        model: Key for later messages.
        name: What clients call it.
        path: Bundle or ONNX file.
        options: As JSON: see `saccade.server.loading.LoadOptions`.
    """

    id: int
    model: int
    name: str
    path: str
    options: bytes


class Unload(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Release a model; the front sends this when nothing of it is under way."""

    id: int
    model: int


class Status(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Say what the process uses."""

    id: int


class Forget(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Unmap a client's shared memory."""

    id: int
    key: str


class Join(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """Take up the line to a further front that lies at the process's door."""

    id: int


class Open(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """Look whether a client's memory can be used."""

    id: int
    region: Region


Task = Infer | Detect | Load | Unload | Status | Forget | Join | Open


class Done(msgspec.Struct, array_like=True, tag=1):
    """A task's result.

    Attributes:
        id: The task's.
        num_bytes: Length of the payload, wherever it is.
        outputs: For Infer, where each output lies in the payload.
        times_ns: Nanoseconds of decode, prepare, infer and suppress.
        batch: Items of all requests in this run of the engine.
        items: Items of this request.
        payload: The answer if it is short; if `in_block`, it is in the task's block.
        in_block: See payload.
        num_pieces: How many Piece messages with the payload came before this one.
    """

    id: int
    num_bytes: int = 0
    outputs: tuple[TensorPart, ...] = ()
    times_ns: tuple[int, int, int, int] = (0, 0, 0, 0)
    batch: int = 1
    items: int = 1
    payload: bytes = b""
    in_block: bool = False
    num_pieces: int = 0


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """A task's error.

    Attributes:
        id: The task's.
        kind: As in `saccade.server.problems`.
        message: Of three parts.
        times_ns: As in Done.
    """

    id: int
    kind: str
    message: str
    times_ns: tuple[int, int, int, int] = (0, 0, 0, 0)


class Loaded(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """A model is ready, or a status is known.

    Attributes:
        id: The task's.
        details: JSON.
    """

    id: int
    details: bytes


class Piece(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """A part of a long payload; pieces of one task come in order.

    Attributes:
        id: The task's.
        content: The bytes.
    """

    id: int
    content: bytes


Reply = Done | Failed | Loaded | Piece
