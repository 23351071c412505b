"""The law of a tree: simulated walks, a chain as the special case, requests and stretches with the luck of the base law."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.randomness import uniform_array
from simulator.speculation.acceptance import Acceptance, RecordedAcceptance
from simulator.speculation.ranks import RankLaw
from simulator.speculation.recording import recording_of
from simulator.speculation.tree import Tree
from simulator.speculation.tree_law import StaticYield, TreeAcceptance, conditional_rates
from tests.speculation.test_tree import SMALL, trees

ROUNDS = 20_000
probabilities = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=4)


def law_of(tree, top1=(0.7, 0.6, 0.5), **effects):
    return TreeAcceptance.of(Acceptance(top1, **effects), StaticYield(tree, RankLaw.typical(top1)))


def walk(tree, table, seed):
    """Depth reached in each of many rounds: at every node one of its candidates is the right one, or none that is known."""
    node_at = {path: node for node, path in enumerate(tree.paths)}
    edges = np.cumsum(table, axis=1)
    reached = np.zeros(ROUNDS, dtype=int)
    luck = uniform_array(seed, np.arange(ROUNDS)[:, None], 0, np.arange(tree.depth)[None, :])
    for round_ in range(ROUNDS):
        path = ()
        while len(path) < tree.depth:
            right = int(np.searchsorted(edges[len(path)], luck[round_, len(path)], side="right"))
            if (*path, right) not in node_at:
                break
            path = (*path, right)
        reached[round_] = len(path)
    return reached


@pytest.mark.parametrize("tree", [SMALL, Tree.from_branching((4, 2, 2)), Tree.chain(4), Tree.from_branching((8,))])
def test_simulated_walks_keep_what_the_law_expects(tree):
    law = law_of(tree)
    reached = walk(tree, RankLaw.typical(law.base.rates).table(tree.depth), seed=3)
    spread = reached.std() / np.sqrt(ROUNDS)
    assert abs(1.0 + reached.mean() - law.expected_tokens(tree.depth)) < 4.0 * spread
    shares = np.bincount(reached, minlength=tree.depth + 1) / ROUNDS
    expected = law.length_distribution(tree.depth)
    assert (np.abs(shares - expected) <= 4.0 * np.sqrt(expected * (1.0 - expected) / ROUNDS) + 1e-12).all()


@given(trees(), probabilities)
def test_tokens_are_the_sum_of_path_products(tree, top1):
    ranks = RankLaw.typical(top1)
    law = TreeAcceptance.of(Acceptance(tuple(top1)), StaticYield(tree, ranks))
    table, total = ranks.table(tree.depth), 1.0
    for path in tree.paths:
        total += np.prod([table[j, rank] if rank < table.shape[1] else 0.0 for j, rank in enumerate(path)])
    assert law.expected_tokens(tree.depth) == pytest.approx(total)
    assert law.live_tokens(tree.depth) == pytest.approx(total)


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=6), st.sampled_from([0.0, 0.1]))
def test_a_chain_is_the_special_case(top1, icc):
    base = Acceptance(tuple(top1), icc)
    tree = Tree.chain(len(top1))
    law = TreeAcceptance.of(base, StaticYield(tree, RankLaw.typical(top1)))
    gamma = tree.depth
    assert law.expected_tokens(gamma) == pytest.approx(base.expected_tokens(gamma))
    assert law.live_tokens(gamma) == pytest.approx(base.live_tokens(gamma))
    assert law.length_distribution(gamma) == pytest.approx(base.length_distribution(gamma))
    ours, _ = law.per_request(1, 5, gamma)
    theirs, _ = base.per_request(1, 5, gamma)
    assert np.cumprod(ours, axis=1) == pytest.approx(np.cumprod(theirs, axis=1))


@given(trees(), probabilities)
def test_a_bushier_tree_never_keeps_less(tree, top1):
    ranks = RankLaw.typical(top1)
    more = Tree.from_paths([*tree.paths, next((r,) for r in range(99) if (r,) not in tree.paths)])
    marginal = [t.level_products(ranks.table(t.depth)) for t in (tree, more)]
    assert (marginal[1] >= marginal[0] - 1e-12).all()
    assert (marginal[0] <= 1.0 + 1e-9).all()
    assert (np.diff(marginal[0]) <= 1e-12).all()


def test_cut_at_a_depth_and_beyond_it():
    law, shallow = law_of(SMALL), law_of(Tree.from_paths([p for p in SMALL.paths if len(p) < 3]))
    assert law.expected_tokens(2) == pytest.approx(shallow.expected_tokens(2))
    assert law.conditional(5)[3:].tolist() == [0.0, 0.0]
    assert law.expected_tokens(5) == pytest.approx(law.expected_tokens(3))


def test_requests_have_the_luck_of_the_base_law():
    law = law_of(SMALL, request_icc=0.15)
    some, row_of = law.per_request(7, 100, 3)
    later, _ = law.per_request(7, 40, 3, first=60)
    assert (some[row_of][60:] == later).all()  # a function of the request, not of whom it is asked with
    chain, _ = law.base.per_request(7, 100, 3)
    order = np.argsort(chain[:, 0])
    assert (np.diff(some[order, 0]) >= -1e-12).all()
    assert (some[:, 0] >= chain[:, 0]).all()


def test_a_tree_helps_unlucky_requests_more():
    base, tree = Acceptance((0.7,), 0.15), Tree.from_branching((5, 2, 2))
    law = TreeAcceptance.of(base, StaticYield(tree, RankLaw.typical((0.7,))))
    rates, chain = law.at_quantile(np.array([0.1, 0.9]), 3), base.at_quantile(np.array([0.1, 0.9]), 3)
    gain = np.cumprod(rates, axis=1).sum(axis=1) / np.cumprod(chain, axis=1).sum(axis=1)
    assert gain[0] > gain[1] > 1.0
    assert law.live_tokens(3) < law.expected_tokens(3)


def test_stretches_are_those_of_the_base_law():
    law = law_of(SMALL, stretch_icc=0.3, mean_stretch_tokens=20.0)
    rates, row_of = law.stretch_rates(1, 4, 3)
    base, _ = law.base.stretch_rates(1, 4, 3)
    assert rates.shape == base.shape
    assert np.array_equal(law.stretch_tokens, law.base.stretch_tokens)
    assert (rates[..., 0] >= base[..., 0]).all()
    assert law.live_tokens(3) <= law.expected_tokens(3)
    assert len(row_of) == 4


def test_without_a_match_no_other_candidate_is_right_either():
    law = law_of(SMALL, match_probability=0.4, match_tokens=30.0)
    rates, _ = law.stretch_rates(1, 1, 3)
    assert rates[0, 1].tolist() == [0.0, 0.0, 0.0]
    assert (rates[0, 0] > 0.0).all()


def test_marginal_rates_become_conditional_ones():
    assert conditional_rates(np.array([0.8, 0.4, 0.0, 0.0])) == pytest.approx([0.8, 0.5, 0.0, 0.0])


def test_a_recording_is_refused():
    recording = recording_of({"accepted_by_request": [[1, 2], [0]], "gamma": 2}, "here")
    with pytest.raises(InputError, match="recorded rounds are of one shape"):
        TreeAcceptance.of(RecordedAcceptance.of(recording), StaticYield(SMALL, RankLaw.typical((0.5,))))
