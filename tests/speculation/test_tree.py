"""Token trees: what is one and what is not, how it is made, what it looks like to a drafter and to attention."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.speculation.shape import MAX_NODES, DraftShape, chain
from simulator.speculation.tree import Tree

#      root
#     0    1
#   2  3   4
#   5
SMALL = Tree((-1, -1, 0, 0, 1, 2), (0, 1, 0, 2, 0, 0))


@st.composite
def trees(draw, most=12):
    """Any tree of a few nodes: each node below the root or an earlier one, with a rank of its own there."""
    parents, ranks = [], []
    for node in range(draw(st.integers(1, most))):
        parent = draw(st.integers(-1, node - 1))
        taken = {r for p, r in zip(parents, ranks, strict=True) if p == parent}
        parents.append(parent)
        ranks.append(draw(st.sampled_from([r for r in range(most + 1) if r not in taken])))
    return Tree(tuple(parents), tuple(ranks))


def test_a_small_tree():
    assert (SMALL.nodes, SMALL.depth, SMALL.level_sizes, SMALL.depths) == (6, 3, (2, 3, 1), (1, 1, 2, 2, 2, 3))
    assert SMALL.paths == ((0,), (1,), (0, 0), (0, 2), (1, 0), (0, 0, 0))
    assert SMALL.inner_sizes == (1, 2, 1)


def test_a_pass_extends_the_nodes_that_have_children():
    assert SMALL.shape() == DraftShape(6, 3, (1, 2, 1))
    assert SMALL.shape(passes=1) == DraftShape(6, 3, (1,))
    assert SMALL.shape(passes=0) == DraftShape(6, 3, ())


@pytest.mark.parametrize("gamma", [1, 2, 7])
def test_a_chain_is_a_tree(gamma):
    tree = Tree.chain(gamma)
    assert tree == Tree.from_branching((1,) * gamma) == Tree.from_paths([(0,) * j for j in range(1, gamma + 1)])
    assert tree.shape() == chain(gamma)
    assert (tree.ancestor_mask() == np.tri(gamma + 1, dtype=bool)).all()  # the causal mask


def test_branching():
    tree = Tree.from_branching((3, 2))
    assert (tree.nodes, tree.level_sizes) == (9, (3, 6))
    assert tree.paths[3:5] == ((0, 0), (0, 1))


@given(trees())
def test_paths_say_all_of_a_tree(tree):
    again = Tree.from_paths(tree.paths)
    assert sorted(again.paths) == sorted(tree.paths)
    assert again.level_sizes == tree.level_sizes
    assert sum(tree.level_sizes) == tree.nodes
    assert sum(tree.inner_sizes) == 1 + len({p for p in tree.parents if p >= 0})


@given(trees())
def test_every_token_attends_to_its_path_and_nothing_else(tree):
    mask = tree.ancestor_mask()
    for node, path in enumerate(tree.paths):
        seen = {tree.paths[other] for other in range(tree.nodes) if mask[node + 1, other + 1]}
        assert seen == {path[:j] for j in range(1, len(path) + 1)}
        assert mask[node + 1, 0]
    assert mask[0].sum() == 1


@pytest.mark.parametrize(
    ("parents", "ranks", "complaint"),
    [
        ((), (), "have 1 to 512 nodes"),
        ((-1, 5), (0, 0), "be −1"),
        ((-2,), (0,), "be −1"),
        ((0,), (0,), "cycle"),
        ((1, 0), (0, 0), "cycle"),
        ((-1, 2, 3, 1), (0, 0, 0, 0), "cycle"),
        ((1, -1), (0, 0), "come before its children"),
        ((-1, -1), (0, 0), "differ from that of its sibling, node 0"),
        ((-1, -1), (0,), "one rank for each"),
        ((-1,), (-1,), "between 0"),
        ((-1,) * (MAX_NODES + 1), tuple(range(MAX_NODES + 1)), "513 nodes"),
    ],
)
def test_what_is_no_tree_is_refused_in_one_sentence(parents, ranks, complaint):
    with pytest.raises(InputError, match=complaint) as caught:
        Tree(parents, ranks)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("paths", "complaint"),
    [
        ([[0, 0]], r"have its parent \[0\]"),
        ([[0], [1, 0, 0]], r"have its parent \[1, 0\]"),
        ([[0], [0]], "be given once"),
        ([[]], "at least one rank"),
        ([[-1]], "at least one rank"),
        ([], "0 nodes"),
    ],
)
def test_paths_that_are_no_tree(paths, complaint):
    with pytest.raises(InputError, match=complaint):
        Tree.from_paths(paths)


@pytest.mark.parametrize("branching", [(), (0,), (2, -1), (10, 10, 10), (2,) * 40])
def test_branching_that_is_no_tree(branching):
    with pytest.raises(InputError, match="branching"):
        Tree.from_branching(branching)
