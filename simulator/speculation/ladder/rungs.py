"""The rungs: one rate, rates by depth, a request effect, what goes on along the text (stretches, loops or matches), replay.

Each has ``fit(recording)``, ``sample(answer_tokens, seed)`` (rounds), ``expected_length(gamma)`` (mean tokens per round of a batch
that is kept full) and ``config()``, what a scenario needs to have it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike

from simulator.errors import InputError
from simulator.speculation.acceptance import Acceptance, AcceptanceConfig, RecordedAcceptance
from simulator.speculation.ladder.families import LOOPS, MATCHES, REQUESTS, STRETCHES, Family, short
from simulator.speculation.ladder.fit import fitted
from simulator.speculation.ladder.rounds import FloatArray, Rounds
from simulator.speculation.ladder.sampling import sampled_rounds
from simulator.speculation.ladder.statistics import Statistics
from simulator.speculation.recording import Recording

LEAST_REQUESTS = 20
"""Fewer say nothing of how requests differ."""
_SEED = 1


@dataclass(frozen=True)
class Rung:
    """A law of the ladder, fitted."""

    name: ClassVar[str]
    key: ClassVar[str]
    """Its name on a command line."""
    gamma: int
    """Drafts per round that it was fitted on."""
    settings: AcceptanceConfig

    def law(self) -> Acceptance:
        """As a law."""
        return self.settings.law()

    def config(self) -> AcceptanceConfig:
        """As a scenario has it."""
        return self.settings

    def sample(self, answer_tokens: ArrayLike, seed: int, gamma: int | None = None) -> Rounds:
        """Rounds of one request for each answer, γ drafts each (those of the fit)."""
        return sampled_rounds(self.law(), self.gamma if gamma is None else gamma, answer_tokens, seed)

    def expected_length(self, gamma: int) -> float:
        """Mean tokens per round of a batch that is kept full."""
        return self.law().live_tokens(gamma)


class ConstantRate(Rung):
    """Rung 1: one conditional rate α, at which γ drafts yield the recorded tokens per round on average."""

    name, key = "one rate", "rate"

    @classmethod
    def fit(cls, recording: Recording) -> ConstantRate:
        """α with (1 − α^(γ+1)) / (1 − α) = mean tokens of a round with drafts, 1 + Σ of the marginal rates."""
        statistics = Statistics.of(Rounds.of(recording), recording.gamma)
        return cls.of(statistics.conditional, statistics.proposed)

    @classmethod
    def of(cls, conditional: FloatArray, proposed: float = 1.0) -> ConstantRate:
        """The same from conditional rates by depth [γ] and the share of rounds with drafts."""
        from scipy.optimize import brentq

        gamma, mean = len(conditional), 1.0 + float(np.cumprod(rates_of(conditional)).sum())
        powers = np.arange(gamma + 1)
        if mean <= 1.0 or mean >= gamma + 1.0:
            alpha = float(mean > 1.0)
        else:
            alpha = float(brentq(lambda a: float((a**powers).sum()) - mean, 0.0, 1.0))
        return cls(gamma, AcceptanceConfig(alpha=short(alpha), match_probability=short(proposed)))


class RateByDepth(Rung):
    """Rung 2: conditional rates by depth, those of all recorded rounds together."""

    name, key = "rates by depth", "depths"

    @classmethod
    def fit(cls, recording: Recording) -> RateByDepth:
        """Share of the j-th drafts kept where those before were; the last round of a request, cut off, refuses nothing."""
        statistics = Statistics.of(Rounds.of(recording), recording.gamma)
        return cls.of(statistics.conditional, statistics.proposed)

    @classmethod
    def of(cls, conditional: FloatArray, proposed: float = 1.0) -> RateByDepth:
        """The same from conditional rates by depth [γ] and the share of rounds with drafts."""
        settings = AcceptanceConfig(conditional=rates_of(conditional), match_probability=short(proposed))
        return cls(len(conditional), settings)


class _Moments(Rung):
    """A rung that is fitted by simulated moments: rates by depth, means over steps and over requests, tenth and ninetieth percentile
    of requests, and what the family has beyond them."""

    family: ClassVar[Family]

    @classmethod
    def fit(cls, recording: Recording) -> Self:
        """Raises InputError for fewer than 20 requests."""
        if len(recording.accepted) < LEAST_REQUESTS:
            rule = f"be at least {LEAST_REQUESTS}: fewer do not tell how requests differ"
            raise InputError("requests", len(recording.accepted), rule, where=recording.source)
        rounds = Rounds.of(recording)
        draw = cls.family.drawing(rounds, recording.gamma, _SEED)
        theta = fitted(rounds, recording.gamma, cls.family.moments, draw.parameters, draw, _SEED)
        return cls(recording.gamma, draw.settings(theta))


class RequestEffect(_Moments):
    """Rung 3: requests differ, and their luck goes with the length of their answers."""

    name, key, family = "requests differ", "requests", REQUESTS


class Stretches(_Moments):
    """Rung 4: luck changes along a request's text as well, from stretch to stretch. Moments: also the variance of 32
    steps' sums, and the correlation of neighbouring steps within requests."""

    name, key, family = "stretches", "stretches", STRETCHES


class Loops(_Moments):
    """Rung 4 again: instead of stretches, text that repeats itself, seldom and for long. Moments: those of stretches."""

    name, key, family = "loops", "loops", LOOPS


class Matches(_Moments):
    """Rung 4 of drafters that find something to propose or not: matches come in stretches. Moments: also the share of
    rounds with a draft, and how that goes on from round to round."""

    name, key, family = "matches", "matches", MATCHES


@dataclass(frozen=True)
class Replayed(Rung):
    """Rung 5: the recorded rounds themselves."""

    name, key = "replay", "replay"
    recording: Recording

    @classmethod
    def fit(cls, recording: Recording) -> Replayed:
        """Nothing to fit."""
        return cls(recording.gamma, AcceptanceConfig(alpha=0.0), recording)

    def law(self) -> Acceptance:
        """As a law: request r repeats recorded request r modulo their number."""
        return RecordedAcceptance.of(self.recording)

    def config(self) -> AcceptanceConfig:
        """Raises InputError: a scenario names the file."""
        raise InputError("replay", self.recording.source, "be named in a scenario as a file")


FITS: dict[type[Rung], Callable[[Recording], Rung]] = {
    ConstantRate: ConstantRate.fit, RateByDepth: RateByDepth.fit, RequestEffect: RequestEffect.fit, Stretches: Stretches.fit,
    Loops: Loops.fit, Matches: Matches.fit, Replayed: Replayed.fit,
}  # fmt: skip


def rungs_for(recording: Recording) -> tuple[type[Rung], ...]:
    """The rungs that a recording can be fitted by: with rounds without a draft, the fourth is of matches."""
    if len(recording.accepted) < LEAST_REQUESTS:
        return (ConstantRate, RateByDepth, Replayed)
    fourth: tuple[type[Rung], ...] = (Matches,) if 0.0 < recording.match_probability < 1.0 else (Stretches, Loops)
    return (ConstantRate, RateByDepth, RequestEffect, *fourth, Replayed)


def rates_of(conditional: FloatArray) -> tuple[float, ...]:
    """Conditional rates [γ] with the last known one where no round got so deep (NaN); nothing is kept where none is known."""
    rates, known = [], 0.0
    for rate in conditional.tolist():
        known = known if np.isnan(rate) else rate
        rates.append(short(known))
    return tuple(rates)
