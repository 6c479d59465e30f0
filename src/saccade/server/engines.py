"""Engine processes, seen from a front: started, spoken to, watched, started again.

The front that starts a process speaks to it over a `Line`; every further front gets a line of its
own, with an arena of its own, so fronts share nothing but the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

from saccade.server.arena import Arena
from saccade.server.problems import Problem
from saccade.server.spare import Spare, engine_environment
from saccade.server.wire import (
    INLINE_BYTES,
    LINE_SHIFT,
    PACKET_BYTES,
    Done,
    Failed,
    Join,
    Loaded,
    Piece,
    Reply,
)

__all__ = ["Engine", "Line", "Ticket"]

_SOCKET_BYTES = 4 << 20
_MAX_PACKETS_A_TURN = 64
# A packet of short tasks is sent when it has this many bytes of payload.
_FLUSH_BYTES = 32 << 10
_QUICK_DEATH_S = 5.0
_MAX_PAUSE_S = 30.0


class Ticket:
    """A task that an engine process holds.

    Attributes:
        on_reply: Called once: with Done or Loaded and the payload, or with a Problem and b"".
        block: Its arena block, or -1.
        num_bytes: Of its payload, if that is in the message.
        pieces: What came of a payload in pieces.
    """

    __slots__ = ("block", "num_bytes", "on_reply", "pieces")

    def __init__(self, on_reply: Callable[[Any, bytes], None], block: int, num_bytes: int) -> None:
        self.on_reply = on_reply
        self.block = block
        self.num_bytes = num_bytes
        self.pieces: list[bytes] | None = None


class Line:
    """A front's connection to one engine process.

    Args:
        number: The process's place among them.
        arena: Of this front, shared with the process.
        num_threads: Tasks that the process does at the same time.
        loop: The front's.
        on_death: Called when the process has ended though nobody asked it to.
        device: Where its models run if they do not say: "cpu" or "cuda:N".

    Attributes:
        is_up: Whether it takes tasks.
        tickets: Tasks it holds, by id.
        waiting_bytes: Of payloads in messages that are not answered.
    """

    def __init__(
        self,
        number: int,
        arena: Arena,
        num_threads: int,
        loop: asyncio.AbstractEventLoop,
        on_death: Callable[[Any], None],
        device: str = "cpu",
    ) -> None:
        self.number = number
        self.num_threads = num_threads
        self.device = device
        self.is_up = False
        self.tickets: dict[int, Ticket] = {}
        self.waiting_bytes = 0
        self._outbox: list[Any] = []
        self._outbox_bytes = 0
        self._is_flush_due = False
        self._is_blocked = False
        self._arena = arena
        self._loop = loop
        self._on_death = on_death
        self._ids = itertools.count(1)
        self._socket: socket.socket | None = None
        self._decode = msgspec.msgpack.Decoder(list[Reply]).decode
        self._encode = msgspec.msgpack.Encoder().encode
        self._buffer = bytearray(PACKET_BYTES + 4096)
        self._view = memoryview(self._buffer)

    @property
    def is_running(self) -> bool:
        """Whether there is a process to speak to, up or not."""
        return self._socket is not None

    def attach(self, sock: socket.socket, line: int) -> None:
        """Speak over a socket from now on; tasks may be sent at once.

        Args:
            sock: Of `Engine.open_line`.
            line: Its number there.
        """
        sock.setblocking(False)
        self._socket = sock
        self._ids = itertools.count((line << LINE_SHIFT) + 1)
        self._loop.add_reader(sock.fileno(), self._read)

    def send(
        self,
        make: Callable[[int, int, int], Any],
        on_reply: Any,
        *,
        block: int = -1,
        num_bytes: int = 0,
        is_short: bool = False,
    ) -> None:
        """Hand over a task.

        Args:
            make: Makes the message from an id, and the offset and size of the block.
            on_reply: As in Ticket.
            block: An arena block that holds the task's payload; it is given back with the answer.
            num_bytes: Bytes of payload in the message.
            is_short: Whether the task may wait until the loop's turn ends, and then travel and
                be done together with others.
        """
        number = next(self._ids)
        capacity = self._arena.size(block) if block >= 0 else 0
        self.tickets[number] = Ticket(on_reply, block, num_bytes)
        self.waiting_bytes += num_bytes
        self._outbox.append(make(number, block, capacity))
        self._outbox_bytes += num_bytes
        if not is_short or self._outbox_bytes > _FLUSH_BYTES:
            self._flush()
        elif not self._is_flush_due:
            self._is_flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flush_due = False
        sock = self._socket
        if not self._outbox or sock is None:
            return
        try:
            sock.send(self._encode(self._outbox))
        except BlockingIOError:
            if not self._is_blocked:
                self._is_blocked = True
                self._loop.add_writer(sock.fileno(), self._flush)
            return
        except (BrokenPipeError, ConnectionResetError):
            self._loop.call_soon(self._die)
            return
        self._outbox.clear()
        self._outbox_bytes = 0
        if self._is_blocked:
            self._is_blocked = False
            self._loop.remove_writer(sock.fileno())

    async def ask(self, make: Callable[[int, int, int], Any]) -> bytes:
        """Send a task that has no payload and wait for its answer.

        Raises:
            Problem: What the process, or its death, made of it.
        """
        answer: asyncio.Future[bytes] = self._loop.create_future()

        def on_reply(reply: Any, payload: bytes) -> None:
            if answer.done():
                return
            if isinstance(reply, Problem):
                answer.set_exception(reply)
            else:
                answer.set_result(reply.details)

        self.send(make, on_reply)
        return await answer

    def _read(self) -> None:
        """Take what has come; runs on the loop."""
        if self._socket is None:
            return
        receive, decode, view = self._socket.recv_into, self._decode, self._view
        for _ in range(_MAX_PACKETS_A_TURN):
            try:
                num = receive(self._buffer)
            except BlockingIOError:
                return
            except ConnectionResetError:
                num = 0
            if num == 0:
                self._die()
                return
            for reply in decode(view[:num]):
                if isinstance(reply, Piece):
                    ticket = self.tickets[reply.id]
                    ticket.pieces = ticket.pieces or []
                    ticket.pieces.append(reply.content)
                else:
                    self._settle(reply)

    def _settle(self, reply: Done | Failed | Loaded) -> None:
        ticket = self.tickets.pop(reply.id)
        self.waiting_bytes -= ticket.num_bytes
        if type(reply) is Done:
            payload = reply.payload
            if reply.in_block:
                payload = bytes(self._arena.view[ticket.block : ticket.block + reply.num_bytes])
            elif ticket.pieces is not None:
                payload = b"".join(ticket.pieces)
            if ticket.block >= 0:
                self._arena.give_back(ticket.block)
            ticket.on_reply(reply, payload)
            return
        if ticket.block >= 0:
            self._arena.give_back(ticket.block)
        if type(reply) is Failed:
            ticket.on_reply(Problem(reply.kind, reply.message), b"")
        else:
            ticket.on_reply(reply, b"")

    def _die(self) -> None:
        """The process has ended, or must: answer for it."""
        blocks = self._hang_up(self.number)
        if blocks is None:
            return
        # A dead process's memory was unmapped before its sockets were closed.
        for block in blocks:
            self._arena.give_back(block)
        self._on_death(self)

    def _hang_up(self, told: int) -> list[int] | None:
        """Close the socket and answer all tickets; their blocks, or None if that was done."""
        if self._socket is None:
            return None
        self._loop.remove_reader(self._socket.fileno())
        if self._is_blocked:
            self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        self._socket = None
        self.is_up = False
        tickets, self.tickets = self.tickets, {}
        self._outbox, self._outbox_bytes, self.waiting_bytes = [], 0, 0
        self._is_blocked = False
        problem = Problem(
            "unavailable",
            "the engine process must stay alive for the time of a request",
            f"process {told} ended",
            "send the request again; a new process is being started",
            retry_after_s=1,
        )
        for ticket in tickets.values():
            ticket.on_reply(problem, b"")
        return [ticket.block for ticket in tickets.values() if ticket.block >= 0]

    def close(self) -> None:
        """Give the line up; tasks it still holds get an error."""
        self._hang_up(self.number)


class Engine(Line):
    """One engine process, with the line of the front that started it.

    Args:
        number, arena, num_threads, loop, on_death, device: As for Line.

    Attributes:
        pid: Its process, or 0.
    """

    def __init__(
        self,
        number: int,
        arena: Arena,
        num_threads: int,
        loop: asyncio.AbstractEventLoop,
        on_death: Callable[[Engine], None],
        device: str = "cpu",
    ) -> None:
        super().__init__(number, arena, num_threads, loop, on_death, device)
        self.pid = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._door: socket.socket | None = None
        self._lines = itertools.count(1)
        self._burial: asyncio.Task[None] | None = None
        self._is_wanted = False
        self._started_s = 0.0
        self._pause_s = 0.0

    def start(self, spare: Spare | None = None) -> None:
        """Start the process; tasks may be sent at once.

        Args:
            spare: Takes the place if it is still there.
        """
        ours, theirs = _pair()
        door, its_door = _pair()
        fds = (theirs.fileno(), self._arena.fd, its_door.fileno())
        command = [sys.executable, "-m", "saccade.server.worker", *map(str, fds)]
        with theirs, its_door:
            process = None
            if spare is not None:
                process = spare.employ(fds, self.num_threads, self.device)
            if process is None:
                process = subprocess.Popen(
                    [*command, str(self.num_threads), self.device],
                    pass_fds=fds,
                    stdin=subprocess.DEVNULL,
                    env=engine_environment(),
                )
        self._process = process
        self._door = door
        self._lines = itertools.count(1)
        self.pid = process.pid
        self._is_wanted = True
        self._started_s = time.monotonic()
        self.attach(ours, 0)

    async def open_line(self, arena_fd: int) -> tuple[socket.socket, int]:
        """Connect a further front with the process.

        Args:
            arena_fd: Of that front's arena.

        Returns:
            What that front's `Line.attach` is to be given. Close the socket here once it is sent.

        Raises:
            Problem: The process has ended.
        """
        ours, theirs = _pair()
        line = next(self._lines)
        try:
            with theirs:
                assert self._door is not None
                socket.send_fds(self._door, [str(line).encode()], [theirs.fileno(), arena_fd])
            await self.ask(lambda i, b, c: Join(i))
        except BaseException:
            ours.close()
            raise
        return ours, line

    def _die(self) -> None:
        """The process has ended, or must: answer for it and see it off."""
        if self._socket is None:
            return
        process, self._process = self._process, None
        assert process is not None
        process.kill()
        if self._door is not None:
            self._door.close()
        # Blocks are given back once nobody can write to them any more.
        blocks = self._hang_up(process.pid) or []
        self._burial = self._loop.create_task(self._bury(process, blocks))

    async def _bury(self, process: subprocess.Popen[bytes], blocks: list[int]) -> None:
        await self._loop.run_in_executor(None, process.wait)
        for block in blocks:
            self._arena.give_back(block)
        if not self._is_wanted:
            return
        lived_s = time.monotonic() - self._started_s
        is_quick = lived_s < _QUICK_DEATH_S
        self._pause_s = min(_MAX_PAUSE_S, max(0.1, 2 * self._pause_s)) if is_quick else 0.0
        await asyncio.sleep(self._pause_s)
        if self._is_wanted:
            self._on_death(self)

    async def stop(self) -> None:
        """End the process; tasks it still holds get an error."""
        self._is_wanted = False
        process = self._process
        if self._socket is None or process is None:
            if self._burial is not None:
                self._burial.cancel()  # it would wait before the next start
            return
        # It ends by itself when it reads the end; it gets a moment to do so.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        with contextlib.suppress(subprocess.TimeoutExpired):
            await self._loop.run_in_executor(None, lambda: process.wait(2.0))
        self._die()
        if self._burial is not None:
            await self._burial


def _pair() -> tuple[socket.socket, socket.socket]:
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for sock in pair:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
    return pair


assert INLINE_BYTES < PACKET_BYTES // 2
