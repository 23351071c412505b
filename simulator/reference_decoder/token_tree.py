"""Tree: the shape of a draft. A chain is a tree without branches; a plain decode step is a tree of its root alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor


class TreeTensors(NamedTuple):
    """A tree on a device."""

    parent: Tensor
    """[nodes]; the root is its own parent."""
    depth: Tensor
    """[nodes]"""
    rank: Tensor
    """[nodes], place among siblings."""
    visible: Tensor
    """[nodes, nodes] bool: row i marks i and its ancestors."""
    path: Tensor
    """[nodes, depth + 1]: nodes from the root down to i, then each place's own number (a move onto itself)."""


@dataclass(frozen=True)
class Tree:
    """Nodes in order of depth; node 0, the root, is the row's pending token, the others are drafted.

    Siblings stand in order of rank: the drafter's best guess first.
    """

    parents: tuple[int, ...]
    """parents[0] is -1."""

    def __post_init__(self) -> None:
        """Refuse what is no tree in order of depth."""
        p = self.parents
        if not p or p[0] != -1 or any(not 0 <= parent < node for node, parent in enumerate(p[1:], 1)):
            raise ValueError(f"parents={p} must begin with -1 and then name earlier nodes")
        if list(p) != sorted(p):
            raise ValueError(f"parents={p} must not decrease: nodes stand in order of depth, siblings side by side")

    @staticmethod
    def chain(gamma: int) -> Tree:
        """`gamma` drafted tokens, one after the other."""
        return Tree(tuple(range(-1, gamma)))

    @staticmethod
    def branching(widths: Sequence[int]) -> Tree:
        """Every node of depth i has widths[i] children."""
        parents, level = [-1], [0]
        for width in widths:
            first = len(parents)
            parents += [node for node in level for _ in range(width)]
            level = list(range(first, len(parents)))
        return Tree(tuple(parents))

    @property
    def nodes(self) -> int:
        """Tokens that are verified: the root and all drafts."""
        return len(self.parents)

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Depth of each node; 0 for the root."""
        depths = [0]
        for parent in self.parents[1:]:
            depths.append(depths[parent] + 1)
        return tuple(depths)

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        """Place of each node among its siblings."""
        return tuple(i for _, siblings in groupby(self.parents) for i, _ in enumerate(siblings))

    @property
    def depth(self) -> int:
        """Most tokens that can be accepted."""
        return self.depths[-1]

    @property
    def is_chain(self) -> bool:
        """No branches: slots are positions, and what is accepted already lies where it belongs."""
        return self.depth == self.nodes - 1

    def level(self, depth: int) -> range:
        """The nodes of one depth, which are neighbours."""
        return range(self.depths.index(depth), self.nodes - self.depths[::-1].index(depth))

    def children(self, node: int) -> list[int]:
        """In order of rank."""
        return [child for child, parent in enumerate(self.parents) if parent == node]

    def path_to(self, node: int) -> list[int]:
        """From the root to `node`, both included."""
        path = [node]
        while path[-1] != 0:
            path.append(self.parents[path[-1]])
        return path[::-1]

    def on(self, device: torch.device) -> TreeTensors:
        """The tree's tensors, made once per device."""
        return _tensors(self, device)


@cache
def _tensors(tree: Tree, device: torch.device) -> TreeTensors:
    paths = [tree.path_to(node) for node in range(tree.nodes)]
    visible = torch.zeros(tree.nodes, tree.nodes, dtype=torch.bool)
    for node, path in enumerate(paths):
        visible[node, path] = True
    padded = [path + list(range(len(path), tree.depth + 1)) for path in paths]
    return TreeTensors(
        parent=torch.tensor((0, *tree.parents[1:]), device=device),
        depth=torch.tensor(tree.depths, device=device),
        rank=torch.tensor(tree.ranks, device=device),
        visible=visible.to(device),
        path=torch.tensor(padded, device=device),
    )
