"""A server from start to end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import ssl
from collections.abc import Callable, Sequence
from typing import Any

from saccade.errors import BackendUnavailable, InputError, SaccadeError
from saccade.server.app import Front
from saccade.server.http import HttpConnection
from saccade.server.http2 import Http2Connection
from saccade.server.options import ModelSource, ServeOptions
from saccade.server.problems import Problem

__all__ = ["serve"]


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
    loop = _new_loop()
    try:
        loop.run_until_complete(_serve(sources, options, loop, on_ready))
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError as exc:
        raise BackendUnavailable(
            "package uvloop must be installed to serve, it is not; run: "
            "pip install 'saccade[serve]'"
        ) from exc
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


async def _serve(
    sources: Sequence[ModelSource],
    options: ServeOptions,
    loop: asyncio.AbstractEventLoop,
    on_ready: Callable[[Front, dict[str, str]], None] | None,
) -> None:
    front = Front(options, loop)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    servers: list[Any] = []
    try:
        front.begin()
        await front.fleet.start()
        addresses = {}
        for kind, make, port in (
            ("http", lambda: HttpConnection(front), options.http_port),
            ("grpc", lambda: Http2Connection(front.grpc), options.grpc_port),
        ):
            if port is not None:
                server = await _listen(make, options, port, kind)
                servers.append(server)
                at = "{}:{}".format(*server.sockets[0].getsockname()[:2])
                scheme = "http" if options.certificate is None else "https"
                addresses[kind] = f"{scheme}://{at}" if kind == "http" else at
        for source in sources:
            try:
                await front.fleet.load(source, options.load)
            except Problem as problem:
                raise SaccadeError(f"{source.name}: {problem}") from problem
        front.is_ready = True
        if on_ready is not None:
            on_ready(front, addresses)
        await stop.wait()
    finally:
        for server in servers:
            server.close()
        await front.drain()
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(ValueError):
                loop.remove_signal_handler(number)


def _tls(options: ServeOptions, protocol: str) -> ssl.SSLContext | None:
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


async def _listen(make: Callable[[], Any], options: ServeOptions, port: int, kind: str) -> Any:
    loop = asyncio.get_running_loop()
    context = _tls(options, "h2" if kind == "grpc" else "http/1.1")
    try:
        return await loop.create_server(make, options.host, port, backlog=1024, ssl=context)
    except OSError as exc:
        raise InputError(
            f"{options.host}:{port} must be free to listen on, it is not "
            f"({exc.strerror or exc}); choose another with --host and --port"
        ) from exc
