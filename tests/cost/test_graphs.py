"""Captured graphs: what is padded, what is eager, by hand and as a property; and what that does to the tables of a pass."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.architecture import load_decoder
from simulator.cost.forward import ForwardCost
from simulator.cost.graphs import GraphCapture
from simulator.errors import InputError
from simulator.hardware import load_gpu

SMALL = ForwardCost(load_decoder("llama-3.2-1b"), load_gpu("h100-sxm"))


def test_padding_and_cliff_by_hand():
    capture = GraphCapture(sizes=(4, 1, 2), eager_s=3e-3)
    assert list(capture.padded(6, prompts=False)) == [0, 1, 2, 4, 4, 5, 6]
    assert list(capture.extra_host_s(6, prompts=False)) == [0, 0, 0, 0, 0, 3e-3, 3e-3]


def test_no_graph_serves_prompts_where_only_decode_was_captured():
    capture = GraphCapture(sizes=(1, 4), covers="decode", eager_s=1e-3)
    assert list(capture.padded(5, prompts=True)) == [0, 1, 2, 3, 4, 5]
    assert list(capture.extra_host_s(5, prompts=True)) == [0, *[1e-3] * 5]
    assert list(capture.padded(5, prompts=False)) == [0, 1, 4, 4, 4, 5]
    assert list(capture.extra_host_s(5, prompts=False)) == [0, 0, 0, 0, 0, 1e-3]


def test_without_sizes_every_size_is_captured_unless_no_graph_may_serve():
    assert not GraphCapture(eager_s=1.0).extra_host_s(9, prompts=True).any()
    for prompts in (False, True):
        assert list(GraphCapture(covers="none", eager_s=1.0).extra_host_s(2, prompts)) == [0, 1, 1]
        assert list(GraphCapture((4,), covers="none").padded(2, prompts)) == [0, 1, 2]


@given(st.sets(st.integers(1, 300), min_size=1), st.integers(0, 400))
def test_a_step_is_padded_to_the_next_size_and_to_no_other(sizes, tokens):
    capture = GraphCapture(tuple(sizes), eager_s=1.0)
    padded = int(capture.padded(400, prompts=False)[tokens])
    larger = [size for size in sizes if size >= tokens]
    assert padded == (0 if tokens == 0 else min(larger, default=tokens))
    assert capture.extra_host_s(400, prompts=False)[tokens] == float(not larger)


def test_tables_price_the_padded_step():
    plain = SMALL.tables(40, 40)
    assert np.array_equal(plain.linear[0], plain.linear[1])
    assert not plain.extra_host_s.any()
    captured = SMALL.tables(20, 20, GraphCapture((8, 32), covers="decode", eager_s=2e-3))
    assert np.array_equal(captured.linear[0, :, 1:9], np.repeat(plain.linear[0, :, 8:9], 8, axis=1))
    # A graph may be larger than any step of the engine.
    assert np.array_equal(captured.linear[0, :, 9:], np.repeat(plain.linear[0, :, 32:33], 12, axis=1))
    assert np.array_equal(captured.linear[1], plain.linear[1, :, :21])
    assert np.array_equal(captured.head, plain.head[:, :21])
    assert captured.linear[0, :, 0].tolist() == [0, 0, 0]
    assert captured.extra_host_s.tolist() == [[0.0] * 21, [0.0, *[2e-3] * 20]]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"sizes": (0, 4)}, "graph_capture_sizes=0 must be at least 1 token"),
        ({"covers": "some"}, "graphs='some' must be all, decode or none"),
        ({"eager_s": -1.0}, "host_eager_step=-1.0 must be at least 0 s"),
    ],
)
def test_mistakes_are_sentences(wrong, sentence):
    with pytest.raises(InputError, match=sentence):
        GraphCapture(**wrong)
