"""Limits of speculation in the loop, and what it must never change: how many tokens a request receives, and whose luck is whose."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator import load_scenario, simulate
from simulator.serving import model, state
from simulator.serving.pool import Pool
from simulator.speculation.policies import BY_ORACLE, BY_PAST, always, by_table, off_above
from simulator.speculation.shape import PLAIN, DraftShape, chain
from tests.serving.plain import rig
from tests.serving.rig import fresh, tables, traffic
from tests.serving.test_speculation_identities import SERVED

# Limits


def plans(*, passes):
    """Every policy, with chains and trees."""
    one, three = chain(1, passes), chain(3, passes)
    tree = DraftShape(9, 3, (1, 3, 4) if passes is None else ())
    return {
        "chain": always(three), "tree": always(tree), "off above": off_above(three, 2), "tree off above": off_above(tree, 2),
        "table": by_table([PLAIN, one, three, tree], [1, 2, 4], [0, 12], [[3, 2], [2, 1], [1, 0]]),
        "past": always(three, BY_PAST), "oracle": always(three, BY_ORACLE),
    }  # fmt: skip


POLICIES = plans(passes=None)
LOOK_UPS = plans(passes=0)


@st.composite
def crowds(draw, most=10):
    """Requests that all want an answer."""
    n = draw(st.integers(1, most))
    whole = st.lists(st.integers(1, 26), min_size=n, max_size=n)
    arrival_s = sorted(draw(st.lists(st.sampled_from([k * 0.75 for k in range(12)]), min_size=n, max_size=n)))
    return traffic(arrival_s, draw(whole), draw(whole), rank=draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)))


@st.composite
def engines(draw, nodes=9):
    """Settings of all kinds, with room for the longest request and little more."""
    block = draw(st.sampled_from([1, 4, 8]))
    chosen = {
        "max_sequences": draw(st.integers(1, 6)), "max_batched_tokens": draw(st.integers(nodes + 1, 40)),
        "block_tokens": block, "total_blocks": -(-(52 + nodes + 1) // block) + draw(st.integers(0, 8)),
        "prefill_first": draw(st.integers(0, 1)), "prompts_per_pass": draw(st.integers(1, 4)),
        "prefill_chunk_tokens": draw(st.integers(1, 40)), "overlap": draw(st.integers(0, 1)), "ranked": 1,
        "prefix_caching": draw(st.integers(0, 1)), "target": tables(1.0, 0.01, prompt_s=0.125),
        "host_step_s": 0.25, "host_hidden_step_s": draw(st.sampled_from([0.0, 2.0])),
    }  # fmt: skip
    if draw(st.booleans()):
        chosen |= {"swap_blocks": 20, "swap_s_per_token": 0.03125}
    return chosen


@st.composite
def drafters(draw):
    """Who drafts, for whom it drafts, and what becomes of it."""
    passes = draw(st.booleans())
    name = draw(st.sampled_from(sorted(POLICIES)))
    chosen = {
        "plan": (POLICIES if passes else LOOK_UPS)[name], "draft": tables(0.25, 0.001) if passes else None,
        "rates": draw(st.lists(st.floats(0, 1), min_size=3, max_size=3)), "seed": draw(st.integers(0, 3)),
        "draft_first": draw(st.integers(0, 1)), "padded": draw(st.integers(0, 1)), "draft_padded": draw(st.integers(0, 1)),
        "draft_reads": draw(st.integers(0, 1)), "draft_keeps_up": draw(st.integers(0, 1)),
        "draft_share": draw(st.sampled_from([1.0, 0.5])), "match_probability": draw(st.sampled_from([1.0, 0.6])),
    }  # fmt: skip
    if draw(st.booleans()):
        chosen |= {"states": [(0.5, 0.5, True), (0.5, 1.5, draw(st.booleans()))], "renewal": (0.3, 0.1)}
    return chosen


def served(work, replicas=1, events=4_000, **chosen):
    """(records, [(position, tokens emitted, …) of every request]) by the compiled loop."""
    work = fresh(work)
    n = len(work.requests)
    one = rig.step_model(n, **chosen)
    pool = Pool(model.Fleet([one], np.zeros(replicas, dtype=np.int64)), work, events=events)
    pool.serve()
    emitted = [[] for _ in range(n)]
    for r in range(replicas):
        for event in pool.arrays.records.events[r, : pool.replicas[r].events]:
            if event["kind"] == state.EMITTED:
                emitted[event["request"]].append(int(event["value"]))
    return work.requests, emitted


QUICK = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
TIMES = ("scheduled_s", "first_token_s", "last_token_s", "finish_s", "longest_gap_s")


@QUICK
@given(crowds(), engines(nodes=0), st.booleans(), st.integers(0, 1), st.integers(0, 1))
def test_a_table_of_zeros_is_plain_decoding_exactly(work, engine, passes, first, reads):
    zeros = by_table([PLAIN, chain(3, None if passes else 0)], [1, 3], [0, 9], [[0, 0], [0, 0]])
    asked = {
        "plan": zeros, "draft": tables(0.25, 0.01) if passes else None, "draft_first": first, "draft_reads": reads,
        "host_ngram_per_sequence_s": 0.5, "host_draft_pass_s": 0.5, "host_speculative_round_s": 0.5,
        "rates": [0.5],
    }  # fmt: skip
    with_it, emitted = served(work, **engine, **asked)
    plain, alone = served(work, **engine)
    assert with_it.tobytes() == plain.tobytes()
    assert emitted == alone


@QUICK
@given(crowds(), engines(), drafters())
def test_speculation_never_changes_how_many_tokens_a_request_receives(work, engine, drafter):
    requests, emitted = served(work, **engine, **drafter)
    assert (requests["status"] == state.FINISHED).all()
    assert (requests["generated_tokens"] == requests["output_tokens"]).all()
    assert [sum(chunks) for chunks in emitted] == requests["output_tokens"].tolist()
    assert (requests["accepted_tokens"] <= np.minimum(requests["drafted_tokens"], requests["output_tokens"])).all()
    # Each round yields one token of the target's own beside the accepted ones, unless the answer ends before it.
    own = requests["output_tokens"] - requests["accepted_tokens"]
    restarts = requests["preemptions"]
    assert (own <= 1 + requests["decode_rounds"] + restarts).all()
    assert (own >= requests["decode_rounds"]).all()


@QUICK
@given(crowds(), engines(), drafters())
def test_without_acceptance_and_cost_it_is_plain_decoding(work, engine, drafter):
    # Verification and drafting are free, blocks plenty, the budget wide: the same tokens at the same times.
    free = {"total_blocks": 1_000, "max_batched_tokens": 512, "target": tables(1.0)}
    free |= {"draft": tables(0.0) if drafter["draft"] else None, "rates": [0.0]}
    with_it, emitted = served(work, **{**engine, **drafter, **free})
    plain, alone = served(work, **{**engine, **free, "draft": None, "rates": None})
    assert emitted == alone
    for name in TIMES:
        np.testing.assert_array_equal(with_it[name], plain[name], err_msg=name)


@pytest.mark.parametrize("kind", ["model", "ngram"])
def test_a_scenario_with_a_table_of_zeros_is_plain_decoding(kind):
    target, draft = SERVED[kind]
    base = {
        "model": target, "gpu": "h100-sxm", "engine": {"name": "vllm", "memory_utilization": 0.5},
        "traffic": {"kind": "poisson", "rate_per_s": 30, "requests": 150, "lengths": {"prompt": 300, "output": 60}},
        "speculation": {"draft": draft, "acceptance": 0.7, "policy": {"table": {"batches": [1, 9], "gamma": [0, 0]}}},
    }  # fmt: skip
    result = simulate(load_scenario(base))
    if kind == "model":
        assert result.main.total_blocks < result.plain.total_blocks  # its memory is all that the drafter costs
        assert result.plain.requests["preemptions"].sum() == result.main.requests["preemptions"].sum() == 0
    for name in (*TIMES, "generated_tokens", "decode_rounds"):
        np.testing.assert_array_equal(result.main.requests[name], result.plain.requests[name], err_msg=name)


# Common random numbers


def positions(emitted):
    """Tokens emitted by the round at each output position, of one request; the prompt's token and the last round left out."""
    at = np.cumsum([0, *emitted])
    return {int(place): tokens for place, tokens in zip(at[1:-1], emitted[1:], strict=True) if place + tokens < at[-1]}


PLENTY = {"total_blocks": 1_000, "max_batched_tokens": 512, "prefix_caching": 1}


@QUICK
@given(crowds(), engines(), drafters(), engines(), st.integers(1, 8), st.integers(1, 8))
def test_luck_belongs_to_request_position_and_depth(work, engine, drafter, other, less, more):
    # Of the longer draft what the shorter one keeps, wherever both begin a round; whatever the engine and who else is there.
    less, more = sorted((less, more))
    passes = 0 if drafter["draft"] is None else None
    drafter = drafter | {
        "match_probability": 1.0,
        "states": [(0.5, 0.5, True), (0.5, 1.5, True)],
        "renewal": (0.3, 0.1),
    }
    rates = (drafter["rates"] * 3)[:8]
    short, long = (
        served(work, **{**where, **PLENTY, **drafter, "plan": always(chain(gamma, passes)), "rates": rates})[1]
        for where, gamma in ((engine, less), (other, more))
    )
    for few, many in zip(short, long, strict=True):
        few, many = positions(few), positions(many)
        for place in few.keys() & many.keys():
            assert few[place] == min(many[place], less + 1)


@QUICK
@given(crowds(), engines(), drafters(), st.sampled_from(sorted(POLICIES)))
def test_no_policy_changes_what_would_have_been_kept(work, engine, drafter, name):
    # Against the deepest chain always: never more, and under the oracle the very same.
    drafter = drafter | {
        "match_probability": 1.0,
        "states": [(0.5, 0.5, True), (0.5, 1.5, True)],
        "renewal": (0.3, 0.1),
    }
    drafter |= PLENTY
    plans = POLICIES if drafter["draft"] else LOOK_UPS
    _, fixed = served(work, **{**engine, **drafter, "plan": plans["chain"]})
    requests, policy = served(work, **{**engine, **drafter, "plan": plans[name]})
    for few, many in zip(policy, fixed, strict=True):
        if name == "oracle":
            assert few == many
        few, many = positions(few), positions(many)
        for place in few.keys() & many.keys():
            assert few[place] <= many[place]
    if name == "oracle":
        assert (requests["drafted_tokens"] == requests["accepted_tokens"]).all()


@QUICK
@given(crowds(), engines(), drafters())
def test_alone_or_in_a_crowd_a_request_has_the_same_rounds(work, engine, drafter):
    # Under a policy that looks at nobody else.
    drafter |= {"plan": (POLICIES if drafter["draft"] else LOOK_UPS)["chain"]} | PLENTY
    _, together = served(work, **{**engine, **drafter})
    alone = fresh(work)
    alone.requests["arrival_s"] = alone.requests["ready_s"] = np.arange(len(alone.requests)) * 1e4
    _, apart = served(alone, **{**engine, **drafter, "max_sequences": 1})
    assert together == apart
