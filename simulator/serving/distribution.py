"""How a quantity is spread over requests: moments and percentiles, from values or from a histogram."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
PERCENTILES = (50, 90, 95, 99)

_BLOCK = 1 << 16
"""Values whose squares are summed at once: they stay in the cache, and no copy of all of them is made."""


@dataclass(frozen=True)
class Distribution:
    """How a quantity is spread over requests (or gaps); all but `n` in the quantity's unit, NaN when n is 0.

    The p-th percentile lies at place (n − 1)·p/100 of the ascending values, between two of them on the line through both
    (numpy's default). The standard deviation is that of these values: √(Σ(x − mean)²/n).
    """

    n: int
    mean: float
    standard_deviation: float
    p50: float
    p90: float
    p95: float
    p99: float
    largest: float

    @classmethod
    def of(cls, values: FloatArray) -> Distribution:
        """Of one value per request, none of them NaN."""
        return cls.of_own(np.array(values, dtype=np.float64))

    @classmethod
    def of_own(cls, values: FloatArray) -> Distribution:
        """`of` values that nobody needs in their order any more: without a copy."""
        if len(values) == 0:
            return EMPTY
        mean = float(values.mean())
        deviation = math.sqrt(_squares(values, mean) / len(values))
        largest = float(values.max())
        p50, p90, p95, p99 = percentiles(values)
        return cls(len(values), mean, deviation, p50, p90, p95, p99, largest)

    @classmethod
    def of_counts(cls, values: FloatArray, counts: NDArray[np.int64]) -> Distribution:
        """Of a histogram: `counts` gaps near each of the ascending `values`."""
        n = int(counts.sum())
        if n == 0:
            return EMPTY
        mean = float((values * counts).sum() / n)
        variance = float((values**2 * counts).sum() / n) - mean**2
        cumulative = np.cumsum(counts)
        p50, p90, p95, p99 = (float(values[np.searchsorted(cumulative, np.ceil(p / 100 * n))]) for p in PERCENTILES)
        return cls(n, mean, max(variance, 0.0) ** 0.5, p50, p90, p95, p99, float(values[np.nonzero(counts)[0][-1]]))


_NAN = math.nan
EMPTY = Distribution(0, _NAN, _NAN, _NAN, _NAN, _NAN, _NAN, _NAN)
"""Of nothing. It holds one and the same NaN throughout, so that it equals itself."""


def percentiles(values: FloatArray, wanted: tuple[int, ...] = PERCENTILES) -> tuple[float, ...]:
    """Percentiles of `values`, which are reordered: one pass of selection for all of them."""
    places = [(len(values) - 1) * p / 100.0 for p in wanted]
    below = [int(place) for place in places]
    above = [min(b + 1, len(values) - 1) for b in below]
    values.partition(sorted({*below, *above}))
    return tuple(
        _between(float(values[b]), float(values[a]), place - b)
        for b, a, place in zip(below, above, places, strict=True)
    )


def _between(low: float, high: float, share: float) -> float:
    # From the nearer end, as numpy does, so that the result never leaves [low, high].
    return low + (high - low) * share if share < 0.5 else high - (high - low) * (1.0 - share)


def _squares(values: FloatArray, mean: float) -> float:
    """Σ(x − mean)²; about the mean, as Σx² − n·mean² would lose all digits where values hardly differ."""
    total = 0.0
    for start in range(0, len(values), _BLOCK):
        centred = values[start : start + _BLOCK] - mean
        total += float(np.square(centred, out=centred).sum())  # not dot: its threads would wait for busy cores
    return total
