"""HTTP/1.1 for one connection: heads by httptools, once per distinct head; bodies by length.

Clients that keep a connection open send the same head again and again, so parsed heads are kept.
Bodies are collected as the pieces in which they arrived: a slow client costs what it has sent and
nothing else. One request of a connection is worked on at a time; what a client sends ahead waits,
and past a bound is not read.

Source: RFC 9110 and 9112.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote

import httptools

from saccade.server.problems import Problem

if TYPE_CHECKING:
    from saccade.server.routes import Endpoint

__all__ = ["Head", "HttpConnection", "HttpLimits", "HttpRequest", "Response"]

_MAX_HEADS_KEPT = 2048
_MAX_KEPT_HEAD_BYTES = 2048
# Bodies from here on are received where engine processes read them.
_MIN_BLOCK_BYTES = 32 << 10
# What a client may send ahead of its answer before it is not read any more.
_MAX_AHEAD_BYTES = 1 << 20
_MAX_CHUNK_LINE_BYTES = 4096
_MAX_LENGTH_DIGITS = 19
_HEX_DIGITS = b"0123456789abcdefABCDEF"
# How long a client may take to read a last answer and leave.
_LINGER_S = 2.0
# The rest of a refused body is read and dropped up to here, so that the answer arrives.
_MAX_DROPPED_BYTES = 8 << 20
_REASONS = {
    100: "Continue",
    200: "OK",
    204: "No Content",
    304: "Not Modified",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    411: "Length Required",
    412: "Precondition Failed",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
_STATUS_LINES = {s: f"HTTP/1.1 {s} {r}\r\n".encode() for s, r in _REASONS.items()}


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What a client may take.

    Attributes:
        max_head_bytes: Request line and headers.
        max_body_bytes: Bodies of data; others have smaller limits of their own.
        head_s: Seconds from the first byte of a head to its last.
        idle_s: Seconds that a connection may be open without a request.
        body_s: Seconds for a body, to which one second is added per `min_rate` bytes.
        min_rate: Bytes per second that a body must arrive with.
        write_s: Seconds that a client may leave an answer unread.
    """

    max_head_bytes: int = 32 << 10
    max_body_bytes: int = 64 << 20
    head_s: float = 10.0
    idle_s: float = 75.0
    body_s: float = 10.0
    min_rate: int = 64 << 10
    write_s: float = 30.0


@dataclass(slots=True, eq=False)
class Head:
    """Request line and headers.

    Attributes:
        method: In capitals.
        path: Decoded, without the query.
        raw_query: As sent.
        headers: Names in lower case; of repeated ones the last.
        length: Bytes of the body; -1 if it comes in chunks.
        is_kept: Whether the client wants to keep the connection.
        endpoint: What the router found, or the problem; filled in by the connection.
        args: Parts of the path that the route names.
    """

    method: str
    path: str
    raw_query: str
    headers: Mapping[str, str]
    length: int
    is_kept: bool
    endpoint: Endpoint | Problem | None = None
    args: tuple[str, ...] = ()

    @property
    def query(self) -> dict[str, str]:
        """The query's parameters; of repeated ones the last."""
        return dict(parse_qsl(self.raw_query, keep_blank_values=True))


@dataclass(slots=True)
class Response:
    """A whole answer.

    Attributes:
        status: HTTP status.
        body: Content.
        content_type: Its type.
        headers: Further headers, names in lower case.
    """

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


class _Reader:
    """Callbacks of one parse."""

    __slots__ = ("headers", "is_double", "target")

    def __init__(self) -> None:
        self.target = b""
        self.headers: dict[str, str] = {}
        self.is_double = False

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        key = name.decode("latin-1").lower()
        if key in ("content-length", "transfer-encoding") and key in self.headers:
            self.is_double = True
        self.headers[key] = value.decode("latin-1")


def _wrong(got: str) -> Problem:
    return Problem("input", "a request must be HTTP/1.1", got, "correct the client")


def parse_head(data: bytes) -> Head:
    """Read a head that ends in an empty line.

    Raises:
        Problem: It is not one, or could be read in two ways.
    """
    reader = _Reader()
    parser = httptools.HttpRequestParser(reader)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass  # an offer to speak something else, which is not taken up
    except httptools.HttpParserError as exc:
        raise _wrong(f"this one is not ({exc})") from exc
    headers = reader.headers
    if reader.is_double or ("content-length" in headers and "transfer-encoding" in headers):
        raise _wrong("this one states the length of its body twice")
    if parser.get_http_version() not in ("1.1", "1.0"):
        raise _wrong(f"this one is HTTP/{parser.get_http_version()}")
    length = 0
    if "transfer-encoding" in headers:
        if headers["transfer-encoding"].strip().lower() != "chunked":
            raise Problem(
                "unimplemented",
                "transfer-encoding must be chunked",
                f"it is {headers['transfer-encoding'][:80]!r}",
                "send a content-length",
            )
        length = -1
    elif "content-length" in headers:
        text = headers["content-length"].strip()
        if not (text.isascii() and text.isdigit()):
            raise _wrong(f"content-length is {text[:80]!r}")
        digits = text.lstrip("0") or "0"
        # More digits are past every limit, and are told so where limits are looked at.
        length = int(digits) if len(digits) < _MAX_LENGTH_DIGITS else 10**_MAX_LENGTH_DIGITS
    try:
        url = httptools.parse_url(reader.target)
        path = unquote((url.path or b"/").decode("ascii"), errors="strict")
        query = (url.query or b"").decode("ascii")
    except (httptools.HttpParserInvalidURLError, UnicodeDecodeError) as exc:
        raise _wrong(f"the target {reader.target[:80]!r} is no path") from exc
    method = parser.get_method().decode("latin-1")
    return Head(method, path, query, headers, length, bool(parser.should_keep_alive()))


class HttpRequest:
    """One request with its body, until it is answered.

    Attributes:
        head: Request line and headers.
        parts: The body in the pieces in which it arrived; none if it is in a block.
        num_bytes: Its length.
        block: The arena block that it was received into, or -1. Who takes it sets this to -1.
        id: What the client calls it, or what this server does.
        arrived_s: When the body was complete, by `time.perf_counter`.
        done: What an engine process told of it, for spans; None if it never got there.
        is_open: False once answered or once the client has gone.
        on_gone: Called if the client goes before the answer.
    """

    __slots__ = (
        "_connection",
        "arrived_s",
        "block",
        "done",
        "head",
        "id",
        "is_open",
        "num_bytes",
        "on_gone",
        "parts",
    )

    def __init__(
        self,
        connection: HttpConnection,
        head: Head,
        parts: list[bytes],
        num_bytes: int,
        block: int = -1,
    ) -> None:
        self._connection = connection
        self.head = head
        self.parts = parts
        self.block = block
        self.num_bytes = num_bytes
        self.id = head.headers.get("x-request-id", "")[:128]
        self.arrived_s = time.perf_counter()
        self.is_open = True
        self.done: Any = None
        self.on_gone: Callable[[], None] | None = None

    @property
    def body(self) -> bytes:
        """The body as one."""
        parts = self.parts
        if self.block >= 0:
            parts[:] = [self._connection.read_block(self.block, self.num_bytes)]
            self.drop_block()
        elif len(parts) != 1:
            parts[:] = [b"".join(parts)]
        return parts[0]

    def drop_block(self) -> None:
        """The body is not wanted any more where it lies."""
        if self.block >= 0:
            self._connection.drop_block(self.block)
            self.block = -1

    def respond(
        self, status: int, body: bytes, content_type: str = "application/json", more: str = ""
    ) -> None:
        """Answer; a second answer is dropped.

        Args:
            status: HTTP status.
            body: Content.
            content_type: Its type.
            more: Further header lines, each ending in CR LF.
        """
        if self.is_open:
            self.is_open = False
            self._connection.send(self, status, body, content_type, more)
            # The callback holds the job, which holds this: without the circle, bodies are freed
            # now and not when the collector comes by.
            self.on_gone = None
            self.parts = []
            self.drop_block()

    def send(self, response: Response) -> None:
        """Answer with a whole response."""
        more = "".join(f"{name}: {value}\r\n" for name, value in response.headers.items())
        self.respond(response.status, response.body, response.content_type, more)

    def fail(self, problem: Problem) -> None:
        """Answer with an error, and with an id to ask about."""
        if not self.id:
            self.id = self._connection.new_id()
        more = f"retry-after: {problem.retry_after_s}\r\n" if problem.retry_after_s else ""
        if problem.status == 401:
            more += 'www-authenticate: Bearer realm="saccade"\r\n'
        if problem.status == 405 and problem.fix.startswith("use "):
            more += f"allow: {problem.fix.removeprefix('use ')}\r\n"
        self.respond(problem.status, problem.as_json(self.id), "application/problem+json", more)


class HttpConnection(asyncio.Protocol):
    """One client.

    Args:
        app: Finds endpoints, takes requests, counts: see `saccade.server.app`.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._limits: HttpLimits = app.http_limits
        self._transport: Any = None
        self._held = b""  # bytes of a head that is not complete, or sent ahead
        self._head: Head | None = None  # set while a body arrives
        self._parts: list[bytes] = []
        self._missing = 0
        self._block = -1  # that the body is received into
        self._chunks: _Chunks | None = None
        self._request: HttpRequest | None = None
        self._dropping = 0
        self._is_ending = False  # there will be no further request
        self._is_lingering = False  # there will be no further answer
        self._is_paused = False
        self._is_write_paused = False
        self._since_s = 0.0
        self._num_unsent = 0  # at the last sweep

    def new_id(self) -> str:
        """What a request is called whose client did not name it."""
        return str(self._app.new_id())

    # asyncio calls these.

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._since_s = time.monotonic()
        if not self._app.open_connection(self):
            self._is_ending = self._is_lingering = True
            transport.write(self._app.too_many_connections)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_ending = self._is_lingering = True
        self._app.close_connection(self)
        self._forget_body()
        request, self._request = self._request, None
        if request is not None and request.is_open:
            request.is_open = False
            request.drop_block()
            if request.on_gone is not None:
                request.on_gone()

    def data_received(self, data: bytes) -> None:
        if self._dropping:
            dropped = min(self._dropping, len(data))
            self._dropping -= dropped
            data = data[dropped:]
        if self._is_lingering or not data:
            return
        if self._request is not None or (self._is_write_paused and self._head is None):
            # It waits for its turn; a client that does not read its answers gets no more.
            self._held += data
            if len(self._held) > _MAX_AHEAD_BYTES and not self._is_paused:
                self._is_paused = True
                self._transport.pause_reading()
            return
        if self._head is not None:
            self._take_body(data)
        else:
            self._take_head(self._held + data if self._held else data)

    def eof_received(self) -> bool:
        # It could still read its answer, but clients that give up look just like that, and work
        # that nobody waits for is dropped.
        return False

    def pause_writing(self) -> None:
        self._is_write_paused = True
        self._since_s = time.monotonic()

    def resume_writing(self) -> None:
        self._is_write_paused = False
        self._since_s = time.monotonic()
        if self._request is None and self._head is None:
            self._go_on()

    # Reading.

    def _take_head(self, data: bytes) -> None:
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if not self._held:
                self._since_s = time.monotonic()
            self._held = data
            if len(data) > self._limits.max_head_bytes:
                self._refuse(_too_long(self._limits.max_head_bytes))
            return
        end += 4
        self._held = b""
        kept = self._app.heads
        head = kept.get(data[:end])
        if head is None:
            try:
                head = self._parse(data[:end])
            except Problem as problem:
                self._refuse(problem)
                return
        body_end = end + head.length
        if head.length >= 0 and len(data) >= body_end and type(head.endpoint) is not Problem:
            if head.length > head.endpoint.max_body_bytes:
                self._refuse(self._too_large(head), head)
                return
            self._held = data[body_end:]
            self._dispatch(head, [data[end:body_end]], head.length)
            return
        self._begin_body(head, data[end:])

    def _parse(self, data: bytes) -> Head:
        if len(data) > self._limits.max_head_bytes:
            raise _too_long(self._limits.max_head_bytes)
        head = parse_head(data)
        try:
            self._app.route(head)
        except Problem as problem:
            head.endpoint = problem
        if len(data) <= _MAX_KEPT_HEAD_BYTES:
            kept = self._app.heads
            if len(kept) >= _MAX_HEADS_KEPT:
                kept.pop(next(iter(kept)))
            kept[data] = head
        return head

    def _too_large(self, head: Head) -> Problem:
        limit = head.endpoint.max_body_bytes  # type: ignore[union-attr]
        got = f"this one has {head.length}" if head.length >= 0 else "this one is longer"
        return Problem(
            "large",
            f"a body here must have at most {limit} bytes",
            got,
            "send less, or raise --max-body-mb",
        )

    def _begin_body(self, head: Head, data: bytes) -> None:
        problem: Problem | None = None
        if isinstance(head.endpoint, Problem):
            problem = head.endpoint
        elif head.length > head.endpoint.max_body_bytes:  # type: ignore[union-attr]
            problem = self._too_large(head)
        elif not self._app.may_receive(head.length):
            problem = self._app.overloaded("bodies under way")
        if problem is not None:
            self._refuse(problem, head, data)
            return
        self._since_s = time.monotonic()
        self._head = head
        if head.headers.get("expect", "").lower() == "100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if head.length < 0:
            self._chunks = _Chunks(head.endpoint.max_body_bytes)  # type: ignore[union-attr]
        self._missing = head.length
        if head.length >= _MIN_BLOCK_BYTES and self._receive_into_block(head, data):
            return
        if data:
            self._take_body(data)

    def _receive_into_block(self, head: Head, data: bytes) -> bool:
        """Have a long body written where engine processes will read it; False if there is no room.

        Reading as it comes would make an object of each piece and copy it into a block later.
        """
        transport = self._transport
        if not head.endpoint.is_data or transport.get_extra_info("sslcontext"):  # type: ignore[union-attr]
            return False
        block = self._app.take_block(head.length)
        if block < 0:
            return False
        self._block = block
        num = len(data)
        view = self._app.arena.view[block : block + head.length]
        view[:num] = data
        self._missing -= num
        self._app.count_pending(num)
        transport.pause_reading()
        transport.set_protocol(_Body(self, view, num))
        transport.resume_reading()
        return True

    def body_received(self, num_bytes: int) -> bool:
        """Some of the body has come into its block; whether that was the last."""
        self._missing -= num_bytes
        if self._missing:
            self._app.count_pending(num_bytes)
            return False
        head, block = self._head, self._block
        assert head is not None
        self._app.count_pending(num_bytes - head.length)
        self._head, self._block = None, -1
        self._read_here()
        self._dispatch(head, [], head.length, block)
        return True

    def _read_here(self) -> None:
        transport = self._transport
        if transport.is_closing():
            return
        transport.pause_reading()
        transport.set_protocol(self)
        transport.resume_reading()

    def read_block(self, block: int, num_bytes: int) -> bytes:
        """A copy of what is in a block."""
        return bytes(self._app.arena.view[block : block + num_bytes])

    def drop_block(self, block: int) -> None:
        """Give a block back."""
        self._app.arena.give_back(block)

    def _take_body(self, data: bytes) -> None:
        head = self._head
        assert head is not None
        if self._chunks is not None:
            self._take_chunks(head, data)
            return
        missing = self._missing - len(data)
        if missing > 0:
            self._missing = missing
            self._parts.append(data)
            self._app.count_pending(len(data))
            return
        parts = self._parts
        if missing < 0:
            self._held = data[missing:]
            data = data[:missing]
        parts.append(data)
        self._app.count_pending(len(data) - head.length)
        self._head, self._parts, self._missing = None, [], 0
        self._dispatch(head, parts, head.length)

    def _take_chunks(self, head: Head, data: bytes) -> None:
        chunks = self._chunks
        assert chunks is not None
        before = chunks.num_bytes
        try:
            rest = chunks.feed(data)
        except Problem as problem:
            self._forget_body()
            self._refuse(self._too_large(head) if problem.kind == "large" else problem)
            return
        self._app.count_pending(chunks.num_bytes - before)
        if rest is None:
            return
        self._app.count_pending(-chunks.num_bytes)
        self._held = rest
        self._head = self._chunks = None
        self._dispatch(head, [bytes(chunks.content)], chunks.num_bytes)

    def _forget_body(self) -> None:
        if self._head is not None:
            self._app.count_pending(-self._num_taken())
        if self._block >= 0:
            self.drop_block(self._block)
            self._block = -1
            if not self._is_lingering:
                self._read_here()
        self._head = self._chunks = None
        self._parts = []

    def _num_taken(self) -> int:
        """Bytes of the body that have come."""
        assert self._head is not None
        if self._chunks is not None:
            return self._chunks.num_bytes
        return self._head.length - self._missing

    def _dispatch(self, head: Head, parts: list[bytes], num_bytes: int, block: int = -1) -> None:
        request = self._request = HttpRequest(self, head, parts, num_bytes, block)
        self._app.take(request)

    def _refuse(self, problem: Problem, head: Head | None = None, data: bytes = b"") -> None:
        """Answer before the body is there. A short rest of it is read and dropped; with a long
        one, or where the next request would begin is not known, the connection ends."""
        self._head = None
        rest = -1 if head is None or head.length < 0 else head.length - len(data)
        if head is None or head.length < 0 or rest > _MAX_DROPPED_BYTES:
            self._is_ending = True
        elif rest > 0:
            self._is_ending = "expect" in head.headers
            self._dropping = rest
        else:
            self._held = data[head.length :]
        self._request = HttpRequest(self, head or _NO_HEAD, [], 0)
        self._request.fail(problem)

    # Writing.

    def send(
        self, request: HttpRequest, status: int, body: bytes, content_type: str, more: str
    ) -> None:
        """Write an answer and go on with what the client sent ahead."""
        transport = self._transport
        head = request.head
        is_last = self._is_ending or not head.is_kept or self._app.is_draining
        if is_last:
            more += "connection: close\r\n"
        elif head.headers.get("connection"):
            more += "connection: keep-alive\r\n"
        if request.id:
            more += f"x-request-id: {request.id}\r\n"
        start = _start_of(status, content_type, len(body), more)
        self._request = None
        self._app.count_answer(request, status, len(body))
        if head.method == "HEAD" or status in (204, 304):
            transport.write(start)
        elif len(body) < 65536:
            transport.write(start + body)
        else:
            transport.writelines((start, body))
        if is_last:
            self._linger()
            return
        self._since_s = time.monotonic()
        if self._held or self._is_paused:
            # Not from within the call that answered: a client that sends many requests at once
            # would make the stack as deep.
            self._app.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if self._is_write_paused or self._is_ending or self._request is not None:
            return
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()
        data, self._held = self._held, b""
        if data:
            self._take_head(data)

    def _linger(self) -> None:
        """Say no more. What the client still sends is dropped until it leaves or the sweep ends
        it: closing at once could reset the connection and overtake the answer."""
        self._is_ending = self._is_lingering = True
        self._held = b""
        self._since_s = time.monotonic()
        transport = self._transport
        if self._is_paused:
            transport.resume_reading()
        if transport.can_write_eof():
            transport.write_eof()
        else:
            transport.close()

    def sweep(self, now_s: float) -> None:
        """End what takes too long; called about twice a second."""
        limits, age_s = self._limits, now_s - self._since_s
        if self._is_write_paused:
            unsent = self._transport.get_write_buffer_size()
            if unsent < self._num_unsent:
                self._since_s = now_s
            elif age_s > limits.write_s:
                self._transport.abort()
            self._num_unsent = unsent
        elif self._is_lingering:
            if age_s > _LINGER_S:
                self._transport.abort()
        elif self._request is not None:
            return
        elif self._head is not None:
            taken = self._num_taken()
            if age_s > limits.body_s + taken / limits.min_rate:
                self._forget_body()
                self._refuse(_too_slow("body", f"{taken} bytes came in {age_s:.0f} s"))
        elif self._held:
            if age_s > limits.head_s:
                self._held = b""
                self._refuse(_too_slow("head", f"it was not complete after {age_s:.0f} s"))
        elif age_s > limits.idle_s:
            self._transport.close()

    def close_when_idle(self) -> None:
        """Begin to leave: at once if there is no request, else after its answer."""
        if self._request is None and self._head is None and not self._is_lingering:
            self._is_ending = True
            self._transport.close()


@functools.lru_cache(1024)
def _start_of(status: int, content_type: str, num_bytes: int, more: str) -> bytes:
    """An answer up to its body; most are like one before."""
    fields = f"content-type: {content_type}\r\ncontent-length: {num_bytes}\r\n{more}\r\n"
    return _STATUS_LINES[status] + fields.encode("latin-1", "replace")


class _Body(asyncio.BufferedProtocol):
    """Receives the rest of a body into its block; everything else is the connection's.

    Args:
        connection: Whose body it is.
        view: The place of the whole body.
        num_bytes: What is there already.
    """

    def __init__(self, connection: HttpConnection, view: memoryview, num_bytes: int) -> None:
        self._connection = connection
        self._view = view
        self._at = num_bytes
        self.connection_lost = connection.connection_lost  # type: ignore[method-assign]
        self.eof_received = connection.eof_received  # type: ignore[method-assign]
        self.pause_writing = connection.pause_writing  # type: ignore[method-assign]
        self.resume_writing = connection.resume_writing  # type: ignore[method-assign]

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view[self._at :]

    def buffer_updated(self, nbytes: int) -> None:
        self._at += nbytes
        self._connection.body_received(nbytes)


class _Chunks:
    """A body in chunks, put together.

    Attributes:
        content: What has come. One growing object goes back to the system when it is freed, which
            as many pieces would not.
    """

    def __init__(self, max_bytes: int) -> None:
        self.content = bytearray()
        self._max_bytes = max_bytes
        self._held = b""
        self._missing = 0  # of the chunk that is being read, with the CR LF after it
        self._is_last = False

    @property
    def num_bytes(self) -> int:
        """Bytes that have come."""
        return len(self.content)

    def feed(self, data: bytes) -> bytes | None:
        """Take bytes.

        Returns:
            None if the body goes on, else what follows it.

        Raises:
            Problem: The chunks are wrong or too many.
        """
        data = self._held + data if self._held else data
        at = 0
        while True:
            if self._missing:
                piece = data[at : at + self._missing]
                self._missing -= len(piece)
                at += len(piece)
                self._add(piece)
                if self._missing:
                    self._held = b""
                    return None
            end = data.find(b"\r\n", at)
            if end < 0:
                self._held = data[at:]
                if len(self._held) > _MAX_CHUNK_LINE_BYTES:
                    raise _wrong("a line between its chunks has no end")
                return None
            line, at = data[at:end], end + 2
            if self._is_last:
                if not line:
                    return data[at:]
                continue  # a trailer; nothing here uses one
            size = line.partition(b";")[0].strip()
            if not size or len(size) > 15 or size.strip(_HEX_DIGITS):
                raise _wrong(f"a chunk has the size {line[:40]!r}")
            number = int(size, 16)
            if number == 0:
                self._is_last = True
                continue
            if len(self.content) + number > self._max_bytes:
                raise Problem(
                    "large",
                    f"a body here must have at most {self._max_bytes} bytes",
                    "this one is longer",
                    "send less, or raise --max-body-mb",
                )
            self._missing = number + 2

    def _add(self, piece: bytes) -> None:
        """The content of a piece, which may end in (part of) the CR LF after a chunk."""
        after = min(len(piece), max(0, 2 - self._missing)) if self._missing < 2 else 0
        content, end = (piece[:-after], piece[-after:]) if after else (piece, b"")
        wanted = b"\r\n"[2 - self._missing - after : 2 - self._missing]
        if end != wanted:
            raise _wrong("a chunk is longer than its size")
        self.content += content


def _too_long(limit: int) -> Problem:
    return Problem(
        "headers",
        f"a head must have at most {limit} bytes",
        "this one has more",
        "send fewer or shorter headers",
    )


def _too_slow(what: str, got: str) -> Problem:
    return Problem("slow", f"a {what} must come without long pauses", got, "try again")


_NO_HEAD = Head("GET", "", "", {}, 0, False)
