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
"""Share of the arrivals that must be left over: less than that is noise or not worth a warning."""
MOST_LEFT = 0.05
"""Share of the arrivals that may be left over where the queue is said not to grow."""

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
    finished_per_s: float
    """Of these, requests that finished."""
    growth_per_s: float
    """By how many requests the system fills per second, from the window's start to its end."""
    in_system: float
    """Requests that have arrived and not ended, at the end of the window."""
    sentence: str


def assess(
    in_system: FloatArray,
    *,
    offered: int,
    left: int,
    finished: int,
    window_s: float,
    end_s: float,
    service_s: float = 0.0,
    steady: bool = True,
) -> Stability:
    """Tests for a drift of the number of requests in the system, wherever in it they wait.

    `in_system` is that number at the edges of equal consecutive stretches of the window, whose length is `window_s` and
    end `end_s`; `offered` requests arrive in it, `left` end in it, `finished` of them with their whole answer; each
    spends `service_s` on average without waiting. Of a stationary number the increments cancel (their sum is last
    minus first), at the edge of saturation they are as good as independent with mean 0, and beyond it their mean is the
    drift; so Student's t of the increments errs on the quiet side. The queue is said to grow when t is beyond its
    99 % point, more than 2 % of the arrivals are left over, and at the end more are in the system than those under
    way without waiting, N = offered rate · service_s (Little) and two of its Poisson standard deviations: a batch that
    only fills is no queue. It is said not to grow only where at most 5 % of the arrivals are left over.
    A window that is not `steady` (a burst) has no drift to speak of.
    """
    from scipy.special import stdtr

    offered_per_s, left_per_s, finished_per_s = (
        n / window_s if window_s > 0 else 0.0 for n in (offered, left, finished)
    )
    last = float(in_system[-1]) if len(in_system) else 0.0

    def verdict(stable: bool | None, growth_per_s: float, sentence: str) -> Stability:
        return Stability(stable, offered_per_s, left_per_s, finished_per_s, growth_per_s, last, sentence)

    steps = np.diff(in_system)
    if len(steps) < STRETCHES or offered < STRETCHES or window_s <= 0 or not steady:
        return verdict(None, 0.0, TOO_SHORT if steady else BURST)
    drift, noise = float(steps.mean()), float(steps.std(ddof=1)) / math.sqrt(len(steps))
    chance = float(stdtr(len(steps) - 1, -drift / noise)) if noise > 0 else 0.0 if drift > 0 else 1.0
    growth_per_s = drift * len(steps) / window_s
    under_way = offered_per_s * service_s
    beyond = last - under_way - 2.0 * math.sqrt(under_way)
    growing = chance < LEVEL and offered - left > LEAST_GROWTH * offered and beyond >= 1.0
    decimals = 1 if offered_per_s >= 1.0 else 2 - math.floor(math.log10(max(offered_per_s, 1e-9)))
    arrive, leave, finish = (f"{rate:,.{decimals}f}" for rate in (offered_per_s, left_per_s, finished_per_s))
    flow = f"{arrive} requests/s arrive, {leave}/s leave"
    if finished != left:
        flow += f" (of them {finish}/s finished)"
    if growing:
        sentence = (
            f"The queue only grows: {flow}; after {units.show(end_s, 's')} {last:,.0f} are in the system. "
            "Latencies describe this run's length, not a steady state."
        )
        return verdict(False, growth_per_s, sentence)
    if offered - left > MOST_LEFT * offered:
        return verdict(None, growth_per_s, f"{TOO_SHORT[:-1]}: {flow}.")
    return verdict(True, growth_per_s, f"The queue does not grow: {flow}.")
