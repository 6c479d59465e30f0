"""A server from start to end."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import signal
import ssl
from collections.abc import Callable, Sequence
from typing import Any

from saccade.errors import BackendUnavailable, SaccadeError
from saccade.server.app import Front
from saccade.server.board import Board
from saccade.server.door import BACKLOG, Door, bind, make_adopter, tls_context
from saccade.server.http import HttpConnection
from saccade.server.http2 import Http2Connection
from saccade.server.options import ModelSource, ServeOptions
from saccade.server.problems import Problem

__all__ = ["new_loop", "protocols", "serve"]

# Of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LONG_BYTES = 256 << 10


def serve(
    sources: Sequence[ModelSource],
    options: ServeOptions,
    *,
    on_ready: Callable[[Front, dict[str, str]], None] | None = None,
) -> None:
    """Serve models until SIGTERM or SIGINT, then finish what was taken.

    Args:
        sources: The models to start with; there may be none.
        options: How.
        on_ready: Called once clients are answered, with the addresses by protocol.

    Raises:
        SaccadeError: A model cannot be loaded, or a port is taken.
    """
    loop = new_loop()
    try:
        loop.run_until_complete(_serve(sources, options, loop, on_ready))
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def new_loop() -> asyncio.AbstractEventLoop:
    """An event loop as all fronts use it.

    Raises:
        BackendUnavailable: uvloop is missing.
    """
    try:
        import uvloop
    except ImportError as exc:
        raise BackendUnavailable(
            "package uvloop must be installed to serve, it is not; run: "
            "pip install 'saccade[serve]'"
        ) from exc
    _return_memory()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def _return_memory() -> None:
    """Have long objects go back to the system when they are freed.

    By itself glibc raises its threshold to the longest that was freed; then bodies come from the
    heap, where whatever is small and lives on between them keeps the memory from going back.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _LONG_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, 8 * _LONG_BYTES)


async def _serve(
    sources: Sequence[ModelSource],
    options: ServeOptions,
    loop: asyncio.AbstractEventLoop,
    on_ready: Callable[[Front, dict[str, str]], None] | None,
) -> None:
    board = Board(options.num_fronts) if options.num_fronts > 1 else None
    front = Front(options, loop, board=board)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    listening = _Listening(front, board)
    try:
        front.begin()
        await front.fleet.start()
        await front.fronts.start()
        addresses = await listening.open()
        for source in sources:
            try:
                await front.fleet.load(source, options.load)
            except Problem as problem:
                raise SaccadeError(f"{source.name}: {problem}") from problem
        front.is_ready = True
        await front.fronts.publish()
        if on_ready is not None:
            on_ready(front, addresses)
        await stop.wait()
    finally:
        listening.close()
        await asyncio.gather(front.drain(), front.fronts.drain())
        await front.fleet.stop()
        await front.end()
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(ValueError):
                loop.remove_signal_handler(number)


class _Listening:
    """Where clients come in: the loop takes them if there is one front, else a door does."""

    def __init__(self, front: Front, board: Board | None) -> None:
        self._front = front
        self._board = board
        self._servers: list[Any] = []
        self._door: Door | None = None

    async def open(self) -> dict[str, str]:
        """Listen; the addresses by protocol.

        Raises:
            InputError: A port is taken, or the certificate is none.
        """
        front, options = self._front, self._front.options
        makers = protocols(front)
        addresses = {}
        if self._board is not None:
            adopt = make_adopter(front.loop, self._board, front.spawn, makers)
            door = self._door = Door(front.loop, self._board, adopt, front.fronts.hand_over)
            front.fronts.on_lost = door.forget
        for kind, port in (("http", options.http_port), ("grpc", options.grpc_port)):
            if port is None:
                continue
            sockets = bind(options.host, port)
            make, context = makers[kind]
            if self._door is not None:
                self._door.listen(kind, sockets)
            else:
                for sock in sockets:
                    # It listens anew: with its own backlog, a burst of clients waits for seconds.
                    server = await front.loop.create_server(
                        make, sock=sock, ssl=context, backlog=BACKLOG
                    )
                    self._servers.append(server)
            at = "{}:{}".format(*sockets[0].getsockname()[:2])
            scheme = "http" if options.certificate is None else "https"
            addresses[kind] = f"{scheme}://{at}" if kind == "http" else at
        return addresses

    def close(self) -> None:
        """Take no more."""
        for server in self._servers:
            server.close()
        if self._door is not None:
            self._door.close()


def protocols(front: Front) -> dict[str, tuple[Callable[[], Any], ssl.SSLContext | None]]:
    """By kind, what makes a connection of a front, and TLS."""
    options = front.options
    return {
        "http": (lambda: HttpConnection(front), tls_context(options, "http/1.1")),
        "grpc": (lambda: Http2Connection(front.grpc), tls_context(options, "h2")),
    }
