"""Replicas, routing and arrivals against queueing theory."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.randomness import uniform_array
from simulator.serving import cluster, state
from tests.serving.rig import run, tables, traffic


def poisson(n, rate_per_s, seed=1):
    return np.cumsum(-np.log1p(-uniform_array(seed, np.arange(n), 99, 0))) / rate_per_s


def batch_means(values, batches=40):
    """Mean and half-width of its 99.9 % interval from means of consecutive batches (neighbours are correlated)."""
    means = np.array([chunk.mean() for chunk in np.array_split(values, batches)])
    return means.mean(), 3.55 * means.std(ddof=1) / batches**0.5


def waiting(requests, warmup):
    return (requests["scheduled_s"] - requests["arrival_s"])[warmup:]


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_at_a_time_with_fixed_service_is_md1(load):
    n, service_s = 60_000, 1.0
    requests, _ = run(traffic(poisson(n, load), [1] * n, [1] * n), max_sequences=1, target=tables(service_s))
    mean, half_width = batch_means(waiting(requests, 2000))
    assert mean == pytest.approx(load * service_s / (2 * (1 - load)), abs=half_width)


@pytest.mark.parametrize("load", [0.4, 0.7])
def test_geometric_answers_follow_pollaczek_khinchine(load):
    # Service is (output tokens) x 1 s, geometric with mean 20: nearly exponential, so nearly M/M/1, but exactly M/G/1.
    n, mean_tokens = 60_000, 20.0
    tokens = np.ceil(np.log1p(-uniform_array(3, np.arange(n), 98, 0)) / np.log1p(-1 / mean_tokens)).astype(int)
    tokens = np.maximum(tokens, 1)
    rate = load / mean_tokens
    requests, _ = run(traffic(poisson(n, rate), [1] * n, tokens), max_sequences=1)
    mean, half_width = batch_means(waiting(requests, 2000))
    second_moment = (2 - 1 / mean_tokens) * mean_tokens**2
    assert mean == pytest.approx(rate * second_moment / (2 * (1 - load)), abs=half_width)
    mm1 = load * mean_tokens / (1 - load)
    assert mean == pytest.approx(mm1, abs=half_width + mm1 / mean_tokens)


def test_littles_law_holds_on_the_time_series():
    n = 20_000
    requests, (replica,) = run(
        traffic(poisson(n, 2.0), [5] * n, [20] * n), target=tables(0.01, 0.001), max_sequences=64
    )
    in_system = (
        replica.series[state.SERIES.index("running_s")].sum() + replica.series[state.SERIES.index("waiting_s")].sum()
    )
    sojourn = (requests["finish_s"] - requests["arrival_s"]).sum()
    # A request that arrives inside a step is counted from the next step on: at most one step (< 0.1 s) each is missed.
    assert in_system <= sojourn
    assert in_system == pytest.approx(sojourn, abs=0.1 * n)


def test_work_is_conserved():
    n = 2000
    requests, (replica,) = run(traffic(poisson(n, 0.05), [1] * n, [10] * n), max_sequences=1)
    assert replica.state[0].busy_s == requests["output_tokens"].sum()


def test_least_loaded_router_prefers_the_emptier_replica_then_the_first():
    requests, _ = run(traffic([0.0, 0.1, 0.2, 2.5], [1] * 4, [2, 9, 9, 1]), replicas=2)
    assert requests["replica"].tolist() == [0, 1, 0, 0]


def test_the_router_does_not_know_what_a_running_step_will_finish():
    # At 0.5 s the answer of the second request is still being computed (0.1–1.1 s), so both replicas have one request.
    requests, _ = run(traffic([0.0, 0.1, 0.5], [1] * 3, [9, 1, 1]), replicas=2)
    assert requests["replica"].tolist() == [0, 1, 0]


def test_the_router_of_a_closed_loop_does_not_know_it_either():
    # On the first: 0 (0–9 s) and 2 (0–1 s); on the second: 1 (0–1 s), then 3 (1–3 s). 4 is asked at 2.5 s, one each.
    arrivals, think = [0.0, 0.0, 0.0, np.nan, np.nan], [0.0, 0.0, 0.0, 0.0, 1.5]
    requests, _ = run(traffic(arrivals, [1] * 5, [9, 1, 1, 2, 1], users=3, think_s=think), replicas=2)
    assert requests["arrival_s"].tolist() == [0.0, 0.0, 0.0, 1.0, 2.5]
    assert requests["replica"].tolist() == [0, 1, 0, 1, 0]


def test_two_replicas_halve_the_load():
    n = 5000
    requests, pool = run(traffic(poisson(n, 1.0), [1] * n, [1] * n), replicas=2, max_sequences=1)
    shares = np.bincount(requests["replica"]) / n
    assert shares.sum() == 1
    assert len(pool) == 2
    # Joining the shorter of two queues keeps waits below one M/D/1 queue at half the load.
    assert waiting(requests, 500).mean() < 0.5 / (2 * (1 - 0.5))


def test_one_replica_through_the_router_equals_the_direct_path(monkeypatch):
    n = 500
    workload = traffic(poisson(n, 3.0), [7] * n, [11] * n)
    direct, (one,) = run(workload, target=tables(0.02, 0.001), gamma=3, rates=[0.7], draft=tables(0.005))
    monkeypatch.setattr(cluster, "_alone", lambda replica, *rest: cluster._routed([replica], *rest))
    routed, (other,) = run(workload, target=tables(0.02, 0.001), gamma=3, rates=[0.7], draft=tables(0.005))
    assert direct.tobytes() == routed.tobytes()
    assert one.series.tobytes() == other.series.tobytes()


def test_closed_loop_trajectory_of_one_user():
    think = [0.0, 2.0, 0.5]
    requests, _ = run(traffic([0.0, np.nan, np.nan], [1] * 3, [2, 1, 1], users=1, think_s=think))
    assert requests["arrival_s"].tolist() == [0.0, 4.0, 5.5]
    assert requests["finish_s"].tolist() == [2.0, 5.0, 6.5]


def test_users_without_think_time_keep_the_batch_full():
    n, users = 40, 4
    requests, (replica,) = run(
        traffic([0.0] * users + [np.nan] * (n - users), [1] * n, [5] * n, users=users, think_s=[0.0] * n)
    )
    assert replica.state[0].busy_s == n / users * 5
    assert requests["finish_s"].max() == n / users * 5


@settings(max_examples=25)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(5, 30), st.integers(0, 9))
def test_closed_loop_never_has_more_requests_than_users(users, replicas, n, seed):
    think = -np.log1p(-uniform_array(seed, np.arange(n), 5, 0)) * 2
    think[:users] = 0.0
    arrivals = np.where(np.arange(n) < users, 0.0, np.nan)
    requests, _ = run(traffic(arrivals, [3] * n, [4] * n, users=users, think_s=think), replicas=replicas)
    assert (requests["status"] == state.FINISHED).all()
    events = sorted([(t, 1) for t in requests["arrival_s"]] + [(t, -1) for t in requests["finish_s"]], key=lambda e: e)
    assert max(np.cumsum([change for _, change in events])) <= users


def test_closed_loop_response_time_law():
    # Little over the whole loop: N = X · (R + Z), exact for the time from 0 to the last finish but for the ends.
    n, users, think_s = 4000, 20, 3.0
    think = np.full(n, think_s)
    think[:users] = 0.0
    arrivals = np.where(np.arange(n) < users, 0.0, np.nan)
    requests, _ = run(
        traffic(arrivals, [3] * n, [6] * n, users=users, think_s=think), target=tables(0.1), max_sequences=4
    )
    throughput = n / requests["finish_s"].max()
    response_s = (requests["finish_s"] - requests["arrival_s"]).mean()
    assert throughput * (response_s + think_s) == pytest.approx(users, rel=0.02)


def test_speculation_changes_when_but_never_how_many():
    n = 300
    workload = traffic(poisson(n, 1.0), [5] * n, [30] * n)
    plain, _ = run(workload, target=tables(0.02))
    fast, _ = run(workload, target=tables(0.02), gamma=4, rates=[0.8], draft=tables(0.001))
    assert (plain["generated_tokens"] == fast["generated_tokens"]).all()
    assert (fast["finish_s"] - fast["arrival_s"]).mean() < (plain["finish_s"] - plain["arrival_s"]).mean()


def test_acceptance_length_agrees_with_the_closed_form():
    n, alpha, gamma = 3000, 0.75, 4
    requests, _ = run(
        traffic([0.0] * n, [1] * n, [400] * n), gamma=gamma, rates=[alpha], draft=tables(0.1), max_sequences=64,
        total_blocks=100_000,
    )  # fmt: skip
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
        requests, _ = run(traffic([0.0] * n, [1] * n, [gamma + 2] * n), gamma=gamma, rates=[0.6], draft=tables(0.1))
        first[gamma] = requests["accepted_tokens"] > 0
    assert (first[2] & ~first[4]).sum() == 0
