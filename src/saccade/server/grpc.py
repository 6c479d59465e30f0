"""The Open Inference Protocol over gRPC.

Source: "gRPC over HTTP2", the protocol's own description; KServe's and Triton's service.
"""

from __future__ import annotations

import functools
import time
import zlib
from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError

from saccade.server.dispatch import Job, Schedule
from saccade.server.dtypes import ITEM_BYTES, join_strings, num_items
from saccade.server.http2 import Http2Connection, Stream
from saccade.server.inference import schedule_of, start_infer
from saccade.server.kserve import InferRequest, Wanted, check_size, check_tensor, region_of
from saccade.server.messages import METHODS, SERVICE, message
from saccade.server.models import ModelEntry
from saccade.server.problems import Problem, problem_of
from saccade.server.repeats import MAX_DESCRIPTION_BYTES, MAX_KNOWN, Known, is_repeatable
from saccade.server.tokens import check_token
from saccade.server.wire import Done, Region, TensorPart

if TYPE_CHECKING:
    from saccade.server.app import Front

__all__ = ["Grpc"]

_UNITS_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_InferRequest = message("ModelInferRequest")


def header_block(*fields: tuple[str, str]) -> bytes:
    """Headers as literals that nobody needs to remember; ":status" must be 200."""
    block = b""
    for name, value in fields:
        if name == ":status":
            block += b"\x88"
        else:
            block += b"\0" + _literal(name.encode()) + _literal(value.encode("latin-1", "replace"))
    return block


def _literal(text: bytes) -> bytes:
    """A string behind its length, an HPACK integer with a prefix of seven bits."""
    num = len(text)
    if num < 127:
        return bytes((num,)) + text
    rest, out = num - 127, [127]
    while rest >= 128:
        out.append(rest % 128 + 128)
        rest //= 128
    return bytes((*out, rest)) + text


_START = header_block((":status", "200"), ("content-type", "application/grpc"))
_OK = header_block(("grpc-status", "0"))


def _failure(problem: Problem) -> tuple[tuple[str, str], ...]:
    told = quote(str(problem), safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~")
    fields = [("grpc-status", str(problem.grpc_code)), ("grpc-message", told[:4096])]
    if problem.retry_after_s:
        fields.append(("grpc-retry-pushback-ms", str(1000 * problem.retry_after_s)))
        fields.append(("retry-after", str(problem.retry_after_s)))
    return tuple(fields)


class _Call:
    """One call under way.

    Attributes:
        method: Its name.
        is_stream: Whether it has many messages each way.
        timeout_s: What the client allows, 0 for no limit.
        inflate: Undoes the compression of messages, or None.
        arrived_s: When its last message was complete, by `time.perf_counter`.
        done: What an engine process told of its only message, for spans.
        num_open: Messages of a stream that are not answered.
        cancels: What cancels them.
    """

    __slots__ = (
        "arrived_s",
        "cancels",
        "done",
        "inflate",
        "is_stream",
        "method",
        "num_open",
        "timeout_s",
    )

    def __init__(self, method: str, is_stream: bool, timeout_s: float, inflate: int | None) -> None:
        self.method = method
        self.is_stream = is_stream
        self.timeout_s = timeout_s
        self.inflate = inflate
        self.arrived_s = time.perf_counter()
        self.done: Done | None = None
        self.num_open = 0
        self.cancels: list[Callable[[], None]] = []

    def cancel(self) -> None:
        """The client gave up."""
        for cancel in self.cancels:
            cancel()


class _Form(NamedTuple):
    """The form of an infer message, by which the next with the same is known.

    Attributes:
        start: All before the bytes of its first tensor.
        name: The model and version that it names.
        cuts: Where each tensor's bytes start and end.
        marks: What lies between the tensors, and where.
        known: What it means.
    """

    start: bytes
    name: tuple[str, str]
    cuts: tuple[tuple[int, int], ...]
    marks: tuple[tuple[int, bytes], ...]
    known: Known


class Grpc:
    """Takes calls from connections.

    Args:
        front: The server.
    """

    def __init__(self, front: Front) -> None:
        self._front = front
        self.max_message_bytes = front.http_limits.max_body_bytes
        self.max_streams = 256
        self.loop = front.loop
        self._connections: set[Http2Connection] = set()
        self._forms: dict[int, _Form] = {}
        self._calls: dict[str, Callable[[Any], Any]] = front.control.calls()

    # What connections call.

    def open_connection(self, connection: Http2Connection) -> bool:
        """Count a client; False if there are too many."""
        if len(self._connections) >= self._front.max_connections:
            return False
        self._connections.add(connection)
        self._front.stats.num_connections["grpc"] = len(self._connections)
        return True

    def close_connection(self, connection: Http2Connection) -> None:
        """Forget a client."""
        self._connections.discard(connection)
        self._front.stats.num_connections["grpc"] = len(self._connections)
        self._front.count_closed()

    @property
    def connections(self) -> list[Http2Connection]:
        """Those open now."""
        return list(self._connections)

    def begin(self, connection: Http2Connection, stream: Stream) -> None:
        """A call begins: look at its headers."""
        headers = stream.headers
        kind = headers.kind
        if kind is None:
            try:
                kind = headers.kind = self._kind_of(headers)
            except Problem as problem:
                self._refuse(connection, stream, problem)
                return
        stream.call = _Call(*kind)
        if stream.call.is_stream:
            connection.begin_answer(stream, _START)

    def _kind_of(self, headers: dict[str, str]) -> tuple[str, bool, float, int | None]:
        """What headers say of a call: the arguments of `_Call`. Many calls have the same."""
        if not headers.get("content-type", "").startswith("application/grpc"):
            raise Problem(
                "media",
                "content-type must be application/grpc",
                f"it is {headers.get('content-type', '')[:80]!r}",
                "use a gRPC client; plain HTTP is on the other port",
            )
        if self._front.options.token is not None:
            check_token(headers.get("authorization", ""), self._front.options.token)
        service, _, method = headers.get(":path", "").lstrip("/").partition("/")
        if service != SERVICE or method not in METHODS:
            raise Problem(
                "unimplemented",
                f"a method must be one of {SERVICE}",
                f"{headers.get(':path', '')[:200]!r} is none",
                "check the client's version",
            )
        inflate = None
        timeout_s = _timeout_s(headers.get("grpc-timeout", ""))
        encoding = headers.get("grpc-encoding", "identity")
        if encoding in ("gzip", "deflate"):
            inflate = 31 if encoding == "gzip" else 15
        elif encoding != "identity":
            raise Problem(
                "unimplemented",
                "grpc-encoding must be identity, gzip or deflate",
                f"it is {encoding[:40]!r}",
                "use another",
            )
        return method, METHODS[method][2], timeout_s, inflate

    def take(self, connection: Http2Connection, stream: Stream, data: bytes) -> None:
        """Bytes of messages."""
        front, held = self._front, stream.held
        held.append(data)
        stream.num_held += len(data)
        front.count_pending(len(data))
        call: _Call = stream.call
        if not call.is_stream and stream.num_held <= self.max_message_bytes:
            return
        try:
            if stream.num_held > self.max_message_bytes + 5:
                raise _too_large(self.max_message_bytes)
            if not front.may_receive(0):
                raise front.overloaded("bodies under way")
            while (content := self._next_message(stream)) is not None:
                self._begin_message(connection, stream, content)
        except Exception as exc:
            self._refuse_late(connection, stream, exc)

    def finish(self, connection: Http2Connection, stream: Stream) -> None:
        """The client has said all."""
        call: _Call = stream.call
        try:
            content = self._next_message(stream)
            if call.is_stream:
                if content is not None:
                    self._begin_message(connection, stream, content)
                if stream.num_held:
                    raise _broken("a message breaks off")
                if not call.num_open:
                    connection.end_answer(stream, _OK)
                return
            if content is None or stream.num_held:
                raise _broken("the call has no whole message, or more than one")
            self._begin_message(connection, stream, content)
        except Exception as exc:
            self._refuse_late(connection, stream, exc)

    def drop(self, stream: Stream) -> None:
        """A call was given up."""
        self._front.count_pending(-stream.num_held)
        stream.num_held = 0
        stream.held = []

    def _next_message(self, stream: Stream) -> bytes | None:
        """Take a whole message off what is held."""
        held = stream.held
        if not held:
            return None
        data = held[0] if len(held) == 1 else b"".join(held)
        if len(data) < 5:
            held[:] = [data]
            return None
        length = int.from_bytes(data[1:5], "big")
        if length > self.max_message_bytes:
            raise _too_large(self.max_message_bytes)
        if len(data) < 5 + length:
            held[:] = [data]
            return None
        held[:] = [data[5 + length :]] if len(data) > 5 + length else []
        stream.num_held -= 5 + length
        self._front.count_pending(-5 - length)
        content = data[5 : 5 + length]
        if data[0] == 0:
            return content
        if data[0] != 1 or stream.call.inflate is None:
            raise _broken("a message is compressed and its grpc-encoding is not known")
        return inflated(content, stream.call.inflate, self.max_message_bytes)

    # Calls.

    def _begin_message(self, connection: Http2Connection, stream: Stream, content: bytes) -> None:
        call: _Call = stream.call
        call.arrived_s = time.perf_counter()
        if call.method in ("ModelInfer", "ModelStreamInfer"):
            self._front.stats.bytes_in += len(content)
            self._infer(connection, stream, content)
            return
        request = message(METHODS[call.method][0])()
        _parse(request, content)
        answer = self._calls[call.method](request)
        if isinstance(answer, dict):
            self._finish_call(connection, stream, answer)
        else:
            self._front.spawn(self._wait(connection, stream, answer))

    async def _wait(self, connection: Http2Connection, stream: Stream, answer: Any) -> None:
        try:
            self._finish_call(connection, stream, await answer)
        except Exception as exc:
            self._refuse_late(connection, stream, exc)

    def _finish_call(
        self, connection: Http2Connection, stream: Stream, answer: dict[str, Any]
    ) -> None:
        made = message(METHODS[stream.call.method][1])()
        ParseDict(answer, made)
        self._answer(connection, stream, made.SerializeToString())

    def _repeat(self, connection: Http2Connection, stream: Stream, content: bytes) -> bool:
        """Run a message that differs from one before in the bytes of its tensors only."""
        front, call = self._front, stream.call
        form = self._forms.get(len(content))
        if form is None or not content.startswith(form.start):
            return False
        known, entry = form.known, form.known.entry
        asked_name = form.name
        if (
            front.repository.ready(*asked_name) is not entry
            or call.is_stream
            or call.timeout_s
            or any(content[at : at + len(mark)] != mark for at, mark in form.marks)
        ):
            return False

        def on_end(reply: Any, payload: bytes) -> None:
            call.num_open -= 1
            if type(reply) is not Done:
                self._refuse_infer(connection, stream, reply, known.asked.id, call.arrived_s)
                return
            call.done = reply
            if reply.outputs != known.outputs:
                made = write_response(entry.name, entry.version, known.asked, reply, payload)
                known.outputs, known.start = reply.outputs, None
                if made.endswith(payload) and len(reply.outputs) == 1:
                    known.start = made[: len(made) - len(payload)]
            elif known.start is not None:
                made = known.start + payload
            else:
                made = write_response(entry.name, entry.version, known.asked, reply, payload)
            self._answer(connection, stream, made)

        view = memoryview(content)
        parts = [view[start:end] for start, end in form.cuts]
        job = Job(entry, parts, known.num_bytes, known.make, on_end, known.schedule)
        call.num_open += 1
        front.dispatcher.submit(job)
        if not stream.is_over:
            stream.on_gone = functools.partial(front.dispatcher.cancel, job)
        return True

    def _remember(self, content: bytes, request: Any, asked: InferRequest, face: Any) -> None:
        """Keep the form of a message whose tensors are its end, as clients write them."""
        if type(face) is not ModelEntry or not is_repeatable(face, asked):
            return
        raw = list(request.raw_input_contents)
        heads = [b"\x3a" + _varint(len(one)) for one in raw]
        tail = b"".join(head + one for head, one in zip(heads, raw, strict=True))
        at = len(content) - len(tail)
        if not raw or not content.endswith(tail) or at > MAX_DESCRIPTION_BYTES:
            return
        cuts, marks = [], []
        start = content[: at + len(heads[0])]
        for head, one in zip(heads, raw, strict=True):
            marks.append((at, head))
            cuts.append((at + len(head), at + len(head) + len(one)))
            at = cuts[-1][1]
        if len(self._forms) >= MAX_KNOWN:
            self._forms.clear()
        name = (request.model_name, request.model_version)
        known = Known(face, asked)
        self._forms[len(content)] = _Form(start, name, tuple(cuts), tuple(marks[1:]), known)

    def _infer(self, connection: Http2Connection, stream: Stream, content: bytes) -> None:
        if self._repeat(connection, stream, content):
            return
        front, call = self._front, stream.call
        request = _InferRequest()
        asked_id, arrived_s = "", call.arrived_s
        try:
            _parse(request, content)
            asked_id = request.id
            face = front.repository.ready(request.model_name, request.model_version)
            asked = read_request(request, front.regions.find)
            schedule = schedule_of(asked.parameters)
            self._remember(content, request, asked, face)
            if call.timeout_s and not 0 < schedule.timeout_s < call.timeout_s:
                schedule = Schedule(schedule.priority, call.timeout_s)

            def on_end(reply: Any, payload: bytes) -> None:
                call.num_open -= 1
                if isinstance(reply, Problem):
                    self._refuse_infer(connection, stream, reply, asked_id, arrived_s)
                    return
                made = write_response(face.name, face.version, asked, reply, payload)
                call.done = reply
                self._answer_infer(connection, stream, made, arrived_s)

            call.num_open += 1
            try:
                cancel = start_infer(front.dispatcher, face, asked, schedule, on_end)
            except BaseException:
                call.num_open -= 1
                raise
        except Exception as exc:
            self._refuse_infer(connection, stream, exc, asked_id, arrived_s)
            return
        if not stream.is_over:
            self._watch(stream, cancel)

    def _watch(self, stream: Stream, cancel: Callable[[], None]) -> None:
        """Cancel the work if the client gives up; a stream may have many messages under way."""
        call: _Call = stream.call
        if not call.is_stream:
            stream.on_gone = cancel
            return
        if call.num_open <= 1:
            call.cancels.clear()
        call.cancels.append(cancel)
        stream.on_gone = call.cancel

    # Answers.

    def _answer_infer(
        self, connection: Http2Connection, stream: Stream, content: bytes, arrived_s: float
    ) -> None:
        if not stream.call.is_stream:
            self._answer(connection, stream, content)
            return
        wrapped = b"\x12" + _varint(len(content)) + content
        self._front.stats.bytes_out += len(wrapped)
        if self._front.tracer is not None:
            self._front.tracer.grpc(stream.headers, 0, arrived_s, stream.call.done)
        connection.send(stream, b"\0" + len(wrapped).to_bytes(4, "big") + wrapped)
        self._end_stream_if_done(connection, stream)

    def _end_stream_if_done(self, connection: Http2Connection, stream: Stream) -> None:
        if stream.is_half_closed and not stream.call.num_open:
            connection.end_answer(stream, _OK)

    def _refuse_infer(
        self,
        connection: Http2Connection,
        stream: Stream,
        exc: Exception,
        asked_id: str,
        arrived_s: float,
    ) -> None:
        """In a stream one message's error does not end the others."""
        if not stream.call.is_stream:
            self._refuse_late(connection, stream, exc)
            return
        problem = self._problem(exc)
        made = message("ModelStreamInferResponse")(error_message=str(problem))
        if asked_id:
            made.infer_response.id = asked_id
        content = made.SerializeToString()
        self._count(stream, problem.grpc_code, 0, arrived_s)
        connection.send(stream, b"\0" + len(content).to_bytes(4, "big") + content)
        self._end_stream_if_done(connection, stream)

    def _answer(self, connection: Http2Connection, stream: Stream, content: bytes) -> None:
        stats = self._front.stats
        stats.bytes_out += len(content)
        self._count(stream, 0, len(content))
        connection.answer(stream, _START, b"\0" + len(content).to_bytes(4, "big") + content, _OK)

    def _count(
        self, stream: Stream, code: int, num_bytes: int, arrived_s: float | None = None
    ) -> None:
        """Count an answer, log it and make a span of it if wanted; `arrived_s` where it is one of
        many in a stream."""
        front = self._front
        key = ("grpc", code)
        front.stats.responses[key] = front.stats.responses.get(key, 0) + 1
        if front.tracer is not None:
            call: _Call | None = stream.call
            if arrived_s is not None or call is None:
                front.tracer.grpc(stream.headers, code, arrived_s or time.perf_counter(), None)
            else:
                front.tracer.grpc(stream.headers, code, call.arrived_s, call.done)
        if front.log.with_requests:
            headers = stream.headers
            front.log.event(
                "call",
                id=headers.get("x-request-id", "")[:128] or front.new_id(),
                method=headers.get(":path", "")[:200].rpartition("/")[2],
                code=code,
                bytes_out=num_bytes,
            )

    def _problem(self, exc: Exception) -> Problem:
        problem = problem_of(exc)
        if problem.kind == "internal":
            self._front.log.fault("", exc)
        return problem

    def _refuse(self, connection: Http2Connection, stream: Stream, problem: Problem) -> None:
        self._count(stream, problem.grpc_code, 0)
        fields = ((":status", "200"), ("content-type", "application/grpc"), *_failure(problem))
        connection.refuse(stream, header_block(*fields))

    def _refuse_late(self, connection: Http2Connection, stream: Stream, exc: Exception) -> None:
        problem = self._problem(exc)
        self.drop(stream)
        if stream.call is not None and stream.call.is_stream:
            self._count(stream, problem.grpc_code, 0)
            connection.end_answer(stream, header_block(*_failure(problem)))
        else:
            self._refuse(connection, stream, problem)


def inflated(content: bytes, window_bits: int, max_bytes: int) -> bytes:
    """Undo compression, up to a length.

    Raises:
        Problem: It is broken, or longer.
    """
    engine = zlib.decompressobj(window_bits)
    try:
        found = engine.decompress(content, max_bytes + 1)
    except zlib.error as exc:
        raise _broken(f"its compression is broken ({exc})") from exc
    if len(found) > max_bytes:
        raise _too_large(max_bytes)
    if not engine.eof or engine.unused_data:
        raise _broken("its compression breaks off")
    return found


def _too_large(limit: int) -> Problem:
    return Problem(
        "large",
        f"a message must have at most {limit} bytes",
        "this one has more",
        "send less, or raise --max-body-mb",
    )


def _broken(got: str) -> Problem:
    return Problem("input", "a call must hold whole messages", got, "correct the client")


def _parse(request: Any, content: bytes) -> None:
    try:
        request.ParseFromString(content)
    except (DecodeError, RecursionError) as exc:
        name = request.DESCRIPTOR.name
        raise Problem(
            "input", f"a message must be a {name}", "this one is not", "correct the client"
        ) from exc


def _timeout_s(text: str) -> float:
    """Seconds of a grpc-timeout, 0 if there is none.

    Raises:
        Problem: It is none.
    """
    if not text:
        return 0.0
    number, unit = text[:-1], text[-1]
    if not (number.isascii() and number.isdigit() and len(number) <= 8 and unit in _UNITS_S):
        raise Problem(
            "input",
            "grpc-timeout must be a number and a unit",
            f"it is {text[:20]!r}",
            "correct it",
        )
    return max(1e-6, int(number) * _UNITS_S[unit])


_CONTENTS = {
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "BOOL": "bool_contents",
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_CODES = {
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "BOOL": "B",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "FP32": "f",
    "FP64": "d",
}


def _values(parameters: Any) -> dict[str, Any]:
    """A map of InferParameter as plain values."""
    if not parameters:
        return {}
    found = {}
    for name, value in parameters.items():
        which = value.WhichOneof("parameter_choice")
        found[name] = getattr(value, which) if which else None
    return found


def read_request(request: Any, regions: Any) -> InferRequest:
    """A ModelInferRequest as both protocols have it.

    Args:
        request: The message.
        regions: As for `read_infer`.

    Raises:
        Problem: It is wrong in itself.
    """
    raw = request.raw_input_contents
    at = offset = 0
    inputs: list[TensorPart] = []
    parts: list[bytes] = []
    for tensor in request.inputs:
        name, datatype, shape = tensor.name, tensor.datatype, tuple(tensor.shape)
        check_tensor(name, datatype, shape)
        parameters = _values(tensor.parameters)
        if "shared_memory_region" in parameters:
            region = region_of(name, parameters, regions)
            check_size(name, datatype, shape, region.num_bytes)
            inputs.append(TensorPart(name, datatype, shape, offset, region.num_bytes, region))
            continue
        if raw:
            if at == len(raw):
                raise _too_few(len(raw))
            data = raw[at]
            at += 1
            check_size(name, datatype, shape, len(data))
        else:
            data = _contents(tensor, name, datatype, shape)
        inputs.append(TensorPart(name, datatype, shape, offset, len(data)))
        parts.append(data)
        offset += len(data)
    if len({part.name for part in inputs}) != len(inputs):
        raise Problem("input", "each input must be named once", "one is named twice", "correct it")
    if at != len(raw):
        raise _too_few(len(raw))
    outputs = []
    for output in request.outputs:
        parameters = _values(output.parameters)
        wanted: Region | None = None
        if "shared_memory_region" in parameters:
            wanted = region_of(output.name, parameters, regions)
        classes = parameters.get("classification", 0)
        outputs.append(Wanted(output.name, True, wanted, classes))
    return InferRequest(
        request.id,
        _values(request.parameters),
        tuple(inputs),
        tuple(outputs),
        tuple(parts),
        offset,
        True,
    )


def _too_few(num: int) -> Problem:
    return Problem(
        "input",
        "raw_input_contents must have an entry for each input that is not in shared memory",
        f"it has {num}",
        "send as many as inputs, or none and use contents",
    )


def _contents(tensor: Any, name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    """The typed fields of a tensor as bytes."""
    field = _CONTENTS.get(datatype)
    if field is None:
        raise Problem(
            "input",
            f"input {name[:80]!r} of {datatype} must be in raw_input_contents",
            "it is not",
            "send it as bytes",
        )
    used = [one.name for one, _ in tensor.contents.ListFields()]
    values = getattr(tensor.contents, field)
    if (used and used != [field]) or len(values) != num_items(shape):
        raise Problem(
            "input",
            f"input {name[:80]!r} of {datatype} {list(shape)} must have {num_items(shape)} values "
            f"in {field}",
            f"it has {len(values)}, and uses {', '.join(used) or 'none'}",
            "correct the contents",
        )
    if datatype == "BYTES":
        return join_strings(values)
    try:
        data = array(_CODES[datatype], values).tobytes()
    except OverflowError as exc:
        raise Problem(
            "input", f"values of input {name[:80]!r} must be {datatype}", "one is not", "correct it"
        ) from exc
    assert len(data) == num_items(shape) * ITEM_BYTES[datatype]
    return data


def _varint(num: int) -> bytes:
    if num < 128:
        return bytes((num,))
    out = []
    while num >= 128:
        out.append(num % 128 + 128)
        num //= 128
    return bytes((*out, num))


def _text(tag: bytes, value: str) -> bytes:
    data = value.encode()
    return tag + _varint(len(data)) + data if data else b""


_described: dict[tuple[str, str, tuple[int, ...]], bytes] = {}


def _described_output(part: TensorPart) -> bytes:
    """An InferOutputTensor without contents; there are few different ones."""
    key = (part.name, part.datatype, part.shape)
    found = _described.get(key)
    if found is None:
        shape = b"".join(_varint(size) for size in part.shape)
        inner = _text(b"\x0a", part.name) + _text(b"\x12", part.datatype)
        inner += b"\x1a" + _varint(len(shape)) + shape
        found = b"\x2a" + _varint(len(inner)) + inner
        if len(_described) > 1024:
            _described.clear()
        _described[key] = found
    return found


def write_response(
    name: str, version: str, asked: InferRequest, done: Done, payload: bytes
) -> bytes:
    """A ModelInferResponse. Its fields are written one by one: no message object is needed."""
    pieces = [_text(b"\x0a", name), _text(b"\x12", version), _text(b"\x1a", asked.id)]
    if any(part.region is not None for part in done.outputs):
        return _write_shared(name, version, asked, done, payload)
    pieces += [_described_output(part) for part in done.outputs]
    for part in done.outputs:
        data = payload[part.offset : part.offset + part.num_bytes]
        pieces += (b"\x32", _varint(len(data)), data)
    return b"".join(pieces)


def _write_shared(
    name: str, version: str, asked: InferRequest, done: Done, payload: bytes
) -> bytes:
    """The same, with outputs in the client's memory: these have parameters and no bytes."""
    made = message("ModelInferResponse")(model_name=name, model_version=version, id=asked.id)
    for part in done.outputs:
        output = made.outputs.add(name=part.name, datatype=part.datatype, shape=part.shape)
        if part.region is not None:
            output.parameters["shared_memory_region"].string_param = part.region.name
            output.parameters["shared_memory_byte_size"].int64_param = part.num_bytes
        else:
            data = payload[part.offset : part.offset + part.num_bytes]
            made.raw_output_contents.append(data)
    content: bytes = made.SerializeToString()
    return content
