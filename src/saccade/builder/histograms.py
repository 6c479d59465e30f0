"""Distributions of activations in bounded memory, and the ranges that follow from them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from saccade.errors import InputError
from saccade.graph.passes.qdq_writer import LEVELS

__all__ = ["CALIBRATORS", "NUM_BINS", "Histogram", "range_of"]

NUM_BINS = 4096
# What a build tries. Percentiles of absolute values: "percentile-P" for any 0 < P <= 100.
CALIBRATORS = ("minmax", "percentile-99.99", "percentile-99.9", "mse")
_NUM_TRIALS = 200
_SMALLEST_SHARE = 0.01


@dataclass(slots=True)
class Histogram:
    """Counts of absolute values in equal bins from 0 to `limit`, a power of two.

    When a value passes the limit, bins are merged in pairs. As all limits are powers of two, the
    result does not depend on the order in which values come.

    Attributes:
        counts: (NUM_BINS,) int64.
        limit: Upper end of the last bin; 0 while all values were 0.
        largest: Largest absolute value.
    """

    counts: np.ndarray
    limit: float = 0.0
    largest: float = 0.0

    @classmethod
    def empty(cls) -> Histogram:
        """One without values."""
        return cls(np.zeros(NUM_BINS, np.int64))

    def add(self, values: np.ndarray) -> bool:
        """Count values; False, and nothing counted, if one is NaN or infinite."""
        sizes = np.abs(values, dtype=np.float32).ravel()
        top = float(sizes.max(initial=0))
        if not math.isfinite(top):
            return False
        self.largest = max(self.largest, top)
        self._widen(top)
        if self.limit == 0:
            self.counts[0] += sizes.size
            return True
        sizes *= np.float32(NUM_BINS / self.limit)
        bins = np.minimum(sizes, NUM_BINS - 1, out=sizes).astype(np.int32)
        self.counts += np.bincount(bins, minlength=NUM_BINS)
        return True

    def _widen(self, top: float) -> None:
        if top > 0 and self.limit == 0:
            # Not below the smallest scale that float32 can divide by.
            self.limit = 2.0 ** max(math.ceil(math.log2(top)), -100)
        while top > self.limit:
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([pairs, np.zeros(NUM_BINS - len(pairs), np.int64)])
            self.limit *= 2


def range_of(histogram: Histogram, calibrator: str) -> float:
    """The absolute value that the largest INT8 code shall stand for.

    Args:
        histogram: Of one tensor over all pictures.
        calibrator: "minmax", "mse", or "percentile-P".

    Raises:
        InputError: No calibrator has that name.
    """
    return min(_chooser(calibrator)(histogram), histogram.largest)


def _chooser(calibrator: str) -> Callable[[Histogram], float]:
    if calibrator == "minmax":
        return lambda histogram: histogram.largest
    if calibrator == "mse":
        return _least_error
    kind, _, number = calibrator.partition("-")
    try:
        percent = float(number)
    except ValueError:
        percent = math.nan
    if kind != "percentile" or not 0 < percent <= 100:
        raise InputError(
            f"calibrator must be minmax, mse or percentile-P with P up to 100, got {calibrator!r}; "
            f"the usual ones are {', '.join(CALIBRATORS)}"
        )
    return lambda histogram: _percentile(histogram, percent)


def _percentile(histogram: Histogram, percent: float) -> float:
    """Upper end of the bin in which the share is reached."""
    cumulated = np.cumsum(histogram.counts)
    wanted = cumulated[-1] * (percent / 100)
    index = int(np.searchsorted(cumulated, wanted))
    return (min(index, NUM_BINS - 1) + 1) * histogram.limit / NUM_BINS


def _least_error(histogram: Histogram) -> float:
    """The range with the least mean squared error of rounding and clipping."""
    width = histogram.limit / NUM_BINS
    centers = (np.arange(NUM_BINS) + 0.5) * width
    counts = histogram.counts.astype(np.float64)
    # A range far below the largest value clips what matters most in a detector: strong responses.
    trials = np.geomspace(1, _SMALLEST_SHARE, _NUM_TRIALS) * histogram.largest
    errors = [float(counts @ _squared_errors(centers, trial)) for trial in trials]
    return float(trials[int(np.argmin(errors))])


def _squared_errors(centers: np.ndarray, top: float) -> np.ndarray:
    """Expected squared error of values in bins if codes reach up to top."""
    step = top / LEVELS
    # Values that round to 0 lose all they have, others are spread evenly over a step.
    rounding = np.where(centers < step / 2, centers**2, step**2 / 12)
    clipping = np.maximum(centers - top, 0) ** 2
    return np.asarray(np.maximum(rounding, clipping))
