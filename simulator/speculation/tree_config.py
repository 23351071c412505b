"""``speculation.tree`` of a scenario: which tree is drafted, from a published list of paths to "the best of 64 nodes"."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any, Literal

from pydantic import model_validator

from simulator import catalog
from simulator.errors import InputError
from simulator.hardware import Source
from simulator.records import Record, read_named
from simulator.speculation.acceptance import Acceptance, RecordedAcceptance
from simulator.speculation.dynamic_tree import TOP_K, DynamicYield
from simulator.speculation.ranks import RankLaw
from simulator.speculation.shape import MAX_NODES, DraftShape
from simulator.speculation.tree import Tree
from simulator.speculation.tree_law import StaticYield, TreeAcceptance
from simulator.speculation.tree_search import MAX_DEPTH, optimal_trees

Paths = tuple[tuple[int, ...], ...]


class TreeFile(Record):
    """The layout of ``workloads/trees/*.yaml``."""

    name: str
    """Equals the file's name."""
    title: str = ""
    """Name for people."""
    paths: Paths
    """Ranks from the root to each node."""
    sources: dict[str, Source] = {}
    """Where the paths come from."""


@dataclass(frozen=True)
class ResolvedTree:
    """A tree with its law, ready for a round."""

    tree: Tree | None
    """None where each round makes its own."""
    shape: DraftShape
    law: TreeAcceptance
    ranks: RankLaw
    title: str


class TreeConfig(Record):
    """A bundled tree's name or a tree file's path, a list of paths, or a mapping that has exactly one of `name`, `paths`,
    `branching` and `nodes`."""

    name: str | None = None
    """A bundled tree (``memwall list trees``) or the path of a tree file."""
    paths: Paths | None = None
    """Ranks from the root to each node: ``[[0], [0, 0], [1]]`` drafts the best two candidates and one more token after the best."""
    branching: tuple[int, ...] | None = None
    """Children of each node of a level, from the root's on: ``[4, 2, 1]``."""
    nodes: int | None = None
    """Nodes of a tree that is to be found; needs `depth`."""
    depth: int | None = None
    """Its levels at most."""
    kind: Literal["optimal", "dynamic"] | None = None
    """With `nodes`: the best tree for the mean rates, the same in every round (``optimal``, the default), or one that each
    round makes from the drafter's confidence, as EAGLE-2 does (``dynamic``)."""
    top_k: int = TOP_K
    """Nodes of a level that a dynamic tree extends, and candidates of each that it looks at."""
    ranks: tuple[tuple[float, ...], ...] | None = None
    """Measured probability of each candidate given the path so far, by depth and rank. Goes before the acceptance rates;
    left out, these are the first candidates' and the others have a typical drafter's (`ranks.typical_shares`)."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"name": data}
        return {"paths": data} if isinstance(data, list | tuple) else data

    @model_validator(mode="after")
    def _check(self) -> TreeConfig:
        given = [n for n in ("name", "paths", "branching", "nodes") if getattr(self, n) is not None]
        if len(given) != 1:
            rule = "give exactly one of name, paths, branching, nodes"
            raise InputError("tree", given or "(absent)", rule)
        if self.nodes is None:
            for name in ("depth", "kind"):
                if getattr(self, name) is not None:
                    raise InputError(f"tree.{name}", getattr(self, name), f"be left out with {given[0]}")
        else:
            if not 1 <= self.nodes <= MAX_NODES:
                raise InputError("tree.nodes", self.nodes, f"be between 1 and {MAX_NODES}")
            if self.depth is None or not 1 <= self.depth <= min(self.nodes, MAX_DEPTH):
                most = min(self.nodes, MAX_DEPTH)
                value = self.depth if self.depth is not None else "(absent)"
                raise InputError("tree.depth", value, f"be given with nodes, between 1 and {most}")
        if "top_k" in self.model_fields_set and self.kind != "dynamic" and self.top_k != TOP_K:
            raise InputError("tree.top_k", self.top_k, "go with kind dynamic")
        if not 1 <= self.top_k <= MAX_NODES:
            raise InputError("tree.top_k", self.top_k, f"be between 1 and {MAX_NODES}")
        if self.ranks is not None:
            RankLaw.measured(self.ranks)
        if self.paths is not None:
            Tree.from_paths(self.paths)
        if self.branching is not None:
            Tree.from_branching(self.branching)
        return self

    def resolve(self, law: Acceptance, *, passes: int | None = None, base: FilePath | None = None) -> ResolvedTree:
        """The tree, the shape of its rounds and its law, where first candidates follow `law`.

        `passes` of the drafter: left out, one per level; 1 for Medusa's heads, 0 for a look-up. `base`: folder from which a
        file's relative path is tried first. Raises InputError, UnknownName.
        """
        if isinstance(law, RecordedAcceptance):
            TreeAcceptance.of(law, StaticYield(Tree.chain(1), RankLaw.typical(law.rates)))  # which says why not
        if self.ranks is not None:
            ranks = RankLaw.measured(self.ranks)
            law = replace(law, rates=ranks.top1)
        else:
            ranks = RankLaw.typical(law.rates)
        if self.kind == "dynamic":
            nodes, depth = self.nodes or 0, self.depth or 0
            dynamic = DynamicYield(ranks, nodes, depth, self.top_k)
            title = f"dynamic tree of {nodes} nodes, depth {depth}"
            return ResolvedTree(None, dynamic.shape(passes), TreeAcceptance.of(law, dynamic), ranks, title)
        tree, title = self._static(ranks, base)
        return ResolvedTree(tree, tree.shape(passes), TreeAcceptance.of(law, StaticYield(tree, ranks)), ranks, title)

    def _static(self, ranks: RankLaw, base: FilePath | None) -> tuple[Tree, str]:
        if self.name is not None:
            return load_tree(self.name, base=base)
        if self.paths is not None:
            tree = Tree.from_paths(self.paths)
            return tree, f"tree of {tree.nodes} nodes, depth {tree.depth}"
        if self.branching is not None:
            return Tree.from_branching(self.branching), "tree that branches " + " × ".join(map(str, self.branching))
        nodes, depth = self.nodes or 0, self.depth or 0
        return optimal_trees(ranks, nodes, depth).tree(nodes), f"optimal tree of {nodes} nodes, depth {depth}"


def load_tree(name: str, *, base: FilePath | None = None) -> tuple[Tree, str]:
    """A bundled tree or a tree file, and its title. Raises InputError, UnknownName."""
    path = catalog.locate("tree", name, base=base)
    file = read_named(TreeFile, path)
    try:
        return Tree.from_paths(file.paths), file.title or file.name
    except InputError as error:
        error.where = error.where or str(path)
        raise
