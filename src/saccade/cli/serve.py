"""saccade serve"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from saccade.cli._options import ModelOptions, read_pairs
from saccade.errors import InputError

__all__ = ["serve"]


@Parameter(name="*", group="Network")
@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkOptions:
    """Where clients find the server, and who may be one.

    Attributes:
        host: Address to listen on. Others than this machine reach it with 0.0.0.0 only.
        port: For HTTP, pictures and the page; 0 takes a free one.
        grpc_port: For gRPC; 0 takes a free one.
        grpc: Whether gRPC is offered.
        token_file: File with a token that clients must send as a bearer token.
        certificate: PEM file with the certificate chain; with --key it turns TLS on.
        key: PEM file with the certificate's private key.
        load: Whether clients may load and unload models.
        model_root: Folder that models loaded by clients may lie in; default only those that were
            there at the start.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int = 8001
    grpc: bool = True
    token_file: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    load: bool = True
    model_root: Path | None = None

    def token(self) -> str | None:
        """The token, from its file."""
        if self.token_file is None:
            return None
        try:
            token = self.token_file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise InputError(
                f"--token-file must be a readable text file, {self.token_file} is not ({exc}); "
                "write a token into it"
            ) from exc
        if len(token) < 8 or any(c.isspace() for c in token):
            raise InputError(
                f"--token-file must hold one word of at least 8 characters, {self.token_file} "
                "does not; write for example the output of 'openssl rand -hex 32' into it"
            )
        return token


@Parameter(name="*", group="Limits")
@dataclass(frozen=True, slots=True, kw_only=True)
class LimitOptions:
    """What is taken on.

    Attributes:
        max_queue: Requests that may wait per model; more are refused at once.
        max_queue_mb: Megabytes of bodies that may wait or be arriving.
        max_body_mb: Megabytes of one request.
        max_pixels: Refuse larger pictures before they are decoded.
        max_connections: Clients at the same time, per protocol.
        drain_s: Seconds that requests under way have after SIGTERM.
    """

    max_queue: int = 256
    max_queue_mb: int = 512
    max_body_mb: int = 64
    max_pixels: int = 50_000_000
    max_connections: int = 4096
    drain_s: float = 30.0


@Parameter(name="*", group="Running")
@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How requests are run.

    Attributes:
        fronts: Processes that speak to clients; default one, and more where there are many cores.
        engines: Engine processes; each loads all models. With --devices each has one.
        threads: Threads of each engine process; default the cores shared out. On a GPU the batches
            in flight, default 4.
        batch: Items per inference at most; default 1, on a GPU 32, or as the bundle was built.
        latency_ms: What batching is tuned to: no request is made to wait beyond it.
        force: Serve bundles that did not pass their gate.
    """

    fronts: int | None = None
    engines: int = 1
    threads: int | None = None
    batch: int | None = None
    latency_ms: float = 50.0
    force: Annotated[bool, Parameter(negative="")] = False


def serve(
    *models: str,
    given: ModelOptions | None = None,
    network: NetworkOptions | None = None,
    limits: LimitOptions | None = None,
    engine: EngineOptions | None = None,
    log: Literal["text", "json", "off"] = "text",
    log_requests: Annotated[bool, Parameter(negative="")] = False,
    spans: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Answer clients over HTTP and gRPC until SIGTERM.

    Parameters
    ----------
    models
        Bundles or ONNX files; NAME=PATH or NAME:VERSION=PATH gives a name. Without any it starts
        empty and needs --model-root: clients then say what to load.
    given
        How models are read and run; bundles have their own.
    network
        Where clients find the server, and who may be one.
    limits
        What is taken on.
    engine
        How requests are run.
    log
        Form of the log on standard error.
    log_requests
        Log every request.
    spans
        Send spans of OpenTelemetry, as its environment variables say; needs saccade[otel].
    """
    from saccade.pipeline.devices import parse_bytes
    from saccade.server.http import HttpLimits
    from saccade.server.loading_options import LoadOptions
    from saccade.server.options import ServeOptions, read_source
    from saccade.server.run import serve as run

    given = given or ModelOptions()
    network = network or NetworkOptions()
    limits = limits or LimitOptions()
    engine = engine or EngineOptions()
    if not models:
        _check_empty(network)
    devices = _devices(given)
    keys = given.contract_keys()
    options = ServeOptions(
        host=network.host,
        http_port=network.port,
        grpc_port=network.grpc_port if network.grpc else None,
        fronts=engine.fronts,
        engines=engine.engines,
        threads=engine.threads,
        devices=devices,
        load=LoadOptions(
            preset=keys["preset"],
            contract=str(keys["contract"]) if keys["contract"] else None,
            labels=tuple(keys["labels"]),
            size_hw=keys["size_hw"],
            backend=given.backend,
            precision=given.precision,
            engine_options=read_pairs(given.engine_options) if given.engine_options else {},
            batch=engine.batch,
            max_pixels=limits.max_pixels,
            is_forced=engine.force,
            gpu_memory=parse_bytes(given.gpu_memory) if given.gpu_memory else None,
        ),
        limits=HttpLimits(max_body_bytes=limits.max_body_mb << 20),
        max_queue=limits.max_queue,
        max_queue_mb=limits.max_queue_mb,
        max_connections=limits.max_connections,
        latency_ms=engine.latency_ms,
        token=network.token(),
        certificate=network.certificate,
        key=network.key,
        can_load=network.load,
        model_root=network.model_root,
        drain_s=limits.drain_s,
        log=log,
        log_requests=log_requests,
        with_spans=spans,
    )

    def on_ready(front: Any, addresses: dict[str, str]) -> None:
        for name, address in addresses.items():
            print(f"{name} {address}", flush=True)

    run([read_source(text) for text in models], options, on_ready=on_ready)
    return 0


def _check_empty(network: NetworkOptions) -> None:
    """A server without models is of use only if clients can load some; say which it is."""
    if network.model_root is None or not network.load:
        raise InputError(
            "a server must be given models, or --model-root for clients to load some from, there "
            "is neither; run for example: saccade serve model.onnx"
        )
    print(
        f"saccade: no models are given; clients can load them from {network.model_root} with "
        "POST /v2/repository/models/NAME/load",
        file=sys.stderr,
    )


def _devices(given: ModelOptions) -> tuple[str, ...]:
    """The GPUs to serve on; none for the CPU.

    Raises:
        InputError: The options contradict each other.
        BackendUnavailable: A device is not there.
    """
    from saccade.pipeline.devices import check_device, device_name

    one = (device_name(given.device),) if given.device is not None else ()
    names = tuple(name for name in given.device_names() or one if name != "cpu")
    if not names and given.gpu_memory is not None:
        raise InputError(
            f"--gpu-memory {given.gpu_memory} must come with --device or --devices, no GPU is "
            "named; name one, or leave it out"
        )
    for name in names:
        check_device(name)
    return names
