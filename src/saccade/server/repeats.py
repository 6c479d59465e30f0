"""Requests that say what one before said, with other bytes in their tensors.

Clients send the same description again and again. What was worked out of it once, down to the
message for the engine process and the description of the answer, is kept beside the model.
"""

from __future__ import annotations

from typing import Any

from saccade.server.inference import schedule_of
from saccade.server.kserve import InferRequest
from saccade.server.models import ModelEntry
from saccade.server.protocol import check_inputs
from saccade.server.wire import Infer

__all__ = ["MAX_DESCRIPTION_BYTES", "MAX_KNOWN", "Known", "is_repeatable"]

# With many different ones it does not pay.
MAX_KNOWN, MAX_DESCRIPTION_BYTES, _MAX_BYTES = 256, 2048, 16 << 20


def is_repeatable(entry: ModelEntry, asked: InferRequest) -> bool:
    """Whether the next request with this description can only mean the same."""
    return (
        all(part.region is None for part in asked.inputs)
        and all(wanted.region is None for wanted in asked.outputs)
        and (not entry.is_detector or all(part.datatype != "BYTES" for part in asked.inputs))
        and asked.num_bytes <= _MAX_BYTES
    )


class Known:
    """What is the same in all requests with one description.

    Args:
        entry: The model.
        asked: The request that came first.

    Attributes:
        entry: The model.
        asked: That request.
        num_bytes: Of its tensors.
        schedule: When.
        make: As for `Job`.
        outputs: Where outputs lay in the last answer.
        start: What an answer with such outputs begins with, if its tensors follow as they are.
        line: For HTTP, the header line that says how long that is.
    """

    __slots__ = ("asked", "entry", "line", "make", "num_bytes", "outputs", "schedule", "start")

    def __init__(self, entry: ModelEntry, asked: InferRequest) -> None:
        self.entry = entry
        self.asked = asked
        self.num_bytes = asked.num_bytes
        self.schedule = schedule_of(asked.parameters)
        self.outputs: tuple[Any, ...] | None = None
        self.start: bytes | None = None
        self.line = ""
        key, inputs, wanted = entry.key, asked.inputs, check_inputs(entry, asked)

        def make(number: int, payload: bytes, block: int, size: int, at_s: float) -> Infer:
            return Infer(number, key, inputs, wanted, payload, block, size, at_s)

        self.make = make
