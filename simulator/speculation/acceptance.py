"""Laws of acceptance: how many of γ drafted tokens the target keeps.

Two rates that must never mix. *Conditional*: a_j = P(token j accepted | the j−1 before it were). *Marginal*: the share
of drafted position-j tokens that end up accepted, Π_{i≤j} a_i, which is what engines log per position.
A chain of γ drafts yields τ = 1 + Σ_j Π_{i≤j} a_i tokens per round; with a_j = α this is (1−α^(γ+1))/(1−α)
(Leviathan et al., arXiv:2211.17192, eq. 1).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from simulator.errors import InputError
from simulator.randomness import uniform_array
from simulator.records import Record
from simulator.speculation.beta_table import beta_quantiles
from simulator.speculation.recording import Recording, Replay
from simulator.speculation.stretches import LARGEST_ICC, STATES, accepted_shares, round_shares, state_rates

FloatArray = NDArray[np.float64]

MAX_GAMMA = 64
"""Longest chain anyone drafts; guards tables against typing errors."""
MAX_STRETCH_TOKENS = 1e9
"""Longer stretches than any answer; beyond, their ends are lost in rounding."""
_SMALLEST_ICC = 1e-9
"""Below it requests differ by less than 0.002 %, and the beta quantiles cannot be computed any more."""
_SMALLEST_RATE = 1e-6
"""Closer to 0 or 1 luck makes no difference, and the beta quantiles cannot be computed either."""
_EFFECT_STREAM = (1 << 40) + 5  # beside the streams of `simulator.randomness`
# Quantiles at which the population of requests is averaged: midpoints of equal shares.
_POPULATION = (np.arange(2000) + 0.5) / 2000


class AcceptanceConfig(Record):
    """What a user knows about a drafter's acceptance; exactly one of `alpha`, `conditional`, `marginal`, `length`, `rate`,
    `replay`."""

    alpha: float | None = None
    """Conditional acceptance rate, the same at every depth."""
    conditional: tuple[float, ...] | None = None
    """Conditional rate by depth; beyond its end the last entry holds."""
    marginal: tuple[float, ...] | None = None
    """Accepted / drafted by position, as engines log it; falls with depth by definition."""
    length: float | None = None
    """One number only: mean tokens per verification, the target's own included, of rounds with `at_gamma` drafts."""
    rate: float | None = None
    """One number only: the marginal rate that engines log over all positions, accepted / drafted at `at_gamma` drafts."""
    at_gamma: int | None = None
    """Drafts per round at which `length` or `rate` was measured, or up to which `alpha` holds: the rates by depth are then
    those of the drafter's typical shape (`simulator.speculation.typical`)."""
    replay: Replay | None = None
    """Recorded rounds, repeated as they were: a path, or a mapping that also says which of a file's recordings."""
    request_icc: float = 0.0
    """Intraclass correlation of acceptance within a request: 0 when all requests are alike. Real logs show 0.08–0.16."""
    stretch_icc: float = 0.0
    """Share of the variance of acceptance within a request that lies between stretches of its text: 0 where a request's
    luck is the same all along. Needs `stretch_tokens`."""
    stretch_tokens: float | None = None
    """Mean length of such a stretch in output tokens; each position begins a new one with probability 1 / stretch_tokens."""
    match_probability: float = 1.0
    """Share of rounds in which the drafter finds anything to propose (n-gram look-up); 1 for a model. With `match_tokens` the
    share of output positions: rounds without a match are shorter, so more of them are."""
    match_tokens: float | None = None
    """Matches and their absence come in stretches of this mean length in output tokens, each drawn anew, so that two
    neighbours may be alike; left out, every round finds a match or not by itself."""
    source: str = ""
    """Where the numbers come from."""

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, data: Any) -> Any:
        if isinstance(data, bool):
            return data
        if isinstance(data, int | float):
            return {"alpha": data}
        if isinstance(data, dict) and isinstance(data.get("replay"), str):
            return {**data, "replay": {"path": data["replay"]}}
        return {"conditional": data} if isinstance(data, list | tuple) else data

    @model_validator(mode="after")
    def _check(self) -> AcceptanceConfig:
        kinds = ("alpha", "conditional", "marginal", "length", "rate", "replay")
        given = [n for n in kinds if getattr(self, n) is not None]
        if len(given) != 1:
            raise InputError("acceptance", given or "(absent)", f"give exactly one of {', '.join(kinds)}")
        self._check_one_number()
        neutral_values = {
            "request_icc": 0.0, "stretch_icc": 0.0, "stretch_tokens": None, "match_probability": 1.0, "match_tokens": None,
        }  # fmt: skip
        for name, neutral in neutral_values.items():
            if self.replay is not None and getattr(self, name) != neutral:
                raise InputError(name, getattr(self, name), "be left out with replay, whose rounds show it themselves")
        for name in ("alpha", "match_probability"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise InputError(name, value, "be between 0 and 1")
        if not 0.0 <= self.request_icc < 1.0:
            raise InputError("request_icc", self.request_icc, "be at least 0 and below 1")
        if not 0.0 <= self.stretch_icc <= LARGEST_ICC:
            raise InputError("stretch_icc", self.stretch_icc, f"be between 0 and {LARGEST_ICC:g}")
        for name in ("stretch_tokens", "match_tokens"):
            value = getattr(self, name)
            if value is not None and not 1.0 <= value <= MAX_STRETCH_TOKENS:
                raise InputError(name, value, f"be between 1 and {MAX_STRETCH_TOKENS:g} output tokens")
        if self.stretch_icc > 0.0 and self.stretch_tokens is None:
            raise InputError("stretch_tokens", "(absent)", "be given with stretch_icc: the mean length of a stretch")
        if self.stretch_icc > 0.0 and self.match_tokens is not None and self.match_probability < 1.0:
            rule = "be left out with match_tokens: stretches are of acceptance or of matches, not of both"
            raise InputError("stretch_icc", self.stretch_icc, rule)
        for name in ("conditional", "marginal"):
            rates = getattr(self, name)
            if rates is None:
                continue
            if not 1 <= len(rates) <= MAX_GAMMA:
                raise InputError(name, f"{len(rates)} entries", f"have 1 to {MAX_GAMMA} entries")
            if not all(0.0 <= r <= 1.0 for r in rates):
                raise InputError(name, list(rates), "be between 0 and 1 at every depth")
        if self.marginal is not None and any(b > a for a, b in zip(self.marginal, self.marginal[1:], strict=False)):
            raise InputError("marginal", list(self.marginal), "not rise with depth (are these conditional rates?)")
        return self

    def _check_one_number(self) -> None:
        most = self.at_gamma
        if most is None:
            if self.length is not None or self.rate is not None:
                name = "length" if self.length is not None else "rate"
                raise InputError("at_gamma", "(absent)", f"be given with {name}: the drafts at which it was measured")
            return
        if not 1 <= most <= MAX_GAMMA:
            raise InputError("at_gamma", most, f"be between 1 and {MAX_GAMMA}")
        if self.length is None and self.rate is None and self.alpha is None:
            raise InputError("at_gamma", most, "be given with length, rate or alpha only")
        if self.length is not None and not 1.0 <= self.length <= most + 1.0:
            rule = f"be between 1 and the {most + 1} tokens that {most} drafts can give"
            raise InputError("length", self.length, rule)
        if self.rate is not None and not 0.0 <= self.rate <= 1.0:
            raise InputError("rate", self.rate, "be between 0 and 1: accepted over drafted tokens")

    def law(self, base: Path | None = None, kind: str | None = None) -> Acceptance:
        """The law these numbers describe. `base`: folder from which a recording's relative path is tried first. `kind`: kind of
        drafter, whose typical shape completes one number.

        Raises InputError for a recording that cannot be read.
        """
        if self.at_gamma is not None:
            from simulator.speculation.typical import law_from_config  # which builds on this module

            laws = law_from_config(self, kind)
            if laws is not None:
                return laws.config.law()
        if self.replay is not None:
            return RecordedAcceptance.of(self.replay.load(base))
        if self.alpha is not None:
            rates: tuple[float, ...] = (self.alpha,)
        elif self.conditional is not None:
            rates = self.conditional
        else:
            rates = conditional_from_marginal(self.marginal or ())
        return Acceptance(
            rates, self.request_icc, self.match_probability, self.stretch_icc, self.stretch_tokens, self.match_tokens
        )


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
        return np.full(states, 1.0 / states)

    @property
    def stretch_tokens(self) -> float:
        """Mean length of a stretch in output tokens, at least 1; infinite where there is one state."""
        tokens = self.match_tokens if self.matches_in_stretches else self.mean_stretch_tokens if self._varies else None
        return float("inf") if tokens is None else tokens

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

    def per_request(self, seed: int, requests: int, gamma: int, first: int = 0) -> tuple[FloatArray, NDArray[np.int64]]:
        """Rates [rows, gamma] and the row of each of the requests `first`, `first` + 1, …; the draw of request r is a pure
        function of (seed, r)."""
        index = np.arange(requests, dtype=np.int64)
        if self.alike:
            return self.conditional(gamma)[None, :], np.zeros(requests, dtype=np.int64)
        return self.at_quantile(uniform_array(seed, first + index, _EFFECT_STREAM, 0), gamma), index

    def stretch_rates(
        self, seed: int, requests: int, gamma: int, first: int = 0
    ) -> tuple[FloatArray, NDArray[np.int64]]:
        """Rates by state [rows, S, gamma] and the row of each of the requests `first`, `first` + 1, …

        Where stretches differ in acceptance, requests stand at the middles of 2,000 equal shares of the population, so that
        there are no more rows than that; which of them request r has is a pure function of (seed, r).
        """
        if not self._varies or self.alike:
            rates, row_of = self.per_request(seed, requests, gamma, first)
            return self._by_state(rates), row_of
        index = first + np.arange(requests, dtype=np.int64)
        row_of = (uniform_array(seed, index, _EFFECT_STREAM, 0) * len(_POPULATION)).astype(np.int64)
        return self._population_rates(gamma), row_of

    def _by_state(self, rates: FloatArray) -> FloatArray:
        # [rows, γ] → [rows, S, γ]; 0 where nothing is proposed.
        if self._varies:
            return state_rates(rates, self.stretch_icc)
        return np.asarray(rates[:, None, :] * self.stretch_proposes[:, None])

    def _population_rates(self, gamma: int) -> FloatArray:
        # Rates at the quantiles of the population, one where all are alike [quantiles, S, γ].
        return self._by_state(self.at_quantile(np.array([0.5]) if self.alike else _POPULATION, gamma))

    def _accepted_and_shares(self, gamma: int) -> tuple[FloatArray, FloatArray]:
        # P(x kept | quantile, state) [quantiles, S, γ + 1], and the share of the rounds that has each state [quantiles, S].
        # Without stretches of matches, rounds without one dilute the distribution by which a round leaves its stretch.
        accepted = accepted_shares(self._population_rates(gamma))
        if len(self.stretch_weights) == 1:
            return accepted, np.ones(accepted.shape[:2])
        found = 1.0 if self.matches_in_stretches else self.match_probability
        diluted = found * accepted
        diluted[..., 0] += 1.0 - found
        return accepted, round_shares(diluted, self.stretch_weights, self.stretch_tokens)

    def match_share(self, gamma: int) -> float:
        """Share of the rounds in which anything is proposed, averaged over requests."""
        if not self.matches_in_stretches:
            return self.match_probability
        return float(self._accepted_and_shares(gamma)[1][:, 0].mean())

    def expected_tokens(self, gamma: int) -> float:
        """Mean tokens per round of a request drawn at random, τ(γ), in a long answer; rounds without a match yield 1."""
        return float(np.mean(self._tokens_by_request(gamma)))

    def live_tokens(self, gamma: int) -> float:
        """Mean tokens per round of a batch that is kept full, 1 / E[1/τ_r] over requests r of equal answers.

        Requests with bad luck take more rounds for their answers, so more of a batch's rounds are theirs, and the mean over
        rounds lies below `expected_tokens`, the mean over requests. Renewal argument: E[tokens] / E[rounds] per answer.
        """
        return float(1.0 / np.mean(1.0 / self._tokens_by_request(gamma)))

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

    def per_request(self, seed: int, requests: int, gamma: int, first: int = 0) -> tuple[FloatArray, NDArray[np.int64]]:
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
