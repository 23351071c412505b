"""Laws of acceptance: how many of γ drafted tokens the target keeps.

Two rates that must never mix. *Conditional*: a_j = P(token j accepted | the j−1 before it were). *Marginal*: the share
of drafted position-j tokens that end up accepted, Π_{i≤j} a_i, which is what engines log per position.
A chain of γ drafts yields τ = 1 + Σ_j Π_{i≤j} a_i tokens per round; with a_j = α this is (1−α^(γ+1))/(1−α)
(Leviathan et al., arXiv:2211.17192, eq. 1).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simulator.errors import InputError
from simulator.randomness import uniform_array
from simulator.speculation.acceptance_config import AcceptanceConfig, AnswerLength, Repetition
from simulator.speculation.beta_table import beta_quantiles
from simulator.speculation.recording import Recording
from simulator.speculation.shape import MAX_GAMMA
from simulator.speculation.stretches import (
    STATES,
    accepted_shares,
    repeated_share,
    round_shares,
    state_rates,
)

__all__ = [
    "MAX_GAMMA", "Acceptance", "AcceptanceConfig", "AnswerLength", "FloatArray", "RecordedAcceptance", "Repetition",
    "chain_tokens", "conditional_from_marginal",
]  # fmt: skip

FloatArray = NDArray[np.float64]

_SMALLEST_ICC = 1e-9
"""Below it requests differ by less than 0.002 %, and the beta quantiles cannot be computed any more."""
_SMALLEST_RATE = 1e-6
"""Closer to 0 or 1 luck makes no difference, and the beta quantiles cannot be computed either."""
_EFFECT_STREAM = (1 << 40) + 5  # beside the streams of `simulator.randomness`
_ORDINARY_TOKENS = 4.0
"""Length of the stretches outside of loops where they are all alike: short, so that few answers begin with a loop."""
# Quantiles at which the population of requests is averaged: midpoints of equal shares.
_POPULATION = (np.arange(2000) + 0.5) / 2000


def conditional_from_marginal(marginal: tuple[float, ...]) -> tuple[float, ...]:
    """a_j = m_j / m_{j−1} with m_0 = 1; 0 where nothing reaches depth j−1."""
    previous = (1.0, *marginal)
    return tuple(m / p if p > 0 else 0.0 for p, m in zip(previous, marginal, strict=False))


def chain_tokens(conditional: FloatArray) -> FloatArray:
    """τ = 1 + Σ_j Π_{i≤j} a_i over the last axis, tokens per round."""
    return np.asarray(1.0 + np.cumprod(conditional, axis=-1).sum(axis=-1))


@dataclass(frozen=True)
class Acceptance:
    """Conditional rates by depth, with an optional request effect (each request has its own luck) and optional stretches (it
    changes along the text; see `simulator.speculation.stretches`).

    The request effect is a beta distribution at every depth, coupled so that a request good at depth 1 is good at every
    depth; Beta(κ·a_j, κ·(1−a_j)) with κ = 1/ICC − 1 keeps each depth's mean at a_j. Stretches draw states around the
    request's own rates likewise, or where `match_tokens` is given find a match or none. `rates` are thus means over requests
    and output positions; means over rounds differ, and are what the methods below say.
    """

    rates: tuple[float, ...]
    request_icc: float = 0.0
    match_probability: float = 1.0
    stretch_icc: float = 0.0
    mean_stretch_tokens: float | None = None
    match_tokens: float | None = None
    answer_length: AnswerLength | None = None
    repetition: Repetition | None = None

    @property
    def alike(self) -> bool:
        """Whether all requests have the same luck."""
        return self.request_icc < _SMALLEST_ICC

    @property
    def matches_in_stretches(self) -> bool:
        """Whether the states of a stretch are "finds a match" and "finds none". No round draws a match of its own then."""
        return self.match_tokens is not None and self.match_probability < 1.0

    @property
    def _varies(self) -> bool:
        # Whether acceptance is unlike between the stretches of a request.
        return self.stretch_icc >= _SMALLEST_ICC and self.mean_stretch_tokens is not None

    @property
    def stretch_weights(self) -> FloatArray:
        """Probability of each state that a stretch can have [S]; S = 1 where there are no stretches."""
        if self.matches_in_stretches:
            return np.array([self.match_probability, 1.0 - self.match_probability])
        states = STATES if self._varies else 1
        weights = np.full(states, 1.0 / states)
        if self.repetition is None:
            return weights
        loop = self._ordinary_tokens / self.repetition.every_tokens
        return np.append((1.0 - loop) * weights, loop)

    @property
    def stretch_tokens(self) -> FloatArray:
        """Mean length L_s of a stretch of each state in output tokens, at least 1 [S]; infinite where there is one state."""
        if self.matches_in_stretches and self.match_tokens is not None:
            return np.full(2, self.match_tokens)
        lengths = np.full(STATES if self._varies else 1, self._ordinary_tokens)
        return lengths if self.repetition is None else np.append(lengths, self.repetition.tokens)

    @property
    def _ordinary_tokens(self) -> float:
        # Length of stretches outside of loops.
        if self._varies and self.mean_stretch_tokens is not None:
            return self.mean_stretch_tokens
        return float("inf") if self.repetition is None else _ORDINARY_TOKENS

    @property
    def stretch_proposes(self) -> NDArray[np.bool_]:
        """Whether the drafter proposes anything in each state [S]. Where all do, it finds something to propose in a share
        `match_probability` of the rounds, each by itself."""
        return np.array([True, False]) if self.matches_in_stretches else np.ones(len(self.stretch_weights), dtype=bool)

    def conditional(self, gamma: int) -> FloatArray:
        """Mean conditional rates [gamma]."""
        last = self.rates[-1]
        return np.array([self.rates[j] if j < len(self.rates) else last for j in range(gamma)])

    def at_quantile(self, quantile: FloatArray, gamma: int) -> FloatArray:
        """Conditional rates [requests, gamma] of requests at these quantiles [requests] of the population, to 1e-5."""
        base = self.conditional(gamma)
        if self.alike:
            return np.broadcast_to(base, (len(quantile), gamma)).copy()
        kappa = 1.0 / self.request_icc - 1.0
        # Once for each rate: most laws hold one rate over many depths.
        column = {
            a: np.interp(quantile, *beta_quantiles(kappa * a, kappa * (1.0 - a)))
            if _SMALLEST_RATE < a < 1.0 - _SMALLEST_RATE
            else np.full(len(quantile), a)
            for a in set(base.tolist())
        }
        rates = np.empty((len(quantile), gamma))
        for depth, a in enumerate(base.tolist()):
            rates[:, depth] = column[a]
        return rates

    def per_request(
        self, seed: int, requests: int, gamma: int, first: int = 0, answer_tokens: ArrayLike | None = None
    ) -> tuple[FloatArray, NDArray[np.int64]]:
        """Rates [rows, gamma] and the row of each of the requests `first`, `first` + 1, …; the draw of request r is a pure
        function of (seed, r, the tokens of its answer). `answer_tokens` [requests] matter where luck goes with length; left
        out, every request is one of the whole population."""
        if self.alike:
            return self.conditional(gamma)[None, :], np.zeros(requests, dtype=np.int64)
        quantile = self._quantiles(seed, requests, first, answer_tokens)
        return self.at_quantile(quantile, gamma), np.arange(requests, dtype=np.int64)

    def _quantiles(self, seed: int, requests: int, first: int, answer_tokens: ArrayLike | None) -> FloatArray:
        # Places of the requests in their population.
        index = first + np.arange(requests, dtype=np.int64)
        quantile = uniform_array(seed, index, _EFFECT_STREAM, 0)
        if self.answer_length is None or answer_tokens is None:
            return quantile
        return self.answer_length.shifted(quantile, answer_tokens)

    def stretch_rates(
        self, seed: int, requests: int, gamma: int, first: int = 0, answer_tokens: ArrayLike | None = None
    ) -> tuple[FloatArray, NDArray[np.int64]]:
        """Rates by state [rows, S, gamma] and the row of each of the requests `first`, `first` + 1, …, as in `per_request`.

        Where stretches differ in acceptance, requests with luck of their own stand at the middles of 2,000 equal shares of the population, so that
        there are no more rows than that; which of them request r has is a pure function of (seed, r).
        """
        if (not self._varies and self.repetition is None) or self.alike:
            rates, row_of = self.per_request(seed, requests, gamma, first, answer_tokens)
            return self.by_state(rates), row_of
        place = (self._quantiles(seed, requests, first, answer_tokens) * len(_POPULATION)).astype(np.int64)
        return self._population_rates(gamma), np.minimum(place, len(_POPULATION) - 1)

    def by_state(self, rates: FloatArray) -> FloatArray:
        """Rates by state [rows, S, γ] of requests with these rates [rows, γ]; 0 where nothing is proposed."""
        if self.matches_in_stretches:
            return np.asarray(rates[:, None, :] * self.stretch_proposes[:, None])
        states = state_rates(rates, self.stretch_icc) if self._varies else rates[:, None, :]
        if self.repetition is None:
            return states
        loop = np.full((len(rates), 1, rates.shape[1]), self.repetition.conditional)
        return np.concatenate([states, loop], axis=1)

    def _population_rates(self, gamma: int) -> FloatArray:
        # Rates at the quantiles of the population, one where all are alike [quantiles, S, γ].
        return self.by_state(self.at_quantile(np.array([0.5]) if self.alike else _POPULATION, gamma))

    def _accepted_and_shares(self, gamma: int) -> tuple[FloatArray, FloatArray]:
        # P(x kept | quantile, state) [quantiles, S, γ + 1], and the share of the rounds that has each state [quantiles, S].
        # Without stretches of matches, rounds without one dilute the distribution by which a round leaves its stretch.
        accepted = accepted_shares(self._population_rates(gamma))
        if len(self.stretch_weights) == 1:
            return accepted, np.ones(accepted.shape[:2])
        found = 1.0 if self.matches_in_stretches else self.match_probability
        diluted = found * accepted
        diluted[..., 0] += 1.0 - found
        if self.repetition is None:
            return accepted, round_shares(diluted, self.stretch_weights, float(self.stretch_tokens[0]))
        tokens = diluted @ np.arange(1.0, gamma + 2.0)
        weights = self.stretch_weights[:-1] / self.stretch_weights[:-1].sum()
        ordinary = round_shares(diluted[:, :-1], weights, self._ordinary_tokens)
        inside = self._repeated_share(len(tokens))
        rounds_inside = inside / tokens[:, -1]
        rounds_outside = (1.0 - inside) / (ordinary * tokens[:, :-1]).sum(axis=1)
        loop = (rounds_inside / (rounds_inside + rounds_outside))[:, None]
        return accepted, np.concatenate([(1.0 - loop) * ordinary, loop], axis=1)

    def _repeated_share(self, quantiles: int) -> FloatArray:
        # Share of the output tokens within loops, by quantile of the population of requests [quantiles].
        lengths, loops = self.answer_length, self.repetition
        if loops is None:
            return np.zeros(quantiles)
        if lengths is None:
            return np.full(quantiles, loops.tokens / (loops.every_tokens + loops.tokens))
        answers = lengths.token_weighted(None if self.alike else _POPULATION)
        return np.asarray(repeated_share(loops.every_tokens, loops.tokens, answers).mean(axis=-1))

    def match_share(self, gamma: int) -> float:
        """Share of the rounds in which anything is proposed, averaged over requests."""
        if not self.matches_in_stretches:
            return self.match_probability
        return float(self._accepted_and_shares(gamma)[1][:, 0].mean())

    def expected_tokens(self, gamma: int) -> float:
        """Mean tokens per round of a request drawn at random, τ(γ); rounds without a match yield 1. Of a long answer, but where
        `answer_length` says how long answers are: that decides how far they get into loops."""
        return float(np.mean(self._tokens_by_request(gamma)))

    def live_tokens(self, gamma: int) -> float:
        """Mean tokens per round of a batch that is kept full, 1 / E[1/τ_r] over requests r of equal answers.

        Requests with bad luck take more rounds for their answers, so more of a batch's rounds are theirs, and the mean over
        rounds lies below `expected_tokens`, the mean over requests. Renewal argument: E[tokens] / E[rounds] per answer.
        """
        tokens = self._tokens_by_request(gamma)
        if self.answer_length is None or self.alike:
            return float(1.0 / np.mean(1.0 / tokens))
        weights = self.answer_length.weights(_POPULATION)
        return float(weights.sum() / (weights / tokens).sum())

    def _tokens_by_request(self, gamma: int) -> FloatArray:
        # τ_r [quantiles of the population], one where all are alike.
        accepted, shares = self._accepted_and_shares(gamma)
        found = 1.0 if self.matches_in_stretches else self.match_probability
        kept = (accepted @ np.arange(gamma + 1.0) * shares).sum(axis=-1)
        return np.asarray(1.0 + found * kept)

    def length_distribution(self, gamma: int) -> FloatArray:
        """P(x of γ drafts accepted) for x = 0..γ [gamma + 1] in rounds with a match, averaged over requests."""
        accepted, shares = self._accepted_and_shares(gamma)
        proposing = shares * self.stretch_proposes
        return np.asarray((accepted * proposing[..., None]).sum(axis=(0, 1)) / proposing.sum())


@dataclass(frozen=True)
class RecordedAcceptance(Acceptance):
    """A recording as a law. A simulation repeats its rounds one by one (request r those of recorded request r modulo their
    number, from the first one again when they are used up); closed forms take its means, ratios over rounds.

    `rates` are the recording's over all rounds, so that with them τ is exactly the recorded tokens per round.
    """

    recording: Recording = field(kw_only=True)

    @classmethod
    def of(cls, recording: Recording) -> RecordedAcceptance:
        """The law of `recording`."""
        rates = conditional_from_marginal(tuple(recording.pooled_marginal(recording.gamma).tolist()))
        return cls(rates, match_probability=recording.match_probability, recording=recording)

    def conditional(self, gamma: int) -> FloatArray:
        """Conditional rates over all recorded rounds [gamma]. Raises InputError beyond the recorded γ: what a longer draft
        would have met was not recorded, what a shorter one meets was."""
        if gamma > len(self.rates):
            raise InputError("gamma", gamma, f"be at most the {len(self.rates)} drafts per round that were recorded")
        return super().conditional(gamma)

    def per_request(
        self, seed: int, requests: int, gamma: int, first: int = 0, answer_tokens: ArrayLike | None = None
    ) -> tuple[FloatArray, NDArray[np.int64]]:
        """Rates of the recorded requests [rows, gamma], and which of them each request repeats."""
        recording = self._recorded(gamma)
        marginal = recording.marginal(gamma)
        previous = np.concatenate([np.ones((len(marginal), 1)), marginal[:, :-1]], axis=1)
        rates = np.divide(marginal, previous, out=np.zeros_like(marginal), where=previous > 0.0)
        return rates, (first + np.arange(requests, dtype=np.int64)) % len(marginal)

    def live_tokens(self, gamma: int) -> float:
        """Tokens per round over all recorded rounds: the batch was live when they were recorded."""
        return float(1.0 + np.minimum(self._recorded(gamma).rounds[:, 1], gamma).mean())

    def _tokens_by_request(self, gamma: int) -> FloatArray:
        return self._recorded(gamma).tokens(gamma)

    def _recorded(self, gamma: int) -> Recording:
        self.conditional(gamma)  # refuses a γ beyond the recorded one
        return self.recording
