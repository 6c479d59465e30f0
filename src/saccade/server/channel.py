"""Questions and answers between two fronts, both ways over one socket.

A packet is its length in four bytes and a MessagePack list: the question's number, what kind of
packet it is, and its content.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from saccade.server.problems import Problem, problem_of

__all__ = ["Channel"]

_QUESTION, _ANSWER, _PROBLEM = range(3)
_LENGTH_BYTES = 4


class Channel(asyncio.Protocol):
    """One end.

    Args:
        loop: Of this process.
        answer: Called for each question with its name and arguments. Questions begin in the order
            in which they were asked: what an answer does before it first waits, it does in order.
        on_end: Called when the other process has gone.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        answer: Callable[..., Awaitable[Any]],
        on_end: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._answer = answer
        self._on_end = on_end
        self._numbers = itertools.count(1)
        self._open: dict[int, asyncio.Future[Any]] = {}
        self._held = bytearray()
        self._tasks: set[asyncio.Task[None]] = set()
        self._transport: Any = None

    async def start(self, sock: socket.socket) -> None:
        """Speak over a stream socket from now on; the channel closes it."""
        sock.setblocking(False)
        await self._loop.create_unix_connection(lambda: self, sock=sock)

    async def ask(self, what: str, *arguments: Any) -> Any:
        """Ask the other process; arguments and answers are plain values.

        Raises:
            Problem: Its answer, or that it has gone.
        """
        if self._transport is None:
            raise _gone()
        number = next(self._numbers)
        answer = self._open[number] = self._loop.create_future()
        self._send(number, _QUESTION, [what, *arguments])
        return await answer

    def close(self) -> None:
        """Say no more."""
        if self._transport is not None:
            self._transport.close()

    def _send(self, number: int, kind: int, content: Any) -> None:
        if self._transport is None:
            return
        packet = msgspec.msgpack.encode([number, kind, content])
        self._transport.write(len(packet).to_bytes(_LENGTH_BYTES, "big") + packet)

    async def _reply(self, number: int, what: str, arguments: list[Any]) -> None:
        try:
            self._send(number, _ANSWER, await self._answer(what, *arguments))
        except Exception as exc:
            problem = problem_of(exc)
            told = [problem.kind, problem.must, problem.got, problem.fix, problem.retry_after_s]
            self._send(number, _PROBLEM, told)

    # asyncio calls these.

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        held = self._held
        held += data
        while len(held) >= _LENGTH_BYTES:
            end = _LENGTH_BYTES + int.from_bytes(held[:_LENGTH_BYTES], "big")
            if len(held) < end:
                return
            number, kind, content = msgspec.msgpack.decode(held[_LENGTH_BYTES:end])
            del held[:end]
            self._take(number, kind, content)

    def _take(self, number: int, kind: int, content: Any) -> None:
        if kind == _QUESTION:
            task = self._loop.create_task(self._reply(number, content[0], content[1:]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        answer = self._open.pop(number)
        if answer.done():
            return
        if kind == _ANSWER:
            answer.set_result(content)
        else:
            *parts, retry_after_s = content
            answer.set_exception(Problem(*parts, retry_after_s=retry_after_s))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        waiting, self._open = self._open, {}
        for answer in waiting.values():
            if not answer.done():
                answer.set_exception(_gone())
        self._on_end()


def _gone() -> Problem:
    return Problem(
        "unavailable",
        "all fronts of the server must be up for this",
        "one has ended",
        "try again in a moment",
        retry_after_s=1,
    )
