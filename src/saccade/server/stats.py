"""What the server has done so far: counters and histograms, per model and stage.

Each front has its own, and only its event loop writes there, so nothing locks. Who reads (metrics,
statistics, the page) is told the sum of all fronts: `as_dict` gives plain values, `add` takes them.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["BATCH_BOUNDS", "STAGES", "Histogram", "ModelStats", "Stats"]

# Stages of one request, in order. Requests with tensors have no decode and no suppress.
STAGES = ("queue", "decode", "prepare", "infer", "suppress", "total")
# Upper bounds in seconds: 1, 2.5, 5 per decade from 50 us to 10 s.
SECONDS_BOUNDS = (
    *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Histogram:
    """Counts by upper bound, as Prometheus defines them.

    Attributes:
        bounds: Upper bounds, ascending; one more count holds what lies above the last.
        counts: Observations per bucket, not cumulated.
        total: Sum of the observed values.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Iterable[float] = SECONDS_BOUNDS) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    @property
    def count(self) -> int:
        """Number of observations."""
        return sum(self.counts)

    def observe(self, value: float) -> None:
        """Add one observation."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def quantile(self, q: float) -> float:
        """An estimate of a quantile: linear inside the bucket that it falls into; 0 if empty.

        Above the last bound the estimate is that bound.
        """
        wanted = q * self.count
        seen = 0
        lower = 0.0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            if count and seen + count >= wanted:
                return lower + (bound - lower) * max(0.0, wanted - seen) / count
            seen += count
            lower = bound
        return lower if self.count else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "bounds": list(self.bounds),
            "counts": list(self.counts),
            "total": self.total,
            "count": self.count,
        }

    def add(self, told: dict[str, Any]) -> None:
        """Add what another front observed, as its `as_dict`."""
        self.counts = [a + b for a, b in zip(self.counts, told["counts"], strict=True)]
        self.total += told["total"]


# What fronts add up: sums, and what is true of a front while it lives.
_SUMS = ("num_ok", "num_items", "num_executions", "ok_ns", "failed_ns")
_GAUGES = ("num_queued", "num_running")


@dataclass(slots=True)
class ModelStats:
    """One version of one model.

    Attributes:
        name: The model.
        version: Its version.
        num_ok: Requests answered with a result.
        num_items: Pictures or batch items inferred for these.
        num_executions: Runs of the engine; fewer than items if batches formed.
        errors: Requests that were not, by reason: "picture", "input", "engine", "overloaded",
            "timeout", "cancelled", "unavailable".
        num_queued: Requests that wait in the front now.
        num_running: Requests that an engine process holds now.
        ok_ns: Wall time of requests that succeeded, summed.
        failed_ns: Likewise of those that failed.
        stages: Seconds per request and stage.
        batches: Per batch size, how many runs of the engine and their nanoseconds.
        last_ms: Unix time of the last request in milliseconds, 0 before the first.
    """

    name: str
    version: str
    num_ok: int = 0
    num_items: int = 0
    num_executions: float = 0
    errors: dict[str, int] = field(default_factory=dict)
    num_queued: int = 0
    num_running: int = 0
    ok_ns: int = 0
    failed_ns: int = 0
    stages: dict[str, Histogram] = field(
        default_factory=lambda: {stage: Histogram() for stage in STAGES}
    )
    batches: dict[int, list[float]] = field(default_factory=dict)
    last_ms: int = 0

    @property
    def num_failed(self) -> int:
        """Requests that were not answered with a result."""
        return sum(self.errors.values())

    def fail(self, reason: str, seconds: float = 0.0) -> None:
        """Count one request that failed."""
        self.errors[reason] = self.errors.get(reason, 0) + 1
        self.failed_ns += int(seconds * 1e9)
        self.last_ms = int(time.time() * 1000)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        plain = {name: getattr(self, name) for name in (*_SUMS, *_GAUGES)}
        return {
            "name": self.name,
            "version": self.version,
            **plain,
            "errors": dict(self.errors),
            "stages": {name: histogram.as_dict() for name, histogram in self.stages.items()},
            "batches": [[size, *sums] for size, sums in self.batches.items()],
            "last_ms": self.last_ms,
        }

    def add(self, told: dict[str, Any], *, has_ended: bool = False) -> None:
        """Add what another front counted, as its `as_dict`.

        Args:
            told: That.
            has_ended: Nothing waits or runs there any more.
        """
        for name in _SUMS if has_ended else (*_SUMS, *_GAUGES):
            setattr(self, name, getattr(self, name) + told[name])
        for reason, num in told["errors"].items():
            self.errors[reason] = self.errors.get(reason, 0) + num
        for name, histogram in told["stages"].items():
            self.stages[name].add(histogram)
        for size, *sums in told["batches"]:
            mine = self.batches.setdefault(size, [0.0, 0, 0, 0])
            self.batches[size] = [a + b for a, b in zip(mine, sums, strict=True)]
        self.last_ms = max(self.last_ms, told["last_ms"])


class Stats:
    """The whole server.

    Attributes:
        started_s: Unix time of the start.
        models: By (name, version).
        responses: Per protocol ("http", "grpc") and status code, how many answers.
        bytes_in: Bytes of request bodies.
        bytes_out: Bytes of response bodies.
        num_connections: Connections open now, per protocol.
        num_restarts: Engine processes that were started again.
        engines: Per engine process: what it said of itself last ("pid", "device", "rss_bytes",
            "cpu_s", ...).
    """

    def __init__(self) -> None:
        self.started_s = time.time()
        self.models: dict[tuple[str, str], ModelStats] = {}
        self.responses: dict[tuple[str, int], int] = {}
        self.bytes_in = 0
        self.bytes_out = 0
        self.num_connections = {"http": 0, "grpc": 0}
        self.num_restarts = 0
        self.engines: dict[int, dict[str, Any]] = {}

    def model(self, name: str, version: str) -> ModelStats:
        """The figures of one version; they outlive its unloading."""
        key = (name, version)
        found = self.models.get(key)
        if found is None:
            found = self.models[key] = ModelStats(name, version)
        return found

    def as_dict(self) -> dict[str, Any]:
        """Plain values of what each front counts for itself."""
        return {
            "models": [model.as_dict() for model in self.models.values()],
            "responses": [[*key, count] for key, count in self.responses.items()],
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "num_connections": dict(self.num_connections),
        }

    def add(self, told: dict[str, Any], *, has_ended: bool = False) -> None:
        """Add what another front counted, as its `as_dict`; see `ModelStats.add`."""
        for model in told["models"]:
            self.model(model["name"], model["version"]).add(model, has_ended=has_ended)
        for protocol, status, count in told["responses"]:
            key = (protocol, status)
            self.responses[key] = self.responses.get(key, 0) + count
        self.bytes_in += told["bytes_in"]
        self.bytes_out += told["bytes_out"]
        if not has_ended:
            for protocol, count in told["num_connections"].items():
                self.num_connections[protocol] += count
