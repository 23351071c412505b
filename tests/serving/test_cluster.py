"""Replicas, routing and arrivals against queueing theory, and what the request clock promises."""

import math
import signal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.randomness import uniform_array
from simulator.serving import state
from simulator.serving.cluster import run_cluster
from simulator.serving.control import Control
from tests.serving.cluster_rig import batch_means, fresh, geometric, poisson, pollaczek_khinchine_s, serve
from tests.serving.plain.rig import fleet, tables, workload


def waiting_s(requests, warmup=2000):
    return (requests["scheduled_s"] - requests["arrival_s"])[warmup:]


def total(run, name):
    """Sum over all replicas and all time of one of `state.SERIES`."""
    return sum(pool.arrays.records.series[:, state.SERIES.index(name)].sum() for pool in run.pools)


def mdc_wait_s(servers, load):
    """Mean wait of M/D/c with service 1 s (Crommelin 1932), α = c·load:
    Σᵢ e^(−iα) · [Σ_{j ≥ ic} (iα)ʲ/j! − (c/α) · Σ_{j > ic} (iα)ʲ/j!]."""
    alpha = servers * load
    wait_s = 0.0
    for i in range(1, 400):
        at = [math.exp(j * math.log(i * alpha) - i * alpha - math.lgamma(j + 1)) for j in range(i * servers)]
        here = math.exp(i * servers * math.log(i * alpha) - i * alpha - math.lgamma(i * servers + 1))
        from_on = 1.0 - math.fsum(at)
        wait_s += from_on - servers / alpha * (from_on - here)
    return wait_s


# Queues


def test_crommelin_for_one_server_is_pollaczek_khinchine():
    assert mdc_wait_s(1, 0.6) == pytest.approx(pollaczek_khinchine_s(0.6, 1.0, 1.0), rel=1e-6)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_at_a_time_with_fixed_service_is_md1(load):
    n = 60_000
    requests, _ = serve(workload(poisson(n, load), [1] * n, [1] * n), max_sequences=1)
    mean, half_width = batch_means(waiting_s(requests))
    assert mean == pytest.approx(pollaczek_khinchine_s(load, 1.0, 1.0), abs=half_width)


@pytest.mark.parametrize("load", [0.4, 0.7])
def test_geometric_answers_follow_pollaczek_khinchine(load):
    # Service is (output tokens) x 1 s, geometric with mean 20: nearly exponential, so nearly M/M/1, but exactly M/G/1.
    n, mean_tokens = 60_000, 20.0
    rate = load / mean_tokens
    requests, _ = serve(workload(poisson(n, rate), [1] * n, geometric(n, mean_tokens)), max_sequences=1)
    mean, half_width = batch_means(waiting_s(requests))
    second_moment = (2 - 1 / mean_tokens) * mean_tokens**2
    assert mean == pytest.approx(pollaczek_khinchine_s(rate, mean_tokens, second_moment), abs=half_width)
    mm1 = load * mean_tokens / (1 - load)
    assert mean == pytest.approx(mm1, abs=half_width + mm1 / mean_tokens)


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_two_replicas_in_turn_wait_as_two_servers_of_one_queue(load):
    # Each sees every other arrival: Erlang-2 gaps. First come, first served, two servers with fixed service go in turn, too.
    n = 60_000
    requests, _ = serve(
        workload(poisson(n, 2 * load), [1] * n, [1] * n), replicas=2, router="round-robin", max_sequences=1
    )
    mean, half_width = batch_means(waiting_s(requests))
    assert mean == pytest.approx(mdc_wait_s(2, load), abs=half_width)
    assert mean < pollaczek_khinchine_s(load, 1.0, 1.0) - half_width


def test_the_shorter_queue_lies_between_one_queue_for_both_and_two_at_random():
    n, load = 60_000, 0.8
    requests, run = serve(workload(poisson(n, 2 * load), [1] * n, [1] * n), replicas=2, max_sequences=1)
    mean, half_width = batch_means(waiting_s(requests))
    assert mdc_wait_s(2, load) - half_width < mean < pollaczek_khinchine_s(load, 1.0, 1.0)
    assert len(run.replicas) == 2


@pytest.mark.parametrize("replicas", [1, 3])
def test_littles_law_holds_on_the_time_series(replicas):
    n = 20_000
    work = workload(poisson(n, 2.0 * replicas), [5] * n, [20] * n)
    requests, run = serve(work, replicas=replicas, target=tables(0.01, 0.001), max_sequences=64)
    in_system = total(run, "running_s") + total(run, "waiting_s")
    sojourn = (requests["finish_s"] - requests["arrival_s"]).sum()
    # A request that arrives inside a step is counted from the next step on: at most one step (< 0.1 s) each is missed.
    assert in_system <= sojourn
    assert in_system == pytest.approx(sojourn, abs=0.1 * n)


@pytest.mark.parametrize("router", ["round-robin", "least-outstanding", "least-kv", "prefix-aware", "power-of-two"])
def test_work_is_conserved_whatever_the_router(router):
    n = 2000
    work = workload(poisson(n, 0.15), [1] * n, [10] * n)
    requests, run = serve(work, replicas=3, router=router, max_sequences=1)
    assert sum(replica.busy_s for replica in run.replicas) == requests["output_tokens"].sum()
    assert sum(replica.emitted_tokens for replica in run.replicas) == requests["output_tokens"].sum()
    assert (np.bincount(requests["replica"], minlength=3) > n / 10).all()


# Routing by hand


def test_least_loaded_router_prefers_the_emptier_replica_then_the_first():
    requests, _ = serve(workload([0.0, 0.1, 0.2, 2.5], [1] * 4, [2, 9, 9, 1]), replicas=2)
    assert requests["replica"].tolist() == [0, 1, 0, 0]


def test_the_router_does_not_know_what_a_running_step_will_finish():
    # At 0.5 s the answer of the second request is still being computed (0.1–1.1 s), so both replicas have one request.
    requests, _ = serve(workload([0.0, 0.1, 0.5], [1] * 3, [9, 1, 1]), replicas=2)
    assert requests["replica"].tolist() == [0, 1, 0]


def test_the_router_of_a_closed_loop_does_not_know_it_either():
    # On the first: 0 (0–9 s) and 2 (0–1 s); on the second: 1 (0–1 s), then 3 (1–3 s). 4 is asked at 2.5 s, one each.
    arrivals, think = [0.0, 0.0, 0.0, np.nan, np.nan], [0.0, 0.0, 0.0, 0.0, 1.5]
    requests, _ = serve(workload(arrivals, [1] * 5, [9, 1, 1, 2, 1], users=3, think_s=think), replicas=2)
    assert requests["arrival_s"].tolist() == [0.0, 0.0, 0.0, 1.0, 2.5]
    assert requests["replica"].tolist() == [0, 1, 0, 1, 0]


def test_replicas_of_two_kinds_each_at_its_own_speed():
    slow, fast = fleet(2, target=tables(2.0)), fleet(2, target=tables(0.5))
    both = type(slow)([slow.models[0], fast.models[0]], np.array([0, 1]), router=0)
    work = fresh(workload([0.0, 0.0], [1, 1], [3, 3]))
    run_cluster([both], work)
    assert work.requests["replica"].tolist() == [0, 1]
    assert work.requests["finish_s"].tolist() == [6.0, 1.5]


# Closed loops


def test_closed_loop_trajectory_of_one_user():
    work = workload([0.0, np.nan, np.nan], [1] * 3, [2, 1, 1], users=1, think_s=[0.0, 2.0, 0.5])
    requests, _ = serve(work)
    assert requests["arrival_s"].tolist() == [0.0, 4.0, 5.5]
    assert requests["finish_s"].tolist() == [2.0, 5.0, 6.5]


def test_users_without_think_time_keep_the_batch_full():
    n, users = 40, 4
    requests, run = serve(
        workload([0.0] * users + [np.nan] * (n - users), [1] * n, [5] * n, users=users, think_s=[0.0] * n)
    )
    assert run.replicas[0].busy_s == n / users * 5
    assert requests["finish_s"].max() == run.end_s == n / users * 5


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(5, 30), st.integers(0, 9))
def test_closed_loop_never_has_more_requests_than_users(users, replicas, n, seed):
    think = -np.log1p(-uniform_array(seed, np.arange(n), 5, 0)) * 2
    think[:users] = 0.0
    arrivals = np.where(np.arange(n) < users, 0.0, np.nan)
    requests, _ = serve(workload(arrivals, [3] * n, [4] * n, users=users, think_s=think), replicas=replicas)
    assert (requests["status"] == state.FINISHED).all()
    events = sorted([(t, 1) for t in requests["arrival_s"]] + [(t, -1) for t in requests["finish_s"]])
    assert max(np.cumsum([change for _, change in events])) <= users


def test_closed_loop_response_time_law():
    # Little over the whole loop: N = X · (R + Z), exact for the time from 0 to the last finish but for the ends.
    n, users, think_s = 4000, 20, 3.0
    think = np.full(n, think_s)
    think[:users] = 0.0
    arrivals = np.where(np.arange(n) < users, 0.0, np.nan)
    work = workload(arrivals, [3] * n, [6] * n, users=users, think_s=think)
    requests, _ = serve(work, target=tables(0.1), max_sequences=4)
    throughput = n / requests["finish_s"].max()
    response_s = (requests["finish_s"] - requests["arrival_s"]).mean()
    assert throughput * (response_s + think_s) == pytest.approx(users, rel=0.02)


# Speculation


def test_speculation_changes_when_but_never_how_many():
    n = 300
    work = workload(poisson(n, 1.0), [5] * n, [30] * n)
    plain, _ = serve(work, target=tables(0.02))
    fast, _ = serve(work, target=tables(0.02), gamma=4, rates=[0.8], draft=tables(0.001))
    assert (plain["generated_tokens"] == fast["generated_tokens"]).all()
    assert (fast["finish_s"] - fast["arrival_s"]).mean() < (plain["finish_s"] - plain["arrival_s"]).mean()


def test_acceptance_length_agrees_with_the_closed_form():
    n, alpha, gamma = 3000, 0.75, 4
    work = workload([0.0] * n, [1] * n, [400] * n)
    requests, _ = serve(
        work, gamma=gamma, rates=[alpha], draft=tables(0.1), max_sequences=64, total_blocks=100_000, replicas=2
    )
    per_request = 1 + requests["accepted_tokens"] / requests["rounds"]
    mean, half_width = per_request.mean(), 3.3 * per_request.std() / n**0.5
    # The last round of an answer is cut short: at most γ of its 400 tokens, hence the slack of one round in ~130.
    expected = (1 - alpha ** (gamma + 1)) / (1 - alpha)
    assert mean == pytest.approx(expected, abs=half_width + expected / 130)


def test_a_longer_chain_sees_the_same_luck():
    # Counter-based draws: what γ = 2 accepts in its first round, γ = 4 accepts too (or more).
    n = 500
    first = {}
    for gamma in (2, 4):
        work = workload([0.0] * n, [1] * n, [gamma + 2] * n)
        requests, _ = serve(work, gamma=gamma, rates=[0.6], draft=tables(0.1))
        first[gamma] = requests["accepted_tokens"] > 0
    assert (first[2] & ~first[4]).sum() == 0


# The request clock


def test_two_runs_are_equal_byte_for_byte():
    n = 500
    work = workload(poisson(n, 3.0), [7] * n, [11] * n)
    settings = {"target": tables(0.02, 0.001), "gamma": 3, "rates": [0.7], "draft": tables(0.005), "replicas": 2}
    one, other = (serve(work, router="power-of-two", **settings) for _ in range(2))
    assert one[0].tobytes() == other[0].tobytes()
    for a, b in zip(one[1].pools, other[1].pools, strict=True):
        assert a.arrays.records.series.tobytes() == b.arrays.records.series.tobytes()


def test_progress_rises_to_the_number_of_requests():
    n = 300
    work = fresh(workload(poisson(n, 1.0), [4] * n, [9] * n))
    told = []
    run_cluster([fleet(n, replicas=2)], work, progress=lambda done, of: told.append((done, of)), slice_steps=50)
    done = [one for one, _ in told]
    assert done == sorted(done)
    assert len(done) > 10
    assert told[-1] == (n, n)


def press(after):
    """A `progress` that presses Ctrl-C at its call number `after`."""
    calls = []

    def progress(done, of):
        calls.append(done)
        if len(calls) == after:
            signal.raise_signal(signal.SIGINT)

    return progress


def test_ctrl_c_leaves_a_valid_part_and_says_so():
    n = 300
    work = workload(poisson(n, 1.0), [4] * n, [9] * n)
    whole, _ = serve(work, replicas=2)
    before = signal.getsignal(signal.SIGINT)
    part = fresh(work)
    run = run_cluster([fleet(n, replicas=2)], part, progress=press(6), slice_steps=50)
    assert signal.getsignal(signal.SIGINT) is before
    assert run.interrupted
    assert 0 < run.end_s < whole["finish_s"].max()
    requests = part.requests
    done = requests["status"] == state.FINISHED
    assert 0 < done.sum() < n
    # Whoever ended before the time that was reached ended as in the whole simulation, and nobody is missing.
    assert (requests["finish_s"][done] == whole["finish_s"][done]).all()
    assert done[whole["finish_s"] <= run.end_s].all()
    assert np.isin(requests["status"][~done], (state.WAITING, state.RUNNING)).all()
    emitted = sum(replica.emitted_tokens for replica in run.replicas)
    assert emitted == requests["generated_tokens"].sum()


def test_nothing_to_do_is_done():
    work = fresh(workload([0.0], [4], [2]))
    work.requests["status"] = state.REJECTED
    work = type(work)(work.requests, admitted=np.zeros(0, dtype=np.int64))
    run = run_cluster([fleet(1)], work, Control())
    assert run.end_s == 0.0
    assert not run.interrupted
