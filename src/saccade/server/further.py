"""A further front: serves clients as the first does, with state that the first tells it.

Run by the first as `python -m saccade.server.further ROW FRONTS CHANNEL_FD HATCH_FD BOARD_FD`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from typing import Any

import msgspec

from saccade.server.app import Front
from saccade.server.board import Board
from saccade.server.channel import Channel
from saccade.server.door import make_adopter
from saccade.server.engines import Line
from saccade.server.fleet import drained
from saccade.server.fronts import front_figures
from saccade.server.loading_options import LoadOptions
from saccade.server.models import ModelEntry
from saccade.server.options import ServeOptions, unpack_options
from saccade.server.run import new_loop, protocols
from saccade.server.wire import Region

__all__ = ["main"]

_HATCH_BYTES = 4096


class FurtherFront:
    """The process.

    Args:
        loop: Its own.
        board: With its row.
        hatch: Where sockets come in: clients' connections and lines to engine processes.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, board: Board, hatch: socket.socket) -> None:
        self._loop = loop
        self._board = board
        self._hatch = hatch
        self._front: Any = None
        self._adopt: Any = None
        self._entries: dict[int, ModelEntry] = {}
        self.is_over = asyncio.Event()
        self.channel = Channel(loop, self._answer, self.is_over.set)

    async def _answer(self, what: str, *arguments: Any) -> Any:
        return await getattr(self, f"_on_{what}")(*arguments)

    # What the first front asks.

    async def _on_begin(self, packed: bytes) -> None:
        options: ServeOptions = unpack_options(packed)
        front = self._front = Front(options, self._loop, board=self._board)
        front.ask = self.channel.ask
        front.begin()
        makers = protocols(front)
        self._adopt = make_adopter(self._loop, self._board, front.spawn, makers)
        socket.send_fds(self._hatch, [b"arena"], [front.arena.fd])
        self._hatch.setblocking(False)
        self._loop.add_reader(self._hatch.fileno(), self._take)

    async def _on_connected(self, number: int) -> None:
        """All of an engine process's models are loaded: its line may be used."""
        self._take()
        self._line(number).is_up = True
        self._front.dispatcher.pump()

    async def _on_state(self, state: dict[str, Any]) -> None:
        front = self._front
        entries = []
        for told in state["models"]:
            entry = self._entries.get(told["key"])
            if entry is None:
                name, version, key = told["name"], told["version"], told["key"]
                stats = front.stats.model(name, version)
                entry = ModelEntry(name, version, key, "", LoadOptions(), stats)
                self._entries[key] = entry
            entry.state, entry.reason = told["state"], told["reason"]
            if told["details"] != entry.details:
                entry.details = told["details"]
            if entry.details:
                front.dispatcher.suit(entry)
            entries.append(entry)
        front.repository.replace(entries)
        front.regions.replace(msgspec.convert(state["regions"], dict[str, Region]))
        front.log.with_requests = state["log_requests"]
        front.is_ready = state["is_ready"]

    async def _on_retire(self, key: int) -> None:
        entry = self._entries.get(key)
        if entry is not None:
            await drained(self._front, entry)
            if entry not in self._front.repository.entries():
                self._entries.pop(key, None)

    async def _on_figures(self) -> dict[str, Any]:
        return front_figures(self._front)

    async def _on_drain(self) -> None:
        await self._front.drain()
        await self._front.end()

    # Sockets.

    def _take(self) -> None:
        while True:
            try:
                content, fds, _, _ = socket.recv_fds(self._hatch, _HATCH_BYTES, 1)
            except BlockingIOError:
                return
            if not fds:
                self._loop.remove_reader(self._hatch.fileno())
                return
            told = msgspec.msgpack.decode(content)
            sock = socket.socket(fileno=fds[0])
            if isinstance(told, str):
                sock.setblocking(False)
                self._adopt(told, sock)
                continue
            number, line, num_threads, device = told
            mine = self._line(number, num_threads, device)
            mine.close()
            mine.attach(sock, line)

    def _line(self, number: int, num_threads: int = 1, device: str = "cpu") -> Line:
        lines = self._front.dispatcher.engines
        found: list[Line] = [line for line in lines if line.number == number]
        if not found:
            arena = self._front.arena
            made = Line(number, arena, num_threads, self._loop, lambda line: None, device)
            lines.append(made)
            return made
        return found[0]


async def _serve(row: int, num_fronts: int, fds: list[int]) -> None:
    loop = asyncio.get_running_loop()
    board = Board(num_fronts, row, fds[2])
    further = FurtherFront(loop, board, socket.socket(fileno=fds[1]))
    await further.channel.start(socket.socket(fileno=fds[0]))
    # The first front says when this is over; where it dies, so does this.
    await further.is_over.wait()


def main() -> None:
    """Work as a further front."""
    row, num_fronts, *fds = map(int, sys.argv[1:6])
    # A Ctrl-C in the terminal reaches all processes of the group; the first front decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    loop = new_loop()
    loop.run_until_complete(_serve(row, num_fronts, fds))
    os._exit(0)


if __name__ == "__main__":
    main()
