"""The law of acceptance of a tree, for whoever knows chains only.

At each depth j at most one node is accepted, with probability m_j (`Tree.level_products`), so how many drafts a round keeps
is distributed as in a chain with the conditional rates c_j = m_j / m_{j−1}: that is exact, whatever the tree.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simulator.errors import InputError
from simulator.speculation.acceptance import Acceptance, RecordedAcceptance
from simulator.speculation.ranks import RankLaw
from simulator.speculation.tree import Tree

FloatArray = NDArray[np.float64]

_ROWS = 1 << 14
"""Requests whose path products are held in memory at once."""


class TreeYield(Protocol):
    """What a tree, static or made anew each round, yields at given rates of the first candidate."""

    @property
    def depth(self) -> int:
        """Drafts that can be kept at most."""

    def marginal(self, top1: FloatArray) -> FloatArray:
        """m_j, P(at least j drafts kept) [..., depth], where the first candidate's rates are `top1` [..., depth]."""


@dataclass(frozen=True)
class StaticYield:
    """A tree that is the same in every round."""

    tree: Tree
    ranks: RankLaw

    @property
    def depth(self) -> int:
        """Drafts that can be kept at most."""
        return self.tree.depth

    def marginal(self, top1: FloatArray) -> FloatArray:
        """m_j [..., depth], the sums of path products by level."""
        rows = top1.reshape(-1, self.depth)
        marginal: FloatArray = np.empty(rows.shape)
        for at in range(0, len(rows), _ROWS):
            marginal[at : at + _ROWS] = self.tree.level_products(self.ranks.probability(rows[at : at + _ROWS]))
        return np.asarray(marginal.reshape(top1.shape))


def conditional_rates(marginal: FloatArray) -> FloatArray:
    """c_j = m_j / m_{j−1} over the last axis, 0 where nothing reaches depth j − 1."""
    before = np.concatenate([np.ones((*marginal.shape[:-1], 1)), marginal[..., :-1]], axis=-1)
    ratios = np.divide(marginal, before, out=np.zeros(marginal.shape), where=before > 0.0)
    return np.asarray(np.minimum(ratios, 1.0))


@dataclass(frozen=True)
class TreeAcceptance(Acceptance):
    """`base`, the law of the first candidates, seen through a tree: the same requests and stretches with the rates c_j.

    `gamma` of the methods cuts the tree at that depth; deeper than the tree nothing is accepted.
    """

    base: Acceptance = field(kw_only=True)
    through: TreeYield = field(kw_only=True)

    @classmethod
    def of(cls, base: Acceptance, through: TreeYield) -> TreeAcceptance:
        """The law of `through` where first candidates follow `base`. Raises InputError for a recording: what a chain met
        does not tell what other candidates would have."""
        if isinstance(base, RecordedAcceptance):
            raise InputError(
                "acceptance", "replay", "be rates where a tree is drafted: recorded rounds are of one shape"
            )
        rates = conditional_rates(through.marginal(base.conditional(through.depth)))
        copied = {f.name: getattr(base, f.name) for f in fields(Acceptance) if f.name != "rates"}
        return cls(rates=tuple(rates.tolist()), base=base, through=through, **copied)

    def _cut(self, top1: FloatArray, gamma: int) -> FloatArray:
        # Rates of first candidates [..., depth of the tree] → c_j [..., gamma].
        rates = conditional_rates(self.through.marginal(top1))[..., :gamma]
        missing = max(0, gamma - self.through.depth)
        return np.concatenate([rates, np.zeros((*rates.shape[:-1], missing))], axis=-1)

    def conditional(self, gamma: int) -> FloatArray:
        """c_j of a request with the mean rates [gamma]."""
        return self._cut(self.base.conditional(self.through.depth), gamma)

    def at_quantile(self, quantile: FloatArray, gamma: int) -> FloatArray:
        """c_j [requests, gamma] of requests at these quantiles [requests] of the population."""
        return self._cut(self.base.at_quantile(quantile, self.through.depth), gamma)

    def per_request(
        self, seed: int, requests: int, gamma: int, first: int = 0, answer_tokens: ArrayLike | None = None
    ) -> tuple[FloatArray, NDArray[np.int64]]:
        """c_j [rows, gamma] and the row of each of the requests `first`, `first` + 1, …, which have the luck of `base`."""
        top1, row_of = self.base.per_request(seed, requests, self.through.depth, first, answer_tokens)
        return self._cut(top1, gamma), row_of

    def stretch_rates(
        self, seed: int, requests: int, gamma: int, first: int = 0, answer_tokens: ArrayLike | None = None
    ) -> tuple[FloatArray, NDArray[np.int64]]:
        """c_j by state [rows, S, gamma] and the row of each request."""
        top1, row_of = self.base.stretch_rates(seed, requests, self.through.depth, first, answer_tokens)
        return self._proposed(self._cut(top1, gamma)), row_of

    def live_tokens(self, gamma: int) -> float:
        """Mean tokens per round of a batch that is kept full; remembered, since every batch and context asks for it."""
        return _live_tokens(self, gamma)

    def _population_rates(self, gamma: int) -> FloatArray:
        return self._proposed(self._cut(self.base._population_rates(self.through.depth), gamma))

    def _proposed(self, rates: FloatArray) -> FloatArray:
        # A state without a match has no further candidates either.
        return np.asarray(rates * self.stretch_proposes[:, None])


@lru_cache(maxsize=1024)
def _live_tokens(law: TreeAcceptance, gamma: int) -> float:
    return Acceptance.live_tokens(law, gamma)
