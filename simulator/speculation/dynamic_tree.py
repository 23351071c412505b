"""Trees that each round makes from the drafter's confidence (EAGLE-2, arXiv:2406.16858, §4).

Each level's `top_k` most probable nodes are extended by their `top_k` best candidates each, and of all candidates the n with
the most probable paths are verified, where a static tree takes the same positions in every round. What that gains depends on
how much the confidence differs from token to token, which the rates alone do not tell. So at every node we draw the
confidence in the first candidate around the mean rate a of its depth, take it for the probability of acceptance (EAGLE-2's
drafters are calibrated, its §3.2), and give the other candidates their shares of the rest. The first candidate is never less
probable than the second, hence confidence lies between c = s_1 / (1 + s_1) and 1: c + (1 − c)·Beta(κμ, κ(1 − μ)) with
μ = (a − c) / (1 − c) and κ = 1/ρ − 1. All mean rates stay what they were. ρ = 0: the same confidence everywhere, and the best
static tree is the best; ρ = 1: the drafter is either sure, or has no favourite.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError
from simulator.randomness import uniform_array
from simulator.speculation.beta_table import beta_quantiles
from simulator.speculation.ranks import RankLaw
from simulator.speculation.shape import DraftShape

FloatArray = NDArray[np.float64]

TOP_K = 10
"""Nodes extended per level and candidates of each in EAGLE-2's code."""
CONFIDENCE_SPREAD = 0.5
"""ρ where nobody measured it: an estimate, halfway between a drafter that tells nothing and one that tells all it can."""
_ROUNDS = 2048
_SEED, _STREAM = 20240624, 1 << 41
_SHIFTS = (-5.0, -3.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0, 5.0)
"""Log-odds by which a request's rates differ from the mean ones, at which the expectation is computed; between them it is
interpolated."""
_CLOSEST = 1e-6


@dataclass(frozen=True)
class DynamicYield:
    """The expectation over rounds of trees of at most `nodes` nodes and `depth` levels."""

    ranks: RankLaw
    nodes: int
    depth: int
    top_k: int = TOP_K
    confidence_spread: float = CONFIDENCE_SPREAD

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.depth < 1:
            raise InputError("nodes", self.nodes, "be at least 1, with a depth of at least 1")
        if not 0.0 < self.confidence_spread < 1.0:
            raise InputError("confidence_spread", self.confidence_spread, "be above 0 and below 1")

    @property
    def _width(self) -> int:
        # Nodes that are extended, and candidates of each: at the first level there are no more nodes than candidates.
        return min(self.top_k, 1 + len(self.ranks.shares[0]))

    def shape(self, passes: int | None = None) -> DraftShape:
        """What a round drafts and verifies; `passes` as in `Tree.shape`."""
        width = self._width
        nodes = min(self.nodes, width + (self.depth - 1) * width * width)
        tokens = (1, *((width,) * (self.depth - 1))) if passes is None else (1,) * passes
        return DraftShape(nodes, min(self.depth, nodes), tokens)

    def mean_tokens(self) -> float:
        """τ at the mean rates, 1 + Σ m_j, without what requests of other luck would keep."""
        return 1.0 + float(_rounds(self, self.ranks.rates(self.depth)).sum())

    def marginal(self, top1: FloatArray) -> FloatArray:
        """m_j, P(at least j drafts kept) [..., depth], of requests whose first candidates have the rates `top1` [..., depth].

        Exact but for the drawing (2,048 rounds) at the mean rates; a request better or worse than the mean at every depth
        is taken for one whose log-odds differ from it by the same at all depths.
        """
        means, marginals = _expectations(self)
        mean = top1.mean(axis=-1)
        return np.stack([np.interp(mean, means, marginals[:, j]) for j in range(self.depth)], axis=-1)


@lru_cache(maxsize=32)
def _expectations(law: DynamicYield) -> tuple[FloatArray, FloatArray]:
    """Mean rates of the first candidate [points], rising from 0 to 1, and m_j there [points, depth]."""
    rates = np.clip(law.ranks.rates(law.depth), _CLOSEST, 1.0 - _CLOSEST)
    odds = np.log(rates / (1.0 - rates))
    shifted = [1.0 / (1.0 + np.exp(-(odds + shift))) for shift in _SHIFTS]
    means = np.array([0.0, *(row.mean() for row in shifted), 1.0])
    rows = [np.zeros(law.depth), *(_rounds(law, row) for row in shifted), np.ones(law.depth)]
    return means, np.stack(rows)


def _rounds(law: DynamicYield, top1: FloatArray) -> FloatArray:
    """m_j [depth] over drawn rounds where first candidates have the mean rates `top1` [depth]."""
    width = law._width
    rounds = np.arange(_ROUNDS, dtype=np.int64)[:, None]
    paths = np.ones((_ROUNDS, 1))  # of the nodes to extend
    levels = []  # path products of all candidates of each level [rounds, candidates]
    for depth in range(law.depth):
        slots = np.arange(paths.shape[1], dtype=np.int64)[None, :]
        luck = uniform_array(_SEED, rounds, _STREAM + depth, slots)
        if depth == 0:
            luck = (rounds + luck) / _ROUNDS  # one draw from each equal share: the root's matters most
        shares = law.ranks.shares[min(depth, len(law.ranks.shares) - 1)][: width - 1]
        confidence = _confidence(luck, float(top1[depth]), max(shares, default=0.0), law.confidence_spread)
        further = law.ranks.further(confidence, depth + 1)[..., : width - 1]
        probability = np.concatenate([confidence[..., None], further], axis=-1)
        candidates = (paths[..., None] * probability).reshape(_ROUNDS, -1)
        levels.append(candidates)
        paths = -np.sort(-candidates, axis=1)[:, :width]
    everything = np.concatenate(levels, axis=1)
    nodes = min(law.nodes, everything.shape[1])
    verified = np.argpartition(-everything, nodes - 1, axis=1)[:, :nodes]
    level_of = np.repeat(np.arange(law.depth), [level.shape[1] for level in levels])
    kept = np.take_along_axis(everything, verified, axis=1).ravel()
    return np.bincount(level_of[verified].ravel(), kept, minlength=law.depth) / _ROUNDS


def _confidence(luck: FloatArray, rate: float, share: float, spread: float) -> FloatArray:
    # Confidence in first candidates with the mean `rate`, by their luck; at least that in the second at its `share`.
    least = min(share / (1.0 + share), rate)
    mean = (rate - least) / (1.0 - least)
    if not _CLOSEST < mean < 1.0 - _CLOSEST:
        return np.full_like(luck, rate)
    kappa = 1.0 / spread - 1.0
    return np.asarray(least + (1.0 - least) * np.interp(luck, *beta_quantiles(kappa * mean, kappa * (1.0 - mean))))
