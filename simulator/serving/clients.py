"""Traffic as the sum of many clients, each with its own rate, burstiness and lengths.

What a service sees is far from one smooth stream: a few clients send most of it, each in its own rhythm, and when one of
them changes, so does the whole. Each client here is a stationary renewal process with gamma gaps; the streams are merged
by time.

Reference: Y. Xiang et al., "ServeGen: Workload Characterization and Generation of Large Language Model Serving in
Production", arXiv:2505.09999, 2025 (clients as the unit of generation, gamma gaps per client).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from simulator.errors import InputError
from simulator.randomness import STREAM_CLIENT, STREAM_INTERARRIVAL, uniform_array
from simulator.records import Record
from simulator.serving.arrivals import Diurnal, RateProfile, unit_gaps
from simulator.serving.classes import MOST_CLASSES, Content, check_names, sources_of
from simulator.serving.lengths import FloatArray, IntArray
from simulator.serving.quantities import Count, Rate

MOST_CLIENTS = 10**5
"""Clients of all groups together: each is a stream of its own with some microseconds of bookkeeping."""

_Burstiness = Annotated[float, Field(ge=0.01, le=1e4)]
_LEAST_U = 2.0**-53
# Words under which a client's own luck is drawn.
_OWN_BURSTINESS, _OWN_PROMPT, _OWN_OUTPUT, _FIRST_GAP = range(4)


class Client(Content):
    """A client, or a group of clients that share a description; each group is a class."""

    count: int = Field(default=1, ge=1, le=MOST_CLIENTS)
    """Clients of this description."""
    rate_per_s: Rate
    """Mean arrivals per second of all of them together; text such as "30 /min" too."""
    skew: float = Field(default=0.0, ge=0, le=10)
    """Zipf exponent: the k-th client's rate is proportional to 1/k to this power, no unit; 0: all alike."""
    burstiness: _Burstiness | tuple[_Burstiness, _Burstiness] = 1.0
    """Shape b of the gamma gaps, no unit: their coefficient of variation is 1/√b, 1 is Poisson. Two numbers: each client
    has its own, its logarithm uniform between theirs."""
    diurnal: Diurnal | None = None
    """Left out, the rate is constant; otherwise `rate_per_s` is its mean over the profile's period."""
    length_spread: float = Field(default=0.0, ge=0, le=3)
    """Standard deviation of ln f, no unit, where f (mean 1 over clients) multiplies all prompts of one client, and
    another such factor its answers."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if isinstance(self.burstiness, tuple) and self.burstiness[0] > self.burstiness[1]:
            low, high = self.burstiness
            raise ValueError(f"have burstiness={high:g} not below {low:g}")
        return self


class ClientTraffic(Record):
    """Many clients, open loop, each with its own rate, burstiness and lengths (ServeGen, arXiv:2505.09999)."""

    kind: Literal["clients"]
    """Tag of this traffic."""
    requests: Count
    """How many requests all clients make together."""
    clients: tuple[Client, ...] = Field(min_length=1, max_length=MOST_CLASSES)
    """Clients, or groups of clients that share a description; each entry is a class of requests."""

    @model_validator(mode="after")
    def _reasonable(self) -> Self:
        check_names([c.name for c in self.clients], "clients")
        total = sum(c.count for c in self.clients)
        if total > MOST_CLIENTS:
            raise InputError("clients", f"{total} clients", f"be at most {MOST_CLIENTS} altogether")
        return self

    @property
    def rate_per_s(self) -> float:
        """Mean arrivals per second of all clients."""
        return sum(c.rate_per_s for c in self.clients)

    @property
    def load(self) -> str:
        """How fast requests come, for people."""
        return f"{self.rate_per_s:g} /s"

    @property
    def lengths_source(self) -> str:
        """Where the lengths come from, for people."""
        return sources_of(self.clients)

    def describe(self) -> str:
        """These arrivals in a few words, for people."""
        return f"{sum(c.count for c in self.clients)} clients at {self.load} together"


@dataclass(frozen=True)
class Clients:
    """All clients of all groups, in order."""

    group: IntArray
    """[c] index of the group."""
    rate_per_s: FloatArray
    """[c] mean arrivals per second."""
    burstiness: FloatArray
    """[c] shape of the gamma gaps."""
    stretch: tuple[FloatArray, FloatArray]
    """[c] factors of prompt and of output lengths."""

    @classmethod
    def of(cls, groups: Sequence[Client], seed: int) -> Clients:
        """The clients of `groups`; what they draw depends on their number alone."""
        group = np.repeat(np.arange(len(groups)), [g.count for g in groups])
        number = np.arange(len(group), dtype=np.int64)
        rates = []
        for g in groups:
            weight = np.arange(1.0, g.count + 1) ** -g.skew
            rates.append(g.rate_per_s * weight / weight.sum())
        ends = np.array([g.burstiness if isinstance(g.burstiness, tuple) else (g.burstiness,) * 2 for g in groups])
        low, high = ends[group].T
        place = uniform_array(seed, number, STREAM_CLIENT, _OWN_BURSTINESS)
        spread = np.array([g.length_spread for g in groups])[group]
        own = [_factor(uniform_array(seed, number, STREAM_CLIENT, word), spread) for word in (_OWN_PROMPT, _OWN_OUTPUT)]
        return cls(group, np.concatenate(rates), low * (high / low) ** place, (own[0], own[1]))


def _factor(u: FloatArray, spread: FloatArray) -> FloatArray:
    """exp(σz - σ²/2): log-normal of mean 1."""
    if not spread.any():
        return np.ones(len(u))
    from scipy.special import ndtri

    factor: FloatArray = np.exp(spread * ndtri(np.clip(u, _LEAST_U, 1 - _LEAST_U)) - spread**2 / 2)
    return factor


class Merged:
    """The clients' arrivals in order of (time, client, number), built window by window.

    Each client's process is stationary: its first gap is the residual of a running one (a length-biased gap, cut at a
    uniform point), so that from time 0 on a client of rate λ has λt arrivals in t on average, and bursty clients do not
    all begin with a burst. Reference: D. R. Cox, "Renewal Theory", 1962, chapter 5.
    """

    def __init__(self, clients: Clients, groups: Sequence[Client], seed: int, window: int = 2**18):
        self._clients, self._seed = clients, seed
        self._days = [g.diurnal for g in groups]
        self._window_s = window / float(clients.rate_per_s.sum())
        self._until_s = 0.0
        # Of each client: arrivals merged so far, and the unit time of the last of them.
        self._done = np.zeros(len(clients.group), dtype=np.int64)
        self._unit = np.zeros(len(clients.group))
        self._first = 0
        self._time_s, self._identity = np.zeros(0), np.zeros(0, dtype=np.int64)

    def look(self, first: int, count: int) -> tuple[IntArray, IntArray | None]:
        """Counters (client + 1, number) of the arrivals `first` to `first + count`, and their classes."""
        while self._first + len(self._identity) < first + count:
            self._merge(first)
        identity = self._identity[first - self._first : first - self._first + count]
        return identity, self._clients.group[(identity >> 32) - 1] if len(self._days) > 1 else None

    def times(self, first: int, count: int) -> FloatArray:
        """Times of the arrivals `first` to `first + count`, s."""
        return self._time_s[first - self._first : first - self._first + count]

    def _merge(self, first: int) -> None:
        """Adds the next window's arrivals, and forgets those before `first`."""
        self._until_s += self._window_s
        found = [self._of(np.flatnonzero(self._clients.group == g), day) for g, day in enumerate(self._days)]
        time_s = np.concatenate([times for times, _ in found])
        identity = np.concatenate([numbers for _, numbers in found])
        order = np.lexsort((identity, time_s))
        gone = first - self._first
        self._time_s = np.concatenate((self._time_s[gone:], time_s[order]))
        self._identity = np.concatenate((self._identity[gone:], identity[order]))
        self._first = first

    def _of(self, client: IntArray, day: Diurnal | None) -> tuple[FloatArray, IntArray]:
        """Times and counters of the group's arrivals up to the window's end, client by client."""
        rate = self._clients.rate_per_s[client]
        profile = RateProfile.constant(1.0) if day is None else RateProfile.of_day(day, 1.0)
        until = rate * float(profile.expected(np.array([self._until_s]))[0])
        poisson = bool((self._clients.burstiness[client] == 1).all())
        times, numbers = [], []
        while len(client):
            # Enough gaps for all but one window in thousands; a client that falls short gets another helping.
            need = np.maximum(until - self._unit[client], 0.0)
            shape = self._clients.burstiness[client]
            count = np.ceil(need + 3 * np.sqrt(need / shape + 1 / shape**2) + 1).astype(np.int64)
            begin = np.cumsum(count) - count
            unit, identity = self._units(client, count, begin, poisson)
            time_s = profile.time_s(unit / np.repeat(rate, count))
            inside = time_s <= self._until_s
            times.append(time_s[inside])
            numbers.append(identity[inside])
            came = np.add.reduceat(inside, begin, dtype=np.int64)
            last = np.where(came > 0, unit[begin + np.maximum(came, 1) - 1], self._unit[client])
            self._done[client] += came
            self._unit[client] = last
            short = came == count
            client, rate, until = client[short], rate[short], until[short]
        return np.concatenate(times), np.concatenate(numbers)

    def _units(self, client: IntArray, count: IntArray, begin: IntArray, poisson: bool) -> tuple[FloatArray, IntArray]:
        """Unit times and counters of each client's next `count` arrivals, from `begin` on."""
        number = np.arange(count.sum(), dtype=np.int64) + np.repeat(self._done[client] - begin, count)
        identity = (np.repeat(client + 1, count) << 32) + number
        shape = np.repeat(self._clients.burstiness[client], count)
        u = uniform_array(self._seed, identity, STREAM_INTERARRIVAL, 0)
        gaps = unit_gaps(u, 1.0 if poisson else shape)
        fresh = np.flatnonzero(number == 0)
        if len(fresh) and not poisson:
            # Of exponential gaps the residual is a gap.
            b = shape[fresh]
            cut = uniform_array(self._seed, identity[fresh], STREAM_CLIENT, _FIRST_GAP)
            gaps[fresh] = cut * unit_gaps(u[fresh], b + 1) * (b + 1) / b
        gaps[begin] += self._unit[client]
        for start, end in zip(begin.tolist(), (begin + count).tolist(), strict=True):
            # One client at a time, because a sum must not depend on where the windows end.
            np.cumsum(gaps[start:end], out=gaps[start:end])
        return gaps, identity
