"""How the experts of a model are spread over GPUs, and how many of them a batch wakes up.

Expert parallelism as vLLM serves it (``--enable-expert-parallel`` with sequence-parallel experts): the ranks of a tensor-parallel
group, which all hold every token after attention, take equal shares of the tokens, dispatch each token to the GPUs of its
experts, get the results back (two all-to-alls), and gather the tokens again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from simulator.architecture import Decoder, Moe
from simulator.errors import InputError

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class ExpertPlacement:
    """Where the experts are and how tokens choose among them; the default is one group that shares every matrix."""

    ep: int = 1
    """GPUs over which whole experts are spread; 1: each expert's matrices are split over the tensor-parallel group. More than
    the group's: attention is data parallel, ep/tp groups step together and each brings as many tokens as this one."""
    skew: float = 1.0
    """Tokens on the busiest GPU over their mean over GPUs; all others wait for it."""
    exponent: float = 0.0
    """Zipf exponent of the experts' popularity, the i-th being chosen ∝ i^−exponent; 0: all alike."""

    def check(self, decoder: Decoder, tp: int) -> None:
        """Raises InputError unless the experts of `decoder` can be spread so over groups of `tp`."""
        moes = [kind.mlp for kind in decoder.layer_kinds if isinstance(kind.mlp, Moe)]
        if self.ep < 1:
            raise InputError("ep", self.ep, "be at least 1")
        if self.ep > 1 and not moes:
            raise InputError("ep", self.ep, f"be 1, for {decoder.name} has no experts", suggestion="1")
        if self.ep > 1 and self.ep % tp:
            raise InputError(
                "ep", self.ep, f"be 1 or a multiple of tp={tp}", suggestion=str(max(1, self.ep // tp) * tp)
            )
        fewest = min((moe.experts for moe in moes), default=1)
        if self.ep > fewest:
            raise InputError("ep", self.ep, f"be at most the {fewest} experts of {decoder.name}")
        if not 1.0 <= self.skew <= self.ep:
            raise InputError("expert_skew", self.skew, f"be between 1 and ep={self.ep}, where one GPU has all tokens")
        if not 0.0 <= self.exponent <= 10.0:
            raise InputError("expert_exponent", self.exponent, "be between 0 and 10")

    def on_one(self, moe: Moe) -> int:
        """Routed experts that one GPU stores: ⌈E/ep⌉."""
        return -(-moe.experts // self.ep)

    def touched(self, tokens: FloatArray, moe: Moe) -> FloatArray:
        """Expected experts with work on the busiest GPU when `tokens` of all groups together are routed.

        Σ over its experts of 1 − (1 − p_i)^T, p_i = chance that a token visits expert i, `skew` times as high there.
        """
        if self.exponent == 0.0:
            chance = min(1.0, self.skew * moe.experts_per_token / moe.experts)
            return self.on_one(moe) * (1.0 - (1.0 - chance) ** np.asarray(tokens, dtype=float))
        chances = np.minimum(1.0, self.skew * chances_of(moe.experts, moe.experts_per_token, self.exponent))
        idle = np.zeros(np.shape(tokens))
        for chance in chances:  # popular and rare experts are on every GPU alike
            idle += (1.0 - chance) ** np.asarray(tokens, dtype=float)
        return self.on_one(moe) / moe.experts * (moe.experts - idle)

    def rows(self, tokens: FloatArray, moe: Moe) -> FloatArray:
        """Tokens times experts visited on the busiest GPU: T·k·⌈E/ep⌉/E·skew."""
        share = self.on_one(moe) / moe.experts * self.skew
        return np.asarray(tokens, dtype=float) * moe.experts_per_token * share


SPLIT_EVENLY = ExpertPlacement()
"""Every expert's matrices are split over the tensor-parallel group; uniform routing."""


@lru_cache(maxsize=64)
def chances_of(experts: int, per_token: int, exponent: float) -> FloatArray:
    """Chance that a token visits each expert, popular ones first: min(1, c·i^−exponent) with c such that they add up to k."""
    weights = np.arange(1.0, experts + 1.0) ** -exponent
    certain = 0  # so popular that every token visits them
    while True:
        scale = (per_token - certain) / weights[certain:].sum()
        more = int(np.count_nonzero(scale * weights[certain:] > 1.0))
        if more == 0:
            break
        certain += more
    chances = np.concatenate([np.ones(certain), scale * weights[certain:]])
    chances.setflags(write=False)
    return chances
