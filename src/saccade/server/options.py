"""What a server is started with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from saccade.errors import InputError
from saccade.server.http import HttpLimits
from saccade.server.loading_options import LoadOptions

__all__ = ["ModelSource", "ServeOptions", "pack_options", "read_source", "unpack_options"]

# A front takes so many cores of requests that decode and infer on the processor; on a GPU's machine
# what is left for cores is mostly the fronts' own work.
_CORES_PER_FRONT, _CORES_PER_FRONT_WITH_GPU = 8, 4


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model to serve from the start.

    Attributes:
        name: What clients call it.
        version: A number, as text.
        path: Bundle or ONNX file.
    """

    name: str
    version: str
    path: Path


def read_source(text: str) -> ModelSource:
    """A model from "PATH", "NAME=PATH" or "NAME:VERSION=PATH".

    Without a name the model is called after its file or folder.
    """
    before, sign, path = text.partition("=")
    if not sign or Path(text).exists():
        before, path = "", text
    name, _, version = before.partition(":")
    given = Path(path)
    own = given.resolve().name if given.is_dir() else given.stem
    return ModelSource(name or own, version or "1", given)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """How a server runs.

    Attributes:
        host: Address to listen on.
        http_port: For REST, /detect and the page; 0 takes a free one.
        grpc_port: For gRPC; 0 takes a free one, None offers none.
        fronts: Processes that speak to clients; default by the cores.
        engines: Engine processes.
        threads: Threads of each that work on requests; default the cores shared out. On a GPU the
            batches in flight, default 4.
        devices: "cuda:N" for each engine process; none for the CPU.
        load: How models are loaded.
        limits: What a client may take.
        max_queue: Requests that may wait per model.
        max_queue_mb: Megabytes of bodies that may wait or be arriving.
        arena_mb: Megabytes shared with engine processes for requests under way.
        max_connections: Clients at the same time.
        latency_ms: The objective that batching is tuned to.
        token: Clients must send it as a bearer token; None asks for none.
        certificate: PEM file with the certificate chain; with `key` it turns TLS on.
        key: PEM file with its private key.
        can_load: Whether clients may load and unload models.
        model_root: Folder that models loaded by clients must lie in; None for those of the start.
        drain_s: Seconds that requests under way have after SIGTERM.
        log: "text", "json" or "off".
        log_requests: Whether each request is logged.
        with_spans: Whether requests become spans of OpenTelemetry.
    """

    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int | None = 8001
    fronts: int | None = None
    engines: int = 1
    threads: int | None = None
    devices: tuple[str, ...] = ()
    load: LoadOptions = field(default_factory=LoadOptions)
    limits: HttpLimits = field(default_factory=HttpLimits)
    max_queue: int = 256
    max_queue_mb: int = 512
    arena_mb: int = 512
    max_connections: int = 4096
    latency_ms: float = 50.0
    token: str | None = None
    certificate: Path | None = None
    key: Path | None = None
    can_load: bool = True
    model_root: Path | None = None
    drain_s: float = 30.0
    log: str = "text"
    log_requests: bool = False
    with_spans: bool = False

    def __post_init__(self) -> None:
        for name in (
            "fronts",
            "engines",
            "threads",
            "max_queue",
            "max_queue_mb",
            "arena_mb",
            "max_connections",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}; correct it")
        if self.devices and self.engines != 1:
            raise InputError(
                f"engines must be left out where devices are given, it is {self.engines}; each "
                "device has one engine process"
            )
        if (self.certificate is None) != (self.key is None):
            raise InputError(
                "certificate and key must be given together, one is missing; give both for TLS"
            )

    @property
    def num_fronts(self) -> int:
        """Processes that speak to clients."""
        from saccade.profiler.machine import num_cores

        if self.fronts is not None:
            return self.fronts
        has_gpu = any(device != "cpu" for device in self.devices)
        return max(1, num_cores() // (_CORES_PER_FRONT_WITH_GPU if has_gpu else _CORES_PER_FRONT))


def pack_options(options: ServeOptions) -> bytes:
    """Options as a further front is told them."""
    packed: bytes = msgspec.msgpack.encode(options, enc_hook=str)
    return packed


def unpack_options(packed: bytes) -> ServeOptions:
    """The options that `pack_options` packed."""
    return msgspec.msgpack.decode(packed, type=ServeOptions, dec_hook=_from_text)


def _from_text(kind: type, text: Any) -> Any:
    if kind is not Path:
        raise NotImplementedError(kind)
    return Path(text)
