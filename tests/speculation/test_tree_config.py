"""`speculation.tree` in all its spellings."""

import pytest

from simulator import catalog
from simulator.errors import InputError, UnknownName
from simulator.records import read_record, validate
from simulator.speculation.acceptance import Acceptance
from simulator.speculation.shape import DraftShape
from simulator.speculation.tree import Tree
from simulator.speculation.tree_config import TreeConfig, TreeFile, load_tree
from simulator.speculation.tree_search import optimal_trees

LAW = Acceptance((0.7, 0.6, 0.5), 0.1)


def resolve(data, law=LAW, **options):
    return TreeConfig.model_validate(data).resolve(law, **options)


@pytest.mark.parametrize(
    ("data", "tree"),
    [
        ([[0], [1], [0, 0]], Tree.from_paths([[0], [1], [0, 0]])),
        ({"paths": [[0], [0, 0]]}, Tree.chain(2)),
        ({"branching": [3, 1]}, Tree.from_branching((3, 1))),
        ("eagle-1-25", load_tree("eagle-1-25")[0]),
        ({"name": "medusa-63"}, load_tree("medusa-63")[0]),
    ],
)
def test_spellings(data, tree):
    found = resolve(data)
    assert found.tree == tree
    assert found.shape == tree.shape()
    assert found.law.base == LAW
    assert found.law.conditional(tree.depth)[0] >= 0.7


def test_the_best_tree_of_a_size():
    found = resolve({"nodes": 12, "depth": 3})
    assert found.tree == optimal_trees(found.ranks, 12, 3).tree(12)
    assert found.shape.nodes == 12


def test_a_dynamic_tree():
    found = resolve({"nodes": 60, "depth": 6, "kind": "dynamic"})
    assert found.tree is None
    assert found.shape == DraftShape(60, 6, (1, 10, 10, 10, 10, 10))
    assert found.law.expected_tokens(6) > resolve({"nodes": 60, "depth": 6}).law.expected_tokens(6)


def test_heads_take_one_pass():
    assert resolve("medusa-63", passes=1).shape == DraftShape(63, 4, (1,))


def test_measured_ranks_go_before_the_rates():
    found = resolve({"branching": [2], "ranks": [[0.5, 0.3]]})
    assert found.law.base.rates == (0.5,)
    assert found.law.base.request_icc == LAW.request_icc
    assert found.law.conditional(1) == pytest.approx([0.8])


@pytest.mark.parametrize("name", catalog.names("tree"))
def test_bundled_trees(name):
    file = read_record(TreeFile, catalog.locate("tree", name))
    tree, title = load_tree(name)
    assert file.name == name
    assert title
    assert file.sources
    assert f"-{tree.nodes}" in name


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\npaths: [[0], [0, 0]]\n")
    assert resolve("mine.yaml", base=tmp_path).tree == Tree.chain(2)
    path.write_text("name: mine\npaths: [[0, 0]]\n")
    with pytest.raises(InputError, match=r"mine.yaml: paths=\[0, 0\] must have its parent"):
        resolve(str(path))


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({}, "exactly one of"),
        ({"name": "medusa-63", "nodes": 3, "depth": 2}, "exactly one of"),
        ({"nodes": 5}, "depth"),
        ({"nodes": 5, "depth": 6}, "between 1 and 5"),
        ({"nodes": 0, "depth": 1}, "nodes"),
        ({"branching": [2], "depth": 1}, "be left out with branching"),
        ({"branching": [2], "kind": "dynamic"}, "be left out with branching"),
        ({"nodes": 5, "depth": 2, "kind": "clever"}, "kind"),
        ({"paths": [[0, 0]]}, "parent"),
        ({"nodes": 5, "depth": 2, "ranks": [[0.5, 0.7]]}, "add up to at most 1"),
        ({"nodes": 5, "depth": 2, "top_k": 0}, "top_k"),
        ({"nodes": 5, "depth": 2, "top_k": 3}, "tree.top_k=3 must go with kind dynamic"),
        ({"node": 5, "depth": 2}, "nodes"),
    ],
)
def test_what_is_refused(data, complaint):
    with pytest.raises(InputError, match=complaint):
        validate(TreeConfig, data, "tree")


def test_an_unknown_name_is_told_the_nearest():
    with pytest.raises(UnknownName, match="did you mean medusa-63"):
        resolve("medusa-64")
