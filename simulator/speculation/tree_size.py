"""Which tree to draft at which batch: the size and depth that give most tokens per second, beside chains and no drafts at all.

Tokens per second are B·τ(n, d) / (T_verify(B·(n + 1)) + Σ draft passes + host time). τ rises with every node, but at a
larger batch each node's verification costs more, so that the best tree shrinks, to a chain and then to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from simulator.deployment import Deployment
from simulator.errors import InputError
from simulator.memory import budget
from simulator.speculation.acceptance import Acceptance
from simulator.speculation.drafters import Drafter
from simulator.speculation.dynamic_tree import DynamicYield
from simulator.speculation.ranks import RankLaw
from simulator.speculation.round import Ask, RoundCost, expected, round_costs
from simulator.speculation.shape import MAX_NODES, PLAIN, DraftShape
from simulator.speculation.tree import Tree
from simulator.speculation.tree_law import StaticYield, TreeAcceptance
from simulator.speculation.tree_search import MAX_DEPTH, optimal_trees
from simulator.uncertainty import Interval, intervals

MAX_BATCH = 1 << 16
"""More sequences than any engine batches."""


def passes_of(drafter: Drafter | None) -> int | None:
    """Passes in which `drafter` makes a whole tree, None for one per level. Raises InputError for one that drafts no trees."""
    if drafter is None:
        raise InputError("draft", "(absent)", "be given where trees are drafted")
    if drafter.looks_up:
        raise InputError("draft", drafter.name, f"rank its candidates to draft a tree; {drafter.kind} finds only one")
    return 1 if drafter.kind == "medusa" else None


@dataclass(frozen=True)
class Drafted:
    """What could be drafted each round."""

    shape: DraftShape
    law: Acceptance | None
    """None where nothing is drafted."""
    tree: Tree | None = None
    """None of a chain, of nothing, and where each round makes its own."""


@dataclass(frozen=True)
class Priced:
    """One of them at one batch."""

    drafted: Drafted
    round: RoundCost
    fits: bool
    """Whether the KV cache of so many sequences fits, look-ahead slots for all nodes included."""

    @property
    def tokens_per_s(self) -> float:
        """Of all sequences."""
        return self.round.tokens_per_s


@dataclass(frozen=True)
class TreeSizes:
    """The trees of every size at every batch."""

    deployment: Deployment
    base: Acceptance
    """The law of first candidates."""
    ranks: RankLaw
    context_tokens: int
    nodes: tuple[int, ...]
    depths: tuple[int, ...]
    batches: tuple[int, ...]
    tokens: NDArray[np.float64]
    """τ of the best tree of `nodes` nodes and at most `depths` levels, at the mean rates [nodes, depths]."""
    trees: dict[tuple[int, int], Priced]
    """By (batch, nodes): the depth that gives most tokens per second."""
    chains: dict[int, Priced]
    """By batch: the best chain of at most the deepest level."""
    plain: dict[int, Priced]
    """By batch: nothing drafted."""
    named: tuple[str, Drafted] | None = None
    """A tree of the user's, and its name."""
    named_at: dict[int, Priced] | None = None
    """By batch."""

    def best_tree(self, batch: int) -> Priced:
        """The size and depth that give most tokens per second at `batch`, of those that fit if any does."""
        return _best(self.trees[batch, nodes] for nodes in self.nodes)

    def best(self, batch: int) -> Priced:
        """The same among trees, chains and nothing."""
        return _best([self.plain[batch], self.chains[batch], self.best_tree(batch)])

    def speedup(self, priced: Priced) -> float:
        """Tokens per second over plain decoding of the same batch."""
        return priced.tokens_per_s / self.plain[priced.round.sequences].tokens_per_s

    def interval(self, priced: Priced) -> Interval:
        """Where `speedup` lies with 90 %, as far as times are uncertain; acceptance is taken as given."""
        batch = priced.round.sequences

        def speedups(deployment: Deployment) -> dict[str, float]:
            both = prices(deployment, [self.plain[batch].drafted, priced.drafted], [batch], self.context_tokens)[batch]
            return {"speedup": both[1].tokens_per_s / both[0].tokens_per_s}

        return intervals(self.deployment, speedups)["speedup"]

    @cached_property
    def drawn(self) -> tuple[str, Tree]:
        """The tree to draw, and what it is: the user's, or the best at the smallest batch."""
        if self.named is not None and self.named[1].tree is not None:
            return self.named[0], self.named[1].tree
        best = self.best_tree(self.batches[0]).drafted
        tree = best.tree or Tree.chain(best.shape.depth)
        return f"the best tree at batch {self.batches[0]:,}", tree

    @cached_property
    def dynamic_tokens(self) -> dict[int, tuple[int, float, float]]:
        """By nodes: the depth at which the best static tree keeps most tokens, its τ, and τ of a tree of the same size that
        each round makes from the drafter's confidence (`DynamicYield`, with its estimate of how much confidence tells)."""
        found = {}
        for row, nodes in enumerate(self.nodes):
            column = int(np.argmax(self.tokens[row] > self.tokens[row].max() - 1e-12))
            depth = min(self.depths[column], nodes)
            found[nodes] = (
                depth,
                float(self.tokens[row, column]),
                DynamicYield(self.ranks, nodes, depth).mean_tokens(),
            )
        return found


def _best(choices: Iterable[Priced]) -> Priced:
    # Most tokens per second among those that fit (among all where none does); the smallest of equals.
    listed = list(choices)
    fitting = [choice for choice in listed if choice.fits] or listed
    return max(fitting, key=lambda choice: (choice.tokens_per_s, -choice.drafted.shape.nodes))


def tree_sizes(
    deployment: Deployment,
    law: Acceptance,
    *,
    nodes: Sequence[int],
    depths: Sequence[int],
    batches: Sequence[int],
    context_tokens: int = 1024,
    ranks: RankLaw | None = None,
    named: tuple[str, Tree] | None = None,
    progress: Callable[[str], None] | None = None,
) -> TreeSizes:
    """Prices the best tree of every size and depth at every batch. `law` is of first candidates; `ranks`, where measured, go
    before its rates. Raises InputError for grids out of bounds or a drafter without trees, DoesNotFit where nothing fits."""
    passes = passes_of(deployment.drafter)
    for field, values, most in (
        ("nodes", nodes, MAX_NODES),
        ("depth", depths, MAX_DEPTH),
        ("batch", batches, MAX_BATCH),
    ):
        if not values or not all(1 <= value <= most for value in values):
            raise InputError(field, list(values), f"be at least one number, each between 1 and {most}")
    medusa = deployment.drafter is not None and deployment.drafter.kind == "medusa"
    deepest = deployment.drafter.heads if deployment.drafter and medusa else MAX_DEPTH
    levels = f"{deepest}, the drafter's heads" if medusa else f"{deepest}"
    nodes, batches = tuple(sorted(set(nodes))), tuple(sorted(set(batches)))
    depths = tuple(sorted(d for d in set(depths) if d <= deepest))
    if not depths:
        raise InputError("depth", "(all)", f"be at most {levels}")
    limit = deployment.target.decoder.max_context_tokens
    if context_tokens < 1 or (limit is not None and context_tokens + max(nodes) + 1 > limit):
        rule = f"be at least 1 and leave room for a round in the context of {limit}"
        raise InputError("context", context_tokens, rule)
    deployment.fit(context_tokens=context_tokens + 1)
    if ranks is None:
        ranks = RankLaw.typical(law.rates)
    else:
        law = replace(law, rates=ranks.top1)
    found = {d: optimal_trees(ranks, max(nodes), d) for d in depths}
    tokens = np.array([[found[d].tokens[n] for d in depths] for n in nodes])
    shapes: dict[tuple[int, int], Drafted] = {}
    for n in nodes:
        trees = {found[d].tree(n) for d in depths}
        most = max(tree.nodes for tree in trees)  # few levels may not have room for n nodes that are ever accepted
        for tree in (tree for tree in trees if tree.nodes == most):
            through = StaticYield(tree, ranks)
            shapes[n, tree.depth] = Drafted(tree.shape(passes), TreeAcceptance.of(law, through), tree)
    chains = [Drafted(Tree.chain(d).shape(passes), law) for d in depths]
    given = None
    if named is not None:
        if named[1].depth > deepest:
            raise InputError("tree", named[0], f"be no deeper than {levels}")
        through = StaticYield(named[1], ranks)
        given = (named[0], Drafted(named[1].shape(passes), TreeAcceptance.of(law, through), named[1]))
    nothing = Drafted(PLAIN, None)
    candidates = [nothing, *chains, *shapes.values(), *([given[1]] if given else [])]
    priced: dict[tuple[int, int], Priced] = {}
    best_chains, plain, named_at = {}, {}, {}
    for batch, found_at in prices(deployment, candidates, batches, context_tokens, progress).items():
        plain[batch], rest = found_at[0], found_at[1:]
        best_chains[batch] = _best(rest[: len(chains)])
        trees_at = dict(zip(shapes, rest[len(chains) :], strict=False))
        for n in nodes:
            priced[batch, n] = _best(tree for (size, _), tree in trees_at.items() if size == n)
        if given is not None:
            named_at[batch] = rest[-1]
    return TreeSizes(
        deployment, law, ranks, context_tokens, nodes, depths, batches, tokens, priced, best_chains, plain, given,
        named_at or None,
    )  # fmt: skip


def prices(
    deployment: Deployment,
    candidates: Sequence[Drafted],
    batches: Sequence[int],
    context_tokens: int,
    progress: Callable[[str], None] | None = None,
) -> dict[int, list[Priced]]:
    """A round of each of `candidates` for each of `batches` equal sequences of `context_tokens`, by batch."""
    asks = [
        Ask(1, context_tokens, drafted.shape, *expected(drafted.law, drafted.shape.depth)) for drafted in candidates
    ]
    # Without drafts the drafter's weights and cache are left out too: plain decoding is priced as it would be served.
    room = {
        nodes: budget(deployment.target, deployment.engine, deployment.draft if nodes else None, gamma=nodes).kv_tokens
        for nodes in {ask.shape.nodes for ask in asks}
    }
    found = {}
    for batch in batches:
        if progress is not None:
            progress(f"batch {batch:,}")
        costs = round_costs(
            deployment.target, deployment.engine, [ask._replace(sequences=batch) for ask in asks],
            draft=deployment.draft, drafter=deployment.drafter,
        )  # fmt: skip
        found[batch] = [
            Priced(drafted, cost, batch * (context_tokens + drafted.shape.nodes + 1) <= room[drafted.shape.nodes])
            for drafted, cost in zip(candidates, costs, strict=True)
        ]
    return found


def price(deployment: Deployment, drafted: Drafted, batch: int, context_tokens: int) -> Priced:
    """`prices` of one."""
    return prices(deployment, [drafted], [batch], context_tokens)[batch][0]
