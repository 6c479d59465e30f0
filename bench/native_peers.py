"""What the native engine is timed beside: torch's compilers, eager in a CUDA graph, ONNX Runtime.

All compute in FP16 and take device pointers through the back ends' `load_device`. Measurements that
compilers make while they compile take the card's lock (`saccade.native.turns`), so that networks
can be compiled side by side.
"""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saccade.graph.passes.fp16 import to_fp16
from saccade.graph.passes.loading import load_tidy
from saccade.graph.reading import read_model
from saccade.types import Plan

__all__ = ["LONG", "PEERS", "TORCH", "load_peer", "share_card", "within"]

# Of the command line: back end, its options, name in tables.
PEERS: dict[str, tuple[str, tuple[tuple[str, str], ...], str]] = {
    "none": ("torch", (("compile", "none"),), "torch eager graph"),
    "inductor": ("torch", (("compile", "inductor"),), "torch.compile"),
    "max-autotune": ("torch", (("compile", "max-autotune"),), "torch.compile max-autotune"),
    "ort": ("onnxruntime", (("layout", "nchw"),), "ONNX Runtime CUDA"),
    "ort-nhwc": ("onnxruntime", (("layout", "nhwc"),), "ONNX Runtime CUDA, NHWC"),
}
TORCH = ("none", "inductor", "max-autotune")
# Takes minutes: few networks at a time.
LONG = ("max-autotune",)


def load_peer(kind: str, path: Path, batch: int, size_hw: tuple[int, int]) -> Any:
    """An engine that computes in FP16.

    Args:
        kind: Of `PEERS`.
        path: A graph with its batch free, or fixed at this one.
        batch: Pictures at a time.
        size_hw: Height and width of the pictures.
    """
    from saccade import backends

    name, options, _ = PEERS[kind]
    precision = "fp16"
    if name == "onnxruntime":
        # Its arithmetic is what the graph says.
        import onnx

        half = Path(tempfile.mkdtemp(prefix="saccade-")) / path.name
        onnx.save(to_fp16(load_tidy(read_model(path))), half)
        path, precision = half, "fp32"
    plan = Plan(name, precision, batch, device="cuda:0", options=options)
    return backends.get(name).load_device(read_model(path), plan, size_hw)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the main thread after so many seconds, again and again.

    Compilers catch what interrupts them and go on with the next candidate, hence again.
    """

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1), 3.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def share_card(lock: Callable[[], Any], most_ms: float = 5.0) -> None:
    """Let torch's compilers measure only while they hold the card's lock, and not for long.

    Args:
        lock: Gives a context manager.
        most_ms: Of one candidate, where torch would take 25 or more: many networks share the card.
    """
    from torch._inductor.runtime import benchmarking

    limits: dict[str, dict[str, Any]] = {
        "TritonBenchmarker": {"warmup": 1, "rep": most_ms},
        "InductorBenchmarker": {
            "memory_warmup_iters": 10, "max_benchmark_duration": int(most_ms),
        },
    }  # fmt: skip
    for name, less in limits.items():
        kind = getattr(benchmarking, name, None)
        if kind is None or "benchmark_gpu" not in vars(kind):
            continue

        def measured(
            self: Any,
            *args: Any,
            _own: Any = kind.benchmark_gpu,
            _less: Any = less,
            **options: Any,
        ) -> Any:
            with lock():
                return _own(self, *args, **{**options, **_less})

        kind.benchmark_gpu = measured
