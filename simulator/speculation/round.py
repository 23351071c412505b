"""One draft-verify round: what it costs, how many tokens it yields, what it wastes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from simulator.cost.forward import Batch, ForwardCost
from simulator.engine import Engine
from simulator.speculation.acceptance import Acceptance


@dataclass(frozen=True)
class RoundCost:
    """A round of `sequences` equal sequences with γ drafts each, seconds on one tensor-parallel group."""

    sequences: int
    gamma: int
    verify_s: float
    draft_s: float
    """The drafter's passes without host time."""
    host_s: float
    tokens_per_sequence: float
    """τ: tokens that reach each user per round, averaged over the rounds of a full batch (`Acceptance.live_tokens`)."""
    drafted_per_sequence: float
    """γ, times the share of rounds that find a draft at all."""

    @property
    def seconds(self) -> float:
        """The whole round."""
        return self.verify_s + self.draft_s + self.host_s

    @property
    def tpot_s(self) -> float:
        """Mean time per output token of one sequence, a ratio of means."""
        return self.seconds / self.tokens_per_sequence

    @property
    def tokens_per_s(self) -> float:
        """Tokens of all sequences per second."""
        return self.sequences * self.tokens_per_sequence / self.seconds

    @property
    def wasted_tokens_per_sequence(self) -> float:
        """Drafted tokens per round that do not reach the user."""
        return self.drafted_per_sequence - (self.tokens_per_sequence - 1.0)


def round_cost(
    target: ForwardCost,
    engine: Engine,
    *,
    sequences: int,
    context_tokens: int,
    gamma: int = 0,
    acceptance: Acceptance | None = None,
    draft: ForwardCost | None = None,
) -> RoundCost:
    """Cost of a round (γ = 0: of a plain decode step).

    Verification passes B·(γ+1) tokens through the target. Of γ draft passes the first takes the τ tokens that the last
    round left behind, the others one token per sequence (DESIGN §4). Without `draft` the drafts are looked up (n-gram):
    only the share of sequences with a match is verified at full length.
    """
    tau = acceptance.live_tokens(gamma) if acceptance and gamma else 1.0
    match = acceptance.match_probability if acceptance and gamma else 1.0
    # Ragged verification: with a match γ + 1 tokens, without one a single token. A mean between two whole numbers of
    # matches is their mixture, so that a batch of 1 with a match in 40 % of its rounds pays for those 40 %.
    fewer = math.floor(sequences * match)
    share = sequences * match - fewer
    verify_s = sum(
        weight * _verify_s(target, sequences, matched, context_tokens, gamma)
        for matched, weight in ((fewer, 1.0 - share), (fewer + 1, share))
        if weight > 0.0
    )
    draft_s = 0.0
    if draft is not None and gamma:
        read = gamma + 1.0 if engine.settings.draft_batch == "padded" else tau
        caught_up = np.array([sequences * read, float(sequences)])
        linear, head = draft.linear(caught_up), float(draft.head(np.array([float(sequences)]))[0])
        first = float(linear[0]) + head + draft.attention((1,) * sequences, (context_tokens,) * sequences)
        draft_s = first
        if gamma > 1:
            further = (
                float(linear[1]) + head + draft.attention((1,) * sequences, (context_tokens + gamma // 2,) * sequences)
            )
            draft_s += (gamma - 1) * further
    host_s = engine.host_s(
        sequences, gamma if draft is not None else 0, speculating=gamma > 0, ngram=gamma > 0 and draft is None,
        gpu_s=verify_s + draft_s,
    )  # fmt: skip
    host_s += engine.launch_gap_s(sequences, gamma + 1, target.decoder.layers, verify_s)
    if draft is not None and gamma:
        host_s += gamma * engine.launch_gap_s(sequences, 1, draft.decoder.layers, draft_s / gamma)
    return RoundCost(sequences, gamma, verify_s, draft_s, host_s, tau, gamma * match)


def _verify_s(target: ForwardCost, sequences: int, matched: int, context_tokens: int, gamma: int) -> float:
    parts = target.micro_batches(sequences)  # of a pipeline, whose largest part sets the pace
    sequences, matched = -(-sequences // parts), -(-matched // parts)
    new = (gamma + 1,) * matched + (1,) * (sequences - matched)
    return target.seconds(Batch(new, (context_tokens,) * sequences, sum(new)))
