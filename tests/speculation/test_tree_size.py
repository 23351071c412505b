"""Which tree at which batch: the best of the grid, chains and nothing beside it, and what a tree costs beside its tokens."""

import pytest

from simulator import deploy
from simulator.errors import InputError
from simulator.speculation.acceptance import Acceptance
from simulator.speculation.ranks import RankLaw
from simulator.speculation.round import round_cost
from simulator.speculation.shape import DraftShape, chain
from simulator.speculation.tree import Tree
from simulator.speculation.tree_cost import MASKED_ATTENTION, tree_extra_s
from simulator.speculation.tree_law import StaticYield, TreeAcceptance
from simulator.speculation.tree_search import optimal_trees
from simulator.speculation.tree_size import passes_of, tree_sizes

NODES, DEPTHS, BATCHES = (1, 4, 16, 48), (1, 2, 3, 4, 5), (1, 8, 64, 256)


@pytest.fixture(scope="module")
def eagle():
    return deploy("llama-3.1-8b", "h100", draft="eagle-llama-3.1-8b")


@pytest.fixture(scope="module")
def sizes(eagle):
    law = Acceptance((0.75, 0.7, 0.65), 0.1)
    return tree_sizes(eagle, law, nodes=NODES, depths=DEPTHS, batches=BATCHES, context_tokens=2000)


def test_the_best_depth_of_each_size_and_the_best_size_of_each_batch(eagle, sizes):
    ranks = RankLaw.typical(sizes.base.rates)
    for batch in BATCHES:
        rates = {}
        for nodes in NODES:
            found = []
            for depth in DEPTHS:
                tree = optimal_trees(ranks, nodes, depth).tree(nodes)
                if tree.nodes < nodes:
                    continue
                law = TreeAcceptance.of(sizes.base, StaticYield(tree, ranks))
                cost = round_cost(
                    eagle.target, eagle.engine, sequences=batch, context_tokens=2000, shape=tree.shape(), acceptance=law,
                    draft=eagle.draft, drafter=eagle.drafter,
                )  # fmt: skip
                found.append(batch * law.live_tokens(tree.depth) / cost.seconds)
            rates[nodes] = max(found)
            assert sizes.trees[batch, nodes].tokens_per_s == pytest.approx(max(found))
        if all(sizes.trees[batch, n].fits for n in NODES):
            assert sizes.best_tree(batch).tokens_per_s == pytest.approx(max(rates.values()))


def test_the_larger_the_batch_the_smaller_the_best_tree(sizes):
    picked = [sizes.best_tree(batch).drafted.shape.nodes for batch in BATCHES]
    assert picked == sorted(picked, reverse=True)
    assert picked[0] > picked[-1]


def test_best_of_all_is_the_best_of_tree_chain_and_nothing(sizes):
    for batch in BATCHES:
        rates = [sizes.plain[batch], sizes.chains[batch], sizes.best_tree(batch)]
        fitting = [p for p in rates if p.fits] or rates
        assert sizes.best(batch).tokens_per_s == max(p.tokens_per_s for p in fitting)
        assert sizes.speedup(sizes.plain[batch]) == 1.0


def test_expected_tokens_are_those_of_the_search(sizes):
    for column, depth in enumerate(DEPTHS):
        tokens = optimal_trees(sizes.ranks, max(NODES), depth).tokens
        assert sizes.tokens[:, column] == pytest.approx([tokens[n] for n in NODES])


def test_a_tree_of_the_users_is_priced_beside_them(eagle):
    law = Acceptance((0.7,))
    best = optimal_trees(RankLaw.typical((0.7,)), 16, 3).tree(16)
    sizes = tree_sizes(eagle, law, nodes=(16,), depths=(3,), batches=(4,), named=("mine", best))
    assert sizes.named_at is not None
    assert sizes.named_at[4].tokens_per_s == pytest.approx(sizes.trees[4, 16].tokens_per_s)
    assert sizes.drawn == ("mine", best)


def test_without_second_candidates_trees_are_chains(eagle):
    ranks = RankLaw.measured([(0.7,)])
    sizes = tree_sizes(eagle, Acceptance((0.1,)), nodes=(1, 2, 8), depths=(1, 2, 3), batches=(2,), ranks=ranks)
    assert sizes.base.rates == (0.7,)
    assert sizes.best_tree(2).drafted.shape.is_chain
    assert sizes.best_tree(2).tokens_per_s == pytest.approx(sizes.chains[2].tokens_per_s)


def test_a_chain_has_neither_mask_nor_anything_to_move(eagle):
    assert tree_extra_s(eagle.target, chain(5), 8, 1000, 2.0) == 0.0


def test_what_a_tree_costs_beside_its_tokens(eagle):
    target, shape = eagle.target, DraftShape(9, 3, (1, 3, 3))
    extra_s = tree_extra_s(target, shape, 8, 1000, 2.0)
    attention_s = target.attention((10,) * 8, (1000,) * 8)
    kv_bytes = 2 * 8 * 2.0 * target.shape.kv_bytes_per_token * 32
    bandwidth = target.gpu.hbm_bytes_per_s
    assert extra_s >= (MASKED_ATTENTION - 1.0) * attention_s + kv_bytes / bandwidth
    assert extra_s == pytest.approx((MASKED_ATTENTION - 1.0) * attention_s, rel=0.2)
    assert tree_extra_s(target, shape, 16, 1000, 2.0) > extra_s
    assert tree_extra_s(target, shape, 8, 4000, 2.0) > extra_s


def test_look_ahead_slots_are_charged_for_every_node(eagle):
    law = Acceptance((0.7,))
    few = tree_sizes(eagle, law, nodes=(1, 512), depths=(8,), batches=(256,), context_tokens=1000)
    assert few.trees[256, 1].fits
    assert not few.trees[256, 512].fits
    assert few.best_tree(256) is few.trees[256, 1]


def test_who_drafts_trees(eagle):
    assert passes_of(eagle.drafter) is None
    for draft in (None, "ngram"):
        deployment = deploy("llama-3.1-8b", "h100", draft=draft)
        with pytest.raises(InputError, match="draft"):
            passes_of(deployment.drafter)


@pytest.mark.parametrize(
    "changes", [{"nodes": ()}, {"nodes": (513,)}, {"depths": (0,)}, {"batches": ()}, {"context_tokens": 0}]
)
def test_out_of_bounds(eagle, changes):
    options = {"nodes": (4,), "depths": (2,), "batches": (1,), "context_tokens": 100, **changes}
    with pytest.raises(InputError):
        tree_sizes(eagle, Acceptance((0.7,)), **options)


def test_heads_are_as_deep_as_they_are():
    deployment = deploy("vicuna-7b", "h100", draft="medusa-vicuna-7b")
    heads = deployment.drafter.heads
    sizes = tree_sizes(deployment, Acceptance((0.6,)), nodes=(16,), depths=(2, 50), batches=(1,), context_tokens=500)
    assert sizes.depths == (2,)
    assert sizes.best_tree(1).drafted.shape.passes == 1
    for options in ({"depths": (50,)}, {"depths": (2,), "named": ("deep", Tree.chain(heads + 1))}):
        with pytest.raises(InputError, match="heads"):
            tree_sizes(deployment, Acceptance((0.6,)), nodes=(16,), batches=(1,), context_tokens=500, **options)
