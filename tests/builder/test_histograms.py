"""Histograms against NumPy on all values at once."""

from __future__ import annotations

import numpy as np
import pytest

from saccade.builder.histograms import CALIBRATORS, NUM_BINS, Histogram, range_of
from saccade.errors import InputError


def filled(*parts: np.ndarray) -> Histogram:
    histogram = Histogram.empty()
    for part in parts:
        assert histogram.add(part)
    return histogram


def test_counts_are_numpys(rng: np.random.Generator) -> None:
    values = rng.normal(size=50_000).astype(np.float32)
    histogram = filled(values[:10], values[10:30_000], values[30_000:])
    expected, _ = np.histogram(np.abs(values), NUM_BINS, (0, histogram.limit))
    np.testing.assert_array_equal(histogram.counts, expected)
    assert histogram.largest == np.abs(values).max()
    assert histogram.largest <= histogram.limit < 2 * histogram.largest


def test_order_does_not_matter(rng: np.random.Generator) -> None:
    parts = [rng.normal(scale=10.0**k, size=999).astype(np.float32) for k in range(-4, 5)]
    one, two = filled(*parts), filled(*reversed(parts))
    np.testing.assert_array_equal(one.counts, two.counts)
    assert (one.limit, one.largest) == (two.limit, two.largest)


def test_zeros_and_nothing() -> None:
    histogram = filled(np.zeros(7, np.float32), np.zeros(0, np.float32))
    assert histogram.counts.sum() == 7
    assert [range_of(histogram, name) for name in CALIBRATORS] == [0, 0, 0, 0]
    assert histogram.add(np.array([3.0], np.float32))
    assert histogram.counts.sum() == 8
    assert range_of(histogram, "minmax") == 3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    histogram = filled(np.ones(3, np.float32))
    assert not histogram.add(np.array([1, bad, 2], np.float32))
    assert histogram.counts.sum() == 3


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [1e-7, 1.0, 65504.0])
def test_one_value(dtype: type, value: float) -> None:
    histogram = filled(np.full((2, 3), -value, dtype))
    assert histogram.counts.sum() == 6
    assert range_of(histogram, "percentile-100") == pytest.approx(float(dtype(value)), rel=1e-2)


@pytest.mark.parametrize("percent", [50, 90, 99.9, 99.99])
def test_percentiles_are_numpys(rng: np.random.Generator, percent: float) -> None:
    values = rng.gamma(2, size=100_000).astype(np.float32)
    histogram = filled(values)
    width = histogram.limit / NUM_BINS
    found = range_of(histogram, f"percentile-{percent}")
    assert abs(found - np.percentile(values, percent, method="inverted_cdf")) <= 2 * width


def test_least_error_is_the_least(rng: np.random.Generator) -> None:
    """Against rounding and clipping the values themselves; an outlier is cut off."""
    values = np.append(rng.normal(size=100_000), [40.0, -60.0]).astype(np.float32)
    histogram = filled(values)

    def error(top: float) -> float:
        step = top / 127
        return float(np.mean((values - np.clip(np.rint(values / step), -127, 127) * step) ** 2))

    found = range_of(histogram, "mse")
    best = min(error(top) for top in np.geomspace(0.6, 60, 100))
    assert error(found) < 1.05 * best
    assert found < 60
    calm = filled(rng.uniform(-1, 1, 10_000).astype(np.float32))
    assert range_of(calm, "mse") > 0.98


@pytest.mark.parametrize("name", ["", "max", "percentile", "percentile-0", "percentile-101"])
def test_unknown_calibrators(name: str) -> None:
    with pytest.raises(InputError, match="calibrator must be"):
        range_of(filled(np.ones(3, np.float32)), name)
