"""Which drafted tokens count: greedy, sampling (lossless by rejection and residual), or forced from outside.

Each rule maps one verified batch to a `Verdict` without asking the device for anything: no host synchronisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from simulator.reference_decoder.model import first_argmax
from simulator.reference_decoder.token_tree import Tree


class Proposal(NamedTuple):
    """What a drafter offers for one round."""

    tokens: Tensor
    """[batch, nodes]; the root's is the pending token."""
    tree: Tree
    drafted: Tensor | None = None
    """[batch], rows that found a draft (bool); None: all did."""
    probs: Tensor | None = None
    """[batch, nodes, vocab]: the distribution that each node's children were drawn from, without replacement, in order
    of rank. None: the drafter had no distribution; its tokens are taken as certain choices."""


class Verdict(NamedTuple):
    """What came of it, per row."""

    accepted: Tensor
    """[batch], depth of the deepest accepted node."""
    path: Tensor
    """[batch, depth + 1], the accepted nodes from the root down; beyond `accepted`, each place's own number."""
    token: Tensor
    """[batch], the target's own token that follows them."""


class Forced(Protocol):
    """Decides what counts as accepted while everything is still computed, so that timing is seen at any acceptance."""

    def mask(self, batch: int, tree: Tree, device: torch.device) -> Tensor:
        """[batch, nodes] bool: whether a node is accepted, given that its parent is."""
        ...


class ForcedAlpha:
    """The child of rank r is accepted with probability alpha[r], independently at every node; a number: rank 0 only."""

    def __init__(self, alpha: float | Sequence[float], seed: int = 0) -> None:
        ranks = [alpha] if isinstance(alpha, int | float) else list(alpha)
        if not ranks or min(ranks) < 0.0 or sum(ranks) > 1.0 + 1e-9:
            raise ValueError(
                f"alpha={alpha} must be probabilities with a sum of at most 1: siblings exclude each other"
            )
        self._ranks, self._seed = ranks, seed
        self._generator: torch.Generator | None = None
        self._edges = torch.empty(0)

    def mask(self, batch: int, tree: Tree, device: torch.device) -> Tensor:
        """See `Forced`."""
        if self._generator is None:
            self._generator = torch.Generator(device).manual_seed(self._seed)
            self._edges = torch.tensor([0.0, *self._ranks, 0.0], device=device).cumsum(0)
        t = tree.on(device)
        # One draw per parent decides among all its children. Ranks without a probability get an empty interval.
        draw = torch.rand(batch, tree.nodes, generator=self._generator, device=device)[:, t.parent]
        rank = t.rank.clamp(max=len(self._ranks))
        return (self._edges[rank] <= draw) & (draw < self._edges[rank + 1])


class ForcedScript:
    """Round i accepts script[i][row] nodes down the branch of first ranks; starts again when the script has ended."""

    def __init__(self, script: Sequence[Sequence[int]]) -> None:
        self._script, self._round = script, 0

    def mask(self, batch: int, tree: Tree, device: torch.device) -> Tensor:
        """See `Forced`."""
        counts = torch.tensor(self._script[self._round % len(self._script)], device=device)
        if counts.shape != (batch,):
            raise ValueError(f"script[{self._round % len(self._script)}] must have one number for each of {batch} rows")
        self._round += 1
        t = tree.on(device)
        return (t.rank == 0) & (t.depth <= counts[:, None])


def greedy(logits: Tensor, proposal: Proposal, forced: Tensor | None = None) -> Verdict:
    """Accept what the target would have chosen itself. logits: [batch, nodes, vocab]."""
    tree = proposal.tree.on(logits.device)
    choice = first_argmax(logits)  # [batch, nodes]
    match = choice[:, tree.parent] == proposal.tokens if forced is None else forced.clone()
    if proposal.drafted is not None:
        match &= proposal.drafted[:, None]
    match[:, 0] = True  # the root was accepted in the last round
    whole = (match[:, None, :] | ~tree.visible).all(dim=-1)  # a node counts if it and all its ancestors match
    leaf = first_argmax(torch.where(whole, tree.depth, -1))
    return Verdict(tree.depth[leaf], tree.path[leaf], choice.gather(1, leaf[:, None])[:, 0])


def sampled(
    logits: Tensor,
    proposal: Proposal,
    temperature: float,
    generator: torch.Generator,
    forced: Tensor | None = None,
) -> Verdict:
    """Accept so that the output is distributed as the target's own samples, whatever the drafter proposed.

    A child drawn from q is accepted with probability min(1, p/q); otherwise p becomes the normalised positive part of
    p - q, q loses that child, and the next sibling has its turn (arXiv:2211.17192 §2.3; for trees arXiv:2305.09781
    §4.3, here without replacement). What remains of p in the end is sampled.
    """
    tree = proposal.tree.on(logits.device)
    batch, nodes, _ = logits.shape
    target = distribution(logits, temperature)
    draw = torch.rand(batch, nodes, generator=generator, device=logits.device)
    leaf = torch.zeros(batch, dtype=torch.long, device=logits.device)
    p = target[:, 0]
    q = p if proposal.probs is None else proposal.probs[:, 0]
    for node, parent in enumerate(proposal.tree.parents[1:], 1):
        here = leaf == parent
        if proposal.drafted is not None:
            here = here & proposal.drafted
        token = proposal.tokens[:, node : node + 1]  # [batch, 1]
        certain = torch.zeros_like(p).scatter_(1, token, 1.0)
        offer = certain if proposal.probs is None else q
        p_token, q_token = p.gather(1, token)[:, 0], offer.gather(1, token)[:, 0]
        wins = (draw[:, node] * q_token < p_token) & (q_token > 0.0) if forced is None else forced[:, node]
        accept, reject = here & wins, here & ~wins
        residual = _normalised(torch.where(q_token[:, None] > 0.0, (p - offer).clamp(min=0.0), p), p)
        p = torch.where(accept[:, None], target[:, node], torch.where(reject[:, None], residual, p))
        if proposal.probs is not None:
            rest = _normalised(q * (1.0 - certain), torch.zeros_like(q))
            q = torch.where(accept[:, None], proposal.probs[:, node], torch.where(reject[:, None], rest, q))
        leaf = torch.where(accept, node, leaf)
    return Verdict(tree.depth[leaf], tree.path[leaf], draw_tokens(p, 1, generator)[:, 0])


def distribution(logits: Tensor, temperature: float) -> Tensor:
    """softmax(logits / temperature), in single precision."""
    return torch.softmax(logits.float() / temperature, dim=-1)


def draw_tokens(probs: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` tokens without replacement, in the order drawn: [..., vocab] → [..., count].

    An exponential race (the first of rates p to ring), because torch.multinomial may synchronise with the host.
    """
    race = probs / torch.empty_like(probs).exponential_(generator=generator)
    return first_argmax(race)[..., None] if count == 1 else race.topk(count, dim=-1).indices


def _normalised(weights: Tensor, otherwise: Tensor) -> Tensor:
    """Rows with a sum of 1; rows of zeros, which only rounding makes, become those of `otherwise`."""
    total = weights.sum(dim=-1, keepdim=True)
    return torch.where(total > 0.0, weights / total, otherwise)
