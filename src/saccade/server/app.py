"""The front: connections on one side, engine processes on the other, the queue between them."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

from saccade.server.arena import Arena
from saccade.server.board import Board
from saccade.server.control import Control
from saccade.server.dispatch import Dispatcher
from saccade.server.fleet import Fleet
from saccade.server.fronts import Fronts
from saccade.server.grpc import Grpc
from saccade.server.http import Head, HttpConnection, HttpRequest, Response
from saccade.server.logs import Log
from saccade.server.memory import SharedMemory
from saccade.server.models import Repository
from saccade.server.options import ServeOptions
from saccade.server.pictures import Pictures
from saccade.server.problems import Problem, problem_of
from saccade.server.rest import Rest
from saccade.server.routes import Router
from saccade.server.site import Site
from saccade.server.stats import Stats
from saccade.server.tokens import check_origin, check_token
from saccade.server.tracing import make_tracer

__all__ = ["Front"]

_SWEEP_S = 0.5
_GRACE_S = 0.25


class Front:
    """One server.

    Args:
        options: How it runs.
        loop: Where it runs.
        board: What it shares with other fronts; None if it is alone.

    Attributes:
        stats: What it has done.
        repository: Its models.
        dispatcher: Its queue.
        router: Who answers which path; more may be added before it listens.
        is_draining: Whether it is on its way out.
        is_ready: Whether it was started with all its models.
        ask: Changes and figures that concern all fronts, by name: see `Control.shared`. A further
            front has the first one asked.
    """

    def __init__(
        self,
        options: ServeOptions,
        loop: asyncio.AbstractEventLoop,
        *,
        board: Board | None = None,
    ) -> None:
        self.options = options
        self.loop = loop
        self.log = Log(options.log, with_requests=options.log_requests)
        self.tracer = make_tracer() if options.with_spans else None
        self._board = board
        num_fronts = board.num_fronts if board is not None else 1
        self._max_pending_bytes = (options.max_queue_mb << 20) // num_fronts
        self.max_connections = -(-options.max_connections // num_fronts)
        self.stats = Stats()
        self.repository = Repository(self.stats)
        self.arena = Arena(options.arena_mb << 20)
        self.dispatcher = Dispatcher(
            self.arena,
            self.stats,
            loop,
            # Fronts share out what may wait in all.
            max_queue=-(-options.max_queue // num_fronts),
            max_queue_bytes=(options.max_queue_mb << 20) // num_fronts,
            board=board,
        )
        self.router = Router()
        self.heads: dict[bytes, Head] = {}
        self.http_limits = options.limits
        self._first_id = f"{secrets.token_hex(6)}-"
        self._numbers = itertools.count(1)
        self.is_draining = False
        self.is_ready = False
        self.too_many_connections = _closing_answer(
            Problem(
                "overloaded",
                f"at most {options.max_connections} connections may be open",
                "they are",
                "close some, or try again later",
                retry_after_s=1,
            )
        )
        self._connections: set[HttpConnection] = set()
        self.pending_bytes = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self.regions = SharedMemory()
        self.fleet = Fleet(self)
        self.fronts = Fronts(self, board if board is not None else Board(1))
        self.control = Control(self)
        self.pictures = Pictures(self)
        self.rest = Rest(self)
        self.grpc = Grpc(self)
        self.rest.register(self.router)
        self.pictures.register(self.router)
        self.site = Site(self)
        self.site.register(self.router)
        self._shared = {**self.control.shared(), **self.site.shared()}
        self.ask: Callable[..., Awaitable[Any]] = self._ask_here

    async def _ask_here(self, what: str, *arguments: Any) -> Any:
        return await self._shared[what](*arguments)

    # What connections call.

    def open_connection(self, connection: HttpConnection) -> bool:
        """Count a client; False if there are too many."""
        if len(self._connections) >= self.max_connections:
            return False
        self._connections.add(connection)
        self.stats.num_connections["http"] = len(self._connections)
        return True

    def close_connection(self, connection: HttpConnection) -> None:
        """Forget a client."""
        self._connections.discard(connection)
        self.stats.num_connections["http"] = len(self._connections)
        self.count_closed()

    def count_closed(self) -> None:
        """A client has gone; another may be given to this front in its place."""
        if self._board is not None:
            self._board.count_closed()

    def route(self, head: Head) -> None:
        """Find who answers a request, and whether the client may ask.

        Raises:
            Problem: Nobody, or it may not.
        """
        endpoint, head.args = self.router.find(head)
        if "origin" in head.headers and head.method not in ("GET", "HEAD"):
            check_origin(head.headers)
        if self.options.token is not None and not endpoint.is_open:
            check_token(head.headers.get("authorization", ""), self.options.token)
        head.endpoint = endpoint

    def may_receive(self, num_bytes: int) -> bool:
        """Whether there is room for a body that is on its way."""
        return self.pending_bytes + max(num_bytes, 0) <= self._max_pending_bytes

    def count_pending(self, num_bytes: int) -> None:
        """Count bytes of bodies that are not complete."""
        self.pending_bytes += num_bytes

    def take_block(self, num_bytes: int) -> int:
        """An arena block for a body that is on its way, or -1: half of the arena is left for what
        is complete, so that clients who announce much and send little do not stop the others."""
        arena = self.arena
        if 2 * (arena.used_bytes + num_bytes) > arena.num_bytes:
            return -1
        block = arena.take(num_bytes)
        return -1 if block is None else block

    def overloaded(self, what: str) -> Problem:
        """The answer where something is full."""
        return Problem(
            "overloaded",
            f"{what} must fit in the server's memory",
            "they do not now",
            "try again later",
            retry_after_s=1,
        )

    def take(self, request: HttpRequest) -> None:
        """Answer a request, now or later."""
        head = request.head
        endpoint: Any = head.endpoint
        self.stats.bytes_in += request.num_bytes
        if self.log.with_requests and not request.id:
            request.id = self.new_id()
        try:
            if type(endpoint) is Problem:
                # Not raised: it is kept with the head, and each raise would make it longer.
                request.fail(endpoint)
                return
            answer = endpoint.answer(request, *head.args)
        except Exception as exc:
            self.fail(request, exc)
            return
        if answer is None:
            return
        if type(answer) is Response:
            request.send(answer)
        else:
            self.spawn(self._finish(request, answer))

    def new_id(self) -> str:
        """A name for a request, as good as unique."""
        return f"{self._first_id}{next(self._numbers):x}"

    async def _finish(self, request: HttpRequest, answer: Any) -> None:
        try:
            response = await answer
            if response is not None:
                request.send(response)
        except Exception as exc:
            self.fail(request, exc)

    def fail(self, request: HttpRequest, exc: Exception) -> None:
        """Answer with an error; one that is our fault goes to the log with its trace."""
        problem = problem_of(exc)
        if problem.kind == "internal":
            request.id = request.id or self.new_id()
            self.log.fault(request.id, exc)
        request.fail(problem)

    def count_answer(self, request: HttpRequest, status: int, num_bytes: int) -> None:
        """Count an answer, and log it if wanted."""
        stats = self.stats
        stats.bytes_out += num_bytes
        key = ("http", status)
        stats.responses[key] = stats.responses.get(key, 0) + 1
        if self.log.with_requests:
            self.log.request(request, status, num_bytes)
        if self.tracer is not None:
            self.tracer.http(request, status)

    # Life.

    def spawn(self, work: Any) -> None:
        """Run a coroutine that this server owns."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def begin(self) -> None:
        """Look after connections from now on."""
        self.spawn(self._sweep())

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            now_s = time.monotonic()
            for connection in list(self._connections):
                connection.sweep(now_s)
            limits = self.http_limits
            for caller in self.grpc.connections:
                caller.sweep(now_s, limits.body_s, limits.write_s)

    async def drain(self) -> None:
        """Finish what was taken and take no more."""
        self.is_draining = True
        self.is_ready = False
        end_s = time.monotonic() + self.options.drain_s
        # What clients have sent already is still read and answered; then the idle ones are closed.
        await asyncio.sleep(min(_GRACE_S, self.options.drain_s))
        while time.monotonic() < end_s:
            for connection in list(self._connections):
                connection.close_when_idle()
            for caller in self.grpc.connections:
                caller.close_when_idle()
            if not (self.dispatcher.num_open or self._connections or self.grpc.connections):
                break
            await asyncio.sleep(0.02)

    async def end(self) -> None:
        """Let go of everything; nothing is under way any more."""
        for task in list(self._tasks):
            task.cancel()
        if self.tracer is not None:
            await self.loop.run_in_executor(None, self.tracer.close)


def _closing_answer(problem: Problem) -> bytes:
    body = problem.as_json()
    head = (
        f"HTTP/1.1 {problem.status} Service Unavailable\r\n"
        "content-type: application/problem+json\r\n"
        f"content-length: {len(body)}\r\nretry-after: 1\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
