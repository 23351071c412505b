"""The tree of so many nodes and levels that keeps most tokens, by dynamic programming (Sequoia, arXiv:2402.12374, §4.1).

W_l(n) is the mean number of tokens kept below a node at depth l that was accepted, with at most n nodes below it. The nodes
are shared out over its candidates: W_l(n) = max Σ_k [x_k > 0]·p_{l+1,k}·(1 + W_{l+1}(x_k − 1)) over x_k with Σ_k x_k ≤ n, one
candidate after the other, and W at the last level is 0. τ(n) = 1 + W_0(n). Unlike Sequoia's, probabilities may differ by depth.

Taking the n most probable paths one by one finds the same trees, as no path is more probable than its beginning (tests
hold both, and all trees of up to seven nodes, against each other).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError
from simulator.speculation.ranks import RankLaw
from simulator.speculation.shape import MAX_NODES
from simulator.speculation.tree import Path, Tree

FloatArray = NDArray[np.float64]

MAX_DEPTH = 64
"""Levels at most; beyond a few, nobody's path products are worth a pass."""


@dataclass(frozen=True)
class OptimalTrees:
    """The best trees of at most `depth` levels, one for each number of nodes."""

    tokens: FloatArray
    """τ of the best tree of at most n nodes [nodes + 1]: 1 for n = 0, never falling."""
    depth: int
    _given: tuple[tuple[NDArray[np.int64], ...], ...]
    """Nodes that go to each candidate and what is below it, by level, rank, and nodes left for it and the ranks after it."""

    def tree(self, nodes: int) -> Tree:
        """The best tree of at most so many nodes; fewer where further ones would never be accepted."""
        if not 1 <= nodes < len(self.tokens):
            raise InputError("nodes", nodes, f"be between 1 and {len(self.tokens) - 1}")
        paths: list[Path] = []
        waiting: list[tuple[Path, int]] = [((), nodes)]
        while waiting:
            path, left = waiting.pop()
            for rank, given in enumerate(self._given[len(path)] if len(path) < self.depth else ()):
                taken = int(given[left])
                if taken:
                    paths.append((*path, rank))
                    waiting.append((paths[-1], taken - 1))
                left -= taken
        if not paths:
            raise InputError("ranks", "(all 0)", "give some candidate a chance where a tree is to be found")
        return Tree.from_paths(paths)


def optimal_trees(ranks: RankLaw, nodes: int, depth: int) -> OptimalTrees:
    """The best trees of up to `nodes` nodes and `depth` levels. Raises InputError."""
    if not 1 <= nodes <= MAX_NODES:
        raise InputError("nodes", nodes, f"be between 1 and {MAX_NODES}")
    if not 1 <= depth <= MAX_DEPTH:
        raise InputError("depth", depth, f"be between 1 and {MAX_DEPTH}")
    depth = min(depth, nodes)
    probability = ranks.table(depth)
    have, take = np.ogrid[: nodes + 1, : nodes + 1]
    rest, possible = np.maximum(have - take, 0), take <= have
    below = np.zeros(nodes + 1)
    levels = []
    for level in reversed(range(depth)):
        best, choices = np.zeros(nodes + 1), []
        for p in probability[level][::-1]:
            child = np.concatenate([[0.0], p * (1.0 + below[:-1])])
            value = np.where(possible, child + best[rest], -np.inf)
            choices.append(np.argmax(value, axis=1))  # the fewest nodes among equals
            best = np.take_along_axis(value, choices[-1][:, None], axis=1)[:, 0]
        levels.append(tuple(choices[::-1]))
        below = best
    return OptimalTrees(1.0 + below, depth, tuple(levels[::-1]))


def tokens_by_depth(ranks: RankLaw, nodes: int, depth: int) -> FloatArray:
    """τ of the best tree of at most n nodes and d levels [nodes + 1, depth + 1]; 1 without nodes or levels."""
    columns = [np.ones(nodes + 1), *(optimal_trees(ranks, nodes, d).tokens for d in range(1, depth + 1))]
    return np.stack(columns, axis=1)
