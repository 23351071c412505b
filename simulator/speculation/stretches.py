"""Stretches: text comes in parts that a drafter guesses well and parts that it guesses badly.

Output position 0 begins a stretch, and every later position begins a new one with probability 1/L_s, s the state of the last
position, so that a stretch of state s is L_s tokens long on average. Each draws one of S states, whatever the last one was. A
round belongs to the stretch of the position it starts at, and has that state's rates at all its depths.

Rounds do not see the states as positions do. Where all L_s are one L, a round that yields N tokens ends in the same stretch with
probability q^N, q = 1 − 1/L, and otherwise meets a new draw; so over the rounds of a long answer the state is a Markov chain
whose stationary shares are w_s / (1 − E_s[q^N]), normalised (balance: the rounds that leave s for a new draw are a share w_s of
all that do). L = 1: w_s itself. L → ∞: w_s / τ_s: a state takes rounds in inverse proportion to its tokens per round.

Repetition is a state of its own: models fall into loops, where a drafter guesses nearly everything for hundreds of tokens. An
answer begins outside; at every position the loop begins with probability 1/E and ends with 1/L, so that the share of the first n
positions inside is f(n) = L/(E+L) · (1 − T/n·(1 − e^(−n/T))), T = 1/(1/E + 1/L). Most answers end long before that has settled.
Loops are much longer than rounds, so of the rounds they have f/τ_loop against (1 − f)/τ of the rest.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

STATES = 8
"""States of unlike acceptance within a request, equally frequent: bins of a beta distribution."""
LARGEST_ICC = 0.8
"""Stretches are all good or all bad beyond, which is no text's way, and the beta quantiles cannot be computed any more."""
STRETCH_BEGINS, STRETCH_STATE = 1 << 20, (1 << 20) + 1
"""Last words of the draws ``uniform(seed, request, position, …)`` that say whether a stretch begins at a position, and which
state the stretch that began there has; words from 1 on are draft depths, 0 is a match."""
_NODES = (1.0 - np.cos(np.linspace(0.0, np.pi, 513))) / 2.0  # of a rate from 0 to 1, closer at both ends


@lru_cache(maxsize=64)
def _bin_means(icc: float) -> FloatArray:
    """Mean of each of `STATES` equally probable parts of Beta(κ·a, κ·(1−a)), κ = 1/ICC − 1, at a = `_NODES` [nodes, S].

    E[x; x below the quantile c] = a·I_c(κa + 1, κ(1−a)), with I the regularised incomplete beta function.
    """
    from scipy.special import betainc, betaincinv

    kappa = 1.0 / icc - 1.0
    half = len(_NODES) // 2
    node = _NODES[1 : half + 1, None]
    p, q = kappa * node, kappa * (1.0 - node)
    cuts = betaincinv(p, q, np.arange(1, STATES) / STATES)
    below = np.concatenate([np.zeros_like(node), betainc(p + 1.0, q, cuts), np.ones_like(node)], axis=1)
    low = np.clip(node * STATES * np.diff(below, axis=1), 0.0, 1.0)
    # The upper half by symmetry: quantiles close to 1 have no digits to tell them apart, those close to 0 have.
    table = np.concatenate([np.zeros((1, STATES)), low, 1.0 - low[-2::-1, ::-1], np.ones((1, STATES))])
    table.flags.writeable = False
    return table


def state_rates(rates: FloatArray, icc: float) -> FloatArray:
    """Conditional rates by state [..., S, γ] of requests with these rates [..., γ]; their mean over the states is `rates`.

    A share `icc` of the variance of acceptance within a request lies between its stretches (a little less: within a bin of
    the beta distribution it is lost). A state good at one depth is good at every depth, in the bin of the same rank.
    """
    table = _bin_means(icc)
    return np.stack([np.interp(rates, _NODES, table[:, state]) for state in range(STATES)], axis=-2)


def accepted_shares(rates: FloatArray) -> FloatArray:
    """P(x of γ drafts kept), x = 0..γ [..., γ + 1], under conditional rates [..., γ]."""
    reached = np.concatenate([np.ones((*rates.shape[:-1], 1)), np.cumprod(rates, axis=-1)], axis=-1)
    return np.asarray(reached - np.concatenate([reached[..., 1:], np.zeros((*rates.shape[:-1], 1))], axis=-1))


def round_shares(accepted: FloatArray, weights: FloatArray, stretch_tokens: float) -> FloatArray:
    """Share of the rounds of a long answer that each state has [..., S].

    accepted: P(x drafts kept) by state [..., S, γ + 1]. weights: probability of the states [S]; stretch_tokens: L of them all.
    """
    tokens = np.arange(1, accepted.shape[-1] + 1)
    # 1 − q^N, so that it keeps its digits where q is close to 1; 1 where every position begins a stretch.
    ended = -np.expm1(tokens * np.log1p(-1.0 / stretch_tokens)) if stretch_tokens > 1.0 else np.ones(len(tokens))
    shares = weights / (accepted @ ended)
    return np.asarray(shares / shares.sum(axis=-1, keepdims=True))


def repeated_share(every_tokens: float, tokens: float, answer_tokens: FloatArray) -> FloatArray:
    """f(n): share of the positions of answers of n tokens that lie in a loop, E = `every_tokens`, L = `tokens`."""
    settled = tokens / (every_tokens + tokens)
    relative = answer_tokens * (1.0 / every_tokens + 1.0 / tokens)
    return np.asarray(settled * (1.0 + np.expm1(-relative) / relative))
