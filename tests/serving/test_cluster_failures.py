"""Replicas that fail and come back: by hand, and nobody is lost."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.serving import state
from simulator.serving.cluster_config import Failure
from simulator.serving.control import MOST_RETRIES, Control, State
from simulator.serving.failures import outages
from tests.serving.cluster_rig import poisson, serve
from tests.serving.plain.rig import tables, workload


def failing(*outages_, delay_s=1.0):
    """Planned outages of (replica, at, for so long)."""
    planned = [Failure(replica=r, at_s=at_s, down_s=down_s) for r, at_s, down_s in outages_]
    return Control(failures=planned, retry_delay_s=delay_s)


# By hand: a step takes 1 s, whatever is in it.


def test_the_step_that_runs_is_completed_and_what_is_left_goes_elsewhere():
    # Fails at 1.5 s, ends its step at 2 s with the second token; back at 3 s, 8 + 2 tokens on the other, then 2 more.
    requests, run = serve(workload([0.0], [8], [4]), failing((0, 1.5, 10.0)), replicas=2)
    (request,) = requests
    assert (request.first_token_s, request.last_token_s, request.finish_s) == (1.0, 5.0, 5.0)
    assert (request.longest_gap_s, request.chunks) == (2.0, 3)
    assert (request.retries, request.recomputed_tokens, request.replica) == (1, 9, 1)
    assert [(h.time_s, h.replica, h.state, h.requests) for h in run.happened] == [(2.0, 0, State.FAILED, 1)]
    assert [r.emitted_tokens for r in run.replicas] == [2, 2]
    assert run.held_s.tolist() == [2.0, 5.0]


def test_who_waits_is_retried_too_and_its_wait_goes_on():
    # One at a time: the second waits when the replica fails at 1.5 s; both are routed again at 2 + 1 s.
    requests, _ = serve(workload([0.0, 0.5], [8, 8], [4, 1]), failing((0, 1.5, 10.0)), replicas=2, max_sequences=1,
                        router="round-robin")  # fmt: skip
    # Round robin: the second request is on the other replica from the start.
    assert requests["retries"].tolist() == [1, 0]
    requests, _ = serve(workload([0.0, 0.5], [8, 8], [4, 1]), failing((0, 1.5, 2.0)), max_sequences=1)
    # Alone it comes back at 4 s: the first, 8 + 2 tokens, has its third and fourth token at 5 and 6 s, then the second.
    assert requests["retries"].tolist() == [1, 1]
    assert requests["scheduled_s"].tolist() == [0.0, 6.0]
    assert requests["finish_s"].tolist() == [6.0, 7.0]


def test_where_no_replica_is_open_requests_wait_at_the_router():
    requests, run = serve(workload([2.0, 2.5], [4, 4], [1, 1]), failing((0, 1.0, 4.0)))
    assert requests["ready_s"].tolist() == [5.0, 5.0]
    assert requests["arrival_s"].tolist() == [2.0, 2.5]
    assert requests["finish_s"].tolist() == [6.0, 6.0]
    # From the first arrival (2 s) on it was held from 5 to 6 s.
    assert run.held_s.tolist() == [1.0]


def test_a_closed_replica_gets_nothing_and_comes_back_empty():
    arrivals = [0.0, 0.0, 3.0, 3.0, 9.0, 9.0]
    requests, run = serve(workload(arrivals, [4] * 6, [1] * 6), failing((1, 2.0, 5.0)), replicas=2)
    assert requests["replica"].tolist() == [0, 1, 0, 0, 0, 1]
    assert [(h.time_s, h.state) for h in run.happened] == [(2.0, State.FAILED), (7.0, State.SERVING)]


def test_the_cache_is_gone_after_a_failure():
    work = workload([0.0, 20.0], [8, 8], [1, 1], session=[0, 0])
    kept, _ = serve(work, shares=1)
    lost, _ = serve(work, failing((0, 10.0, 1.0)), shares=1)
    assert kept["cached_tokens"].tolist() == [0, 4]
    assert lost["cached_tokens"].tolist() == [0, 0]


def test_a_replica_that_is_down_does_not_fail_again():
    _, run = serve(workload([0.0], [4], [20]), failing((0, 1.5, 4.0), (0, 3.0, 100.0)), replicas=2)
    assert [(h.time_s, h.state) for h in run.happened] == [(2.0, State.FAILED), (6.0, State.SERVING)]


def test_a_replica_that_never_lasts_ends_the_simulation_with_a_reason():
    # A prompt takes 10 steps of 1 s, and the replica lasts half a second.
    control = Control(failures=[Failure(mtbf_s=0.5, mttr_s=0.5)], retry_delay_s=0.0)
    work = workload([0.0], [100], [1])
    requests, run = serve(work, control, max_batched_tokens=10)
    assert str(MOST_RETRIES) in run.interrupted
    assert requests["status"].tolist() == [state.WAITING]


# Random outages


def test_outages_are_exponential_with_their_means_and_the_same_for_a_seed():
    failure = Failure(mtbf_s=100.0, mttr_s=5.0)
    draws = outages(failure, 3, seed=7)
    up_s, down_s = np.array([next(draws) for _ in range(4000)]).T
    for values, mean in ((up_s, 100.0), (down_s, 5.0)):
        assert values.mean() == pytest.approx(mean, abs=3.3 * mean / 4000**0.5)
        # The standard deviation of an exponential is its mean; its own is mean · √(2/n) (fourth moment 9).
        assert values.std() == pytest.approx(mean, abs=3.3 * mean * (2 / 4000) ** 0.5)
    again = outages(failure, 3, seed=7)
    assert next(again) == (up_s[0], down_s[0])
    assert next(outages(failure, 4, seed=7)) != (up_s[0], down_s[0])


def test_availability_is_mtbf_over_mtbf_and_mttr():
    n, mtbf_s, mttr_s = 3000, 200.0, 50.0
    work = workload(np.arange(n) * 20.0, [4] * n, [2] * n)
    control = Control(failures=[Failure(mtbf_s=mtbf_s, mttr_s=mttr_s)], retry_delay_s=1.0, seed=1)
    requests, run = serve(work, control, replicas=4)
    assert (requests["status"] == state.FINISHED).all()
    cycles = 4 * run.end_s / (mtbf_s + mttr_s)
    share = run.held_s.sum() / (4 * run.end_s)
    expected = mtbf_s / (mtbf_s + mttr_s)
    # Renewal reward: the share over c cycles has standard deviation a·(1 − a)·√(2/c) for exponential times; steps that
    # are completed add 1 s at most to an outage's 250 s.
    assert share == pytest.approx(expected, abs=3.3 * expected * (1 - expected) * (2 / cycles) ** 0.5 + 1 / 250)
    downs = sum(h.state == State.FAILED for h in run.happened)
    assert downs == pytest.approx(cycles, abs=4 * cycles**0.5)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.floats(0, 40), st.floats(0.1, 20)), max_size=8),
    st.sampled_from([0.0, 0.5, 3.0]),
    st.integers(0, 5),
)
def test_nobody_is_lost_whenever_who_fails(planned, delay_s, seed):
    n = 60
    rng = np.random.default_rng(seed)
    work = workload(np.sort(rng.uniform(0, 40, n)), rng.integers(1, 40, n), rng.integers(1, 25, n))
    whole, _ = serve(work, replicas=3, target=tables(0.2, 0.01), total_blocks=60)
    requests, run = serve(
        work, failing(*planned, delay_s=delay_s), replicas=3, target=tables(0.2, 0.01), total_blocks=60
    )
    assert (requests["status"] == state.FINISHED).all()
    assert (requests["generated_tokens"] == whole["output_tokens"]).all()
    assert sum(r.emitted_tokens for r in run.replicas) == work.requests["output_tokens"].sum()
    # What was computed beyond one pass over each prompt was computed again, and what comes again is what had been computed.
    computed = sum(r.prefill_tokens for r in run.replicas)
    assert computed >= work.requests["prompt_tokens"].sum()
    thrown_out = sum(h.requests for h in run.happened)
    assert requests["retries"].sum() == thrown_out
    for replica in run.replicas:
        assert replica.submitted == replica.left
        assert replica.used_blocks == replica.running == replica.stacked == replica.fresh == 0


def test_failures_cost_service_but_not_requests():
    n = 2000
    work = workload(poisson(n, 1.0), [20] * n, [20] * n)
    whole, _ = serve(work, replicas=4, target=tables(0.1))
    control = Control(failures=[Failure(mtbf_s=100.0, mttr_s=30.0)], retry_delay_s=1.0)
    failed, _ = serve(work, control, replicas=4, target=tables(0.1))
    assert failed["retries"].sum() > 0
    assert (failed["status"] == state.FINISHED).all()
    assert (failed["finish_s"] - failed["arrival_s"]).mean() > (whole["finish_s"] - whole["arrival_s"]).mean()
