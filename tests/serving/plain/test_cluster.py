"""Several replicas, routers, sessions and closed loops, written down by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.randomness import uniform
from simulator.serving import model, plain, state
from simulator.serving.plain.cluster import Instant
from simulator.serving.plain.routers import STREAM_ROUTING
from tests.serving.plain.rig import fleet, run, step_model, tables, workload


def statuses(requests):
    return [state.STATUS[status] for status in requests["status"]]


def test_round_robin():
    requests, _ = run(workload([0.0, 0.0, 0.5, 9.0], [1] * 4, [5] * 4), replicas=3, router="round-robin")
    assert requests["replica"].tolist() == [0, 1, 2, 0]


def test_least_outstanding():
    # A is done at 1 s, B at 5. C at 2 s goes to A's replica, D at 2.5 has the choice of two with one each: the first.
    requests, _ = run(workload([0.0, 0.0, 2.0, 2.5], [1] * 4, [1, 5, 9, 9]), replicas=2)
    assert requests["replica"].tolist() == [0, 1, 0, 0]


def test_answers_complete_by_now_are_not_outstanding():
    # A's answer is complete at 2 s exactly, B's at 2 s + ε: C at 2 s goes to A's replica, a moment earlier to either, the first.
    for arrival_s, chosen in ((2.0, 1), (2.0 - 1e-9, 0)):
        requests, _ = run(workload([0.0, 0.0, arrival_s], [1] * 3, [9, 2, 1]), replicas=2)
        assert requests["replica"].tolist() == [0, 1, chosen]


def test_least_kv():
    # A and B come before anything runs: both to the first. C finds 6 blocks in use there, none on the second, 3 of which it
    # takes. At 1.5 s A has gone, B has 2 blocks and C 4: D goes to the first.
    work = workload([0.0, 0.0, 0.5, 1.5], [20, 4, 12, 4], [1, 9, 9, 1])
    requests, _ = run(work, replicas=2, router="least-kv")
    assert requests["replica"].tolist() == [0, 0, 1, 0]


def test_least_kv_sees_replicas_as_their_running_step_leaves_them():
    # At 0.5 s A's step has begun and will leave 5 blocks in use: B goes to the other one. At 1.5 s B holds 1, C joins it.
    work = workload([0.0, 0.5, 1.75], [20, 4, 4], [9, 9, 9])
    requests, _ = run(work, replicas=2, router="least-kv")
    assert requests["replica"].tolist() == [0, 1, 1]


def test_shares_of_kv_are_compared_not_blocks():
    # A takes 2 of 10 blocks of the first, B 3 of 100 of the second: C goes where 3 % are used.
    models = [step_model(3, total_blocks=10), step_model(3, total_blocks=100)]
    both = model.Fleet(models, np.array([0, 1]), router=model.ROUTERS.index("least-kv"))
    result = plain.simulate(both, workload([0.0, 0.5, 1.0], [8, 12, 4], [9, 9, 9]))
    assert result.requests["replica"].tolist() == [0, 1, 1]


@pytest.mark.parametrize(("slack", "chosen"), [(4, 0), (1, 0), (0, 1)])
def test_prefix_aware(slack, chosen):
    # A ran on the first replica and left its prefix; B runs there at 2.5 s, nobody on the second. C has A's prefix.
    pieces = [[(1, 8)], [(2, 8)], [(1, 8)]]
    work = workload([0.0, 2.0, 2.5], [9, 9, 9], [1, 9, 1], pieces=pieces)
    requests, _ = run(work, replicas=2, router="prefix-aware", slack=slack, shares=1)
    assert requests["replica"].tolist() == [0, 0, chosen]
    assert requests["cached_tokens"].tolist() == [0, 0, 8 if chosen == 0 else 0]


def test_prefix_aware_prefers_the_less_loaded_of_equal_prefixes():
    # Nothing in common: as least outstanding.
    work = workload([0.0] * 4, [9] * 4, [9] * 4)
    requests, _ = run(work, replicas=3, router="prefix-aware", shares=1)
    assert requests["replica"].tolist() == [0, 1, 2, 0]


def test_power_of_two():
    # Two different ones, drawn by counter; the less loaded of them, of equals the one with the lower number.
    n, replicas, seed = 40, 5, 11
    requests, _ = run(workload([0.0] * n, [1] * n, [99] * n), replicas=replicas, router="power-of-two", seed=seed)
    load = [0] * replicas
    for arrival in range(n):
        i = int(uniform(seed, arrival, STREAM_ROUTING, 0) * replicas)
        j = int(uniform(seed, arrival, STREAM_ROUTING, 1) * (replicas - 1))
        j += j >= i
        i, j = min(i, j), max(i, j)
        chosen = j if load[j] < load[i] else i
        load[chosen] += 1
        assert requests[arrival].replica == chosen
    assert run(workload([0.0], [1], [1]), router="power-of-two")[0]["replica"].tolist() == [0]


def test_replicas_of_different_speed():
    slow, fast = step_model(4, target=tables(2.0)), step_model(4, target=tables(1.0))
    work = workload([0.0, 0.0], [1, 1], [3, 3])
    both = model.Fleet([slow, fast], np.array([0, 1]), router=model.ROUTERS.index("round-robin"))
    result = plain.simulate(both, work)
    assert result.requests["finish_s"].tolist() == [6.0, 3.0]


def test_a_later_turn_arrives_after_the_answer_and_a_thought():
    # Turns of 2, 1 and 1 tokens, thoughts of 3 and 0 s; a turn that comes at once is in the very next step.
    work = workload([0.0, 0.0, 0.0], [4, 8, 12], [2, 1, 1], follows=[-1, 0, 1], think_s=[0, 3.0, 0.0], session=[0] * 3)
    requests, _ = run(work, shares=1)
    assert requests["arrival_s"].tolist() == [0.0, 5.0, 6.0]
    assert requests["finish_s"].tolist() == [2.0, 6.0, 7.0]
    assert requests["cached_tokens"].tolist() == [0, 4, 8]


def test_patience_of_a_later_turn_counts_from_its_arrival():
    # It comes at 2 + 3 s and gives up at 7.5.
    work = workload([0.0, 0.0], [4, 8], [2, 9], follows=[-1, 0], think_s=3.0, patience_s=[np.inf, 2.5])
    requests, _ = run(work)
    assert (requests[1].cancel_s, requests[1].finish_s) == (7.5, 8.0)


def test_the_rest_of_a_session_is_abandoned_with_a_turn_that_did_not_finish():
    work = workload(
        [0.0] * 4, [4] * 4, [9, 1, 1, 2], follows=[-1, 0, 1, -1], think_s=1.0, patience_s=[2.5, np.inf, np.inf, np.inf]
    )
    requests, _ = run(work)
    assert statuses(requests) == ["cancelled", "abandoned", "abandoned", "finished"]
    assert requests["finish_s"].tolist() == [3.0, 3.0, 3.0, 2.0]
    assert requests["replica"].tolist() == [0, -1, -1, 0]


def test_users_think_and_ask_again():
    # Two users, each in his own pace: the answers end at 2 and 3 s; the next ones think 1 s.
    work = workload([0.0] * 5, [1] * 5, [2, 3, 1, 1, 1], users=2, think_s=1.0)
    requests, _ = run(work)
    assert requests["arrival_s"].tolist() == [0.0, 0.0, 3.0, 4.0, 5.0]
    assert statuses(requests) == ["finished"] * 5


def test_a_refused_user_asks_again_too():
    # One may wait. All three come before anybody runs: two are refused at 0 s, and the first of them asks what is left.
    work = workload([0.0] * 4, [1] * 4, [4] * 4, users=3, think_s=0.5)
    requests, _ = run(work, max_sequences=1, max_waiting=1)
    assert statuses(requests)[:3] == ["finished", "refused", "refused"]
    assert requests["arrival_s"].tolist()[3] == 0.5


def test_arrivals_go_before_boundaries():
    # Both replicas come to a boundary at 1 s. Whoever arrives then is in the step that begins then.
    requests, _ = run(workload([0.0, 0.0, 1.0, 1.0], [1] * 4, [9, 9, 1, 1]), replicas=2)
    assert requests["scheduled_s"].tolist() == [0.0, 0.0, 1.0, 1.0]
    assert requests["replica"].tolist() == [0, 1, 0, 1]


def test_at_one_instant_lower_numbers_arrive_first():
    # Two turns that follow ends at 1 s, after a thought of 1 s, and a first turn at 2 s, which has the number between them.
    work = workload([0.0, 0.0, 2.0, 0.0, 0.0], [1] * 5, [1, 1, 1, 1, 1], follows=[-1, -1, -1, 0, 1], think_s=1.0)
    requests, replicas = run(work, max_sequences=1, replicas=1, max_batched_tokens=2)
    order = [sequence.index for sequence in replicas[0].left]
    assert order == [0, 1, 2, 3, 4]
    assert requests["arrival_s"].tolist() == [0.0, 0.0, 2.0, 2.0, 3.0]


def test_a_horizon_stops_everything():
    work = workload([0.0, 2.0, 5.0], [1] * 3, [9, 1, 1])
    result = plain.simulate(fleet(3), replace(work, requests=work.requests.copy()), until_s=3.5)
    # The step from 3 s ends at 4; who arrives at 5 has not come.
    assert result.requests["generated_tokens"].tolist() == [4, 1, 0]
    assert statuses(result.requests) == ["running", "finished", "waiting"]
    assert result.replicas[0].clock_s == 4.0


times = st.floats(0, 1e6, allow_subnormal=False)


@given(st.lists(times, min_size=1, max_size=20))
def test_instants_are_reached_to_the_last_bit(instants):
    work = workload([0.0], [1], [1])
    cluster = plain.cluster.Cluster(fleet(1), work, math.inf, invariants=True)
    reached = []

    def clock():
        for at_s in sorted(instants):
            yield from cluster._reach(at_s, 0)
            reached.append(cluster.env.now)

    cluster.env.process(clock())
    cluster.env.run()
    assert reached == sorted(instants)


def test_of_events_at_one_instant_the_lower_order_comes_first():
    work = workload([0.0], [1], [1])
    env = plain.cluster.Cluster(fleet(1), work, math.inf, invariants=True).env
    seen = []
    for order in (7, 3, 5):
        Instant(env, 1.0, order).callbacks.append(lambda _, order=order: seen.append(order))
    env.run()
    assert seen == [3, 5, 7]
