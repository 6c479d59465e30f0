"""What people and their tools look at: the page, the metrics and the OpenAPI document."""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from saccade.server.http import HttpRequest, Response
from saccade.server.metrics import CONTENT_TYPE, exposition
from saccade.server.models import ModelEntry
from saccade.server.openapi import document
from saccade.server.problems import Problem
from saccade.server.routes import Endpoint, Router
from saccade.server.stats import ModelStats, Stats
from saccade.server.usage import GpuWatch

if TYPE_CHECKING:
    from saccade.server.app import Front

__all__ = ["Site"]

_FOLDER = Path(__file__).parent / "page"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# The page asks nobody but this server, and runs nothing but its own files.
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' blob: data:; media-src 'self' blob:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}
_json = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class _File:
    """One file of the page, read once.

    Attributes:
        content_type: Its type.
        content: As it is.
        packed: By gzip.
        tag: What tells one version of it from another.
    """

    content_type: str
    content: bytes
    packed: bytes
    tag: str


class Site:
    """Answers the paths of the page, of the metrics and of the OpenAPI document.

    Args:
        front: The server.
    """

    def __init__(self, front: Front) -> None:
        self._front = front
        self._gpus: GpuWatch | None = None
        self._files: dict[str, _File] = {}
        self._document = b""

    def register(self, router: Router) -> None:
        """Add the paths to a router."""
        # Files hold no secrets, and the page must be there to ask for the token.
        router.add("GET", "/", Endpoint(self.index, is_open=True))
        router.add("GET", "/page/live", Endpoint(self.live))
        router.add("GET", "/page/models", Endpoint(self.models))
        router.add("GET", "/page/{}", Endpoint(self.file, is_open=True))
        router.add("GET", "/metrics", Endpoint(self.metrics))
        router.add("GET", "/openapi.json", Endpoint(self.openapi, is_open=True))

    def index(self, request: HttpRequest) -> Response:
        """The page."""
        return self.file(request, "index.html")

    def file(self, request: HttpRequest, name: str) -> Response:
        """A file of the page."""
        found = self._files.get(name)
        if found is None:
            found = self._files[name] = _read(name)
        if request.head.headers.get("if-none-match") == found.tag:
            return Response(304, headers={"etag": found.tag})
        headers = {**_HEADERS, "etag": found.tag, "vary": "accept-encoding"}
        if "gzip" in request.head.headers.get("accept-encoding", ""):
            headers["content-encoding"] = "gzip"
            return Response(200, found.packed, found.content_type, headers)
        return Response(200, found.content, found.content_type, headers)

    def shared(self) -> dict[str, Callable[..., Awaitable[Any]]]:
        """As `Control.shared`."""
        return {"live": self._live, "metrics": self._metrics}

    def _read_gpus(self) -> list[dict[str, Any]]:
        if self._gpus is None:
            self._gpus = GpuWatch()
        return self._gpus.read()

    async def live(self, request: HttpRequest) -> Response:
        """The figures that change from second to second."""
        body = await self._front.ask("live")
        return Response(body=body, headers={"cache-control": "no-store"})

    async def _live(self) -> bytes:
        front = self._front
        stats, usage = await front.fronts.gather()
        now_s = time.time()
        told = {
            "saccade": _version(),
            "time_s": now_s,
            "started_s": stats.started_s,
            "uptime_s": now_s - stats.started_s,
            "is_ready": front.is_ready,
            "is_draining": front.is_draining,
            "models": [_live(entry, stats) for entry in front.repository.entries()],
            "connections": stats.num_connections,
            "num_restarts": stats.num_restarts,
            "front": usage,
            "engines": [{"number": n, **told} for n, told in sorted(stats.engines.items())],
            "gpus": self._read_gpus(),
        }
        return _json(told)

    def models(self, request: HttpRequest) -> Response:
        """What the models are, with the figures of their gates."""
        told = [_described(entry) for entry in self._front.repository.entries()]
        return Response(body=_json({"models": told}), headers={"cache-control": "no-store"})

    async def metrics(self, request: HttpRequest) -> Response:
        """For Prometheus: of all fronts, whichever is asked."""
        return Response(200, await self._front.ask("metrics"), CONTENT_TYPE)

    async def _metrics(self) -> bytes:
        front = self._front
        stats, usage = await front.fronts.gather()
        return exposition(
            stats,
            front.repository.entries(),
            version=_version(),
            own=usage,
            gpus=self._read_gpus(),
            num_front_restarts=front.fronts.num_restarts,
        )

    def openapi(self, request: HttpRequest) -> Response:
        """The OpenAPI document."""
        if not self._document:
            has_token = self._front.options.token is not None
            routes = self._front.router.patterns()
            self._document = _json(document(routes, _version(), has_token=has_token))
        return Response(body=self._document)


def _read(name: str) -> _File:
    """A file of the page's folder; names come from a list, so none can lead outside.

    Raises:
        Problem: There is none.
    """
    paths = {path.name: path for path in _FOLDER.rglob("*.*") if path.suffix in _TYPES}
    if name not in paths:
        raise Problem(
            "not_found", "a file of the page must exist", f"{name[:80]!r} does not", "open /"
        )
    content = paths[name].read_bytes()
    tag = '"' + hashlib.sha256(content).hexdigest()[:20] + '"'
    packed = gzip.compress(content, mtime=0)
    return _File(_TYPES[paths[name].suffix], content, packed, tag)


def _version() -> str:
    return importlib.metadata.version("saccade")


def _live(entry: ModelEntry, total: Stats) -> dict[str, Any]:
    stats: ModelStats = total.model(entry.name, entry.version)
    return {
        "name": entry.name,
        "version": entry.version,
        "key": entry.key,
        "state": entry.state,
        "num_ok": stats.num_ok,
        "num_items": stats.num_items,
        "errors": stats.errors,
        "num_queued": stats.num_queued,
        "num_running": stats.num_running,
        "stages": {name: histogram.as_dict() for name, histogram in stats.stages.items()},
        "batches": [[size, sums[0]] for size, sums in sorted(stats.batches.items())],
    }


def _described(entry: ModelEntry) -> dict[str, Any]:
    details = entry.details
    keys = ("plan", "contract", "gate", "recipe", "created", "digest", "why_no_detector")
    return {
        "name": entry.name,
        "version": entry.version,
        "state": entry.state,
        "reason": entry.reason,
        "mismatches": details.get("mismatches", []),
        "fallbacks": details.get("fallbacks", []),
        **{key: details.get(key) for key in keys},
    }
