"""When requests arrive in an open loop: gaps of mean 1, stretched by a rate that may change with time.

Arrival i of the unit process is the sum of i + 1 gaps of mean 1. With Λ(t) the requests expected until t, its time is
Λ⁻¹ of that sum: exact for Poisson arrivals (an inhomogeneous Poisson process of rate Λ'), and for gamma gaps the usual
meaning of "the same burstiness at another rate". A change of rate or of profile moves arrivals and draws no new ones.

Reference: E. Çinlar, "Introduction to Stochastic Processes", 1975, chapter 4.7 (time change).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from simulator.randomness import STREAM_INTERARRIVAL, uniform_array
from simulator.records import Record
from simulator.serving.lengths import FloatArray, IntArray
from simulator.serving.quantities import Duration, RateOrPause, SinceStart, none_or_some

DAY_S = 86_400.0

_Factor = Annotated[float, Field(ge=0, le=1e6), AfterValidator(none_or_some)]


class Stage(Record):
    """A stretch of time with its own rate, level or a ramp."""

    duration_s: Duration
    """How long it lasts, s; text such as "10 min" too."""
    rate_per_s: RateOrPause
    """Mean arrivals per second, at its beginning where it is a ramp; 0 is a pause."""
    to_rate_per_s: RateOrPause | None = None
    """Rate at its end, reached in a straight line; left out, the rate stays."""

    @property
    def last_rate_per_s(self) -> float:
        """Rate at its end, per second."""
        return self.rate_per_s if self.to_rate_per_s is None else self.to_rate_per_s

    @property
    def requests(self) -> float:
        """Expected arrivals: duration times the mean of first and last rate."""
        return self.duration_s * (self.rate_per_s + self.last_rate_per_s) / 2

    def times(self, factor: float) -> dict[str, float | None]:
        """The fields of the same stage with its rates multiplied."""
        to = None if self.to_rate_per_s is None else self.to_rate_per_s * factor
        return {"duration_s": self.duration_s, "rate_per_s": self.rate_per_s * factor, "to_rate_per_s": to}


def _listed(value: Any) -> Any:
    # `diurnal: [0.4, 0.3, …]` is what people write first.
    return {"factors": value} if isinstance(value, list | tuple) else value


class _Profile(Record):
    factors: tuple[_Factor, ...] = Field(min_length=2, max_length=10_000)
    """Rate at equally spaced times of the period, the first at its beginning, relative to each other, no unit; straight
    lines between them and from the last back to the first. 24 of them are the hours of a day."""
    period_s: Duration = DAY_S
    """After which it repeats, s; 24 h, because people live by the day. A shorter one plays the day in fast motion."""
    start_s: SinceStart = 0.0
    """Time of the period at which the simulation begins, s; text such as "9 h" too."""

    @model_validator(mode="after")
    def _some_rate(self) -> _Profile:
        if not any(self.factors):
            raise ValueError("have a factor above 0")
        return self


Diurnal = Annotated[_Profile, BeforeValidator(_listed)]
"""A rate that goes up and down with the hours; a bare list stands for its factors."""


@dataclass(frozen=True)
class RateProfile:
    """Λ(t) of a rate that is linear between knots, and its inverse; the rate of the last piece holds for ever, or the
    whole repeats."""

    start_s: FloatArray
    """[k] where pieces begin, s."""
    rate_per_s: FloatArray
    """[k] rate at that time, per second."""
    slope_per_s2: FloatArray
    """[k] change of the rate, per second²."""
    before: FloatArray
    """[k] Λ at that time: arrivals expected before it."""
    period_s: float = 0.0
    """Length of what repeats, s; 0: nothing does."""
    per_period: float = 0.0
    """Arrivals expected in one period."""
    offset_s: float = 0.0
    """Time of the period at which simulated time begins, s."""

    @classmethod
    def constant(cls, rate_per_s: float) -> RateProfile:
        """One rate for ever."""
        return cls(np.zeros(1), np.array([rate_per_s]), np.zeros(1), np.zeros(1))

    @classmethod
    def of_stages(cls, stages: Sequence[Stage]) -> RateProfile:
        """One piece per stage, and the last stage's final rate for ever after."""
        lasts = np.array([stage.duration_s for stage in stages])
        rate = np.array([stage.rate_per_s for stage in stages])
        last = np.array([stage.last_rate_per_s for stage in stages])
        return cls(
            np.append(0.0, np.cumsum(lasts)),
            np.append(rate, last[-1]),
            np.append((last - rate) / lasts, 0.0),
            np.append(0.0, np.cumsum(np.array([stage.requests for stage in stages]))),
        )

    @classmethod
    def of_day(cls, diurnal: _Profile, mean_rate_per_s: float) -> RateProfile:
        """The profile scaled so that its mean over one period is `mean_rate_per_s`."""
        factors = np.array(diurnal.factors)
        rate = mean_rate_per_s * factors / factors.mean()
        after = np.roll(rate, -1)
        step_s = diurnal.period_s / len(rate)
        before = np.append(0.0, np.cumsum(step_s * (rate + after) / 2))
        start_s = step_s * np.arange(float(len(rate)))
        offset_s = diurnal.start_s % diurnal.period_s
        return cls(start_s, rate, (after - rate) / step_s, before[:-1], diurnal.period_s, float(before[-1]), offset_s)

    def expected(self, time_s: FloatArray) -> FloatArray:
        """Λ(t): arrivals expected between the beginning and `time_s` ≥ 0."""
        if not self.period_s:
            return self._from_zero(time_s)
        return self._from_day(time_s + self.offset_s) - self._from_day(np.array([self.offset_s]))

    def time_s(self, expected: FloatArray) -> FloatArray:
        """Λ⁻¹: when as many arrivals are expected to have come, s; infinite where they never do."""
        if len(self.before) == 1 and not self.period_s:
            # A division, so that one rate for ever is arithmetic that anyone can redo.
            constant: FloatArray = expected / self.rate_per_s[0]
            return constant
        if not self.period_s:
            return self._inverse(expected)
        expected = expected + self._from_day(np.array([self.offset_s]))
        days = np.floor(expected / self.per_period)
        return days * self.period_s + self._inverse(expected - days * self.per_period) - self.offset_s

    def _from_day(self, time_s: FloatArray) -> FloatArray:
        days = np.floor(time_s / self.period_s)
        before: FloatArray = days * self.per_period + self._from_zero(time_s - days * self.period_s)
        return before

    def _from_zero(self, time_s: FloatArray) -> FloatArray:
        piece = np.searchsorted(self.start_s, time_s, side="right") - 1
        since_s = time_s - self.start_s[piece]
        gained = since_s * (self.rate_per_s[piece] + self.slope_per_s2[piece] * since_s / 2)
        return np.asarray(self.before[piece] + gained)

    def _inverse(self, expected: FloatArray) -> FloatArray:
        """The root of r·τ + s·τ²/2 = y in the form 2y / (r + √(r² + 2sy)), which loses no digits as s → 0."""
        piece = np.maximum(np.searchsorted(self.before, expected, side="right") - 1, 0)
        more = expected - self.before[piece]
        rate, slope = self.rate_per_s[piece], self.slope_per_s2[piece]
        with np.errstate(divide="ignore", invalid="ignore"):
            since_s = 2 * more / (rate + np.sqrt(np.maximum(rate * rate + 2 * slope * more, 0.0)))
        end_s = np.append(self.start_s[1:], self.period_s or np.inf)[piece]
        return np.asarray(np.minimum(self.start_s[piece] + np.where(more > 0, since_s, 0.0), end_s))


def unit_gaps(u: FloatArray, shape: float | FloatArray) -> FloatArray:
    """Gamma gaps of mean 1 at probability `u`: P⁻¹(b, u) / b with P the regularised lower incomplete gamma function."""
    if isinstance(shape, float) and shape == 1:
        return -np.log1p(-u)
    from scipy.special import gammaincinv

    gaps: FloatArray = gammaincinv(shape, u) / shape
    return gaps


class Renewal:
    """Arrivals of one stream, asked for in order, piece by piece: whatever the pieces, the same numbers bit by bit."""

    def __init__(self, profile: RateProfile, shape: float, seed: int, until_expected: float = np.inf):
        self._profile, self._shape, self._seed, self._until = profile, float(shape), seed, until_expected
        self._unit = 0.0
        self._time_s = 0.0

    def look(self, first: int, count: int) -> tuple[IntArray, IntArray | None]:
        """Counters of the arrivals `first` to `first + count`, and their classes where the stream knows them."""
        return np.arange(first, first + count, dtype=np.int64), None

    def times(self, first: int, count: int) -> FloatArray:
        """Arrival times of the next `count` arrivals, s; fewer where the stream ends."""
        index = np.arange(first, first + count, dtype=np.int64)
        unit = unit_gaps(uniform_array(self._seed, index, STREAM_INTERARRIVAL, 0), self._shape)
        unit[0] += self._unit
        np.cumsum(unit, out=unit)
        self._unit = float(unit[-1])
        unit = unit[: np.searchsorted(unit, self._until, side="right")]
        time_s = self._profile.time_s(unit)
        if len(time_s):
            # Two pieces of a profile may meet with their last bits in the wrong order.
            time_s[0] = max(time_s[0], self._time_s)
            np.maximum.accumulate(time_s, out=time_s)
            self._time_s = float(time_s[-1])
        return time_s


class Users:
    """Arrivals of a closed loop: known for each user's first request only."""

    def __init__(self, users: int):
        self._users = users

    def look(self, first: int, count: int) -> tuple[IntArray, None]:
        """Counters of the arrivals `first` to `first + count`."""
        return np.arange(first, first + count, dtype=np.int64), None

    def times(self, first: int, count: int) -> FloatArray:
        """0 for each user's first request, NaN for the rest."""
        return np.where(np.arange(first, first + count) < self._users, 0.0, np.nan)
