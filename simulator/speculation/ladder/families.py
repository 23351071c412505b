"""Laws with unknowns: which numbers they have beyond the rates by depth, how rounds are drawn from them, and their configuration.

Unknowns are logarithms or inverse hyperbolic tangents, so that equal steps matter alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator.randomness import uniform_array
from simulator.speculation.acceptance import AcceptanceConfig
from simulator.speculation.ladder.fit import Parameter, from_log_odds
from simulator.speculation.ladder.rounds import FloatArray, Rounds
from simulator.speculation.ladder.sampling import drawn_rounds

_COPIES = 6
"""Times that the recorded answers are drawn for one evaluation of a fit: simulation adds 1 / 6 of the recorded noise's variance."""
_QUANTILES = (np.arange(200) + 0.5) / 200
_LEAST_LOG_STD = 0.05
"""Answers this alike in length say nothing of how luck goes with it."""
_LUCK_STREAM = 1 << 41

_BY_REQUEST = ("mean", "request_mean", "p10", "p90")
_ALONG_TEXT = ("block_variance_ratio", "lag_1", "lag_1_within")


def _log(start: float, low: float, high: float, *more_starts: float) -> Parameter:
    further = tuple(float(np.log(value)) for value in more_starts)
    return Parameter(float(np.log(start)), float(np.log(low)), float(np.log(high)), further)


@dataclass(frozen=True)
class Family:
    """Laws of one kind."""

    moments: tuple[str, ...]
    """Statistics that they are fitted to, beside the rates by depth."""
    further: tuple[str, ...] = ()
    """Names of the unknowns beyond the request effect, as in the configuration."""

    def drawing(self, rounds: Rounds, gamma: int, seed: int) -> Drawing:
        """What draws rounds for the answers of `rounds`."""
        return Drawing(self, rounds, gamma, seed)


REQUESTS = Family(_BY_REQUEST)
STRETCHES = Family((*_BY_REQUEST, *_ALONG_TEXT), ("stretch_icc", "stretch_tokens"))
LOOPS = Family((*_BY_REQUEST, *_ALONG_TEXT), ("every_tokens", "tokens", "conditional"))
MATCHES = Family(
    (*_BY_REQUEST, "proposed", "proposed_lag_1", "block_variance_ratio"), ("match_probability", "match_tokens")
)

_UNKNOWNS = {
    "request_icc": _log(0.05, 1e-3, 0.7),
    "correlation": Parameter(0.4, -1.5, 1.5),
    "stretch_icc": _log(0.05, 1e-3, 0.75),
    "stretch_tokens": _log(30.0, 1.0, 3000.0),
    "every_tokens": _log(1500.0, 100.0, 1e5),
    "tokens": _log(300.0, 20.0, 5000.0, 800.0),
    "conditional": Parameter(4.0, 1.0, 7.0),
    "match_probability": Parameter(0.0, -7.0, 7.0),
    "match_tokens": _log(10.0, 1.0, 3000.0),
}
_ODDS = ("conditional", "match_probability")


class Drawing:
    """Rounds of a family's laws for the recorded answers, copied, always with the same luck."""

    def __init__(self, family: Family, rounds: Rounds, gamma: int, seed: int):
        self.family, self.gamma, self.seed = family, gamma, seed
        self.names = ("request_icc", "correlation", *family.further)
        self.parameters = tuple(_UNKNOWNS[name] for name in self.names)
        self.share = float(np.mean(rounds.drafted > 0))
        self.answers = np.tile(rounds.answer_tokens, _COPIES)
        self.luck = uniform_array(seed, np.arange(len(self.answers)), _LUCK_STREAM, 0)
        logs = np.log(rounds.answer_tokens)
        self.median, self.log_std = float(np.exp(logs.mean())), float(logs.std())

    def settings(self, theta: FloatArray) -> AcceptanceConfig:
        """The law with these unknowns [γ log-odds of the rates by depth, then `parameters`], as a scenario has it."""
        values = self._values(theta)
        fields: dict[str, Any] = {"match_probability": short(self.share)}
        loops = {name: short(values[name]) for name in ("every_tokens", "tokens", "conditional") if name in values}
        if loops:
            fields["repetition"] = loops
        if self.log_std >= _LEAST_LOG_STD:
            fields["answer_length"] = {
                "correlation": short(values["correlation"]),
                "median_tokens": short(self.median),
                "log_std": short(self.log_std),
            }
        plain = ("request_icc", "stretch_icc", "stretch_tokens", "match_probability", "match_tokens")
        fields |= {name: short(values[name]) for name in plain if name in values}
        rates = tuple(short(a) for a in from_log_odds(theta[: self.gamma]).tolist())
        return AcceptanceConfig(conditional=rates, **fields)

    def __call__(self, theta: FloatArray) -> Rounds:
        from scipy.special import betaincinv

        law = self.settings(theta).law()
        rates = from_log_odds(theta[: self.gamma])
        kappa = 1.0 / law.request_icc - 1.0
        own = betaincinv(kappa * rates, kappa * (1.0 - rates), _QUANTILES[:, None])  # [quantiles, γ]
        place = self.luck if law.answer_length is None else law.answer_length.shifted(self.luck, self.answers)
        row_of = np.minimum((place * len(_QUANTILES)).astype(np.int64), len(_QUANTILES) - 1)
        return drawn_rounds(
            law.by_state(own), row_of, self.answers, self.seed, law.stretch_weights, law.stretch_proposes, law.stretch_tokens,
            law.match_probability,
        )  # fmt: skip

    def _values(self, theta: FloatArray) -> dict[str, float]:
        values = {}
        for name, value in zip(self.names, theta[self.gamma :].tolist(), strict=True):
            if name == "correlation":
                values[name] = float(np.tanh(value))
            else:
                values[name] = float(1.0 / (1.0 + np.exp(-value)) if name in _ODDS else np.exp(value))
        return values


def short(value: float) -> float:
    """Five digits: no fit knows more, and a scenario's file reads better."""
    return float(f"{value:.5g}")
