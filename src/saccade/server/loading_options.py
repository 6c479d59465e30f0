"""How a model is loaded, as the front says it to engine processes."""

from __future__ import annotations

import msgspec

__all__ = ["LoadOptions"]


class LoadOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a model is loaded.

    Attributes:
        preset: As for `saccade.load`.
        contract: As for `saccade.load`.
        labels: As for `saccade.load`.
        size_hw: As for `saccade.load`.
        backend: As for `saccade.load`.
        precision: As for `saccade.load`.
        engine_options: As for `saccade.load`.
        batch: Items per inference, at most; default as the bundle was built, else 1.
        threads: Threads inside one inference; default as the bundle was built, else 1.
        workers: Threads of the engine process.
        latency_ms: The objective that batching is tuned to.
        max_pixels: Larger pictures are refused before they are decoded.
        is_forced: Serve a bundle that did not pass its gate.
        tensors_only: Do not look for a detection head.
        device: "cpu" or "cuda:N"; None leaves it to the engine process, or to a bundle.
        gpu_memory: Device memory that the model may take in bytes, or None.
    """

    preset: str | None = None
    contract: str | None = None
    labels: tuple[str, ...] = ()
    size_hw: tuple[int, int] | None = None
    backend: str | None = None
    precision: str | None = None
    engine_options: dict[str, str] = {}
    batch: int | None = None
    threads: int | None = None
    workers: int | None = None
    latency_ms: float = 50.0
    max_pixels: int = 50_000_000
    is_forced: bool = False
    tensors_only: bool = False
    device: str | None = None
    gpu_memory: int | None = None
