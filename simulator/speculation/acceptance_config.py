"""What a user says about a drafter's acceptance, checked: the numbers from which `simulator.speculation.acceptance` makes a law."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import model_validator

from simulator.errors import InputError
from simulator.records import Record
from simulator.speculation.recording import Replay
from simulator.speculation.shape import MAX_GAMMA
from simulator.speculation.stretches import LARGEST_ICC

if TYPE_CHECKING:
    from simulator.speculation.acceptance import Acceptance

LARGEST_REQUEST_ICC = 0.99
"""Beyond it every request has all of its drafts accepted or none, and the beta quantiles cannot be computed any more."""
MAX_STRETCH_TOKENS = 1e9
"""Longer stretches than any answer; beyond, their ends are lost in rounding."""
LEAST_EVERY_TOKENS = 20.0
"""Loops that begin sooner are no exception but the text."""


class AnswerLength(Record):
    """How the luck of a request goes with the length of its answer.

    A request's place in the population of requests is Φ(ρ·z + √(1 − ρ²)·ε), z = (ln n − ln n₅₀) / σ, for an answer of n tokens
    and ε standard normal: the population stays as it is where answers are log-normal with this median and σ.
    """

    correlation: float
    """ρ, of normal scores of luck and length: 0 independent, above 0 where long answers are drafted better."""
    median_tokens: float
    """n₅₀, the median length of the answers that ρ was found on."""
    log_std: float
    """σ, the standard deviation of the natural logarithm of their lengths."""

    @model_validator(mode="after")
    def _check(self) -> AnswerLength:
        if not -1.0 < self.correlation < 1.0:
            raise InputError("correlation", self.correlation, "be above -1 and below 1")
        if not 1.0 <= self.median_tokens <= 1e9:
            raise InputError("median_tokens", self.median_tokens, "be at least 1 output token")
        if not 0.01 <= self.log_std <= 10.0:
            raise InputError("log_std", self.log_std, "be between 0.01 and 10, of the natural logarithm of the length")
        return self

    def shifted(self, quantile: NDArray[np.float64], answer_tokens: ArrayLike) -> NDArray[np.float64]:
        """Places in the population of requests that were at `quantile`, once their `answer_tokens` are known [requests]."""
        from scipy.special import ndtr, ndtri

        tokens = np.maximum(np.asarray(answer_tokens, dtype=np.float64), 1.0)
        z = (np.log(tokens) - np.log(self.median_tokens)) / self.log_std
        own = ndtri(np.clip(quantile, 2.0**-54, 1.0 - 2.0**-53))
        return np.asarray(ndtr(self.correlation * z + np.sqrt(1.0 - self.correlation**2) * own))

    def token_weighted(self, quantile: NDArray[np.float64] | None) -> NDArray[np.float64]:
        """Lengths of the answers of requests at these places, equally many tokens each [quantiles, 32]; None: of all, one row.

        ln n is normal about ρ·z_u with variance 1 − ρ², in units of σ; counting tokens moves its mean up by its variance.
        """
        from scipy.special import ndtri

        evenly = ndtri((np.arange(32) + 0.5) / 32)
        rho, middle = (0.0, np.zeros(1)) if quantile is None else (self.correlation, self.correlation * ndtri(quantile))
        spread = self.log_std * np.sqrt(1.0 - rho**2)
        logs = self.log_std * middle[:, None] + spread * (evenly + spread)
        return np.asarray(np.maximum(self.median_tokens * np.exp(logs), 1.0))

    def weights(self, quantile: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean answer length of requests at these places in the population, over that of all; log-normal lengths."""
        from scipy.special import ndtri

        slope = self.correlation * self.log_std
        return np.asarray(np.exp(slope * ndtri(quantile) - slope**2 / 2.0))


class Repetition(Record):
    """Text that repeats itself, where nearly every draft is kept: it needs a state of its own, long and rare."""

    every_tokens: float
    """Mean number of output tokens until a loop begins, where there is none."""
    tokens: float
    """Mean length of a loop in output tokens."""
    conditional: float
    """Conditional rate at every depth within a loop."""

    @model_validator(mode="after")
    def _check(self) -> Repetition:
        if not LEAST_EVERY_TOKENS <= self.every_tokens <= MAX_STRETCH_TOKENS:
            rule = f"be between {LEAST_EVERY_TOKENS:g} and {MAX_STRETCH_TOKENS:g} output tokens"
            raise InputError("every_tokens", self.every_tokens, rule)
        if not 1.0 <= self.tokens <= MAX_STRETCH_TOKENS:
            raise InputError("tokens", self.tokens, f"be between 1 and {MAX_STRETCH_TOKENS:g} output tokens")
        if not 0.0 <= self.conditional <= 1.0:
            raise InputError("conditional", self.conditional, "be between 0 and 1")
        return self


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
    repetition: Repetition | None = None
    """Loops, in which text repeats itself; left out, there are none."""
    answer_length: AnswerLength | None = None
    """How the luck of a request goes with the length of its answer; left out, they are independent."""
    source: str = ""
    """Where the numbers come from."""
    dataset: str = ""
    """The text that they were measured on, and how it was decoded: rates of different texts do not compare."""

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
            "repetition": None, "answer_length": None,
        }  # fmt: skip
        for name, neutral in neutral_values.items():
            if self.replay is not None and getattr(self, name) != neutral:
                raise InputError(name, getattr(self, name), "be left out with replay, whose rounds show it themselves")
        for name in ("alpha", "match_probability"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise InputError(name, value, "be between 0 and 1")
        if not 0.0 <= self.request_icc <= LARGEST_REQUEST_ICC:
            raise InputError("request_icc", self.request_icc, f"be between 0 and {LARGEST_REQUEST_ICC:g}")
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
        if self.repetition is not None:
            if self.match_tokens is not None and self.match_probability < 1.0:
                raise InputError(
                    "repetition", "(given)", "be left out with match_tokens: loops are where matches go on"
                )
            if self.stretch_icc > 0.0 and (self.stretch_tokens or 0.0) > self.repetition.every_tokens / 2.0:
                rule = f"be at most half of the {self.repetition.every_tokens:g} tokens between loops"
                raise InputError("stretch_tokens", self.stretch_tokens, rule)
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
        from simulator.speculation.acceptance import Acceptance, RecordedAcceptance, conditional_from_marginal

        if self.at_gamma is not None:
            from simulator.speculation.typical import law_from_config

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
            rates, self.request_icc, self.match_probability, self.stretch_icc, self.stretch_tokens, self.match_tokens,
            self.answer_length, self.repetition,
        )  # fmt: skip
