"""Runs of steps in which a model drafts for all alike, or is off, against the specification: settings under which the compiled loop
takes its shortest way, so that changes between shapes happen in the middle of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.cost.tables import AttentionKind
from simulator.serving import plain
from simulator.speculation.policies import by_table, off_above
from simulator.speculation.shape import PLAIN, DraftShape, chain
from tests.serving.plain import rig
from tests.serving.test_equals_plain import COUNTERS, EXAMPLES, RATES, served

SHAPES = (chain(1), chain(4), DraftShape(5, 2, (1, 3)), DraftShape(20, 4, (1, 2, 17, 2)))


@st.composite
def steady(draw):
    """A handful of long answers on one replica with a model that drafts after a step and has a KV cache of its own."""
    n = draw(st.integers(1, 6))
    arrival_s = sorted(draw(st.lists(st.sampled_from([0.0, 0.0, 2.5, 9.0, 20.0]), min_size=n, max_size=n)))
    prompt = draw(st.lists(st.integers(1, 20), min_size=n, max_size=n))
    output = draw(st.lists(st.integers(5, 60), min_size=n, max_size=n))
    more = {}
    if draw(st.booleans()):
        more["session"] = draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    kinds = draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3))
    if draw(st.booleans()):
        plan = off_above(kinds[0], draw(st.integers(1, 3)))
    else:
        batches, contexts = draw(st.sampled_from([[1], [1, 2], [1, 3]])), draw(st.sampled_from([[0], [0, 17, 31]]))
        choice = [[draw(st.integers(0, len(kinds))) for _ in contexts] for _ in batches]
        plan = by_table([PLAIN, *kinds], batches, contexts, choice)
    nodes, block = plan.most_nodes, draw(st.sampled_from([1, 2, 4, 8, 16]))
    chosen = {
        "target": rig.tables(1.0, 0.01, prompt_s=0.125, kinds=kinds_of_layers(), decode_rates=RATES, prefill_rates=RATES),
        "draft": rig.tables(0.25, 0.001, kinds=kinds_of_layers(), decode_rates=RATES, prefill_rates=RATES),
        "plan": plan, "rates": draw(st.lists(st.floats(0, 1), min_size=4, max_size=4)), "seed": draw(st.integers(0, 3)),
        "block_tokens": block, "total_blocks": -(-(81 + nodes) // block) + draw(st.integers(0, 240)) // block,
        "max_sequences": draw(st.integers(1, 6)), "max_batched_tokens": max(nodes + 1, draw(st.sampled_from([1, 40, 200]))),
        "draft_padded": draw(st.integers(0, 1)), "draft_keeps_up": draw(st.integers(0, 1)),
        "draft_share": draw(st.sampled_from([1.0, 0.5])), "overlap": draw(st.integers(0, 1)),
        "prefix_caching": draw(st.integers(0, 1)), "host_step_s": 0.25, "host_hidden_step_s": draw(st.sampled_from([0.0, 3.0])),
        "host_draft_pass_s": 0.125, "host_speculative_round_s": 0.375,
        "intake": draw(st.sampled_from([None, [0.03 * tokens for tokens in range(10)]])),
    }  # fmt: skip
    if draw(st.booleans()):
        chosen |= {"tree_attention": 0.75, "tree_step_s": 0.125, "tree_mask_s": 1e-3, "tree_move_s": 1e-2}
    if draw(st.booleans()):
        chosen |= {"states": [(0.5, 0.5, True), (0.5, 2.0, True)], "renewal": (0.3, 0.05)}
    if draw(st.booleans()):
        chosen |= {"swap_blocks": 40, "swap_s_per_token": 0.03125}
    chosen["shares"] = int(chosen["prefix_caching"] == 1 and (bool(more) or draw(st.booleans())))
    if more and not chosen["shares"]:
        more = {}
    return rig.fleet(n, **chosen), rig.workload(arrival_s, prompt, output, **more)


def kinds_of_layers():
    """Attention that costs something, without a window."""
    return (AttentionKind(2.0, np.inf, 16.0, 64.0, 64.0),)


@settings(max_examples=max(1, EXAMPLES // 3), suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(steady(), st.lists(st.floats(0, 80), max_size=3))
def test_the_short_way_is_the_long_way(scenario, cuts):
    fleet, work = scenario
    fast, pool = served(fleet, work, cuts)
    slow = plain.simulate(fleet, replace(work, requests=work.requests.copy()))
    (other,) = slow.replicas
    events = [tuple(event) for event in pool.arrays.records.events[0, : pool.replicas[0].events].tolist()]
    assert events == [tuple(event) for event in other.events]
    for name in COUNTERS:
        owner = other.counters if hasattr(other.counters, name) else other
        assert pool.replicas[0][name] == getattr(owner, name), name
    for name in fast.dtype.names:
        np.testing.assert_array_equal(fast[name], slow.requests[name], err_msg=name)
    assert pool.replicas[0].used_blocks == 0
