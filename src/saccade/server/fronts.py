"""Further fronts, seen from the first: started, told of models and engine processes, asked.

The first front owns what there is one of: listening sockets, engine processes, the table of
models, regions of shared memory. Further fronts serve clients exactly as it does; they are told the
state of all that whenever it changes, and pass on what changes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import msgspec

from saccade.server.board import Board
from saccade.server.channel import Channel
from saccade.server.engines import Engine
from saccade.server.problems import Problem
from saccade.server.stats import Stats
from saccade.server.usage import own_usage

if TYPE_CHECKING:
    from saccade.server.app import Front

__all__ = ["Fronts", "front_figures"]

_ASK_S = 5.0
_START_S = 60.0
_END_S = 2.0
_QUICK_DEATH_S = 5.0
_PAUSE_S = 1.0
_HATCH_BYTES = 1 << 20


def front_figures(front: Front) -> dict[str, Any]:
    """What a front counted and uses, as plain values."""
    return {"stats": front.stats.as_dict(), "usage": own_usage()}


class _Further:
    """One further front.

    Attributes:
        row: Its place among the fronts.
        is_up: Whether it takes clients.
        arena_fd: Of its arena, as engine processes are given it.
        told: Its figures when it was last asked.
    """

    def __init__(self, row: int) -> None:
        self.row = row
        self.is_up = False
        self.arena_fd = -1
        self.told: dict[str, Any] | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.channel: Channel | None = None
        self.hatch: socket.socket | None = None
        self.started_s = 0.0


class Fronts:
    """All further fronts; there may be none.

    Args:
        front: The first.
        board: What all write on.

    Attributes:
        num_restarts: Further fronts that were started again.
    """

    def __init__(self, front: Front, board: Board) -> None:
        self._front = front
        self._board = board
        self._further = [_Further(row) for row in range(1, board.num_fronts)]
        self._gone = Stats()
        self._is_ending = False
        self.num_restarts = 0
        self.on_lost: Any = lambda row: None

    @property
    def num_up(self) -> int:
        """Fronts that take clients, with the first."""
        return 1 + len(self._up())

    def _up(self) -> list[_Further]:
        return [one for one in self._further if one.is_up]

    # Life.

    async def start(self) -> None:
        """Start the processes and connect them with those of the engines."""
        await asyncio.gather(*(self._start(one) for one in self._further))

    async def _start(self, one: _Further) -> None:
        from saccade.server.options import pack_options

        front = self._front
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        hatch, its_hatch = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        hatch.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _HATCH_BYTES)
        fds = (theirs.fileno(), its_hatch.fileno(), self._board.fd)
        command = [sys.executable, "-m", "saccade.server.further", str(one.row)]
        command += [str(self._board.num_fronts), *map(str, fds)]
        with theirs, its_hatch:
            one.process = subprocess.Popen(command, pass_fds=fds, stdin=subprocess.DEVNULL)
        one.hatch, one.started_s, one.told = hatch, time.monotonic(), None
        one.channel = Channel(front.loop, front.ask, lambda: self._end(one))
        await one.channel.start(ours)
        async with asyncio.timeout(_START_S):
            await one.channel.ask("begin", pack_options(front.options))
        # It laid its arena into the hatch before it answered.
        _, fds_got, _, _ = socket.recv_fds(hatch, 16, 1)
        one.arena_fd = fds_got[0]
        hatch.setblocking(False)
        for engine in front.dispatcher.engines:
            if engine.is_up:
                await self._connect(one, engine)
        one.is_up = True
        await self._tell(one)

    async def connect(self, engine: Engine) -> None:
        """Give every further front a line to an engine process that has come up."""
        await asyncio.gather(*(self._connect(one, engine) for one in self._up()))

    async def _connect(self, one: _Further, engine: Engine) -> None:
        assert one.channel is not None
        assert one.hatch is not None
        with contextlib.suppress(Problem):  # one of the two has ended, and will be started again
            sock, line = await engine.open_line(one.arena_fd)
            with sock:
                content = [engine.number, line, engine.num_threads, engine.device]
                socket.send_fds(one.hatch, [msgspec.msgpack.encode(content)], [sock.fileno()])
            await one.channel.ask("connected", engine.number)

    def _end(self, one: _Further) -> None:
        """A further front has ended, asked for or not."""
        process, one.process = one.process, None
        assert process is not None
        one.is_up, one.channel = False, None
        if one.told is not None:
            self._gone.add(one.told["stats"], has_ended=True)
            one.told = None
        if one.hatch is not None:
            one.hatch.close()
        self._board.clear(one.row)
        self.on_lost(one.row)
        self._front.spawn(self._see_off(one, process))

    async def _see_off(self, one: _Further, process: subprocess.Popen[bytes]) -> None:
        import os

        front = self._front
        try:
            await front.loop.run_in_executor(None, lambda: process.wait(_END_S))
        except subprocess.TimeoutExpired:
            process.kill()
            await front.loop.run_in_executor(None, process.wait)
        if one.arena_fd >= 0:
            os.close(one.arena_fd)
            one.arena_fd = -1
        if self._is_ending:
            return
        front.log.event("front process ended", front=one.row)
        self.num_restarts += 1
        if time.monotonic() - one.started_s < _QUICK_DEATH_S:
            await asyncio.sleep(_PAUSE_S)
        try:
            await self._start(one)
        except (Problem, TimeoutError, OSError):
            if one.process is not None:
                one.process.kill()  # its channel ends, and it comes by here again
            return
        front.log.event("front process is back", front=one.row)

    def hand_over(self, row: int, kind: str, sock: socket.socket) -> bool:
        """Give a client's connection to a further front; False if it cannot take it now."""
        one = self._further[row - 1]
        if not one.is_up or one.hatch is None:
            return False
        try:
            socket.send_fds(one.hatch, [msgspec.msgpack.encode(kind)], [sock.fileno()])
        except OSError:
            return False
        return True

    async def drain(self) -> None:
        """Have all finish what they took, and end them."""
        self._is_ending = True
        for one in self._further:
            one.is_up = False
        asked = [one.channel.ask("drain") for one in self._further if one.channel is not None]
        await asyncio.gather(*asked, return_exceptions=True)
        for one in self._further:
            if one.channel is not None:
                one.channel.close()

    # State.

    def state(self) -> dict[str, Any]:
        """What every front must know."""
        front = self._front
        return {
            "is_ready": front.is_ready,
            "log_requests": front.log.with_requests,
            "regions": msgspec.to_builtins(front.regions.everything()),
            "models": [
                {
                    **{key: getattr(entry, key) for key in ("key", "name", "version")},
                    **{key: getattr(entry, key) for key in ("state", "reason", "details")},
                }
                for entry in front.repository.entries()
            ],
        }

    async def publish(self) -> None:
        """Tell every front the state; returns when all know it."""
        await asyncio.gather(*(self._tell(one) for one in self._up()))

    async def _tell(self, one: _Further) -> None:
        assert one.channel is not None
        # One that has ended has a successor that is told anew; one that hangs holds up nobody.
        with contextlib.suppress(Problem, TimeoutError):
            async with asyncio.timeout(_ASK_S):
                await one.channel.ask("state", self.state())

    async def retire(self, key: int) -> None:
        """Return when no front has a request of a model under way; all know that it has gone."""
        await asyncio.gather(
            *(one.channel.ask("retire", key) for one in self._up() if one.channel is not None),
            return_exceptions=True,
        )

    # Figures.

    async def gather(self) -> tuple[Stats, dict[str, Any]]:
        """What all fronts counted together, and what they use together."""
        front = self._front
        own = front_figures(front)
        if not self._further:
            return front.stats, {**own["usage"], "num_fronts": 1}
        await asyncio.gather(*(self._ask_figures(one) for one in self._up()))
        told = [own, *(one.told for one in self._further if one.told is not None)]
        total = Stats()
        total.started_s, total.engines = front.stats.started_s, front.stats.engines
        total.num_restarts = front.stats.num_restarts
        for figures in told:
            total.add(figures["stats"])
        total.add(self._gone.as_dict())
        usage = {key: sum(one["usage"][key] for one in told) for key in own["usage"]}
        return total, {**usage, "pid": own["usage"]["pid"], "num_fronts": self.num_up}

    async def _ask_figures(self, one: _Further) -> None:
        """One that does not answer in time counts with what it said last."""
        assert one.channel is not None
        with contextlib.suppress(Problem, TimeoutError):
            async with asyncio.timeout(_ASK_S):
                one.told = await one.channel.ask("figures")
