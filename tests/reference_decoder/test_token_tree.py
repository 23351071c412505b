"""Trees by hand."""

import pytest

from simulator.reference_decoder.token_tree import Tree

TREE = Tree((-1, 0, 0, 1, 1, 2))


def test_a_chain_is_a_tree_without_branches():
    chain = Tree.chain(3)
    assert (chain.parents, chain.depths, chain.is_chain) == ((-1, 0, 1, 2), (0, 1, 2, 3), True)
    assert Tree.chain(0).nodes == 1
    assert Tree.chain(0).is_chain


def test_levels_ranks_children_and_paths():
    assert TREE.depths == (0, 1, 1, 2, 2, 2)
    assert TREE.ranks == (0, 0, 1, 0, 1, 0)
    assert [TREE.level(d) for d in range(3)] == [range(1), range(1, 3), range(3, 6)]
    assert TREE.children(1) == [3, 4]
    assert TREE.path_to(4) == [0, 1, 4]
    assert not TREE.is_chain


def test_branching_counts():
    assert Tree.branching([2, 2]).parents == (-1, 0, 0, 1, 1, 2, 2)
    assert Tree.branching([4, 2, 2]).nodes == 1 + 4 + 8 + 16


def test_tensors_of_a_tree(cpu):
    t = TREE.on(cpu)
    assert t.visible[4].tolist() == [True, True, False, False, True, False]
    assert t.path.tolist() == [[0, 1, 2], [0, 1, 2], [0, 2, 2], [0, 1, 3], [0, 1, 4], [0, 2, 5]]
    assert t.parent.tolist() == [0, 0, 0, 1, 1, 2]


@pytest.mark.parametrize("parents", [(), (0,), (-1, 1), (-1, 0, 1, 0), (-1, -1)])
def test_what_is_no_tree_in_order_of_depth_is_refused(parents):
    with pytest.raises(ValueError, match="must"):
        Tree(parents)


@pytest.fixture
def cpu():
    import torch

    return torch.device("cpu")
