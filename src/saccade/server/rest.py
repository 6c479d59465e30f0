"""The Open Inference Protocol over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from saccade.server.dispatch import DEFAULT_PRIORITY, Job, Schedule
from saccade.server.http import HttpRequest, Response
from saccade.server.kserve import read_infer, write_infer
from saccade.server.problems import Problem
from saccade.server.protocol import (
    check_inputs,
    config_of,
    metadata_of,
    server_metadata,
    statistics_of,
)
from saccade.server.routes import Endpoint, Router
from saccade.server.wire import Infer

if TYPE_CHECKING:
    from saccade.server.app import Front

__all__ = ["Rest", "answer", "schedule_of"]

_BINARY_LINE = "inference-header-content-length: {}\r\n"
_json = msgspec.json.Encoder().encode


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


class Rest:
    """Answers the protocol's paths.

    Args:
        front: The server.
    """

    def __init__(self, front: Front) -> None:
        self._front = front

    def register(self, router: Router) -> None:
        """Add the paths to a router."""
        data = self._front.http_limits.max_body_bytes
        for path, answer in (
            ("/v2", self.metadata),
            ("/v2/health/live", self.live),
            ("/v2/health/ready", self.ready),
        ):
            router.add("GET", path, Endpoint(answer, is_open=path != "/v2"))
        for base in ("/v2/models/{}", "/v2/models/{}/versions/{}"):
            router.add("GET", base, Endpoint(self.model_metadata))
            router.add("GET", f"{base}/ready", Endpoint(self.model_ready, is_open=True))
            router.add("GET", f"{base}/config", Endpoint(self.model_config))
            router.add("GET", f"{base}/stats", Endpoint(self.model_stats))
            router.add("POST", f"{base}/infer", Endpoint(self.infer, max_body_bytes=data))
        router.add("GET", "/v2/models/stats", Endpoint(self.all_stats))

    def metadata(self, request: HttpRequest) -> Response:
        return Response(body=_json(server_metadata()))

    def live(self, request: HttpRequest) -> Response:
        return Response()

    def ready(self, request: HttpRequest) -> Response:
        front = self._front
        if front.is_ready and any(engine.is_up for engine in front.dispatcher.engines):
            return Response()
        raise Problem(
            "unavailable",
            "all models and an engine process must be ready",
            "they are not" if not front.is_draining else "this server is going down",
            "try again later",
            retry_after_s=1,
        )

    def model_ready(self, request: HttpRequest, name: str, version: str = "") -> Response:
        self._front.repository.ready(name, version)
        if not any(engine.is_up for engine in self._front.dispatcher.engines):
            raise Problem(
                "unavailable",
                "an engine process must be up",
                "none is",
                "try again in a moment",
                retry_after_s=1,
            )
        return Response()

    def model_metadata(self, request: HttpRequest, name: str, version: str = "") -> Response:
        entry = self._front.repository.ready(name, version)
        return Response(body=_json(metadata_of(entry, self._front.repository)))

    def model_config(self, request: HttpRequest, name: str, version: str = "") -> Response:
        return Response(body=_json(config_of(self._front.repository.ready(name, version))))

    def model_stats(self, request: HttpRequest, name: str, version: str = "") -> Response:
        repository = self._front.repository
        found = [repository.find(name, version)] if version else repository.versions(name)
        if not found:
            repository.find(name)
        return Response(body=_json({"model_stats": [statistics_of(e.stats) for e in found]}))

    def all_stats(self, request: HttpRequest) -> Response:
        entries = self._front.repository.entries()
        return Response(body=_json({"model_stats": [statistics_of(e.stats) for e in entries]}))

    def infer(self, request: HttpRequest, name: str, version: str = "") -> None:
        """Run a network on tensors."""
        front = self._front
        entry = front.repository.ready(name, version)
        text = request.head.headers.get("inference-header-content-length")
        asked = read_infer(request.body, _header_bytes(text), front.regions)
        if front.pictures.is_pictures(entry, asked):
            front.pictures.infer(request, entry, asked)
            return
        schedule = schedule_of(asked.parameters)
        wanted = check_inputs(entry, asked)
        key = entry.key

        def make(number: int, payload: bytes, block: int, capacity: int) -> Infer:
            return Infer(number, key, asked.inputs, wanted, payload, block, capacity)

        def on_end(reply: Any, content: bytes) -> None:
            if isinstance(reply, Problem):
                request.fail(reply)
                return
            try:
                header, body = write_infer(entry.name, entry.version, asked, reply, content)
            except Exception as exc:
                front.fail(request, exc)
                return
            answer(request, header, body)

        job = Job(entry, asked.parts, asked.num_bytes, make, on_end, schedule)
        request.on_gone = lambda: front.dispatcher.cancel(job)
        front.dispatcher.submit(job)


def answer(request: HttpRequest, header: int | None, body: bytes) -> None:
    """Send an infer answer."""
    if header is None:
        request.respond(200, body)
    else:
        request.respond(200, body, "application/octet-stream", _BINARY_LINE.format(header))


def _header_bytes(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise Problem(
            "input",
            "inference-header-content-length must be a number",
            f"it is {text[:40]!r}",
            "correct the header",
        )
    return int(text)
