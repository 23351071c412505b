"""Replicas started and stopped by load: the rule by hand, what it costs, and a day's ups and downs."""

import numpy as np
import pytest

from simulator.serving import state
from simulator.serving.autoscaler import Wanted
from simulator.serving.cluster_config import Autoscaler, Failure
from simulator.serving.control import Control, Scaled, State
from tests.serving.cluster_rig import poisson, serve
from tests.serving.plain.rig import tables, workload


def scaler(**fields):
    given = {"min": 1, "max": 4, "target": 2.0, "startup_s": 3.0, "interval_s": 1.0, "scale_down_after_s": 5.0}
    return Autoscaler(**{**given, **fields})


def scaled(replicas=1, **fields):
    return Control(scaled=[Scaled(scaler(**fields), 0, replicas)])


def story(run, number):
    return [(h.time_s, h.state) for h in run.happened if h.replica == number]


def test_wanted_is_load_over_target_rounded_up_within_its_bounds():
    wanted = Wanted(scaler(min=2, max=6), 2)
    assert [wanted.at(t, load)[0] for t, load in ((1.0, 0), (2.0, 4), (3.0, 5), (4.0, 100))] == [2, 2, 3, 6]


def test_fewer_are_wanted_only_when_none_has_wanted_more_for_so_long():
    wanted = Wanted(scaler(), 4)
    at_most = [wanted.at(float(t), load)[1] for t, load in enumerate([8, 2, 2, 5, 2, 2, 2, 2, 2, 2])]
    # Four until 5 s after the last four, at 0 s; then three until 5 s after the last three, at 3 s.
    assert at_most == [4, 4, 4, 4, 4, 4, 3, 3, 3, 1]


# By hand: a step takes 1 s, whatever is in it.


def test_a_new_replica_serves_after_its_start_up():
    # Five requests at 0 s: ⌈5 / 2⌉ = 3 replicas wanted at 1 s, two more ready at 4 s.
    arrivals = [0.0] * 5 + [3.5, 4.5]
    requests, run = serve(workload(arrivals, [1] * 7, [8] * 5 + [1, 1]), scaled(), replicas=4)
    assert requests["replica"].tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert story(run, 1) == [(1.0, State.STARTING), (4.0, State.SERVING)]
    assert story(run, 2) == [(1.0, State.STARTING), (4.0, State.SERVING)]
    assert story(run, 3) == []
    assert run.held_s.tolist() == [8.0, 7.0, 7.0, 0.0]


def test_the_emptiest_is_closed_and_finishes_what_it_has():
    # Two replicas of which one has an answer of 20 tokens: one is wanted from the start, and may be had from 6 s on.
    work = workload([0.0, 0.0, 8.0], [1, 1, 1], [20, 12, 1])
    requests, run = serve(work, scaled(2, target=4.0), replicas=2, router="round-robin", max_sequences=4)
    # Equally loaded, the last is closed at 6 s; it drains until 12 s and gets nothing meanwhile.
    assert story(run, 1) == [(6.0, State.DRAINING), (12.0, State.OFF)]
    assert requests["replica"].tolist() == [0, 1, 0]
    assert requests["finish_s"].tolist() == [20.0, 12.0, 9.0]
    assert run.held_s.tolist() == [20.0, 12.0]


def test_an_idle_one_is_off_at_once():
    work = workload([0.0, 10.0], [1, 1], [20, 2])
    _, run = serve(work, scaled(3), replicas=4)
    assert story(run, 2) == [(6.0, State.DRAINING), (6.0, State.OFF)]
    assert story(run, 1) == [(6.0, State.DRAINING), (6.0, State.OFF)]
    assert run.held_s.tolist() == [20.0, 6.0, 6.0, 0.0]


def test_one_that_still_drains_is_taken_back_without_start_up():
    # Closed at 6 s; at 7 s eight more requests have come: it serves on.
    work = workload([0.0, 0.0] + [6.5] * 8, [1] * 10, [20, 12] + [3] * 8)
    _, run = serve(work, scaled(2, target=4.0), replicas=2, router="round-robin")
    assert story(run, 1)[:2] == [(6.0, State.DRAINING), (7.0, State.SERVING)]


def test_a_failed_replica_is_replaced():
    control = Control(
        failures=[Failure(replica=0, at_s=2.5, down_s=50.0)], retry_delay_s=0.0, scaled=[Scaled(scaler(), 0, 1)]
    )
    requests, run = serve(workload([0.0], [1], [10]), control, replicas=4)
    # Fails at 3 s with three tokens sent, missed at the look at 3 s (at which the failing comes first), replaced at 6 s.
    assert story(run, 0) == [(3.0, State.FAILED)]
    assert story(run, 1) == [(3.0, State.STARTING), (6.0, State.SERVING)]
    assert requests["replica"].tolist() == [1]
    assert requests["finish_s"].tolist() == [13.0]
    assert requests["retries"].tolist() == [1]


def test_a_failure_while_it_drains_leaves_it_off():
    control = Control(
        failures=[Failure(replica=1, at_s=8.5, down_s=4.0)],
        retry_delay_s=0.0,
        scaled=[Scaled(scaler(target=4.0), 0, 2)],
    )
    work = workload([0.0, 0.0], [1, 1], [20, 12])
    requests, run = serve(work, control, replicas=2, router="round-robin")
    assert story(run, 1) == [(6.0, State.DRAINING), (9.0, State.FAILED), (13.0, State.OFF)]
    assert (requests["status"] == state.FINISHED).all()
    assert requests["replica"].tolist() == [0, 0]


def test_prefill_and_decode_pools_may_be_scaled_apart():
    from simulator.serving.handover import Links, Wire

    n = 40
    both = [Scaled(scaler(max=2, startup_s=1.0), 0, 1), Scaled(scaler(max=3, startup_s=1.0), 2, 1)]
    control = Control(scaled=both, links=Links([Wire(1.0, 0.0)] * 2, [0, 1], 0.01))
    work = workload(np.arange(n) * 0.25, [4] * n, [10] * n)
    requests, run = serve(work, control, replicas=2, decode=3, more={"max_sequences": 4})
    assert (requests["status"] == state.FINISHED).all()
    assert set(requests["replica"].tolist()) == {2, 3, 4}
    assert set(run.transfers.prefill_replica.tolist()) == {0, 1}


# What it is for


def day(n, mean_per_s, period_s, seed=2):
    """Arrivals whose rate swings by 90 % over a period: λ(t) = λ̄·(1 − 0.9·cos 2πt/T), by inverting its integral."""
    rhythm = poisson(n, 1.0, seed)
    t = np.linspace(0, 2 * n / mean_per_s, 200_001)
    area = mean_per_s * (t - 0.9 * period_s / (2 * np.pi) * np.sin(2 * np.pi * t / period_s))
    return np.interp(rhythm, area, t)


def test_a_day_s_ups_and_downs_cost_less_than_the_peak_all_day():
    n, period_s = 6000, 1000.0
    work = workload(day(n, 3.0, period_s), [8] * n, [20] * n)
    bench = {"target": tables(0.1, 0.002), "max_sequences": 16}
    config = {"max": 8, "target": 4.0, "startup_s": 20.0, "interval_s": 5.0, "scale_down_after_s": 60.0}
    fixed, all_day = serve(work, replicas=8, **bench)
    moving, run = serve(work, scaled(2, **config), replicas=8, **bench)
    assert (moving["status"] == state.FINISHED).all()
    assert run.held_s.sum() < 0.7 * all_day.held_s.sum()
    # Replicas follow the load: more are held in the busier half of each period than in the quieter one.
    counts = {"quiet": 0.0, "busy": 0.0}
    serving = 2
    times = [*[(h.time_s, h.state) for h in run.happened], (run.end_s, None)]
    now_s = 0.0
    for time_s, became in times:
        middle = ((now_s + time_s) / 2 % period_s) / period_s
        counts["busy" if 0.25 < middle < 0.75 else "quiet"] += serving * (time_s - now_s)
        now_s = time_s
        serving += {State.SERVING: 1, State.DRAINING: -1}.get(became, 0)
    assert counts["busy"] > 1.5 * counts["quiet"]
    waits = [(r["first_token_s"] - r["arrival_s"]).mean() for r in (fixed, moving)]
    assert waits[1] >= waits[0]


def test_with_load_as_light_as_can_be_it_holds_the_least():
    n = 50
    work = workload(np.arange(n) * 50.0, [4] * n, [4] * n)
    _, run = serve(work, scaled(1, max=4), replicas=4)
    assert run.held_s.tolist() == [run.end_s, 0.0, 0.0, 0.0]


def test_a_load_that_never_changes_settles_at_little_s_law_over_the_target():
    # 4/s, each in service for 2 s whatever the load: 8 outstanding, ⌈8 / 2⌉ = 4 replicas, but for chance: 8 ± 2.8.
    n = 4000
    work = workload(poisson(n, 4.0), [4] * n, [20] * n)
    config = {"max": 12, "startup_s": 1.0, "interval_s": 2.0, "scale_down_after_s": 0.0}
    _, run = serve(work, scaled(4, **config), replicas=12, target=tables(0.1), max_sequences=64)
    mean = run.held_s.sum() / run.end_s
    # Rounding up adds half a replica on average, start-up and draining (1 s and up to 2 s) some more.
    assert 4.0 < mean < 6.5


@pytest.mark.parametrize("slice_steps", [1, 1000])
def test_equal_however_time_is_cut(slice_steps):
    from simulator.serving.cluster import run_cluster
    from tests.serving.cluster_rig import fresh
    from tests.serving.plain.rig import fleet

    n = 400
    work = workload(day(n, 3.0, 100.0), [8] * n, [20] * n)
    control = scaled(2, max=6)
    bench = {"replicas": 6, "target": tables(0.1, 0.002)}
    whole, one = serve(work, control, **bench)
    cut = fresh(work)
    other = run_cluster([fleet(n, **bench)], cut, control, slice_steps=slice_steps)
    assert whole.tobytes() == cut.requests.tobytes()
    assert one.happened == other.happened
    assert one.held_s.tolist() == other.held_s.tolist()
