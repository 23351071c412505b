"""Operators priced together take what each takes alone, and sequences that are counted what they take when spelled out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.architecture import load_decoder
from simulator.cost.forward import DECODE_QUERY_LIMIT, Batch, ForwardCost
from simulator.cost.operator_time import OperatorTimes
from simulator.experts import ExpertPlacement
from simulator.hardware import load_gpu, load_link
from simulator.operators import head_operators, layer_operators, send_operators

H100 = load_gpu("h100-sxm")
COSTS = {
    "dense": ForwardCost(load_decoder("llama-3.1-70b"), H100, tp=4, pp=2),
    "experts": ForwardCost(load_decoder("deepseek-v3"), H100, tp=8, experts=ExpertPlacement(ep=16, exponent=0.5)),
    "windows": ForwardCost(load_decoder("gpt-oss-20b"), H100),
    "one kernel": ForwardCost(load_decoder("llama-3.1-8b"), load_gpu("rtx-4090")),
}


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("points", [1, 7, 600])
def test_together_and_alone(name, points):
    cost, tokens = COSTS[name], np.arange(points, dtype=float)
    operators = [
        o
        for kind in cost.decoder.layer_kinds
        for o in layer_operators(cost.decoder, kind, cost.formats, cost.tp, tokens, cost.experts)
    ]
    operators += send_operators(cost.decoder, cost.formats, tokens, cost.tp)
    operators += head_operators(cost.decoder, cost.formats, cost.tp, tokens)
    times = OperatorTimes(
        H100, cost.efficiency, cost.link, load_link(H100.network_link), tp=cost.tp, pp=cost.pp, ep=cost.experts.ep,
        resident_share=0.3,
    )  # fmt: skip
    together, alone = times.seconds(operators), [times.parts(o)[0] for o in operators]
    assert len(together) == len(operators)
    for o, both, one in zip(operators, together, alone, strict=True):
        np.testing.assert_allclose(both, one, rtol=1e-14, err_msg=o.name)
        assert both[0] == 0.0, "no tokens, no time"


runs = st.tuples(st.integers(0, 2 * DECODE_QUERY_LIMIT), st.integers(0, 10_000), st.integers(0, 40))


@settings(max_examples=40)
@given(st.sampled_from(list(COSTS)), st.lists(runs, min_size=1, max_size=4))
def test_counted_sequences_are_sequences(name, listed):
    cost = COSTS[name]
    new, cached, counts = (list(column) for column in zip(*listed, strict=True))
    spelled = [(q, c) for q, c, n in listed for _ in range(n)]
    news, caches = [q for q, _ in spelled], [c for _, c in spelled]
    assert cost.attention(new, cached, counts) == pytest.approx(cost.attention(news, caches), rel=1e-12)
    assert cost.attention_work(new, cached, counts) == pytest.approx(cost.attention_work(news, caches), rel=1e-12)
    assert cost.attention_work(new, cached, counts)[0] == pytest.approx(cost.attention(news, caches), rel=1e-12)
    shuffled = [*reversed(spelled)]
    assert cost.attention([q for q, _ in shuffled], [c for _, c in shuffled]) == pytest.approx(
        cost.attention(news, caches), rel=1e-12
    )


def test_a_batch_of_many_sequences_is_priced_at_once():
    cost = COSTS["dense"]
    assert cost.attention((5,), (1000,), (60_000,)) == cost.attention((5,) * 60_000, (1000,) * 60_000)
    assert cost.attention((5,), (1000,), (4,)) < cost.seconds(Batch.decode(4, 1000, 5))
