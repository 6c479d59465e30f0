"""HTTP/2 for one client that speaks gRPC: frames, flow control, header compression.

Written for calls of one message each way: such a call is two frames in and one write of three
frames out. Header blocks that do not change the compression state are decoded once and kept.

Source: RFC 9113 (HTTP/2) and RFC 7541 (HPACK, by the package hpack).
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable, Iterable
from typing import Any

import hpack
from hpack.exceptions import HPACKError

__all__ = ["Http2Connection", "Stream"]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY = range(8)
WINDOW_UPDATE, CONTINUATION = 8, 9
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0, 1, 2, 3
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL = 5, 6, 7, 8
COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 9, 11

_MAX_WINDOW = (1 << 31) - 1
_DEFAULT_WINDOW = 65535
# A frame that clients may send; most send 16 KiB.
_FRAME_BYTES = 1 << 20
# Bytes on their way to us, on all streams of a connection.
_CONNECTION_WINDOW = 64 << 20
_MAX_HEADER_BYTES = 32 << 10
_MAX_BLOCKS_KEPT = 256
# Frames that ask for work and bring none, per sweep of half a second; each call allows some more.
_MAX_IDLE_FRAMES = 2000
_IDLE_FRAMES_A_CALL = 16
_SETTING = struct.Struct(">HI")
_FRAME = struct.Struct(">BHBBI")


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    num = len(payload)
    return _FRAME.pack(num >> 16, num & 0xFFFF, kind, flags, stream) + payload


class Headers(dict[str, str]):
    """Headers of a call; names in lower case, of repeated ones the last.

    Attributes:
        kind: What the layer above made of them; calls with the same block share it.
    """

    __slots__ = ("kind",)

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        super().__init__(pairs)
        self.kind: Any = None


class _ConnectionFault(Exception):
    """The client broke the rules; the connection ends."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


class Stream:
    """One call.

    Attributes:
        id: Its number.
        headers: Of the request.
        held: Bytes of messages that are not complete, in the pieces in which they came.
        num_held: Their number.
        is_half_closed: Whether the client has said all.
        is_over: Whether it is answered or given up.
        on_gone: Called if the client gives up before the answer.
        call: Whatever the layer above wants to keep.
    """

    __slots__ = (
        "call",
        "headers",
        "held",
        "id",
        "is_half_closed",
        "is_over",
        "num_held",
        "on_gone",
        "pending",
        "receive_window",
        "send_window",
    )

    def __init__(
        self, number: int, headers: Headers, send_window: int, receive_window: int
    ) -> None:
        self.id = number
        self.headers = headers
        self.held: list[bytes] = []
        self.num_held = 0
        self.is_half_closed = False
        self.is_over = False
        self.on_gone: Callable[[], None] | None = None
        self.call: Any = None
        self.send_window = send_window
        self.receive_window = receive_window
        # What flow control holds back: (bytes of DATA, bytes of what follows them or None)
        self.pending: list[tuple[memoryview, bytes | None]] = []


class Http2Connection(asyncio.Protocol):
    """One client.

    Args:
        app: What takes calls: `loop`, `max_streams`, `max_message_bytes`, `open_connection`,
            `close_connection`, `begin(connection, stream)`, `take(connection, stream, data)` and
            `finish(connection, stream)`.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._transport: Any = None
        self._out: list[bytes] = []
        self._held = b""
        self._has_preface = False
        self._streams: dict[int, Stream] = {}
        self._last_id = 0
        self._send_window = _DEFAULT_WINDOW
        self._first_send_window = _DEFAULT_WINDOW
        self._max_frame = 16384
        self._receive_window = _CONNECTION_WINDOW
        # A stream may have one message of the greatest length under way.
        self._first_receive_window = min(_MAX_WINDOW, app.max_message_bytes + (1 << 20))
        self._decoder = hpack.Decoder(max_header_list_size=_MAX_HEADER_BYTES)
        self._blocks: dict[bytes, Headers] = {}
        self._block: tuple[int, int, bytearray] | None = None  # stream, flags, header block
        self._num_idle = 0
        self._since_s = time.monotonic()
        self._is_leaving = False
        self._is_write_paused = False
        self._write_since_s = 0.0
        self._num_unsent = 0  # at the last sweep

    # asyncio calls these.

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        settings = (
            *((3, self._app.max_streams), (4, self._first_receive_window)),
            *((5, _FRAME_BYTES), (6, _MAX_HEADER_BYTES)),
        )
        payload = b"".join(_SETTING.pack(*pair) for pair in settings)
        more = _CONNECTION_WINDOW - _DEFAULT_WINDOW
        self._write(
            frame(SETTINGS, 0, 0, payload) + frame(WINDOW_UPDATE, 0, 0, more.to_bytes(4, "big"))
        )
        if not self._app.open_connection(self):
            self._leave(ENHANCE_YOUR_CALM, b"too many connections")

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_leaving = True
        self._app.close_connection(self)
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            self._give_up(stream)

    def data_received(self, data: bytes) -> None:
        if self._held:
            data = self._held + data
            self._held = b""
        try:
            at = 0
            if not self._has_preface:
                if len(data) < len(PREFACE) and PREFACE.startswith(data):
                    self._held = data
                    return
                if not data.startswith(PREFACE):
                    raise _ConnectionFault(PROTOCOL_ERROR, "this port speaks HTTP/2 for gRPC only")
                self._has_preface = True
                at = len(PREFACE)
            end = len(data)
            while end - at >= 9:
                high, low, kind, flags, number = _FRAME.unpack_from(data, at)
                length = high << 16 | low
                if length > _FRAME_BYTES:
                    raise _ConnectionFault(FRAME_SIZE_ERROR, "a frame is too long")
                if end - at < 9 + length:
                    break
                payload = data[at + 9 : at + 9 + length]
                self._take_frame(kind, flags, number & 0x7FFFFFFF, payload)
                at += 9 + length
            if at < end:
                self._held = data[at:] if at else data
        except _ConnectionFault as fault:
            self._leave(fault.code, str(fault).encode())

    def _write(self, data: bytes) -> None:
        """What is written in one turn of the loop goes out together: clients have many calls on
        one connection, and their answers tend to come at the same time."""
        if not self._out:
            self._app.loop.call_soon(self._write_out)
        self._out.append(data)

    def _write_out(self) -> None:
        out, self._out = self._out, []
        if out:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def pause_writing(self) -> None:
        self._is_write_paused = True
        self._write_since_s = time.monotonic()
        # Who does not read answers may not ask for more.
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._is_write_paused = False
        self._transport.resume_reading()

    # Frames.

    def _take_frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if self._block is not None and kind != CONTINUATION:
            raise _ConnectionFault(PROTOCOL_ERROR, "a header block must not be interrupted")
        if kind == DATA:
            self._take_data(flags, number, payload)
        elif kind == HEADERS:
            self._take_headers(flags, number, payload)
        elif kind == CONTINUATION:
            self._take_continuation(flags, number, payload)
        elif kind == WINDOW_UPDATE:
            self._take_window_update(number, payload)
        elif kind == SETTINGS:
            self._take_settings(flags, number, payload)
        elif kind == PING:
            if number or len(payload) != 8:
                raise _ConnectionFault(FRAME_SIZE_ERROR, "a ping has 8 bytes and no stream")
            if not flags & ACK:
                self._count_idle()
                self._write(frame(PING, ACK, 0, payload))
        elif kind == RST_STREAM:
            self._take_reset(number, payload)
        elif kind == GOAWAY:
            pass  # the client opens no more streams; it closes when it has its answers
        elif kind == PRIORITY:
            self._count_idle()
        elif kind == PUSH_PROMISE:
            raise _ConnectionFault(PROTOCOL_ERROR, "a client must not push")
        else:
            self._count_idle()  # unknown frames are ignored

    def _count_idle(self) -> None:
        self._num_idle += 1
        if self._num_idle > _MAX_IDLE_FRAMES:
            raise _ConnectionFault(ENHANCE_YOUR_CALM, "too many frames without content")

    def _take_headers(self, flags: int, number: int, payload: bytes) -> None:
        payload = _unpadded(flags, payload)
        if flags & HAS_PRIORITY:
            if len(payload) < 5:
                raise _ConnectionFault(FRAME_SIZE_ERROR, "a header frame is too short")
            payload = payload[5:]
        if number % 2 == 0:
            raise _ConnectionFault(PROTOCOL_ERROR, "a client's streams have odd numbers")
        if flags & END_HEADERS:
            self._begin(number, flags, payload)
        else:
            self._block = (number, flags, bytearray(payload))

    def _take_continuation(self, flags: int, number: int, payload: bytes) -> None:
        if self._block is None or self._block[0] != number:
            raise _ConnectionFault(PROTOCOL_ERROR, "a continuation must follow its headers")
        self._count_idle()
        block = self._block[2]
        block += payload
        if len(block) > 2 * _MAX_HEADER_BYTES:
            raise _ConnectionFault(ENHANCE_YOUR_CALM, "a header block is too long")
        if flags & END_HEADERS:
            number, first_flags, _ = self._block
            self._block = None
            self._begin(number, first_flags, bytes(block))

    def _headers_of(self, block: bytes) -> Headers:
        kept = self._blocks.get(block)
        if kept is not None:
            return kept
        table = self._decoder.header_table
        # Entries are only ever put in front; the newest is held, so that no other can be it.
        entries = table.dynamic_entries
        newest, num, size = entries[0] if entries else None, len(entries), table.maxsize
        try:
            listed = self._decoder.decode(block)
            headers = Headers((_text(name), _text(value)) for name, value in listed)
        except (HPACKError, UnicodeDecodeError, IndexError) as exc:
            raise _ConnectionFault(COMPRESSION_ERROR, "a header block is wrong") from exc
        is_same = newest is (entries[0] if entries else None) and num == len(entries)
        if not is_same or size != table.maxsize:
            self._blocks.clear()
        elif len(self._blocks) < _MAX_BLOCKS_KEPT:
            self._blocks[block] = headers
        return headers

    def _begin(self, number: int, flags: int, block: bytes) -> None:
        headers = self._headers_of(block)
        stream = self._streams.get(number)
        if stream is not None:
            # Trailers of the client: gRPC has none, but they may be there.
            if not flags & END_STREAM or stream.is_half_closed:
                raise _ConnectionFault(PROTOCOL_ERROR, "headers came twice")
            self._close_half(stream)
            return
        if number <= self._last_id:
            raise _ConnectionFault(STREAM_CLOSED, "a stream must not be opened again")
        self._last_id = number
        if self._is_leaving or len(self._streams) >= self._app.max_streams:
            self._count_idle()
            self._reset(number, REFUSED_STREAM)
            return
        stream = Stream(number, headers, self._first_send_window, self._first_receive_window)
        self._streams[number] = stream
        self._num_idle -= _IDLE_FRAMES_A_CALL
        self._since_s = time.monotonic()
        self._app.begin(self, stream)
        if flags & END_STREAM:
            self._close_half(stream)

    def _close_half(self, stream: Stream) -> None:
        stream.is_half_closed = True
        if not stream.is_over:
            self._app.finish(self, stream)
        if stream.is_over:
            self._forget(stream)

    def _take_data(self, flags: int, number: int, payload: bytes) -> None:
        size = len(payload)
        if number == 0:
            raise _ConnectionFault(PROTOCOL_ERROR, "data must have a stream")
        if number > self._last_id:
            raise _ConnectionFault(PROTOCOL_ERROR, "data came before headers")
        self._receive_window -= size
        if self._receive_window < 0:
            raise _ConnectionFault(FLOW_CONTROL_ERROR, "more data came than was allowed")
        if self._receive_window < _CONNECTION_WINDOW // 2:
            more = _CONNECTION_WINDOW - self._receive_window
            self._receive_window += more
            self._write(frame(WINDOW_UPDATE, 0, 0, more.to_bytes(4, "big")))
        stream = self._streams.get(number)
        if stream is None:
            self._count_idle()
            return  # of a stream that was given up meanwhile
        if stream.is_half_closed:
            self._give_up(stream)
            self._reset(number, STREAM_CLOSED)
            return
        stream.receive_window -= size
        if stream.receive_window < 0:
            self._give_up(stream)
            self._reset(number, FLOW_CONTROL_ERROR)
            return
        if flags & PADDED:
            payload = _unpadded(flags, payload)
        if not payload and not flags & END_STREAM:
            self._count_idle()
        if payload and not stream.is_over:
            self._app.take(self, stream, payload)
        if flags & END_STREAM:
            self._close_half(stream)
        elif not stream.is_over and stream.receive_window < self._first_receive_window // 2:
            self._reopen(stream)

    def _reopen(self, stream: Stream) -> None:
        """Let a stream of many messages go on; the layer above bounds what is held of one."""
        more = self._first_receive_window - stream.receive_window
        stream.receive_window += more
        self._write(frame(WINDOW_UPDATE, 0, stream.id, more.to_bytes(4, "big")))

    def _take_window_update(self, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise _ConnectionFault(FRAME_SIZE_ERROR, "a window update has 4 bytes")
        more = int.from_bytes(payload, "big") & 0x7FFFFFFF
        if number == 0:
            self._send_window += more
            if not more or self._send_window > _MAX_WINDOW:
                raise _ConnectionFault(FLOW_CONTROL_ERROR, "a window update is wrong")
            for held_back in [s for s in self._streams.values() if s.pending]:
                self._flush(held_back)
            return
        if number > self._last_id:
            raise _ConnectionFault(PROTOCOL_ERROR, "a window update came before headers")
        stream = self._streams.get(number)
        if stream is None:
            self._count_idle()
            return
        stream.send_window += more
        if not more or stream.send_window > _MAX_WINDOW:
            self._give_up(stream)
            self._reset(number, FLOW_CONTROL_ERROR if more else PROTOCOL_ERROR)
        elif stream.pending:
            self._flush(stream)
        else:
            self._count_idle()

    def _take_settings(self, flags: int, number: int, payload: bytes) -> None:
        if number or len(payload) % 6 or (flags & ACK and payload):
            raise _ConnectionFault(FRAME_SIZE_ERROR, "settings are wrong")
        if flags & ACK:
            return
        self._count_idle()
        for at in range(0, len(payload), 6):
            name, value = _SETTING.unpack_from(payload, at)
            if name == 4:
                if value > _MAX_WINDOW:
                    raise _ConnectionFault(FLOW_CONTROL_ERROR, "a window is too large")
                change = value - self._first_send_window
                self._first_send_window = value
                for stream in list(self._streams.values()):
                    stream.send_window += change
                    if stream.pending:
                        self._flush(stream)
            elif name == 5:
                if not 16384 <= value <= (1 << 24) - 1:
                    raise _ConnectionFault(PROTOCOL_ERROR, "a frame size is impossible")
                self._max_frame = value
        self._write(frame(SETTINGS, ACK, 0))

    def _take_reset(self, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise _ConnectionFault(FRAME_SIZE_ERROR, "a reset has 4 bytes")
        if number == 0 or number > self._last_id:
            raise _ConnectionFault(PROTOCOL_ERROR, "a reset has no stream")
        self._count_idle()
        stream = self._streams.get(number)
        if stream is not None:
            self._give_up(stream)

    # Ending streams and the connection.

    def _give_up(self, stream: Stream) -> None:
        self._streams.pop(stream.id, None)
        stream.pending.clear()
        was_over, stream.is_over = stream.is_over, True
        if not was_over and stream.on_gone is not None:
            stream.on_gone()
        self._app.drop(stream)

    def _forget(self, stream: Stream) -> None:
        if not stream.pending:
            self._streams.pop(stream.id, None)

    def _reset(self, number: int, code: int) -> None:
        self._write(frame(RST_STREAM, 0, number, code.to_bytes(4, "big")))

    def _leave(self, code: int, why: bytes = b"") -> None:
        self._is_leaving = True
        payload = self._last_id.to_bytes(4, "big") + code.to_bytes(4, "big") + why
        self._write(frame(GOAWAY, 0, 0, payload))
        if code != NO_ERROR:
            self._write_out()
            self._transport.close()

    def close_when_idle(self) -> None:
        """Take no more calls; close after the last one."""
        if not self._is_leaving:
            self._leave(NO_ERROR)
        if not self._streams:
            self._write_out()
            self._transport.close()

    def sweep(self, now_s: float, body_s: float, write_s: float) -> None:
        """End what takes too long; called about twice a second."""
        self._num_idle = 0
        if self._is_write_paused:
            unsent = self._transport.get_write_buffer_size()
            if unsent < self._num_unsent:
                self._write_since_s = now_s
            elif now_s - self._write_since_s > write_s:
                self._transport.abort()
            self._num_unsent = unsent
        elif not self._has_preface and now_s - self._since_s > body_s:
            self._transport.close()

    # Answers.

    def answer(self, stream: Stream, start: bytes, content: bytes, end: bytes) -> None:
        """Answer a call as a whole.

        Args:
            stream: The call.
            start: Header block of the answer.
            content: Messages with their prefixes.
            end: Header block of the trailers.
        """
        if stream.is_over:
            return
        size = len(content)
        stream.is_over = True
        last = frame(HEADERS, END_HEADERS | END_STREAM, stream.id, end)
        window = self._send_window
        if size <= self._max_frame and size <= window and size <= stream.send_window:
            self._send_window = window - size
            stream.send_window -= size
            number = stream.id
            self._write(
                frame(HEADERS, END_HEADERS, number, start) + frame(DATA, 0, number, content) + last
            )
            if stream.is_half_closed:
                self._streams.pop(number, None)
            return
        self._write(frame(HEADERS, END_HEADERS, stream.id, start))
        stream.pending.append((memoryview(content), last))
        self._flush(stream)

    def refuse(self, stream: Stream, block: bytes) -> None:
        """Answer a call with an error: one header block and nothing else."""
        if stream.is_over:
            return
        stream.is_over = True
        self._write(frame(HEADERS, END_HEADERS | END_STREAM, stream.id, block))
        if not stream.is_half_closed:
            # The rest of the request is not wanted.
            self._reset(stream.id, NO_ERROR)
            stream.is_half_closed = True
        self._forget(stream)

    def begin_answer(self, stream: Stream, start: bytes) -> None:
        """Send the headers of an answer whose messages follow one by one."""
        self._write(frame(HEADERS, END_HEADERS, stream.id, start))

    def send(self, stream: Stream, content: bytes) -> None:
        """Send one message of an answer of many."""
        if not stream.is_over:
            stream.pending.append((memoryview(content), None))
            self._flush(stream)

    def end_answer(self, stream: Stream, end: bytes) -> None:
        """End an answer of many messages."""
        if stream.is_over:
            return
        stream.is_over = True
        last = frame(HEADERS, END_HEADERS | END_STREAM, stream.id, end)
        stream.pending.append((memoryview(b""), last))
        self._flush(stream)

    def _flush(self, stream: Stream) -> None:
        """Send what the client's windows allow."""
        pieces: list[bytes | memoryview] = []
        while stream.pending:
            content, last = stream.pending[0]
            room = min(self._send_window, stream.send_window)
            sent = 0
            while sent < len(content) and room > 0:
                size = min(len(content) - sent, room, self._max_frame)
                head = size.to_bytes(3, "big") + b"\0\0" + stream.id.to_bytes(4, "big")
                pieces += (head, content[sent : sent + size])
                sent += size
                room -= size
            self._send_window -= sent
            stream.send_window -= sent
            if sent < len(content):
                stream.pending[0] = (content[sent:], last)
                break
            if last is not None:
                pieces.append(last)
            stream.pending.pop(0)
        if pieces:
            self._write(b"".join(pieces))
        if stream.is_over and not stream.pending and stream.is_half_closed:
            self._streams.pop(stream.id, None)


def _unpadded(flags: int, payload: bytes) -> bytes:
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise _ConnectionFault(PROTOCOL_ERROR, "a frame is mostly padding")
    return payload[1 : len(payload) - payload[0]]


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
