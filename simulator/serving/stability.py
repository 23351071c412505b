"""Does the queue only grow? Then latencies tell how long the run was, and nothing about a steady state."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator import units

FloatArray = NDArray[np.float64]

STRETCHES = 16
"""Into as many equal parts the window of arrivals is cut."""
LEVEL = 0.01
"""How often a queue that has no drift may be said to grow."""
LEAST_GROWTH = 0.02
"""Share of the arrivals that must be left unserved: less than that is noise or not worth a warning."""

TOO_SHORT = "The run is too short to tell whether the queue grows."
BURST = "All requests arrive within less than one's time in the batch: rates are over the whole run, ramp-up and drain included."


@dataclass(frozen=True)
class Stability:
    """Whether a run has a steady state to speak of."""

    stable: bool | None
    """False where the queue only grows, None where the run cannot tell."""
    offered_per_s: float
    """Requests that arrive, per second of the window."""
    served_per_s: float
    """Requests that end (finished, refused, timed out or cancelled), per second of the window."""
    growth_per_s: float
    """By how many requests the queue grows per second, from the window's first stretch to its last."""
    waiting: float
    """Requests in the queue, mean over the last stretch of the window."""
    sentence: str


def assess(
    waiting: FloatArray, *, offered: int, served: int, window_s: float, end_s: float, steady: bool = True
) -> Stability:
    """Tests for a drift of the queue.

    `waiting` is the mean queue in equal consecutive parts of the window, whose length is `window_s` and end `end_s`;
    `offered` requests arrive in it, `served` end in it. The means over 16 stretches have 15 increments. Of a
    stationary queue these cancel (their sum is last minus first), at the edge of saturation they are as good as independent with mean 0,
    and beyond it their mean is the drift; so Student's t of the increments errs on the quiet side. The queue is
    said to grow when t is beyond its 99 % point, more than 2 % of the arrivals are left over, and somebody waits at the end.
    A window that is not `steady` (a burst) has no drift to speak of.
    """
    from scipy.special import stdtr

    offered_per_s, served_per_s = (n / window_s if window_s > 0 else 0.0 for n in (offered, served))
    if len(waiting) < STRETCHES or window_s <= 0 or not steady:
        left = float(waiting[-1]) if len(waiting) else 0.0
        return Stability(None, offered_per_s, served_per_s, 0.0, left, TOO_SHORT if steady else BURST)
    means = np.array([part.mean() for part in np.array_split(waiting, STRETCHES)])
    steps = np.diff(means)
    drift, noise = float(steps.mean()), float(steps.std(ddof=1)) / math.sqrt(len(steps))
    chance = float(stdtr(len(steps) - 1, -drift / noise)) if noise > 0 else 0.0 if drift > 0 else 1.0
    growth_per_s = drift / (window_s / STRETCHES)
    left = float(means[-1])
    growing = chance < LEVEL and offered_per_s - served_per_s > LEAST_GROWTH * offered_per_s and left >= 1.0
    decimals = 1 if offered_per_s >= 1.0 else 2 - math.floor(math.log10(max(offered_per_s, 1e-9)))
    flow = f"{offered_per_s:,.{decimals}f} requests/s arrive, {served_per_s:,.{decimals}f}/s are served"
    if not growing:
        return Stability(True, offered_per_s, served_per_s, growth_per_s, left, f"The queue does not grow: {flow}.")
    sentence = (
        f"The queue only grows: {flow}; after {units.show(end_s, 's')} {left:,.0f} wait. "
        "Latencies describe this run's length, not a steady state."
    )
    return Stability(False, offered_per_s, served_per_s, growth_per_s, left, sentence)
