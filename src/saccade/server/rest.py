"""The Open Inference Protocol over HTTP."""

from __future__ import annotations

import base64
import functools
import zlib
from typing import TYPE_CHECKING, Any

import msgspec

from saccade.server.dispatch import Job
from saccade.server.http import HttpRequest, Response
from saccade.server.inference import schedule_of, start_infer
from saccade.server.kserve import InferRequest, read_infer, write_infer
from saccade.server.models import Face, ModelEntry
from saccade.server.problems import Problem
from saccade.server.protocol import server_metadata
from saccade.server.repeats import MAX_DESCRIPTION_BYTES, MAX_KNOWN, Known, is_repeatable
from saccade.server.routes import Endpoint, Router
from saccade.server.wire import Done

if TYPE_CHECKING:
    from saccade.server.app import Front

__all__ = ["Rest", "body_of"]

_BINARY_LINE = "inference-header-content-length: {}\r\n"
# JSON that is longer is read and written on another thread, so that the loop goes on.
_LONG_BYTES = 256 << 10
_MAX_JSON_BYTES = 16 << 20
_BINARY = "application/octet-stream"
_json = msgspec.json.Encoder().encode


class _Control(msgspec.Struct):
    """Bodies of the paths that are not about inference; what is not used is ignored."""

    parameters: dict[str, Any] = {}
    ready: bool = False
    key: str = ""
    offset: int = 0
    byte_size: int = 0
    raw_handle: dict[str, str] = {}
    device_id: int = 0


def _describe(known: Known, reply: Done, content: bytes) -> None:
    """Keep the JSON of an answer."""
    known.outputs, known.start = reply.outputs, None
    entry = known.entry
    num, answer = write_infer(entry.name, entry.version, known.asked, reply, content)
    if num is not None and answer[num:] == content:
        known.start, known.line = answer[:num], _BINARY_LINE.format(num)


def _remember(entry: ModelEntry, body: bytes, header: int, asked: InferRequest) -> None:
    """Keep what a request's JSON said."""
    has_all_bytes = asked.num_bytes == len(body) - header
    if has_all_bytes and header <= MAX_DESCRIPTION_BYTES and is_repeatable(entry, asked):
        if len(entry.known) >= MAX_KNOWN:
            entry.known.clear()
        entry.known[body[:header]] = Known(entry, asked)


class Rest:
    """Answers the protocol's paths.

    Args:
        front: The server.
    """

    def __init__(self, front: Front) -> None:
        self._front = front
        self._control = front.control

    def register(self, router: Router) -> None:
        """Add the paths to a router."""
        for path, answer in (
            ("/v2/health/live", self.live),
            ("/v2/health/ready", self.ready),
        ):
            router.add("GET", path, Endpoint(answer, is_open=True))
        router.add("GET", "/v2", Endpoint(self.metadata))
        router.add("GET", "/v2/models/stats", Endpoint(self.model_stats))
        data = self._front.http_limits.max_body_bytes
        for base in ("/v2/models/{}", "/v2/models/{}/versions/{}"):
            router.add("GET", base, Endpoint(self.model_metadata))
            router.add("GET", f"{base}/ready", Endpoint(self.model_ready, is_open=True))
            router.add("GET", f"{base}/config", Endpoint(self.model_config))
            router.add("GET", f"{base}/stats", Endpoint(self.model_stats))
            router.add("POST", f"{base}/infer", Endpoint(self.infer, max_body_bytes=data))
        router.add("POST", "/v2/repository/index", Endpoint(self.index))
        router.add("POST", "/v2/repository/models/{}/load", Endpoint(self.load))
        router.add("POST", "/v2/repository/models/{}/unload", Endpoint(self.unload))
        for base in ("/v2/systemsharedmemory", "/v2/systemsharedmemory/region/{}"):
            router.add("GET", f"{base}/status", Endpoint(self.memory_status))
            router.add("POST", f"{base}/unregister", Endpoint(self.memory_unregister))
        router.add(
            "POST", "/v2/systemsharedmemory/region/{}/register", Endpoint(self.memory_register)
        )
        for base in ("/v2/cudasharedmemory", "/v2/cudasharedmemory/region/{}"):
            router.add("GET", f"{base}/status", Endpoint(self.cuda_status))
            router.add("POST", f"{base}/unregister", Endpoint(self.cuda_unregister))
        router.add("POST", "/v2/cudasharedmemory/region/{}/register", Endpoint(self.cuda_register))
        router.add("GET", "/v2/logging", Endpoint(self.log_settings))
        router.add("POST", "/v2/logging", Endpoint(self.change_log_settings))
        for path in ("/v2/trace/setting", "/v2/models/{}/trace/setting"):
            router.add("GET", path, Endpoint(self.trace_settings))
            router.add("POST", path, Endpoint(self.change_trace_settings))

    # Health and descriptions.

    def live(self, request: HttpRequest) -> Response:
        """Whether the server lives."""
        return Response()

    def ready(self, request: HttpRequest) -> Response:
        """Whether it takes requests for all its models."""
        if self._control.is_ready():
            return Response()
        raise Problem(
            "unavailable",
            "all models and an engine process must be ready",
            "this server is going down" if self._front.is_draining else "they are not",
            "try again later",
            retry_after_s=1,
        )

    def model_ready(self, request: HttpRequest, name: str, version: str = "") -> Response:
        """Whether a model takes requests."""
        if self._control.is_model_ready(name, version):
            return Response()
        raise Problem(
            "unavailable",
            f"model {name!r} and an engine process must be ready",
            "they are not",
            "try again later",
            retry_after_s=1,
        )

    def metadata(self, request: HttpRequest) -> Response:
        """Of the server."""
        return Response(body=_json(server_metadata(has_gpu=bool(self._front.options.devices))))

    def model_metadata(self, request: HttpRequest, name: str, version: str = "") -> Response:
        """Of a model."""
        return Response(body=_json(self._control.metadata(name, version)))

    def model_config(self, request: HttpRequest, name: str, version: str = "") -> Response:
        """A model's configuration."""
        return Response(body=_json(self._control.config(name, version)))

    async def model_stats(
        self, request: HttpRequest, name: str = "", version: str = ""
    ) -> Response:
        """Figures of one model or of all."""
        return Response(body=_json(await self._front.ask("statistics", name, version)))

    # Inference.

    def infer(self, request: HttpRequest, name: str, version: str = "") -> Any:
        """Run a network on tensors, or find objects in pictures."""
        face = self._front.repository.ready(name, version)
        headers = request.head.headers
        header = _header_bytes(headers.get("inference-header-content-length"))
        if header is not None and type(face) is ModelEntry:
            known = face.known.get(request.body[:header])
            if (
                known is not None
                and request.num_bytes == header + known.num_bytes
                and "content-encoding" not in headers
            ):
                self._repeat(request, face, known, header)
                return None
        num_json = request.num_bytes if header is None else header
        if num_json > _MAX_JSON_BYTES:
            raise Problem(
                "large",
                f"tensors as JSON must have at most {_MAX_JSON_BYTES} bytes",
                f"these have {num_json}",
                "send them with the binary extension",
            )
        if num_json > _LONG_BYTES or "content-encoding" in headers:
            return self._infer_later(request, face, header)
        asked = self._asked(request, header)
        if header is not None and type(face) is ModelEntry:
            body = request.body
            self._start(request, face, asked)
            _remember(face, body, header, asked)
        else:
            self._start(request, face, asked)
        return None

    def _repeat(self, request: HttpRequest, entry: ModelEntry, known: Known, header: int) -> None:
        """Run a request that differs from one before in the bytes of its tensors only."""

        def on_end(reply: Any, content: bytes) -> None:
            if type(reply) is not Done:
                request.fail(reply)
                return
            request.done = reply
            if reply.outputs != known.outputs:
                _describe(known, reply, content)
            if known.start is None:
                num, answer = write_infer(entry.name, entry.version, known.asked, reply, content)
                _answer(request, num, answer)
            else:
                request.respond(200, known.start + content, _BINARY, known.line)

        payload = memoryview(request.body)[header:]
        job = Job(entry, (payload,), known.num_bytes, known.make, on_end, known.schedule)
        dispatcher = self._front.dispatcher
        request.on_gone = functools.partial(dispatcher.cancel, job)
        dispatcher.submit(job)

    async def _infer_later(
        self, request: HttpRequest, face: ModelEntry | Face, header: int | None
    ) -> None:
        """Read what takes long on another thread: others are answered meanwhile."""
        asked = await self._front.loop.run_in_executor(None, self._asked, request, header)
        if request.is_open:
            self._start(request, face, asked)

    def _asked(self, request: HttpRequest, header: int | None) -> InferRequest:
        body = body_of(request, self._front.http_limits.max_body_bytes)
        return read_infer(body, header, self._front.regions.find)

    def _start(self, request: HttpRequest, face: ModelEntry | Face, asked: InferRequest) -> None:
        front = self._front

        def on_end(reply: Any, content: bytes) -> None:
            if isinstance(reply, Problem):
                request.fail(reply)
                return
            request.done = reply
            if reply.num_bytes > _LONG_BYTES and not asked.has_binary_outputs:
                front.spawn(self._answer_later(request, face, asked, reply, content))
                return
            try:
                num, answer = write_infer(face.name, face.version, asked, reply, content)
            except Exception as exc:
                front.fail(request, exc)
                return
            _answer(request, num, answer)

        schedule = schedule_of(asked.parameters)
        request.on_gone = start_infer(front.dispatcher, face, asked, schedule, on_end)

    async def _answer_later(
        self,
        request: HttpRequest,
        face: ModelEntry | Face,
        asked: InferRequest,
        reply: Any,
        content: bytes,
    ) -> None:
        """Write long tensors as JSON on another thread."""
        write = functools.partial(write_infer, face.name, face.version, asked, reply, content)
        try:
            num, answer = await self._front.loop.run_in_executor(None, write)
        except Exception as exc:
            self._front.fail(request, exc)
            return
        _answer(request, num, answer)

    # Models.

    def index(self, request: HttpRequest) -> Response:
        """The models and their states."""
        return Response(body=_json(self._control.index(_read(request).ready)))

    async def load(self, request: HttpRequest, name: str) -> Response:
        """Load a model."""
        await self._front.ask("load", name, _read(request).parameters)
        return Response()

    async def unload(self, request: HttpRequest, name: str) -> Response:
        """Unload a model."""
        parameters = _read(request).parameters
        parameters.pop("unload_dependents", None)
        await self._front.ask("unload", name, parameters)
        return Response()

    # Shared memory.

    def memory_status(self, request: HttpRequest, name: str = "") -> Response:
        """Regions that are registered."""
        return Response(body=_json(self._front.regions.status(name)))

    async def memory_register(self, request: HttpRequest, name: str) -> Response:
        """Register a region."""
        asked = _read(request)
        await self._front.ask("register", name, asked.key, asked.offset, asked.byte_size)
        return Response()

    async def memory_unregister(self, request: HttpRequest, name: str = "") -> Response:
        """Forget a region, or all."""
        await self._front.ask("unregister", name)
        return Response()

    def cuda_status(self, request: HttpRequest, name: str = "") -> Response:
        """Regions on GPUs that are registered."""
        return Response(body=_json(self._front.regions.status(name, on_device=True)))

    async def cuda_register(self, request: HttpRequest, name: str) -> Response:
        """Register a region on a GPU."""
        asked = _read(request)
        try:
            handle = base64.b64decode(asked.raw_handle.get("b64", ""), validate=True)
        except ValueError as exc:
            raise Problem(
                "input", "raw_handle.b64 must be base64", f"it is not ({exc})", "correct it"
            ) from exc
        sizes = (asked.device_id, asked.byte_size)
        await self._front.ask("register_on_device", name, handle.hex(), *sizes)
        return Response()

    async def cuda_unregister(self, request: HttpRequest, name: str = "") -> Response:
        """Forget a region on a GPU, or all."""
        await self._front.ask("unregister", name, True)
        return Response()

    # Settings.

    async def log_settings(self, request: HttpRequest) -> Response:
        """What is logged."""
        return Response(body=_json(await self._front.ask("log_settings", {})))

    async def change_log_settings(self, request: HttpRequest) -> Response:
        """Change what is logged."""
        return Response(body=_json(await self._front.ask("log_settings", _object(request))))

    def trace_settings(self, request: HttpRequest, name: str = "") -> Response:
        """How calls are traced."""
        return Response(body=_json(self._control.trace_settings({})))

    def change_trace_settings(self, request: HttpRequest, name: str = "") -> Response:
        """Change how calls are traced."""
        return Response(body=_json(self._control.trace_settings(_object(request))))


def _answer(request: HttpRequest, num_json: int | None, body: bytes) -> None:
    if num_json is None:
        request.respond(200, body)
    else:
        line = _BINARY_LINE.format(num_json)
        request.respond(200, body, _BINARY, line)


def body_of(request: HttpRequest, max_bytes: int) -> bytes:
    """A request's body, out of its compression if it has one.

    Raises:
        Problem: The compression is not known, or wrong, or hides more than is allowed.
    """
    encoding = request.head.headers.get("content-encoding", "identity").lower()
    if encoding in ("", "identity"):
        return request.body
    if encoding not in ("gzip", "deflate"):
        raise Problem(
            "media",
            "content-encoding must be gzip, deflate or identity",
            f"it is {encoding[:40]!r}",
            "send the body as it is",
        )
    engine = zlib.decompressobj(31 if encoding == "gzip" else 15)
    try:
        found = engine.decompress(request.body, max_bytes + 1)
    except zlib.error as exc:
        raise Problem(
            "input", f"the body must be {encoding}", f"it is not ({exc})", "compress it again"
        ) from exc
    if len(found) > max_bytes:
        raise Problem(
            "large",
            f"a body must have at most {max_bytes} bytes",
            "this one has more when it is unpacked",
            "send less, or raise --max-body-mb",
        )
    if not engine.eof:
        raise Problem("input", f"the body must be {encoding}", "it breaks off", "send all of it")
    return found


def _read(request: HttpRequest) -> _Control:
    """The body as JSON; none is as good as {}."""
    try:
        return msgspec.json.decode(body_of(request, 1 << 20) or b"{}", type=_Control)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise Problem(
            "input", "the body must be a JSON object", f"it is not ({exc})", "correct it"
        ) from exc


def _object(request: HttpRequest) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body_of(request, 1 << 20) or b"{}", type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise Problem(
            "input", "the body must be a JSON object", f"it is not ({exc})", "correct it"
        ) from exc


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
