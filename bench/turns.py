"""Candidates for one job: each checked against the plain reference, then timed in turns.

A sample is the mean of enough calls to last SAMPLE_S, after one untimed call. What counts is CPU
time of the process, all threads: on a machine that others use too, a wall clock also counts how
long they ran. The wall time is kept beside it.
What sleeps or reads files must not be measured here.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Candidate", "largest", "measure"]

SAMPLE_S = 1e-3


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to do a step.

    Attributes:
        run: Does it once; timed.
        measure_error: Does it once into spoilt buffers; the largest distance from the reference.
        allowed: The largest error that is still the right answer.
    """

    run: Callable[[], Any]
    measure_error: Callable[[], float]
    allowed: float = 0.0


def measure(candidates: dict[str, Candidate], rounds: int) -> dict[str, dict[str, Any]]:
    """Check all, then time in turns those whose answer is right."""
    entries: dict[str, dict[str, Any]] = {}
    for name, candidate in candidates.items():
        error = candidate.measure_error()
        is_right = error <= candidate.allowed  # false for NaN: something was not written
        entries[name] = {"error": error if math.isfinite(error) else str(error)}
        entries[name] |= {} if is_right else {"refused": f"more than {candidate.allowed} off"}
    runs = {name: candidates[name].run for name in entries if "refused" not in entries[name]}
    repeats = {
        name: max(1, math.ceil(SAMPLE_S / sample_s(run, 1)[0])) for name, run in runs.items()
    }
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            samples[name].append(sample_s(run, repeats[name]))
    for name, pairs in samples.items():
        cpu_s, wall_s = zip(*pairs, strict=True)
        entries[name] |= {
            "median_us": 1e6 * statistics.median(cpu_s),
            "min_us": 1e6 * min(cpu_s),
            "wall_median_us": 1e6 * statistics.median(wall_s),
            "rounds": len(pairs),
            "calls_per_round": repeats[name],
        }
    return entries


def sample_s(run: Callable[[], Any], num_calls: int) -> tuple[float, float]:
    """CPU seconds and wall seconds per call."""
    run()
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    for _ in range(num_calls):
        run()
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    return cpu_s / num_calls, wall_s / num_calls


def largest(got: Any, want: Any) -> float:
    """Largest absolute difference; NaN or infinite if shapes differ or values are missing."""
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape:
        return math.inf
    return float(np.abs(got.astype(np.float64) - want.astype(np.float64)).max(initial=0.0))
