"""One infer request, from either protocol, on its way through the queue."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from saccade.server.dispatch import DEFAULT_PRIORITY, Job, Schedule
from saccade.server.kserve import InferRequest
from saccade.server.models import Face, ModelEntry
from saccade.server.pictures import PicturesRequest
from saccade.server.problems import Problem
from saccade.server.protocol import check_inputs
from saccade.server.wire import Infer

if TYPE_CHECKING:
    from saccade.server.dispatch import Dispatcher

__all__ = ["schedule_of", "start_infer"]


def schedule_of(parameters: dict[str, Any]) -> Schedule:
    """Priority and time allowed, from a request's parameters.

    Raises:
        Problem: One is wrong.
    """
    priority, timeout_us = parameters.get("priority", 0), parameters.get("timeout", 0)
    if type(priority) is not int or not 0 <= priority <= 9:
        raise Problem(
            "input",
            "priority must be 1 (first) to 9 (last), or 0 for the default",
            f"it is {priority!r}",
            "correct it",
        )
    if type(timeout_us) is not int or not 0 <= timeout_us < 1 << 53:
        raise Problem(
            "input",
            "timeout must be a whole number of microseconds, or 0 for none",
            f"it is {timeout_us!r}",
            "correct it",
        )
    return Schedule(priority or DEFAULT_PRIORITY, timeout_us / 1e6)


def start_infer(
    dispatcher: Dispatcher,
    face: ModelEntry | Face,
    asked: InferRequest,
    schedule: Schedule,
    on_end: Callable[[Any, bytes], None],
) -> Callable[[], None]:
    """Check a request against its model and put it in the queue.

    Args:
        dispatcher: The queue.
        face: The network, or its face for pictures.
        asked: The request.
        schedule: When.
        on_end: Called once, perhaps before this returns: with Done and the payload, or with a
            Problem and b"".

    Returns:
        What cancels it.

    Raises:
        Problem: The request does not fit the model.
    """
    entry = face.base
    if face is not entry or (
        entry.is_detector and any(part.datatype == "BYTES" for part in asked.inputs)
    ):
        return PicturesRequest(dispatcher, face, asked, schedule, on_end).cancel
    wanted = check_inputs(face, asked)
    key, inputs = entry.key, asked.inputs

    def make(number: int, payload: bytes, block: int, size: int, at_s: float) -> Infer:
        return Infer(number, key, inputs, wanted, payload, block, size, at_s)

    job = Job(entry, asked.parts, asked.num_bytes, make, on_end, schedule)
    dispatcher.submit(job)
    return lambda: dispatcher.cancel(job)
