"""Pictures in, boxes out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from saccade.server.dispatch import Job
from saccade.server.http import HttpRequest
from saccade.server.kserve import InferRequest
from saccade.server.models import ModelEntry
from saccade.server.problems import Problem
from saccade.server.routes import Endpoint, Router
from saccade.server.timing import timing_line
from saccade.server.wire import Detect

if TYPE_CHECKING:
    from saccade.server.app import Front

__all__ = ["Pictures"]


class Pictures:
    """Answers the paths that take pictures.

    Args:
        front: The server.
    """

    def __init__(self, front: Front) -> None:
        self._front = front

    def register(self, router: Router) -> None:
        """Add the paths to a router."""
        data = self._front.http_limits.max_body_bytes
        for base in ("/v2/models/{}", "/v2/models/{}/versions/{}"):
            router.add("POST", f"{base}/detect", Endpoint(self.detect, max_body_bytes=data))

    def is_pictures(self, entry: ModelEntry, asked: InferRequest) -> bool:
        """Whether a request's tensor holds encoded pictures."""
        return False

    def infer(self, request: HttpRequest, entry: ModelEntry, asked: InferRequest) -> None:
        """Answer an infer request whose tensor holds encoded pictures."""

    def detect(self, request: HttpRequest, name: str, version: str = "") -> None:
        """Find objects in the picture that is the body."""
        front = self._front
        entry = front.repository.ready(name, version)
        if not entry.is_detector:
            raise Problem(
                "input",
                f"model {name!r} must be a detector to be given pictures",
                f"it is not: {entry.details['why_no_detector']}",
                "send tensors to its infer path, or load it with a preset",
            )
        key, num_bytes = entry.key, request.num_bytes

        def make(number: int, payload: bytes, block: int, capacity: int) -> Detect:
            return Detect(
                number, key, num_bytes, "json", (None, None, None), payload, block, capacity
            )

        def on_end(reply: Any, content: bytes) -> None:
            if isinstance(reply, Problem):
                request.fail(reply)
            else:
                start = f'{{"model_name":"{entry.name}","model_version":"{entry.version}",'
                more = timing_line(reply, request.arrived_s)
                request.respond(200, start.encode() + content[1:], "application/json", more)

        job = Job(entry, request.parts, num_bytes, make, on_end)
        request.on_gone = lambda: front.dispatcher.cancel(job)
        front.dispatcher.submit(job)
