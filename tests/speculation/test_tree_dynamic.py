"""Trees that each round makes from the drafter's confidence."""

import numpy as np
import pytest

from simulator.errors import InputError
from simulator.speculation.acceptance import Acceptance
from simulator.speculation.dynamic_tree import DynamicYield
from simulator.speculation.ranks import RankLaw
from simulator.speculation.shape import DraftShape
from simulator.speculation.tree_law import TreeAcceptance
from simulator.speculation.tree_search import optimal_trees

RANKS = RankLaw.typical((0.75, 0.7, 0.65, 0.6, 0.6, 0.6))
NEARLY = 0.006  # of 2,048 drawn rounds


def tokens(nodes, depth, spread, ranks=RANKS):
    law = DynamicYield(ranks, nodes, depth, confidence_spread=spread)
    return 1.0 + law.marginal(ranks.rates(depth)).sum()


@pytest.mark.parametrize(("nodes", "depth"), [(1, 1), (8, 3), (25, 5), (60, 6)])
def test_without_spread_it_is_the_best_static_tree(nodes, depth):
    # Up to the ten nodes of a level that it extends at most.
    best = optimal_trees(RANKS, nodes, depth).tokens[nodes]
    assert tokens(nodes, depth, 1e-6) == pytest.approx(best, rel=NEARLY)


def test_the_more_confidence_tells_the_more_is_kept():
    found = [tokens(25, 5, spread) for spread in (1e-6, 0.2, 0.5, 0.8)]
    assert found == sorted(found)


def test_a_tree_with_room_for_all_gains_nothing():
    # All four candidates at both levels are verified in any case.
    ranks = RankLaw.measured([(0.6, 0.2), (0.5, 0.3)])
    everything = 1.0 + 0.8 + 0.8 * 0.8
    for spread in (0.1, 0.9):
        law = DynamicYield(ranks, 6, 2, confidence_spread=spread)
        assert 1.0 + law.marginal(ranks.rates(2)).sum() == pytest.approx(everything, rel=NEARLY)


def test_one_node_is_the_first_candidate_whatever_the_confidence():
    assert tokens(1, 1, 0.8) == pytest.approx(1.75, rel=NEARLY)


def test_shape_as_in_eagle_2():
    law = DynamicYield(RANKS, 60, 6)
    assert law.shape() == DraftShape(60, 6, (1, 10, 10, 10, 10, 10))
    assert DynamicYield(RANKS, 400, 2).shape() == DraftShape(110, 2, (1, 10))
    assert law.shape(passes=1).pass_tokens == (1,)


def test_the_mean_is_that_of_a_request_with_the_mean_rates():
    law = DynamicYield(RANKS, 20, 4)
    assert law.mean_tokens() == pytest.approx(1.0 + law.marginal(RANKS.rates(4)).sum())


def test_rates_at_the_ends_and_in_order():
    law = DynamicYield(RANKS, 20, 4)
    rows = np.linspace(0.0, 1.0, 21)[:, None] * np.ones(4)
    marginal = law.marginal(rows)
    assert marginal[0].tolist() == [0.0] * 4
    assert marginal[-1].tolist() == [1.0] * 4
    assert (np.diff(marginal, axis=0) >= -1e-12).all()
    assert (np.diff(marginal, axis=1) <= 1e-12).all()


def test_as_a_law_it_is_a_function_of_the_request():
    law = TreeAcceptance.of(Acceptance((0.7, 0.6), 0.1), DynamicYield(RankLaw.typical((0.7, 0.6)), 10, 3))
    all_, _ = law.per_request(5, 50, 3)
    some, _ = law.per_request(5, 20, 3, first=30)
    assert (all_[30:] == some).all()
    assert law.live_tokens(3) < law.expected_tokens(3)


@pytest.mark.parametrize("fields", [(0, 1), (1, 0), (5, 2, 10, 0.0), (5, 2, 10, 1.0)])
def test_out_of_bounds(fields):
    with pytest.raises(InputError):
        DynamicYield(RANKS, *fields)
