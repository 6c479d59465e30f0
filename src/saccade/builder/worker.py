"""A candidate's own process: loads it, answers for it, and may die without harm to the build.

Requests and replies are one JSON object per line, on standard input and on what standard output
was at the start. Anything that a runtime prints goes to standard error.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from saccade.builder.answers import WatchedDetector, observe, open_detector, write
from saccade.builder.measure import measure_latency, measure_rate
from saccade.builder.records import Candidate
from saccade.errors import EngineError, SaccadeError
from saccade.pipeline.sources import SourceItem
from saccade.types import Contract

__all__ = ["Request", "items_of", "main"]

_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


class Request(msgspec.Struct, omit_defaults=True):
    """What the build asks of a worker.

    Attributes:
        do: "load", "observe", "rate", "latency" or "quit".
        path: The network, or where answers go.
        contract: How it is fed and read.
        candidate: How it runs.
        pictures: File that lists the pictures, one path per line, as JSON.
        batches: To observe at.
        seconds: How long to measure.
    """

    do: str
    path: str = ""
    contract: Contract | None = None
    candidate: Candidate | None = None
    pictures: str = ""
    batches: tuple[int, ...] = ()
    seconds: float = 0.0


def items_of(paths: Sequence[str | Path]) -> list[SourceItem]:
    """Pictures by path."""
    return [SourceItem(i, str(path), "path", Path(path)) for i, path in enumerate(paths)]


class _Served:
    """The candidate of this process."""

    def __init__(self) -> None:
        self._detector: WatchedDetector | None = None
        self._candidate: Candidate | None = None
        self._items: list[SourceItem] = []

    def load(self, request: Request) -> dict[str, Any]:
        assert request.contract is not None
        assert request.candidate is not None
        paths = msgspec.json.decode(Path(request.pictures).read_bytes(), type=list[str])
        self._items = items_of(paths)
        self._candidate = request.candidate
        began_s = time.perf_counter()
        self._detector = open_detector(Path(request.path), request.contract, request.candidate)
        plan = request.candidate.plan
        self._detector.engine(
            self._detector.plan(batch=plan.batch, streams=plan.streams, threads=plan.threads)
        )
        return {
            "load_s": time.perf_counter() - began_s,
            "fallbacks": self._detector.fallbacks,
        }

    def _loaded(self) -> tuple[WatchedDetector, Candidate]:
        if self._detector is None or self._candidate is None:
            raise EngineError("a worker must load a candidate first; send 'load'")
        return self._detector, self._candidate

    def observe(self, request: Request) -> dict[str, Any]:
        detector, candidate = self._loaded()
        write(observe(detector, candidate, self._items, request.batches), Path(request.path))
        return {}

    def rate(self, request: Request) -> dict[str, Any]:
        detector, candidate = self._loaded()
        rate = measure_rate(detector, candidate, self._items, request.seconds)
        return dataclasses.asdict(rate)

    def latency(self, request: Request) -> dict[str, Any]:
        detector, candidate = self._loaded()
        taken = measure_latency(detector, candidate, self._items, request.seconds)
        return dataclasses.asdict(taken)


def main() -> None:
    """Serve requests until "quit" or the end of input."""
    _die_with_parent()
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    served = _Served()
    known: dict[str, Callable[[Request], dict[str, Any]]] = {
        "load": served.load,
        "observe": served.observe,
        "rate": served.rate,
        "latency": served.latency,
    }
    for line in sys.stdin.buffer:
        request = msgspec.json.decode(line, type=Request)
        if request.do == "quit":
            break
        replies.write(msgspec.json.encode(_answer(known[request.do], request)) + b"\n")
    # Runtimes with threads of their own are not waited for.
    os._exit(0)


def _answer(function: Callable[[Request], dict[str, Any]], request: Request) -> dict[str, Any]:
    try:
        reply = function(request)
    except SaccadeError as exc:
        return {"error": str(exc), "kind": type(exc).__name__}
    except MemoryError:
        return {"error": "ran out of memory", "kind": "MemoryError"}
    except Exception as exc:  # a process boundary: told to the build as this candidate's failure
        traceback.print_exc()
        return {"error": f"{type(exc).__name__}: {exc}", "kind": type(exc).__name__}
    return {**reply, "peak_memory_bytes": _peak_memory_bytes()}


def _peak_memory_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _die_with_parent() -> None:
    """Leave nothing running when the build is killed. Linux only; elsewhere input ends."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    main()
