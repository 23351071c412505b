"""Seconds of a step: host beside GPU, captured graphs, pipelines, attention."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.architecture import load_decoder
from simulator.cost.forward import DECODE_QUERY_LIMIT, ForwardCost
from simulator.hardware import load_gpu
from simulator.serving.plain.timing import KNOT_TOKENS, PassTimer, Spent
from tests.serving.plain.rig import MOST_TOKENS, run, tables, workload

COSTS = {
    name: ForwardCost(load_decoder(name), load_gpu("h100-sxm"))
    for name in ("llama-3.1-8b", "gemma-2-27b", "deepseek-v2-lite")
}
TIMERS = {name: PassTimer(cost.tables(64, 64)) for name, cost in COSTS.items()}
names = st.sampled_from(sorted(COSTS))
work = st.tuples(st.integers(1, 40), st.integers(0, 20_000))


def seconds(replica):
    return [step.seconds for step in replica.steps]


def test_host_time_follows_the_gpu():
    # 0.5 s per step and 0.25 s per sequence that takes part.
    _, (replica,) = run(workload([0.0, 0.0], [4, 4], [1, 2]), host_step_s=0.5, host_per_sequence_s=0.25)
    assert seconds(replica) == [1.0 + 1.0, 1.0 + 0.75]
    assert replica.counters.host_s == 1.75


@pytest.mark.parametrize(("hidden_s", "overlapped"), [(0.75, 1.5), (1.25, 1.75)])
def test_overlap_hides_host_work_right_after_another_step(hidden_s, overlapped):
    # 1 s on the GPU, 0.5 s that nothing hides, `hidden_s` that runs beside the GPU except in the first step after a pause.
    host = {"host_step_s": 0.5, "host_hidden_step_s": hidden_s}
    _, (replica,) = run(workload([0.0, 100.0], [4, 4], [3, 2]), overlap=1, **host)
    alone = 1.5 + hidden_s
    assert seconds(replica) == [alone, overlapped, overlapped, alone, overlapped]
    assert replica.counters.host_s == pytest.approx(sum(seconds(replica)) - 5 * 1.0)
    _, (replica,) = run(workload([0.0, 100.0], [4, 4], [3, 2]), **host)
    assert seconds(replica) == [alone] * 5


def test_an_overlapped_schedule_hears_only_of_those_ready_before_the_step_began():
    # B arrives in the middle of the step from 1 to 2 s: too late for the one from 2, which was planned at 1.
    requests, _ = run(workload([0.0, 1.5], [4, 4], [9, 1]), overlap=1)
    assert requests[1].scheduled_s == 3.0
    requests, _ = run(workload([0.0, 1.5], [4, 4], [9, 1]))
    assert requests[1].scheduled_s == 2.0
    requests, _ = run(workload([0.0, 1.0], [4, 4], [9, 1]), overlap=1)
    assert requests[1].scheduled_s == 2.0


def test_an_idle_overlapped_engine_starts_at_once():
    # A ends at 1 s, B came at 0.5: nobody else is there, so nothing was planned and nothing overlaps.
    requests, (replica,) = run(workload([0.0, 0.5], [4, 4], [1, 1]), overlap=1, host_hidden_step_s=0.25)
    assert requests[1].scheduled_s == 1.25
    assert seconds(replica) == [1.25, 1.25]


def test_steps_without_a_graph_pay_for_it():
    # Graphs end at 4 tokens, and none serves prompts.
    extra_host_s = np.zeros((2, MOST_TOKENS + 1))
    extra_host_s[0, 5:] = 0.5
    extra_host_s[1, 1:] = 0.5
    target = tables(1.0, extra_host_s=extra_host_s)
    _, (replica,) = run(workload([0.0] * 5, [4] * 5, [3, 2, 2, 2, 2]), target=target)
    assert seconds(replica) == [1.5, 1.5, 1.0]


def test_prompts_have_their_own_plane():
    _, (replica,) = run(workload([0.0, 0.5], [4, 4], [3, 1]), target=tables(1.0, prompt_s=0.25))
    assert seconds(replica) == [1.25, 1.25, 1.0]


def test_a_pipeline_runs_one_micro_batch_per_stage():
    # 3 stages, 0.125 s per token. Five prompts of 7 tokens: 35 tokens in 3 parts, the largest 12. Two that decode: 2 parts of 1.
    target = tables(1.0, 0.125, pipeline=3)
    _, (replica,) = run(workload([0.0] * 5, [7] * 5, [1, 1, 1, 2, 2]), target=target)
    assert seconds(replica) == [1.0 + 12 * 0.125, 1.0 + 0.125]
    # FLOP of one stage: 3 parts of 12 in 3 stages, and 2 of 1. Bytes: one per row, 5 in 3 parts of 2, and 2 of 1.
    assert replica.counters.flop == pytest.approx(12 + 2 / 3)
    assert replica.counters.hbm_bytes == pytest.approx(2 + 2 / 3)


@given(names, st.lists(work, min_size=1, max_size=6))
def test_exact_attention_is_the_analysis(name, batch):
    timer, cost = TIMERS[name], COSTS[name]
    new, cached = zip(*batch, strict=True)
    assert timer.exact_s(batch, Spent()) == pytest.approx(cost.attention(new, cached), rel=1e-12)


@given(
    st.sampled_from(sorted(n for n in TIMERS if not TIMERS[n].has_window)),
    st.integers(1, 64),
    st.integers(0, 300),
    st.integers(1, DECODE_QUERY_LIMIT),
)
def test_interpolation_is_exact_at_its_knots(name, sequences, place, new):
    batch = [(new, place * int(KNOT_TOKENS))] * sequences
    spent, other = Spent(), Spent()
    assert TIMERS[name].attention_s(batch, prompts=False, spent=spent) == TIMERS[name].exact_s(batch, other)
    assert (spent.hbm_bytes, spent.flop) == pytest.approx((other.hbm_bytes, other.flop))


@settings(max_examples=200)
@given(names, st.lists(st.integers(0, 20_000), min_size=1, max_size=32))
def test_interpolation_is_close_between_knots(name, contexts):
    timer = TIMERS[name]
    batch = [(1, context) for context in contexts]
    between = timer.attention_s(batch, prompts=False, spent=Spent())
    assert between == pytest.approx(timer.exact_s(batch, Spent()), rel=0.02)


def test_only_the_same_few_new_tokens_are_interpolated():
    timer = TIMERS["llama-3.1-8b"]
    for batch, prompts in (
        ([(1, 100), (2, 100)], False),
        ([(17, 100), (17, 100)], False),
        ([(4, 100), (4, 100)], True),
    ):
        assert timer.attention_s(batch, prompts=prompts, spent=Spent()) == timer.exact_s(batch, Spent())
    windowed = TIMERS["gemma-2-27b"]
    assert windowed.attention_s([(2, 100)] * 3, prompts=False, spent=Spent()) == windowed.exact_s(
        [(2, 100)] * 3, Spent()
    )
