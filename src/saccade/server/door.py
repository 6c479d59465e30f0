"""Where clients come in: sockets that listen, and the sharing out of connections among fronts."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Any

from saccade.errors import InputError
from saccade.server.board import Board
from saccade.server.options import ServeOptions

__all__ = ["BACKLOG", "Door", "bind", "make_adopter", "tls_context"]

BACKLOG = 1024
_MAX_A_TURN = 64
_RETRY_S = 0.1


def bind(host: str, port: int) -> list[socket.socket]:
    """Listen on all addresses of a host; port 0 takes one that is free.

    Raises:
        InputError: It cannot be.
    """
    found: list[socket.socket] = []
    try:
        infos = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, _, _, _, address in dict.fromkeys(infos):
            at = (address[0], found[0].getsockname()[1] if found else port)
            sock = socket.create_server(at, family=family, backlog=BACKLOG)
            sock.setblocking(False)
            found.append(sock)
    except OSError as exc:
        for sock in found:
            sock.close()
        raise InputError(
            f"{host}:{port} must be free to listen on, it is not "
            f"({exc.strerror or exc}); choose another with --host and --port"
        ) from exc
    return found


def tls_context(options: ServeOptions, protocol: str) -> ssl.SSLContext | None:
    """What TLS needs, or None without it.

    Args:
        options: Of the server.
        protocol: As clients negotiate it, "h2" or "http/1.1".

    Raises:
        InputError: Certificate or key cannot be read.
    """
    if options.certificate is None or options.key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(options.certificate, options.key)
    except (OSError, ssl.SSLError) as exc:
        raise InputError(
            f"{options.certificate} and {options.key} must be a certificate and its key in PEM "
            f"form, they are not ({exc}); correct --certificate and --key"
        ) from exc
    context.set_alpn_protocols([protocol])
    return context


class Door:
    """Takes connections and gives each to the front that has the fewest.

    The first front alone accepts: connections that come together are spread evenly, which neither
    waiting on one socket nor the kernel's choice by address does.

    Args:
        loop: Of the first front.
        board: Where fronts say how many clients have left.
        adopt: Makes a connection of this front's own: (kind, socket) -> None.
        hand_over: Gives a socket to a further front: (row, kind, socket) -> whether it took it.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        board: Board,
        adopt: Callable[[str, socket.socket], None],
        hand_over: Callable[[int, str, socket.socket], bool],
    ) -> None:
        self._loop = loop
        self._board = board
        self._adopt = adopt
        self._hand_over = hand_over
        self._given = [0] * board.num_fronts
        self._listeners: list[socket.socket] = []

    def listen(self, kind: str, sockets: list[socket.socket]) -> None:
        """Accept clients."""
        for sock in sockets:
            self._listeners.append(sock)
            self._watch(sock, kind)

    def _watch(self, sock: socket.socket, kind: str) -> None:
        if sock.fileno() >= 0:
            self._loop.add_reader(sock.fileno(), self._accept, sock, kind)

    def _accept(self, listener: socket.socket, kind: str) -> None:
        for _ in range(_MAX_A_TURN):
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:
                # Out of files, most likely: what waits is taken when some are closed.
                self._loop.remove_reader(listener.fileno())
                self._loop.call_later(_RETRY_S, self._watch, listener, kind)
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._place(sock, kind)

    def _place(self, sock: socket.socket, kind: str) -> None:
        closed, given = self._board.num_closed, self._given
        for row in sorted(range(len(given)), key=lambda row: given[row] - closed(row)):
            if row == 0:
                self._given[0] += 1
                self._adopt(kind, sock)
                return
            if self._hand_over(row, kind, sock):
                self._given[row] += 1
                sock.close()
                return

    def forget(self, row: int) -> None:
        """A front has ended, and its clients with it."""
        self._given[row] = 0

    def close(self) -> None:
        """Take no more."""
        for sock in self._listeners:
            with contextlib.suppress(ValueError):
                self._loop.remove_reader(sock.fileno())
            sock.close()


def make_adopter(
    loop: asyncio.AbstractEventLoop,
    board: Board,
    spawn: Callable[[Any], None],
    makers: dict[str, tuple[Callable[[], Any], ssl.SSLContext | None]],
) -> Callable[[str, socket.socket], None]:
    """What makes accepted sockets connections of this front.

    Args:
        loop: Of this front.
        board: Where it counts those that never became one.
        spawn: Runs a coroutine.
        makers: By kind, what makes a protocol, and TLS.
    """

    async def adopt(kind: str, sock: socket.socket) -> None:
        make, context = makers[kind]
        try:
            await loop.connect_accepted_socket(make, sock, ssl=context)
        except (OSError, asyncio.CancelledError):
            sock.close()
            board.count_closed()

    return lambda kind, sock: spawn(adopt(kind, sock))
