"""How often the second, third, … candidate is the right one where the first is not.

A tree pays for further candidates of a token, so it needs more than the acceptance rate a of the first: p_k, the probability
that the candidate of rank k is accepted given that the path so far was; Σ_k p_k ≤ 1. We keep p_k = (1 − a)·s_k, with s_k the
*share* of the first candidate's misses that candidate k catches. A request that the drafter guesses badly has another a and
the same shares, so that its further ranks grow by (1 − a_r)/(1 − a), which keeps their means over requests; but none
becomes more probable than the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError

FloatArray = NDArray[np.float64]

TOP_RANKS = 10
"""Candidates per token that drafters with trees look at (EAGLE's and Medusa's top-k)."""
_SHARE, _SHARE_SLOPE, _FALL, _FALL_SLOPE = 0.039, 0.386, 0.593, 0.893
_ROUNDING = 1e-9


def typical_shares(top1: FloatArray, candidates: int = TOP_RANKS) -> FloatArray:
    """s_k of ranks k = 1, 2, …, for drafters of which only the first candidate's rate a = `top1` [...] is known
    [..., candidates − 1].

    s_k(a) = (0.039 + 0.386·a)·k^−(0.593 + 0.893·a), and no rank more probable than the one before it. Least squares on
    log s_k of 60 published rates: top-1 to top-5 accuracy of Medusa-1's five heads on Vicuna 7B, 13B and 33B (a from 0.12 to
    0.60; Medusa repository, assets/medusa_acc.csv, 2023-08), to 8 % per rank and 3.5 % in the top-5 rate. A power law in the
    rank as Sequoia finds (arXiv:2402.12374, §4.1). Above a = 0.6, and beyond the fifth candidate, it is an extrapolation.
    """
    a = np.asarray(top1, dtype=float)[..., None]
    rank = np.arange(1, candidates)
    shares = (_SHARE + _SHARE_SLOPE * a) * rank ** -(_FALL + _FALL_SLOPE * a)
    misses = np.maximum(1.0 - a, 1e-12)
    return np.asarray(np.minimum(shares, a / misses))


@dataclass(frozen=True)
class RankLaw:
    """Probabilities of candidates by depth and rank; beyond the last depth the last one's hold. Raises InputError."""

    top1: tuple[float, ...]
    """Of the first candidate by depth: the conditional acceptance rate of a chain."""
    shares: tuple[tuple[float, ...], ...]
    """Of the first candidate's misses that each further candidate catches, by depth."""

    def __post_init__(self) -> None:
        if not self.top1 or len(self.top1) != len(self.shares):
            raise InputError("ranks", f"{len(self.shares)} depths", "have a depth at least")

    @classmethod
    def typical(cls, top1: Sequence[float], candidates: int = TOP_RANKS) -> RankLaw:
        """From the acceptance rates of a chain by depth, with `typical_shares`."""
        shares = typical_shares(np.asarray(top1, dtype=float), candidates)
        return cls(tuple(float(a) for a in top1), tuple(tuple(row) for row in shares.tolist()))

    @classmethod
    def measured(cls, probability: Sequence[Sequence[float]]) -> RankLaw:
        """From the measured probabilities of candidates by depth and rank (not sums over ranks)."""
        if not probability or not all(len(row) for row in probability):
            raise InputError("ranks", "(empty)", "give at least one probability at every depth")
        for row in probability:
            if not all(0.0 <= p <= 1.0 for p in row):
                raise InputError("ranks", list(row), "be probabilities between 0 and 1")
            if sum(row) > 1.0 + _ROUNDING:
                rule = "add up to at most 1 at each depth, as one candidate at most is right (are these top-k rates?)"
                raise InputError("ranks", list(row), rule)
        widest = max(len(row) for row in probability)
        shares = [
            tuple(min(1.0, p / (1.0 - row[0])) if row[0] < 1.0 else 0.0 for p in row[1:]) + (0.0,) * (widest - len(row))
            for row in probability
        ]
        return cls(tuple(float(row[0]) for row in probability), tuple(shares))

    def rates(self, depth: int) -> FloatArray:
        """`top1` at depths 1 … `depth` [depth]."""
        return np.array([self.top1[min(j, len(self.top1) - 1)] for j in range(depth)])

    def further(self, top1: FloatArray, depth: int) -> FloatArray:
        """p of the candidates after the first at `depth`, counted from 1, where the first has the rates `top1` [...]
        [..., rank]: (1 − a)·s_k, and at most a, as the drafter ranks them by probability (more, where more was measured)."""
        row = min(depth, len(self.top1)) - 1
        mean, shares = self.top1[row], np.array(self.shares[row])
        further = (1.0 - top1[..., None]) * shares
        if mean < _ROUNDING:  # nothing to rank by
            return np.asarray(further)
        return np.asarray(np.minimum(further, top1[..., None] * np.maximum(1.0, (1.0 - mean) * shares / mean)))

    def probability(self, top1: FloatArray) -> FloatArray:
        """p of every candidate [..., depth, rank] where the first has the rates `top1` [..., depth]."""
        rows = [self.further(top1[..., j], j + 1) for j in range(top1.shape[-1])]
        return np.concatenate([top1[..., None], np.stack(rows, axis=-2)], axis=-1)

    def table(self, depth: int) -> FloatArray:
        """p of every candidate at the mean rates [depth, rank]."""
        return self.probability(self.rates(depth))
