"""Candidates for one job: each checked against the plain reference, then timed in turns.

A sample is the mean of enough calls to last SAMPLE_S, after one untimed call.
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
    repeats = {name: max(1, math.ceil(SAMPLE_S / sample_s(run, 1))) for name, run in runs.items()}
    samples_s: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            samples_s[name].append(sample_s(run, repeats[name]))
    for name, samples in samples_s.items():
        entries[name] |= {
            "median_us": 1e6 * statistics.median(samples),
            "min_us": 1e6 * min(samples),
            "rounds": len(samples),
            "calls_per_round": repeats[name],
        }
    return entries


def sample_s(run: Callable[[], Any], num_calls: int) -> float:
    """Seconds per call."""
    run()
    began_s = time.perf_counter()
    for _ in range(num_calls):
        run()
    return (time.perf_counter() - began_s) / num_calls


def largest(got: Any, want: Any) -> float:
    """Largest absolute difference; NaN or infinite if shapes differ or values are missing."""
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape:
        return math.inf
    return float(np.abs(got.astype(np.float64) - want.astype(np.float64)).max(initial=0.0))
