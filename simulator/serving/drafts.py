"""What a variant of a scenario drafts: the plan its policy makes, and under which law each shape of it is accepted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError
from simulator.scenario import Scenario
from simulator.speculation.acceptance import Acceptance, RecordedAcceptance
from simulator.speculation.drafters import Drafter
from simulator.speculation.policies import DraftPlan, PolicyConfig, always, by_table, off_above
from simulator.speculation.shape import PLAIN, DraftShape, chain
from simulator.speculation.tree_config import TreeConfig
from simulator.speculation.tree_law import TreeAcceptance, TreeYield
from simulator.speculation.tree_size import passes_of

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_TREE_SIZES = (2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384)
"""Sizes among which the goodput policy chooses, beside the one that is asked for."""


@dataclass(frozen=True)
class Drafts:
    """Shapes of rounds, when each is taken, and what becomes of it."""

    plan: DraftPlan
    """With `goodput` its choice is made anew for each kind of replica."""
    law: Acceptance
    """Of first candidates."""
    trees: tuple[TreeYield | None, ...]
    """Of each shape; None: a chain, whose law is `law` itself."""
    goodput: bool = False

    @property
    def depth(self) -> int:
        """Drafts in a row at most: γ of a chain."""
        return max(shape.depth for shape in self.plan.shapes)

    @property
    def nodes(self) -> int:
        """Drafts verified at once at most."""
        return self.plan.most_nodes

    @property
    def is_tree(self) -> bool:
        """Whether anything but chains is drafted."""
        return any(tree is not None for tree in self.trees)

    @property
    def columns(self) -> list[int]:
        """Where each shape's rates begin in `rates`: chains share theirs, trees have their own."""
        found, used = (
            [],
            max((s.depth for s, t in zip(self.plan.shapes, self.trees, strict=True) if t is None), default=0),
        )
        for shape, tree in zip(self.plan.shapes, self.trees, strict=True):
            found.append(0 if tree is None else used)
            used += 0 if tree is None else shape.depth
        return found

    def law_of(self, index: int, base: Acceptance | None = None) -> Acceptance:
        """Law of shape `index` where first candidates follow `base`, or `law`."""
        base, tree = base or self.law, self.trees[index]
        return base if tree is None else TreeAcceptance.of(base, tree)

    def tokens(self) -> FloatArray:
        """τ, tokens per round of each shape in a batch that is kept full [shapes]; 1 where nothing is drafted."""
        return np.array([
            self.law_of(i).live_tokens(shape.depth) if shape.nodes else 1.0 for i, shape in enumerate(self.plan.shapes)
        ])  # fmt: skip

    def match_shares(self) -> FloatArray:
        """Share of the rounds of each shape in which anything is proposed [shapes]; 1 where nothing is drafted."""
        return np.array([
            self.law_of(i).match_share(shape.depth) if shape.nodes else 1.0 for i, shape in enumerate(self.plan.shapes)
        ])  # fmt: skip

    def rates(self, base: Acceptance, seed: int, answer_tokens: IntArray, first: int) -> tuple[FloatArray, IntArray]:
        """Conditional rates by depth, shape after shape, in each state of a stretch [rows, S, columns], and the row of each of the
        requests `first`, `first` + 1, … with answers of `answer_tokens` [requests], whose first candidates follow `base`."""
        requests = len(answer_tokens)
        chains = max((s.depth for s, t in zip(self.plan.shapes, self.trees, strict=True) if t is None), default=0)
        if not self.is_tree:
            chains = max(1, chains)  # a table of nothing but zeros still has rates
        parts = [base.stretch_rates(seed, requests, chains, first, answer_tokens)] if chains else []
        for i, shape in enumerate(self.plan.shapes):
            if self.trees[i] is not None:
                parts.append(self.law_of(i, base).stretch_rates(seed, requests, shape.depth, first, answer_tokens))
        return np.concatenate([rates for rates, _ in parts], axis=2), parts[0][1]


def drafts_of(scenario: Scenario, drafter: Drafter, law: Acceptance) -> Drafts:
    """The scenario's policy with `drafter` where first candidates follow `law`. Raises InputError where they do not go together."""
    asked = scenario.speculation
    if asked is None:
        raise InputError("speculation", "(absent)", "be given")
    policy = asked.policy
    if asked.tree is not None:
        return _tree_drafts(scenario, asked.tree, drafter, law)
    if policy.table is not None:
        gammas = sorted({gamma for row in policy.table.gamma for gamma in row} - {0})
        shapes = [PLAIN, *map(drafter.shape, gammas)]
        place = {0: 0, **{gamma: i for i, gamma in enumerate(gammas, 1)}}
        choice = [[place[gamma] for gamma in row] for row in policy.table.gamma]
        plan = by_table(shapes, policy.table.batches, policy.table.contexts, choice)
    elif policy.kind == "goodput":
        plan = by_table([PLAIN, *(drafter.shape(g) for g in range(1, asked.gamma + 1))], [1], [0], [[asked.gamma]])
    elif policy.off_above is not None:
        plan = off_above(drafter.shape(asked.gamma), policy.off_above)
    else:
        plan = always(drafter.shape(asked.gamma), policy.mode)
    if policy.mode and not plan.shapes[-1].is_chain:
        raise InputError("policy", policy.kind, f"draft a chain, which {drafter.name} does not verify")
    if isinstance(law, RecordedAcceptance) and len(plan.shapes) > 2:
        law.conditional(max(shape.depth for shape in plan.shapes))
    return Drafts(plan, law, (None,) * len(plan.shapes), policy.kind == "goodput")


def _tree_drafts(scenario: Scenario, tree: TreeConfig, drafter: Drafter, law: Acceptance) -> Drafts:
    policy = scenario.speculation.policy if scenario.speculation else PolicyConfig()
    passes = passes_of(drafter)
    found = [tree.resolve(law, passes=passes, base=scenario.base)]
    if policy.kind == "goodput" and tree.nodes is not None:
        for nodes in (n for n in _TREE_SIZES if n < tree.nodes):
            smaller = tree.model_copy(update={"nodes": nodes, "depth": min(nodes, tree.depth or nodes)})
            found.append(smaller.resolve(law, passes=passes, base=scenario.base))
    deepest = max(one.shape.depth for one in found)
    if deepest > drafter.most_drafts:
        rule = f"be at most the {drafter.most_drafts} drafts in a row that {drafter.name} makes"
        raise InputError("tree.depth", deepest, rule)
    shapes: list[DraftShape] = [PLAIN, *(one.shape for one in found)]
    trees: Sequence[TreeYield | None] = [None, *(one.law.through for one in found)]
    if policy.kind == "oracle":
        shapes[1] = chain(shapes[1].depth, shapes[1].passes)  # who knows the path drafts nothing beside it
    if policy.off_above is not None:
        plan = off_above(shapes[1], policy.off_above)
    else:
        plan = by_table(shapes, [1], [0], [[1]], policy.mode)
    return Drafts(plan, found[0].law.base, tuple(trees), policy.kind == "goodput")
