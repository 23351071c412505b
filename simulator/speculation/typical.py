"""One number → a law by depth: users who know an acceptance length, or the rate their engine logs, and nothing else.

How acceptance runs with depth is taken from public measurements of the same kind of drafter (``workloads/acceptance``). A
list of conditional rates is moved as a whole, by one shift of all its log-odds, until it gives the user's number exactly:

    a_j(s) = 1 / (1 + exp(−(logit a_j + s))),     1 + Σ_{j≤K} Π_{i≤j} a_i(s) = AL

which keeps a falling list falling and a rising one rising. At the γ = K of the number all lists agree; at other γ they fan
out, and how far is the doubt that one number leaves. A length is one over rounds, as engines count: tokens per verification
of rounds that had a draft. A *marginal* rate is accepted / drafted, AL = 1 + rate·K.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING

import numpy as np
from pydantic import model_validator
from scipy.optimize import brentq

from simulator import catalog
from simulator.errors import InputError
from simulator.hardware import Source
from simulator.records import Record, read_record
from simulator.speculation.acceptance import (
    MAX_GAMMA,
    Acceptance,
    AcceptanceConfig,
    FloatArray,
    conditional_from_marginal,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

_LIKE = {"early-exit": "model", "sparse-kv": "model", "lookahead": "ngram"}
"""Kinds without public rates by depth, and the kind they are taken to resemble: layers of the target draft like a model."""
_FAR = 40.0
"""Log-odds beyond which a rate is 0 or 1 in double precision."""
_BEYOND_PUBLIC = 1.5
"""How far the two outer laws depart from the typical one, in terms of the public lists that depart most. Of n lists drawn alike
a further one is outside with probability 2 / (n + 1), a third to a half here, so that the doubt must reach beyond them."""
_INSIDE = 1e-3
"""Published rates of 0 or 1 stand for small samples; their log-odds are taken this far inside."""


class PublishedRates(Record):
    """Acceptance by depth of one drafter, as somebody measured it."""

    title: str
    """Target, drafter and text."""
    conditional: tuple[float, ...] | None = None
    """Conditional rates by depth."""
    marginal: tuple[float, ...] | None = None
    """Marginal rates by depth; one of the two."""
    source: Source
    """Where they were read."""

    @model_validator(mode="after")
    def _check(self) -> PublishedRates:
        AcceptanceConfig(conditional=self.conditional, marginal=self.marginal)
        return self

    @property
    def rates(self) -> tuple[float, ...]:
        """Conditional rates by depth."""
        return conditional_from_marginal(self.marginal) if self.marginal else self.conditional or ()


class TypicalShapes(Record):
    """The layout of ``workloads/acceptance/*.yaml``: public rates of one kind of drafter."""

    name: str
    """Kind of drafter; equals the file's name."""
    title: str
    """Name for people."""
    shapes: tuple[PublishedRates, ...]
    """At least two; between the one that falls most with depth and the one that falls least lies the doubt."""


@dataclass(frozen=True)
class TypicalLaw:
    """Three laws that all give the user's number at its own γ."""

    config: AcceptanceConfig
    """The typical one: the mean of the public lists' log-odds."""
    low: AcceptanceConfig
    """That with least acceptance at depths beyond the number's γ."""
    high: AcceptanceConfig
    """That with most beyond."""
    source: str
    """The number, its γ, and whose shape was used."""

    @property
    def configs(self) -> tuple[AcceptanceConfig, ...]:
        """Low, typical, high. A figure's doubt is from the least to the greatest of what the three give."""
        return self.low, self.config, self.high


def law_from_length(
    length: float, gamma: int, kind: str | None = None, *, like: AcceptanceConfig | None = None
) -> TypicalLaw:
    """The laws with `length` tokens per verification (the target's own included) at `gamma` drafts.

    `kind`: kind of drafter; unknown, every depth is taken to be alike and the doubt to be that of all kinds. `like`: whose
    request effect, stretches and match probability the laws have (the match probability counts on top: the length is of
    rounds with a draft). Raises InputError for a length that γ drafts cannot have.
    """
    _check_gamma(gamma)
    if not 1.0 <= length <= gamma + 1.0:
        raise InputError("length", length, f"be between 1 and the {gamma + 1} tokens that {gamma} drafts can give")
    return _laws(length, gamma, kind, like, f"acceptance length {length:g} at γ = {gamma}")


def law_from_rate(
    rate: float, gamma: int, kind: str | None = None, *, like: AcceptanceConfig | None = None
) -> TypicalLaw:
    """Likewise from the *marginal* rate that engines log, accepted / drafted tokens: AL = 1 + rate·γ."""
    _check_gamma(gamma)
    if not 0.0 <= rate <= 1.0:
        raise InputError("rate", rate, "be between 0 and 1: accepted over drafted tokens")
    length = min(1.0 + rate * gamma, gamma + 1.0)
    return _laws(length, gamma, kind, like, f"{rate:.3g} of the drafts accepted at γ = {gamma}")


def law_from_alpha(
    alpha: float, gamma: int, kind: str | None = None, *, like: AcceptanceConfig | None = None
) -> TypicalLaw:
    """Likewise from a *conditional* rate that stands for all depths up to `gamma`: AL = (1 − α^(γ+1)) / (1 − α)."""
    _check_gamma(gamma)
    if not 0.0 <= alpha <= 1.0:
        raise InputError("alpha", alpha, "be between 0 and 1")
    length = float(sum(alpha**j for j in range(gamma + 1)))
    return _laws(min(length, gamma + 1.0), gamma, kind, like, f"conditional acceptance {alpha:g} up to γ = {gamma}")


@lru_cache(maxsize=64)
def law_from_config(config: AcceptanceConfig, kind: str | None = None) -> TypicalLaw | None:
    """The laws of a configuration that holds one number and its γ; None for any other."""
    if config.at_gamma is None:
        return None
    if config.length is not None:
        return law_from_length(config.length, config.at_gamma, kind, like=config)
    if config.rate is not None:
        return law_from_rate(config.rate, config.at_gamma, kind, like=config)
    return law_from_alpha(config.alpha or 0.0, config.at_gamma, kind, like=config)


def acceptance_interval(config: AcceptanceConfig, kind: str | None = None) -> tuple[Acceptance, ...] | None:
    """Low, typical and high law where `config` holds one number, which leaves a doubt; else None."""
    laws = law_from_config(config, kind)
    return tuple(c.law() for c in laws.configs) if laws else None


def doubt_sentence(config: AcceptanceConfig, kind: str | None, gamma: int) -> str | None:
    """What one number leaves open of a round of `gamma` drafts, for a report; None where more is known than one number."""
    laws = law_from_config(config, kind)
    if laws is None:
        return None
    tokens = [c.law().live_tokens(gamma) for c in laws.configs]
    if gamma == config.at_gamma:
        return f"Acceptance is known by one number ({laws.source}), which fixes the tokens per round at this γ."
    return (
        f"Acceptance is known by one number ({laws.source}): at γ = {gamma} it leaves {min(tokens):.2f} to {max(tokens):.2f} "
        f"tokens per round open, {tokens[1]:.2f} are taken."
    )


def shape_names() -> list[str]:
    """Kinds of drafter with public rates."""
    return catalog.names("acceptance")


@cache
def typical_shapes(kind: str) -> TypicalShapes:
    """Public rates of a kind of drafter, or of that it is taken to resemble. Raises UnknownName."""
    return read_record(TypicalShapes, catalog.locate("acceptance", _LIKE.get(kind, kind)))


def _known(kind: str | None) -> bool:
    return kind is not None and _LIKE.get(kind, kind) in shape_names()


def _check_gamma(gamma: int) -> None:
    if not 1 <= gamma <= MAX_GAMMA:
        raise InputError(
            "at_gamma", gamma, f"be between 1 and {MAX_GAMMA}, the drafts at which the number was measured"
        )


def _laws(length: float, gamma: int, kind: str | None, like: AcceptanceConfig | None, what: str) -> TypicalLaw:
    if _known(kind):
        files: Iterable[TypicalShapes] = (typical_shapes(str(kind)),)
        source = f"{what}, with the typical shape of {next(iter(files)).title}"
    else:
        files = [typical_shapes(name) for name in shape_names()]
        source = f"{what}, every depth alike"
    published = [np.asarray(shape.rates) for file in files for shape in file.shapes]
    depth = max(len(rates) for rates in published)
    odds = np.array([_log_odds(rates, depth) for rates in published])
    base = like if like is not None else AcceptanceConfig(alpha=0.0)

    def solved(log_odds: FloatArray) -> tuple[FloatArray, AcceptanceConfig]:
        return _moved(log_odds, lambda rates: _with(base, rates, source), length, gamma)

    moved = [solved(row)[0] for row in odds]
    middle, typical = solved(np.mean(moved, axis=0) if _known(kind) else np.zeros(depth))
    beyond = min(MAX_GAMMA, 2 * gamma + 2)
    # Further lists will lie outside of the few that are public.
    outer = [solved(middle + _BEYOND_PUBLIC * (row - middle))[1] for row in moved]
    ranked = sorted([typical, *outer], key=lambda c: float(np.cumprod(c.law().conditional(beyond)).sum()))
    return TypicalLaw(typical, ranked[0], ranked[-1], source)


def _log_odds(rates: FloatArray, depth: int) -> FloatArray:
    inside = np.clip(rates, _INSIDE, 1.0 - _INSIDE)
    odds = np.log(inside / (1.0 - inside))
    return np.concatenate([odds, np.full(depth - len(odds), odds[-1])])


def _with(base: AcceptanceConfig, rates: tuple[float, ...], source: str) -> AcceptanceConfig:
    one_number = {"alpha": None, "length": None, "rate": None, "at_gamma": None}
    return base.model_copy(update={**one_number, "conditional": rates, "source": source})


def _moved(
    log_odds: FloatArray, config: Callable[[tuple[float, ...]], AcceptanceConfig], length: float, gamma: int
) -> tuple[FloatArray, AcceptanceConfig]:
    """`log_odds` moved so that the law has `length` tokens per round at `gamma`, and that law's configuration."""

    def at(shift: float) -> AcceptanceConfig:
        return config(tuple((1.0 / (1.0 + np.exp(-(log_odds + shift)))).tolist()))

    def excess(shift: float) -> float:
        # Rounds without a match are not among those that the number counts.
        return at(shift).model_copy(update={"match_probability": 1.0}).law().live_tokens(gamma) - length

    bound = _FAR + float(np.abs(log_odds).max())
    if excess(-bound) >= 0.0:
        return log_odds - bound, config((0.0,))
    if excess(bound) <= 0.0:
        return log_odds + bound, config((1.0,))
    low, high = -bound, bound
    if config((0.0,)).request_icc > 0.0 or config((0.0,)).stretch_icc > 0.0:
        # Unlike requests take longer to average. They need rates a little above those of requests that are all alike.
        alike = _moved(log_odds, lambda rates: AcceptanceConfig(conditional=rates), length, gamma)[0] - log_odds
        near = float(alike[0])
        low, high = (near - 0.5 if excess(near - 0.5) < 0 else low, near + 2.0 if excess(near + 2.0) > 0 else high)
    shift = float(brentq(excess, low, high, xtol=1e-12, rtol=1e-14))
    return log_odds + shift, at(shift)
