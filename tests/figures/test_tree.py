"""The drawn tree and the lines beside it show the numbers of the result."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given

from simulator import deploy
from simulator.figures.tree import batch_figure, length_figure, places, speed_figure, tree_figure, tree_page
from simulator.speculation.acceptance import Acceptance
from simulator.speculation.tree import ROOT
from simulator.speculation.tree_config import load_tree
from simulator.speculation.tree_size import tree_sizes
from tests.speculation.test_tree import trees


@pytest.fixture(scope="module")
def sizes():
    deployment = deploy("llama-3.1-8b", "h100", draft="eagle-llama-3.1-8b")
    named = ("<b>mine", load_tree("medusa-63")[0])
    return tree_sizes(deployment, Acceptance((0.7, 0.6)), nodes=(1, 4, 16), depths=(1, 3), batches=(1, 64), named=named)


@given(trees())
def test_no_two_nodes_of_a_level_overlap_and_parents_are_above_their_children(tree):
    x = places(tree, list(range(tree.nodes)))
    assert min(x.values()) == pytest.approx(0.0, abs=1e-9)
    for depth in range(1, tree.depth + 1):
        level = sorted(x[n] for n in range(tree.nodes) if tree.depths[n] == depth)
        assert all(b - a >= 1.0 - 1e-9 for a, b in pairwise(level))
    for node in (ROOT, *range(tree.nodes)):
        children = sorted((tree.ranks[c], x[c]) for c in range(tree.nodes) if tree.parents[c] == node)
        if children:
            assert [place for _, place in children] == sorted(place for _, place in children)
            assert x[node] == pytest.approx((children[0][1] + children[-1][1]) / 2)


def test_every_node_is_drawn_and_labelled_by_its_path(sizes):
    tree = sizes.drawn[1]
    edges, nodes, _ = tree_figure(sizes).data
    assert len(nodes.x) == tree.nodes == 63
    assert len(edges.x) == 3 * 63
    assert nodes.text[0] == "70"
    assert [row[0] for row in nodes.customdata] == [", ".join(map(str, path)) for path in tree.paths]


def test_lines_are_the_results(sizes):
    lengths = {t.name: t for t in length_figure(sizes).data}
    assert list(lengths["3 levels"].y) == pytest.approx(sizes.tokens[:, 1].tolist())
    assert list(lengths["dynamic"].y) == pytest.approx([sizes.dynamic_tokens[n][2] for n in sizes.nodes])
    assert "&lt;b&gt;mine" in lengths
    speeds = {t.name: t for t in speed_figure(sizes).data}
    assert list(speeds["batch 64"].y) == pytest.approx([sizes.speedup(sizes.trees[64, n]) for n in sizes.nodes])
    batches = {t.name: t for t in batch_figure(sizes).data}
    assert list(batches["best chain"].y) == pytest.approx([sizes.speedup(sizes.chains[b]) for b in sizes.batches])


def test_the_page_needs_no_network_and_escapes(sizes, outline):
    page = outline(tree_page(sizes))
    assert not page.loads
    assert len(page.plots) == 4
    assert "<b>mine" in page.text
