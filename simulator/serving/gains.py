"""What speculation does to the same requests: each with speculation against itself without, and how sure that is.

Both variants serve the same requests with the same random numbers, so their figures go up and down together, and what they
have in common cancels from the comparison. Intervals are by batch means of one run (`confidence`): they say how far the comparison
depends on the draw, not how far times are uncertain (`intervals`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.serving.confidence import HalfWidth, Ratio, batch_means, ratios
from simulator.serving.metrics import request_metrics
from simulator.serving.simulation import SimulationResult

FIELDS = ("ttft_s", "tpot_s", "e2e_s")
"""Latencies that are compared."""
POINTS = ("mean", "p50", "p95", "p99")
"""Figures of each that are shown."""


@dataclass(frozen=True)
class Gain:
    """One latency of the requests that have it both ways: measured, finished with speculation and without."""

    field: str
    """One of `FIELDS`."""
    n: int
    """Requests compared."""
    difference_s: float
    """Mean of with speculation minus without, s: below 0 speculation helps."""
    difference: HalfWidth | None
    """± of that, s; None: too few requests."""
    faster_share: float
    """Share of the requests that speculation makes faster."""
    speedup: Mapping[str, Ratio]
    """Without over with, by ``mean``, ``p50``, ``p90``, ``p95``, ``p99``: above 1 speculation helps."""


def gains(result: SimulationResult) -> tuple[Gain, ...]:
    """Of every latency that any request has both ways; empty where only one variant was simulated."""
    if len(result.runs) < 2:
        return ()
    pairs = (paired(result, field) for field in FIELDS)
    return tuple(gain(field, ours, plain) for field, (ours, plain) in zip(FIELDS, pairs, strict=True) if len(ours))


def paired(result: SimulationResult, field: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`field` with speculation and without [pairs], s, in order of arrival without speculation."""
    main, plain = result.main.requests, result.plain.requests
    ours, theirs = request_metrics(main)[field], request_metrics(plain)[field]
    both = np.flatnonzero((main["measured"] == 1) & ~np.isnan(ours) & ~np.isnan(theirs))
    both = both[np.argsort(plain["arrival_s"][both], kind="stable")]  # later turns and closed loops come when they come
    return ours[both], theirs[both]


def gain(field: str, ours: NDArray[np.float64], plain: NDArray[np.float64]) -> Gain:
    """Of two values of each request, s, in order of arrival."""
    difference_s = ours - plain
    return Gain(
        field=field,
        n=len(ours),
        difference_s=float(difference_s.mean()),
        difference=batch_means(difference_s),
        faster_share=float(np.mean(difference_s < 0.0)),
        speedup=ratios(plain, ours),
    )
