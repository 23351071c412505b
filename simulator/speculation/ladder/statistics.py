"""What matters of rounds to a serving system: their mean, how requests differ, and how long luck lasts within one.

All are functions of sums by request, so that requests can be drawn again (a bootstrap) without their rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from simulator.speculation.ladder.rounds import FloatArray, IntArray, Rounds

BLOCK_STEPS = 32
"""Consecutive steps of one request whose sum's variance tells how long luck lasts."""
LEAST_BLOCKS = 8
"""Fewer blocks say nothing of the variance of their sums."""


@dataclass(frozen=True)
class Sums:
    """Sums over the rounds of each request; every array begins with the requests."""

    steps: FloatArray
    tokens: FloatArray
    squares: FloatArray
    """Σ t²."""
    pairs: FloatArray
    """Of neighbouring rounds (t, t'): how many, Σ t, Σ t', Σ t·t' [requests, 4]."""
    blocks: FloatArray
    """Of whole blocks of 32 rounds from the first one on: how many, Σ B, Σ B² [requests, 3]."""
    kept: FloatArray
    """Rounds known to have kept at least j drafts, j = 1…γ [requests, γ]."""
    refused: FloatArray
    """Rounds that verified a j-th draft, had kept all before it, and refused it [requests, γ]."""
    proposed: FloatArray
    """Rounds with any draft, and of neighbouring rounds how many: both with, first with, second with [requests, 4]."""

    @classmethod
    def of(cls, rounds: Rounds, gamma: int) -> Sums:
        """The sums of `rounds`, drafts counted up to `gamma`."""
        size = len(rounds)
        tokens, squares = np.zeros(size), np.zeros(size)
        pairs, proposed = np.zeros((size, 4)), np.zeros((size, 4))
        kept, refused = np.zeros((size, gamma)), np.zeros((size, gamma))
        _compiled()(rounds.tokens, rounds.drafted, rounds.first, gamma, tokens, squares, pairs, kept, refused, proposed)
        return cls(
            steps=rounds.steps.astype(np.float64), tokens=tokens, squares=squares, pairs=pairs, blocks=_blocks(rounds),
            kept=kept, refused=refused, proposed=proposed,
        )  # fmt: skip

    def drawn(self, requests: IntArray) -> Sums:
        """Those of these requests."""
        return Sums(**{name: getattr(self, name)[requests] for name in self.__dataclass_fields__})


@cache
def _compiled() -> Callable[..., None]:
    # A fit takes thousands of such sums. In whole arrays [rounds, γ] they would be most of its time.
    import numba

    def add(
        t: Any, drafts: Any, first: Any, gamma: int, tokens: Any, squares: Any, pairs: Any, kept: Any, refused: Any, proposed: Any
    ) -> None:  # fmt: skip
        for request in range(len(first) - 1):
            last = first[request + 1] - 1
            for n in range(first[request], last + 1):
                tokens[request] += t[n]
                squares[request] += t[n] * t[n]
                for depth in range(min(t[n] - 1, gamma)):
                    kept[request, depth] += 1
                if drafts[n] > 0:
                    proposed[request, 0] += 1
                if n == last:
                    continue
                if t[n] <= min(drafts[n], gamma):
                    refused[request, t[n] - 1] += 1
                pairs[request, 0] += 1
                pairs[request, 1] += t[n]
                pairs[request, 2] += t[n + 1]
                pairs[request, 3] += t[n] * t[n + 1]
                if drafts[n] > 0 and drafts[n + 1] > 0:
                    proposed[request, 1] += 1
                if drafts[n] > 0:
                    proposed[request, 2] += 1
                if drafts[n + 1] > 0:
                    proposed[request, 3] += 1

    compiled: Any = numba.njit
    kernel: Callable[..., None] = compiled(add)
    return kernel


def _blocks(rounds: Rounds) -> FloatArray:
    running = np.concatenate([[0], np.cumsum(rounds.tokens)])
    whole = rounds.steps // BLOCK_STEPS
    request = np.repeat(np.arange(len(rounds)), whole)
    number = np.arange(len(request)) - np.repeat(np.cumsum(whole) - whole, whole)
    start = rounds.first[request] + number * BLOCK_STEPS
    sums = (running[start + BLOCK_STEPS] - running[start]).astype(np.float64)
    size = len(rounds)
    found = [np.bincount(request, weights=w, minlength=size) for w in (np.ones(len(sums)), sums, sums * sums)]
    return np.stack(found, axis=1)


@dataclass(frozen=True)
class Statistics:
    """Figures of many requests' rounds, from their sums."""

    sums: Sums

    @classmethod
    def of(cls, rounds: Rounds, gamma: int) -> Statistics:
        """The figures of `rounds`."""
        return cls(Sums.of(rounds, gamma))

    @cached_property
    def mean(self) -> float:
        """Tokens per step, over all steps."""
        return float(self.sums.tokens.sum() / self.sums.steps.sum())

    @cached_property
    def by_request(self) -> FloatArray:
        """Tokens per step of each request [requests]."""
        return self.sums.tokens / self.sums.steps

    @cached_property
    def request_mean(self) -> float:
        """Mean over requests of their tokens per step."""
        return float(self.by_request.mean())

    @cached_property
    def p10(self) -> float:
        """Tokens per step that a tenth of the requests stay below."""
        return float(np.quantile(self.by_request, 0.1))

    @cached_property
    def p90(self) -> float:
        """Tokens per step that a tenth of the requests exceed."""
        return float(np.quantile(self.by_request, 0.9))

    @cached_property
    def variance(self) -> float:
        """Variance of a step's tokens, over all steps."""
        return float(self.sums.squares.sum() / self.sums.steps.sum() - self.mean**2)

    @cached_property
    def _variance_within(self) -> float:
        s = self.sums
        return float((s.squares - s.tokens**2 / s.steps).sum() / s.steps.sum())

    @cached_property
    def lag_1(self) -> float:
        """Correlation of neighbouring steps of one request, about the mean of all steps."""
        count, first, second, product = self.sums.pairs.sum(axis=0)
        return _ratio(product - self.mean * (first + second) + count * self.mean**2, count * self.variance)

    @cached_property
    def lag_1_within(self) -> float:
        """The same about each request's own mean: what is left when requests differ. Short requests pull it below 0."""
        count, first, second, product = self.sums.pairs.T
        own = self.by_request
        above = product - own * (first + second) + count * own**2
        return _ratio(float(above.sum()), float(count.sum()) * self._variance_within)

    @cached_property
    def block_variance_ratio(self) -> float:
        """Variance of the sum of 32 consecutive steps of one request over 32 times that of a step: 1 if independent."""
        count, total, square = self.sums.blocks.sum(axis=0)
        if count < LEAST_BLOCKS:
            return float("nan")
        return _ratio(square / count - (total / count) ** 2, BLOCK_STEPS * self.variance)

    @cached_property
    def block_variance_ratio_within(self) -> float:
        """The same about each request's own mean."""
        count, total, square = self.sums.blocks.T
        if count.sum() < LEAST_BLOCKS:
            return float("nan")
        own = BLOCK_STEPS * self.by_request
        above = (square - 2.0 * own * total + count * own**2).sum() / count.sum()
        return _ratio(float(above), BLOCK_STEPS * self._variance_within)

    @cached_property
    def conditional(self) -> FloatArray:
        """Share of the j-th drafts kept where those before were, over all rounds, j = 1…γ [γ]; NaN where none got so far."""
        kept, refused = self.sums.kept.sum(axis=0), self.sums.refused.sum(axis=0)
        reached = kept + refused
        return np.asarray(np.divide(kept, reached, out=np.full(len(kept), np.nan), where=reached > 0))

    @cached_property
    def proposed(self) -> float:
        """Share of the steps with any draft."""
        return float(self.sums.proposed[:, 0].sum() / self.sums.steps.sum())

    @cached_property
    def proposed_lag_1(self) -> float:
        """Correlation of "has a draft" between neighbouring steps of one request."""
        _, both, first, second = self.sums.proposed.sum(axis=0)
        count = self.sums.pairs[:, 0].sum()
        p = self.proposed
        return _ratio(both - p * (first + second) + count * p * p, count * p * (1.0 - p))


def _ratio(above: float, below: float) -> float:
    return float(above / below) if below > 0.0 else 0.0


def token_shares(rounds: Rounds, gamma: int) -> FloatArray:
    """Share of the steps that yielded 1…γ + 1 tokens [γ + 1]."""
    return np.bincount(np.minimum(rounds.tokens, gamma + 1) - 1, minlength=gamma + 1) / len(rounds.tokens)


def autocorrelation(rounds: Rounds, lags: IntArray, *, within: bool) -> FloatArray:
    """Correlation of steps of one request that lie `lags` apart [lags], about each request's own mean or that of all."""
    mean = rounds.tokens.mean()
    if within:
        own = np.add.reduceat(rounds.tokens.astype(np.float64), rounds.first[:-1]) / rounds.steps
        centred = rounds.tokens - own[rounds.request_of]
    else:
        centred = rounds.tokens - mean
    variance = float((centred**2).mean())
    found = np.full(len(lags), np.nan)
    for place, lag in enumerate(lags):
        same = rounds.request_of[lag:] == rounds.request_of[:-lag]
        if same.any() and variance > 0.0:
            found[place] = (centred[lag:] * centred[:-lag])[same].mean() / variance
    return found
