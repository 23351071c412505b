"""The stretch of a run that rates are taken over, and what happened to requests within it.

Throughput over a whole run counts the drain, the time after the last arrival in which the batch runs empty, as if the
system could do no better; a run of a few minutes loses a tenth that way. So rates are taken from the first measured
arrival (warm-up is over) to the last arrival. Two kinds of run have no such stretch: where everything arrives within less than
a request's time in the batch (a burst, a handful of requests) ramp-up is all there is, and rates are over the whole run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.serving import state
from simulator.serving.outcomes import HAS_ENDED, BoolArray, FloatArray, Outcomes
from simulator.slo import Slo

ARRIVALS, WHOLE_RUN = "arrivals", "whole run"
LEAST_BUCKETS = 8
"""Buckets of the time series that a window must span, so that its ends may lie inside one."""

_SLICE = 1 << 16
_KINDS = len(state.STATUS)


@dataclass(frozen=True)
class Window:
    """From when to when, in s of simulated time."""

    start_s: float
    end_s: float
    kind: str
    """``arrivals``: first measured arrival to last arrival. ``whole run``: first arrival to last end."""

    @property
    def seconds(self) -> float:
        """Its length, never 0."""
        return max(self.end_s - self.start_s, float(np.finfo(float).tiny))


def run_of(outcomes: Outcomes) -> Window:
    """First arrival to last end of whoever ended; from 0 to 0 where nobody did."""
    ended = ~np.isnan(outcomes.stay_s)
    if not ended.any():
        return Window(0.0, 0.0, WHOLE_RUN)
    last_s = max(
        float(np.max(outcomes.arrival_s[here] + outcomes.stay_s[here], where=ended[here], initial=-np.inf))
        for here in slices(len(outcomes))
    )
    return Window(float(np.min(outcomes.arrival_s, where=ended, initial=np.inf)), last_s, WHOLE_RUN)


def window_of(outcomes: Outcomes, whole: Window, *, service_s: float, bucket_s: float, until_s: float) -> Window:
    """The stretch to take rates over: `service_s` is the mean time of a request in the batch (NaN: nobody was served),
    `bucket_s` the width of the time series' buckets (0: none), `until_s` when the simulation ended, infinity for not before
    its requests did."""
    arrived = (outcomes.arrival_s <= until_s) & (outcomes.status != state.ABANDONED)
    ended = ~np.isnan(outcomes.stay_s) & outcomes.measured
    start_s = float(np.min(outcomes.arrival_s, where=ended, initial=np.inf))
    end_s = float(np.max(outcomes.arrival_s, where=arrived, initial=-np.inf))
    if end_s - start_s > max(service_s, LEAST_BUCKETS * bucket_s):
        return Window(start_s, end_s, ARRIVALS)
    return whole


@dataclass
class Tally:
    """Counts of requests by class [classes]; `ends` also by status [classes, state.STATUS]."""

    ends: NDArray[np.int64]
    measured_ended: NDArray[np.int64]
    """Outside warm-up, and ended in whatever way."""
    measured_good: NDArray[np.int64]
    served: NDArray[np.int64]
    """Finished within the window, whenever they arrived."""
    good: NDArray[np.int64]
    """Of these, those that met every objective."""
    arrived: int = 0
    """Arrivals within the window."""
    left: int = 0
    """Ends within the window, in whatever way."""

    @classmethod
    def of(cls, classes: int) -> Tally:
        """Nothing yet."""
        ends = np.zeros((classes, _KINDS), dtype=np.int64)
        none = np.zeros((4, classes), dtype=np.int64)
        return cls(ends, none[0], none[1], none[2], none[3])


def tally(outcomes: Outcomes, window: Window, slos: Sequence[Slo]) -> Tally:
    """One pass over all requests; `slos` are the classes' own.

    A window of arrivals is open at its start: an end on either edge, as of a single user who asks again at once, counts once.
    """
    after_s = window.start_s if window.kind == ARRIVALS else -np.inf
    k = len(slos)
    found = Tally.of(k)
    for here in slices(len(outcomes)):
        status, class_of = outcomes.status[here], outcomes.class_of[here].astype(np.int64)
        arrival_s, end_s = outcomes.arrival_s[here], outcomes.arrival_s[here] + outcomes.stay_s[here]
        ended, met = HAS_ENDED[status], meets(outcomes, slos, here)
        inside = (end_s > after_s) & (end_s <= window.end_s)
        measured, served = ended & outcomes.measured[here], inside & (status == state.FINISHED)
        found.ends += np.bincount(class_of * _KINDS + status, minlength=k * _KINDS).reshape(k, _KINDS)
        for counts, which in (
            (found.measured_ended, measured),
            (found.measured_good, measured & met),
            (found.served, served),
            (found.good, served & met),
        ):
            counts += np.bincount(class_of[which], minlength=k) if k > 1 else np.count_nonzero(which)
        came = (arrival_s > after_s) & (arrival_s <= window.end_s) & (status != state.ABANDONED)
        found.arrived += int(np.count_nonzero(came))
        found.left += int(np.count_nonzero(inside))
    return found


def in_system(outcomes: Outcomes, window: Window, stretches: int) -> FloatArray:
    """Requests that have arrived and not ended, in whatever way, at the edges of equal stretches of `window` [stretches + 1]."""
    edges_s = np.linspace(window.start_s, window.end_s, stretches + 1)
    found = np.zeros(len(edges_s))
    for here in slices(len(outcomes)):
        arrival_s, stay_s = outcomes.arrival_s[here], outcomes.stay_s[here]
        came = outcomes.status[here] != state.ABANDONED
        came_s, end_s = (arrival_s, arrival_s + stay_s) if came.all() else (arrival_s[came], (arrival_s + stay_s)[came])
        for i, edge_s in enumerate(edges_s.tolist()):
            found[i] += np.count_nonzero(came_s <= edge_s) - np.count_nonzero(end_s <= edge_s)
    return found


def meets(outcomes: Outcomes, slos: Sequence[Slo], here: slice = slice(None)) -> BoolArray:
    """Which requests finished and met every objective of their class; one of a single token has no TPOT and meets any."""
    good = outcomes.status[here] == state.FINISHED
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        limits_s = np.array([np.inf if (limit := getattr(slo, name)) is None else limit for slo in slos])
        if np.isinf(limits_s).all():
            continue
        times_s = {"ttft_s": outcomes.ttft_s, "e2e_s": outcomes.stay_s}.get(name)
        values_s: FloatArray = outcomes.tpot_s(here) if times_s is None else times_s[here]
        good &= values_s <= (limits_s[0] if len(slos) == 1 else limits_s[outcomes.class_of[here]])
    return np.asarray(good)


def slices(n: int) -> list[slice]:
    """0 … n in parts that stay in the cache."""
    return [slice(start, min(start + _SLICE, n)) for start in range(0, n, _SLICE)]
