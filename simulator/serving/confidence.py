"""How well one run determines its means and percentiles: batch means.

Waiting times of neighbours are alike, so the error of a mean is not s/√n. Cut into consecutive batches in order of
arrival, the means of batches much longer than that likeness are nearly independent, and Student's t of them gives the
interval (Law, Simulation Modeling and Analysis, 5th ed., §9.5.3; 10 to 30 batches: Schmeiser, Operations Research 30, 1982).
A percentile's interval comes from the batches' own percentiles in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from simulator.serving.distribution import PERCENTILES, Distribution
from simulator.uncertainty import LEVEL

FloatArray = NDArray[np.float64]

BATCHES = (32, 16, 8)
"""Numbers of batches that are tried, in this order, until the means of neighbouring ones are no longer alike."""
MOST_CORRELATION = 0.1
"""Correlation of neighbouring batch means that counts as none."""
LEAST_BATCH = 8
"""Values that a batch must have."""
LEAST_BEYOND = 5
"""Values of a batch that must lie beyond a percentile for the batch's own to say anything."""


@dataclass(frozen=True)
class HalfWidth:
    """The figure is determined to ± `half_width` with 90 % (`uncertainty.LEVEL`), in the figure's unit."""

    half_width: float
    batches: int
    batch_size: int
    correlation: float
    """Of the means of neighbouring batches. Above `MOST_CORRELATION` the run is too short for its correlation, and the
    half-width, although widened by √((1 + r)/(1 − r)), is still likely too small."""


def describe(values: FloatArray) -> tuple[Distribution, dict[str, HalfWidth]]:
    """The distribution of `values`, which are in order of arrival and lose it, and half-widths by ``mean``, ``p50``, … where
    there are enough values."""
    found: dict[str, HalfWidth] = {}
    mean = batch_means(values)
    if mean is not None:
        found["mean"] = mean
        found |= _percentiles(values, mean)
    return Distribution.of_own(values), found


def batch_means(values: FloatArray) -> HalfWidth | None:
    """Interval of the mean of `values`, in order of arrival; None for fewer than 64. The first values are left out where
    batches do not go up evenly."""
    for batches in BATCHES:
        rows = _rows(values, batches)
        if rows.shape[1] < LEAST_BATCH:
            continue
        means = rows.mean(axis=1)
        correlation = lag_one(means)
        if correlation <= MOST_CORRELATION or batches == BATCHES[-1]:
            return _interval(means, rows.shape[1], correlation)
    return None


@dataclass(frozen=True)
class Ratio:
    """Of one figure of two quantities that the same requests have."""

    ratio: float
    width: HalfWidth | None
    """± with 90 %, a pure number as the ratio; None: too few requests."""


def ratios(x: FloatArray, y: FloatArray) -> dict[str, Ratio]:
    """Mean and percentiles of `x` over those of `y`, two values of each request, in order of arrival; by ``mean``, ``p50``, …

    Both are of the same requests, so what they have in common cancels: the half-width of R = X/Y is that of the mean of x − R·y, over Y
    (Cochran, Sampling Techniques, 3rd ed., §6.3), by batch means. For a percentile, x and y are replaced by what each value
    adds to it (`_pulls`). A figure of `y` that is 0 has no ratio and is missing.
    """
    if len(x) == 0:
        return {}
    found: dict[str, Ratio] = {}
    for point in ("mean", *(f"p{p}" for p in PERCENTILES)):
        share = None if point == "mean" else int(point[1:]) / 100.0
        top, bottom = (float(v.mean() if share is None else np.quantile(v, share)) for v in (x, y))
        if bottom == 0.0:
            continue
        width = None
        if share is None:
            width = batch_means(x - top / bottom * y)
        elif len(x) * min(share, 1.0 - share) >= BATCHES[-1] * LEAST_BEYOND:
            width = batch_means(_pulls(x, share) - top / bottom * _pulls(y, share))
        scaled = None if width is None else replace(width, half_width=width.half_width / abs(bottom))
        found[point] = Ratio(top / bottom, scaled)
    return found


def _pulls(values: FloatArray, share: float) -> FloatArray:
    """What each value adds to the quantile q, n-fold: (share − 1[value ≤ q])/f(q) (Bahadur, Annals of Mathematical Statistics
    37, 1966), with the density f from quantiles 1.5 standard errors to either side."""
    step = min(1.5 * math.sqrt(share * (1.0 - share) / len(values)), share / 2.0, (1.0 - share) / 2.0)
    low, middle, high = np.quantile(values, (share - step, share, share + step))
    return np.asarray((share - (values <= middle)) * ((high - low) / (2.0 * step)))


def lag_one(values: FloatArray) -> float:
    """Correlation of each of `values` with the next; 0 where all are equal."""
    off = values - values.mean()
    spread = float(np.dot(off, off))
    return float(np.dot(off[1:], off[:-1])) / spread if spread > 0.0 else 0.0


def student(degrees: int, level: float = LEVEL) -> float:
    """Factor t of a two-sided interval."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.5 + level / 2.0))


def _percentiles(values: FloatArray, mean: HalfWidth) -> dict[str, HalfWidth]:
    """By ``p50``, …; of no more batches than the mean has, and of fewer where a batch would hold too little of the tail."""
    found: dict[str, HalfWidth] = {}
    # Sorting within many small batches first keeps every value inside its batch of the larger ones that follow.
    for batches in (b for b in BATCHES if b <= mean.batches):
        rows = _rows(values, batches)
        size = rows.shape[1]
        new = [p for p in PERCENTILES if f"p{p}" not in found and size * (1.0 - p / 100.0) >= LEAST_BEYOND]
        if new:
            places = [round((size - 1) * p / 100.0) for p in new]
            rows.partition(places, axis=1)
            r = mean.correlation if batches == mean.batches else None
            found |= {f"p{p}": _interval(rows[:, place], size, r) for p, place in zip(new, places, strict=True)}
    return found


def _interval(batch_values: FloatArray, size: int, correlation: float | None) -> HalfWidth:
    n = len(batch_values)
    r = lag_one(batch_values) if correlation is None else correlation
    half = student(n - 1) * float(batch_values.std(ddof=1)) / math.sqrt(n)
    if r > MOST_CORRELATION:
        half *= math.sqrt((1.0 + r) / (1.0 - r))
    return HalfWidth(half, n, size, r)


def _rows(values: FloatArray, batches: int) -> FloatArray:
    """A view of `values` [batches, size], without the first few that do not go up in the most batches."""
    size = len(values) // BATCHES[0] * (BATCHES[0] // batches)
    return values[len(values) - batches * size :].reshape(batches, size)


Intervals = Mapping[str, HalfWidth]
"""By ``field.point``, e.g. ``ttft_s.p99``."""
