"""Token trees: which candidates are drafted after which, so that one verification tries several continuations at once.

Node 0, 1, … are drafted tokens; the root, the last token that was accepted, has index −1. A node's *rank* says which of its
parent's candidates it is, 0 the most likely, so that the path of ranks from the root names a node: (0, 0, 1) is the second
candidate after the best candidate after the best candidate, as in the lists that Medusa and EAGLE publish.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError
from simulator.speculation.shape import MAX_NODES, DraftShape

Path = tuple[int, ...]

ROOT = -1
MAX_RANK = 1023
"""No drafter hands out more candidates of one token."""


@dataclass(frozen=True)
class Tree:
    """Drafted tokens in order: parents before their children. Raises InputError where that is no tree."""

    parents: tuple[int, ...]
    """Index of each node's parent, −1 where that is the root."""
    ranks: tuple[int, ...]
    """Which of its parent's candidates each node is, 0 the most likely."""

    def __post_init__(self) -> None:
        nodes = len(self.parents)
        if not 1 <= nodes <= MAX_NODES:
            raise InputError("tree", f"{nodes} nodes", f"have 1 to {MAX_NODES} nodes")
        if len(self.ranks) != nodes:
            raise InputError("ranks", f"{len(self.ranks)} ranks", f"name one rank for each of the {nodes} nodes")
        for node, (parent, rank) in enumerate(zip(self.parents, self.ranks, strict=True)):
            if not ROOT <= parent < nodes:
                raise InputError(f"parents[{node}]", parent, f"be −1 (the root) or one of the nodes 0 to {nodes - 1}")
            if not 0 <= rank <= MAX_RANK:
                raise InputError(f"ranks[{node}]", rank, f"be between 0 and {MAX_RANK}")
        for node, parent in enumerate(self.parents):
            if parent >= node:
                rule = "not be below the node itself" if self._returns(node) else "come before its children"
                raise InputError(f"parents[{node}]", parent, rule + (" (a cycle)" if self._returns(node) else ""))
        seen: dict[tuple[int, int], int] = {}
        for node, key in enumerate(zip(self.parents, self.ranks, strict=True)):
            if key in seen:
                rule = f"differ from that of its sibling, node {seen[key]}"
                raise InputError(f"ranks[{node}]", self.ranks[node], rule)
            seen[key] = node

    def _returns(self, node: int) -> bool:
        # Whether the way up from `node` comes back to it or runs in circles.
        above, steps = self.parents[node], 0
        while above != ROOT and steps <= len(self.parents):
            above, steps = self.parents[above], steps + 1
        return above != ROOT

    @classmethod
    def from_paths(cls, paths: Sequence[Sequence[int]]) -> Tree:
        """The tree whose nodes these paths of ranks name, in any order; level by level here. Raises InputError where a path's
        beginning is missing or a path is given twice."""
        wanted = [tuple(path) for path in paths]
        for path in wanted:
            if not path or not all(isinstance(rank, int) and 0 <= rank <= MAX_RANK for rank in path):
                raise InputError("paths", list(path), f"be lists of at least one rank from 0 to {MAX_RANK}")
        ordered = sorted(set(wanted), key=lambda path: (len(path), path))
        if len(ordered) < len(wanted):
            twice = next(path for i, path in enumerate(wanted) if path in wanted[:i])
            raise InputError("paths", list(twice), "be given once")
        index: dict[Path, int] = {(): ROOT}
        for node, path in enumerate(ordered):
            if path[:-1] not in index:
                raise InputError("paths", list(path), f"have its parent {list(path[:-1])} in the tree")
            index[path] = node
        return cls(tuple(index[path[:-1]] for path in ordered), tuple(path[-1] for path in ordered))

    @classmethod
    def from_branching(cls, branching: Sequence[int]) -> Tree:
        """k_1 children of the root, k_2 of each of those, …; ``(1, 1, 1)`` is a chain. Raises InputError."""
        if not branching or any(children < 1 for children in branching):
            raise InputError(
                "branching", list(branching), "be at least one number of children per level, each at least 1"
            )
        nodes, width = 0, 1
        for children in branching:
            width *= children
            nodes += width
            if nodes > MAX_NODES:  # before the paths are made
                raise InputError("branching", list(branching), f"describe at most {MAX_NODES} nodes")
        level: list[Path] = [()]
        paths: list[Path] = []
        for children in branching:
            level = [(*path, rank) for path in level for rank in range(children)]
            paths += level
        return cls.from_paths(paths)

    @classmethod
    def chain(cls, gamma: int) -> Tree:
        """γ drafts in a row."""
        return cls(tuple(range(ROOT, gamma - 1)), (0,) * gamma)

    @property
    def nodes(self) -> int:
        """Drafted tokens."""
        return len(self.parents)

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Of each node, from 1."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent == ROOT else depths[parent] + 1)
        return tuple(depths)

    @property
    def depth(self) -> int:
        """Drafted tokens that can be accepted at most."""
        return max(self.depths)

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Nodes at depth 1, 2, …"""
        return tuple(self.depths.count(depth) for depth in range(1, self.depth + 1))

    @cached_property
    def paths(self) -> tuple[Path, ...]:
        """Ranks from the root to each node."""
        paths: list[Path] = []
        for parent, rank in zip(self.parents, self.ranks, strict=True):
            paths.append((rank,) if parent == ROOT else (*paths[parent], rank))
        return tuple(paths)

    @property
    def inner_sizes(self) -> tuple[int, ...]:
        """Nodes with children at depth 0 (the root), 1, …, `depth` − 1: the tokens that each pass of a drafter extends."""
        inner = set(self.parents)
        return (1, *(sum(self.depths[n] == d for n in inner if n != ROOT) for d in range(1, self.depth)))

    def ancestor_mask(self) -> NDArray[np.bool_]:
        """Who attends to whom among the root and the nodes [nodes + 1, nodes + 1], the root first: every token to itself and
        to what lies on its path. What came before the root is attended to by all."""
        mask = np.eye(self.nodes + 1, dtype=bool)
        for node, parent in enumerate(self.parents):
            mask[node + 1] |= mask[parent + 1]
        return mask

    def path_products(self, probability: NDArray[np.float64]) -> NDArray[np.float64]:
        """P(all of the path to a node is accepted) for each node [..., nodes].

        probability: of the candidate of each rank at each depth, given that the path so far was accepted [..., depth, rank].
        Depths beyond the last one have the last one's; ranks beyond the last are never accepted.
        """
        levels, ranks = probability.shape[-2:]
        products = np.zeros((*probability.shape[:-2], self.nodes))
        for node, (parent, rank, depth) in enumerate(zip(self.parents, self.ranks, self.depths, strict=True)):
            if rank < ranks:
                above = products[..., parent] if parent != ROOT else 1.0
                products[..., node] = above * probability[..., min(depth, levels) - 1, rank]
        return products

    def level_products(self, probability: NDArray[np.float64]) -> NDArray[np.float64]:
        """m_j = P(a node at depth j is accepted), the sum of its level's `path_products` [..., depth]. At most one node of a
        level is, so that τ = 1 + Σ m_j is the mean of tokens per round (SpecInfer, arXiv:2305.09781, §4)."""
        products, depths = self.path_products(probability), np.array(self.depths)
        return np.stack([products[..., depths == j].sum(axis=-1) for j in range(1, self.depth + 1)], axis=-1)

    def shape(self, passes: int | None = None) -> DraftShape:
        """What a round drafts and verifies. `passes`: of the drafter; left out, one for each level, which extends the nodes
        above that have children (a model, an EAGLE head); 1 where all levels come from one pass (Medusa's heads)."""
        return DraftShape(self.nodes, self.depth, self.inner_sizes if passes is None else (1,) * passes)
