"""saccade serve"""

from __future__ import annotations

from typing import Any

from saccade.cli._options import ModelOptions

__all__ = ["serve"]


def serve(
    *models: str,
    given: ModelOptions | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    grpc_port: int = 8001,
    engines: int = 1,
    threads: int | None = None,
    batch: int | None = None,
) -> int:
    """Serve models over HTTP and gRPC until SIGTERM.

    Parameters
    ----------
    models
        Bundles or ONNX files; NAME=PATH or NAME:VERSION=PATH gives a name.
    host
        Address to listen on; others than this machine need 0.0.0.0 or the address they use.
    port
        For HTTP; 0 takes a free one.
    grpc_port
        For gRPC; 0 takes a free one.
    engines
        Engine processes.
    threads
        Threads of each engine process; default the cores shared out.
    batch
        Items per inference at most; default as the bundle was built, else 1.
    """
    from saccade.server.loading_options import LoadOptions
    from saccade.server.options import ServeOptions, read_source
    from saccade.server.run import serve as run

    given = given or ModelOptions()
    keys = given.contract_keys()
    load = LoadOptions(
        preset=keys["preset"],
        contract=str(keys["contract"]) if keys["contract"] else None,
        labels=tuple(keys["labels"]),
        size_hw=keys["size_hw"],
        backend=given.backend,
        precision=given.precision,
        batch=batch,
    )
    options = ServeOptions(
        host=host, http_port=port, grpc_port=grpc_port, engines=engines, threads=threads, load=load
    )

    def on_ready(front: Any, addresses: dict[str, str]) -> None:
        for name, address in addresses.items():
            print(f"{name} {address}", flush=True)

    run([read_source(text) for text in models], options, on_ready=on_ready)
    return 0
