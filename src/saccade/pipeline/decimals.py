"""Float32 as decimal text, short and without loss."""

from __future__ import annotations

import numpy as np

__all__ = ["shortest_decimals"]


def shortest_decimals(values: np.ndarray) -> np.ndarray:
    """Doubles that print as the shortest decimals from which the float32 values come back.

    Six to nine significant digits tell every float32 apart; the fewest that do are taken, in one
    go for all values. Whatever they are, float32 of the result equals the value.

    Args:
        values: (n,) float32, finite.

    Returns:
        (n,) float64.

    Source: D. Matula, "In-and-out conversions", 1968, for the nine digits.
    """
    exact = values.astype(np.float64)
    result = exact.copy()
    with np.errstate(divide="ignore"):
        exponent = np.floor(np.log10(np.abs(exact)))
    exponent[np.isinf(exponent)] = 0
    for digits in (9, 8, 7, 6):
        scale = 10.0 ** (digits - 1 - exponent)
        rounded = np.rint(exact * scale) / scale
        with np.errstate(over="ignore"):
            is_same = rounded.astype(np.float32) == values
        result = np.where(is_same, rounded, result)
    return result
