"""The rungs: α, rates by depth, a request effect, stretches (of acceptance or of matches), replay.

Each has ``fit(recording)``, ``sample(answer_tokens, seed)`` (rounds), ``expected_length(gamma)`` (mean tokens per round of a batch
that is kept full) and ``config()``, what a scenario needs to have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike

from simulator.errors import InputError
from simulator.speculation.acceptance import Acceptance, AcceptanceConfig, AnswerLength, RecordedAcceptance
from simulator.speculation.ladder.fit import Parameter, fitted, from_log_odds
from simulator.speculation.ladder.rounds import FloatArray, Rounds
from simulator.speculation.ladder.sampling import drawn_rounds, sampled_rounds
from simulator.speculation.ladder.statistics import Statistics
from simulator.speculation.recording import Recording
from simulator.speculation.stretches import state_rates

LEAST_REQUESTS = 20
"""Fewer say nothing of how requests differ."""
_COPIES = 6
"""Times that the recorded answers are drawn for one evaluation of a fit."""
_SEED = 1
_QUANTILES = (np.arange(200) + 0.5) / 200
_LEAST_LOG_STD = 0.05
"""Answers this alike in length say nothing of how luck goes with it."""


class Rung(Protocol):
    """One law of the ladder, fitted."""

    name: ClassVar[str]
    gamma: int

    def law(self) -> Acceptance:
        """As a law."""

    def config(self) -> AcceptanceConfig:
        """As a scenario has it."""


@dataclass(frozen=True)
class _Fitted:
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


class ConstantRate(_Fitted):
    """Rung 1: one conditional rate α, at which γ drafts yield the recorded tokens per round on average."""

    name: ClassVar[str] = "one rate"

    @classmethod
    def fit(cls, recording: Recording) -> ConstantRate:
        """α with (1 − α^(γ+1)) / (1 − α) = mean tokens of a round with drafts."""
        from scipy.optimize import brentq

        rounds, gamma = Rounds.of(recording), recording.gamma
        matched = rounds.drafted > 0
        mean = _uncut_mean(rounds, gamma)

        def excess(alpha: float) -> float:
            return float(alpha ** np.arange(gamma + 1) @ np.ones(gamma + 1)) - mean

        alpha = 0.0 if mean <= 1.0 else 1.0 if mean >= gamma + 1.0 else float(brentq(excess, 0.0, 1.0))
        return cls(gamma, AcceptanceConfig(alpha=_short(alpha), match_probability=_short(float(matched.mean()))))


class RateByDepth(_Fitted):
    """Rung 2: conditional rates by depth, those of all recorded rounds together."""

    name: ClassVar[str] = "rates by depth"

    @classmethod
    def fit(cls, recording: Recording) -> RateByDepth:
        """Share of the j-th drafts kept where those before were; the last round of a request, cut off, refuses nothing."""
        statistics = Statistics.of(Rounds.of(recording), recording.gamma)
        match = _short(statistics.proposed)
        return cls(recording.gamma, AcceptanceConfig(conditional=_rates(statistics), match_probability=match))


class RequestEffect(_Fitted):
    """Rung 3: requests differ, and their luck goes with the length of their answers."""

    name: ClassVar[str] = "requests differ"
    moments: ClassVar[tuple[str, ...]] = ("mean", "request_mean", "p10", "p90")

    @classmethod
    def fit(cls, recording: Recording) -> RequestEffect:
        """By simulated moments: rates by depth, mean over steps and over requests, tenth and ninetieth percentile."""
        rounds = _enough(recording)
        theta = fitted(rounds, recording.gamma, cls.moments, _REQUESTS, _draw(rounds, recording.gamma), _SEED)
        return cls(recording.gamma, _settings(rounds, theta, recording.gamma))


class Stretches(_Fitted):
    """Rung 4: luck changes along a request's text as well."""

    name: ClassVar[str] = "stretches"
    moments: ClassVar[tuple[str, ...]] = (
        *RequestEffect.moments, "block_variance_ratio", "block_variance_ratio_within", "lag_1_within",
    )  # fmt: skip

    @classmethod
    def fit(cls, recording: Recording) -> Stretches:
        """As rung 3, with the variance of 32 steps' sums and the correlation of neighbouring steps."""
        rounds = _enough(recording)
        parameters = (*_REQUESTS, *_STRETCHES)
        theta = fitted(rounds, recording.gamma, cls.moments, parameters, _draw(rounds, recording.gamma), _SEED)
        return cls(recording.gamma, _settings(rounds, theta, recording.gamma))


class MatchStretches(_Fitted):
    """Rung 4 for drafters that find something to propose or not: matches come in stretches, and requests differ."""

    name: ClassVar[str] = "stretches of matches"
    moments: ClassVar[tuple[str, ...]] = (*RequestEffect.moments, "proposed", "proposed_lag_1", "block_variance_ratio")

    @classmethod
    def fit(cls, recording: Recording) -> MatchStretches:
        """As rung 3, with the share of rounds that have a draft and how that goes on from round to round."""
        rounds = _enough(recording)
        share = float(np.mean(rounds.drafted > 0))
        parameters = (*_REQUESTS, Parameter(float(np.log(share / (1.0 - share))), -7.0, 7.0), _STRETCHES[1])
        draw = _draw(rounds, recording.gamma, matches=True)
        theta = fitted(rounds, recording.gamma, cls.moments, parameters, draw, _SEED)
        return cls(recording.gamma, _settings(rounds, theta, recording.gamma, matches=True))


@dataclass(frozen=True)
class Replayed:
    """Rung 5: the recorded rounds themselves."""

    name: ClassVar[str] = "replay"
    recording: Recording
    settings: AcceptanceConfig | None = None
    """Where the recording can be read again; None where it is a part of a file only."""

    @classmethod
    def fit(cls, recording: Recording) -> Replayed:
        """Nothing to fit."""
        return cls(recording)

    @property
    def gamma(self) -> int:
        """Drafts per round that were recorded."""
        return self.recording.gamma

    def law(self) -> Acceptance:
        """As a law."""
        return RecordedAcceptance.of(self.recording)

    def config(self) -> AcceptanceConfig:
        """As a scenario has it. Raises InputError where the recording is no file."""
        if self.settings is None:
            raise InputError("replay", self.recording.source, "be a whole file to be named in a scenario")
        return self.settings

    def sample(self, answer_tokens: ArrayLike, seed: int, gamma: int | None = None) -> Rounds:
        """Rounds of one request for each answer; request r repeats recorded request r modulo their number."""
        return sampled_rounds(self.law(), self.gamma if gamma is None else gamma, answer_tokens, seed)

    def expected_length(self, gamma: int) -> float:
        """Tokens per round over all recorded rounds."""
        return self.law().live_tokens(gamma)


FittedRung = ConstantRate | RateByDepth | RequestEffect | Stretches | MatchStretches | Replayed


def rungs_for(recording: Recording) -> tuple[type[FittedRung], ...]:
    """The rungs that a recording can be fitted by: with rounds without a draft, the fourth is of matches."""
    simple: tuple[type[FittedRung], ...] = (ConstantRate, RateByDepth)
    if len(recording.accepted) < LEAST_REQUESTS:
        return (*simple, Replayed)
    fourth = MatchStretches if 0.0 < recording.match_probability < 1.0 else Stretches
    return (*simple, RequestEffect, fourth, Replayed)


_REQUESTS = (Parameter(np.log(0.05), np.log(1e-3), np.log(0.7)), Parameter(0.4, -1.5, 1.5))
"""Logarithm of the request ICC; inverse hyperbolic tangent of the correlation with the length of the answer."""
_STRETCHES = (Parameter(np.log(0.05), np.log(1e-3), np.log(0.75)), Parameter(np.log(30.0), 0.0, np.log(3000.0)))
"""Logarithms of the stretch ICC and of the mean stretch length in tokens."""


def _uncut_mean(rounds: Rounds, gamma: int) -> float:
    """Tokens of a round with drafts, from the rates by depth, so that last rounds do not pull it down."""
    return float(1.0 + np.cumprod(_rates(Statistics.of(rounds, gamma))).sum())


def _rates(statistics: Statistics) -> tuple[float, ...]:
    found = statistics.conditional
    # Depths that no round got to: the last rate that is known, or nothing is ever kept.
    rates, known = [], 0.0
    for rate in found.tolist():
        known = known if np.isnan(rate) else rate
        rates.append(_short(known))
    return tuple(rates)


def _short(value: float) -> float:
    return round(value, 5)


def _enough(recording: Recording) -> Rounds:
    if len(recording.accepted) < LEAST_REQUESTS:
        rule = f"be at least {LEAST_REQUESTS}: fewer do not tell how requests differ"
        raise InputError("requests", len(recording.accepted), rule, where=recording.source)
    return Rounds.of(recording)


def _lengths(rounds: Rounds, correlation: float) -> AnswerLength | None:
    logs = np.log(rounds.answer_tokens)
    spread = float(logs.std())
    if spread < _LEAST_LOG_STD:
        return None
    return AnswerLength(
        correlation=_short(correlation), median_tokens=round(float(np.exp(logs.mean())), 2), log_std=round(spread, 4)
    )


def _settings(rounds: Rounds, theta: FloatArray, gamma: int, *, matches: bool = False) -> AcceptanceConfig:
    rates = tuple(_short(a) for a in from_log_odds(theta[:gamma]).tolist())
    icc, correlation, *more = theta[gamma:].tolist()
    fields: dict[str, Any] = {}
    if matches:
        fields = {
            "match_probability": _short(1.0 / (1.0 + np.exp(-more[0]))),
            "match_tokens": round(float(np.exp(more[1])), 2),
        }
    elif more:
        fields = {"stretch_icc": _short(float(np.exp(more[0]))), "stretch_tokens": round(float(np.exp(more[1])), 2)}
    else:
        fields = {"match_probability": _short(float(np.mean(rounds.drafted > 0)))}
    return AcceptanceConfig(
        conditional=rates, request_icc=_short(float(np.exp(icc))), answer_length=_lengths(rounds, float(np.tanh(correlation))),
        **fields,
    )  # fmt: skip


class _draw:  # noqa: N801
    """Rounds of the law with given parameters for the recorded answers, copied, always with the same luck."""

    def __init__(self, rounds: Rounds, gamma: int, *, matches: bool = False):
        from simulator.randomness import uniform_array

        self.gamma, self.matches = gamma, matches
        self.share = float(np.mean(rounds.drafted > 0))
        self.answers = np.tile(rounds.answer_tokens, _COPIES)
        self.luck = uniform_array(_SEED, np.arange(len(self.answers)), 1 << 41, 0)
        self.lengths = _lengths(rounds, 0.0)

    def __call__(self, theta: FloatArray) -> Rounds:
        from scipy.special import betaincinv

        rates = from_log_odds(theta[: self.gamma])
        icc, correlation, *more = theta[self.gamma :].tolist()
        kappa = 1.0 / np.exp(icc) - 1.0
        own = betaincinv(kappa * rates, kappa * (1.0 - rates), _QUANTILES[:, None])  # [quantiles, γ]
        place = self.luck
        if self.lengths is not None:
            lengths = self.lengths.model_copy(update={"correlation": float(np.tanh(correlation))})
            place = lengths.shifted(place, self.answers)
        row_of = np.minimum((place * len(_QUANTILES)).astype(np.int64), len(_QUANTILES) - 1)
        found, tokens = self.share, np.full(1, np.inf)
        weights, proposes = np.ones(1), np.ones(1, dtype=bool)
        states = own[:, None, :]
        if self.matches:
            match = 1.0 / (1.0 + np.exp(-more[0]))
            weights, proposes = np.array([match, 1.0 - match]), np.array([True, False])
            states, tokens = own[:, None, :] * proposes[:, None], np.full(2, np.exp(more[1]))
        elif more:
            states = state_rates(own, float(np.exp(more[0])))
            tokens = np.full(states.shape[1], np.exp(more[1]))
            weights, proposes = np.full(states.shape[1], 1.0 / states.shape[1]), np.ones(states.shape[1], dtype=bool)
        return drawn_rounds(states, row_of, self.answers, _SEED, weights, proposes, tokens, found)
