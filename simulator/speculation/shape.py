"""The shape of a round: what is drafted and verified for each sequence, whichever drafter made it."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.errors import InputError

MAX_GAMMA = 64
"""Longest chain anyone drafts; guards tables against typing errors."""
MAX_NODES = 512
"""Largest tree anyone verifies; guards tables against typing errors."""


@dataclass(frozen=True)
class DraftShape:
    """Tokens of one sequence in one speculative round.

    A chain of γ drafts by a model is ``DraftShape(γ, γ, (1,) * γ)``; a tree of 60 nodes and depth 6 whose levels beyond the
    first draft ten nodes at a time ``DraftShape(60, 6, (1, 10, 10, 10, 10, 10))``; γ tokens looked up, ``DraftShape(γ, γ, ())``;
    plain decoding ``DraftShape(0, 0, ())``. Raises InputError for what cannot be.
    """

    nodes: int
    """Drafted tokens that the target verifies beside the one it would have computed anyway; KV slots needed ahead."""
    depth: int
    """Drafted tokens that it can accept at most: `nodes` in a chain."""
    pass_tokens: tuple[int, ...]
    """Tokens whose logits each pass of the drafter computes, per sequence, pass after pass. The first pass also reads whatever
    is new to the drafter, so its entry is 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.nodes <= MAX_NODES:
            raise InputError("nodes", self.nodes, f"be between 0 and {MAX_NODES}")
        if not min(1, self.nodes) <= self.depth <= self.nodes:
            raise InputError(
                "depth", self.depth, f"be between {min(1, self.nodes)} and the {self.nodes} drafted tokens"
            )
        if any(tokens < 1 for tokens in self.pass_tokens) or self.pass_tokens[:1] not in ((), (1,)):
            raise InputError(
                "pass_tokens", list(self.pass_tokens), "begin with 1 and have at least 1 token in each pass"
            )

    @property
    def passes(self) -> int:
        """Passes of the drafter per round."""
        return len(self.pass_tokens)

    @property
    def is_chain(self) -> bool:
        """Whether every draft follows the one before."""
        return self.nodes == self.depth


def chain(gamma: int, passes: int | None = None) -> DraftShape:
    """γ drafts in a row, each from a pass of its own unless `passes` says how many there are."""
    return DraftShape(gamma, gamma, (1,) * (gamma if passes is None else passes))


PLAIN = DraftShape(0, 0, ())
"""Nothing is drafted."""
