"""Laws that hold of final records and totals: of the plain version, of the compiled loop, and not of tampered results."""

from dataclasses import replace
from math import fsum
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings

from simulator.serving import plain, state
from simulator.serving.plain import balance
from simulator.serving.pool import Pool
from tests.serving.plain.rig import fleet, run, tables, workload
from tests.serving.plain.test_invariants import knobs, workloads

WAITING, RUNNING = (state.SERIES.index(name) for name in ("waiting_s", "running_s"))


def row(**fields):
    """A request's record as it should be, with `fields` changed."""
    past = {
        "arrival_s": 0.0, "ready_s": 0.0, "scheduled_s": 1.0, "first_token_s": 2.0, "last_token_s": 4.0, "finish_s": 4.0,
        "cancel_s": np.inf, "generated_tokens": 3, "output_tokens": 3, "prompt_tokens": 4, "status": state.FINISHED,
        "accepted_tokens": 0, "drafted_tokens": 0, "rounds": 0, "preemptions": 0, "cached_tokens": 0, "recomputed_tokens": 0,
        "decode_rounds": 2,
    }  # fmt: skip
    return SimpleNamespace(**{**past, **fields})


def totals(**fields):
    """A replica's totals after that request."""
    past = {
        "emitted_tokens": 3, "drafted_tokens": 0, "accepted_tokens": 0, "sequence_rounds": 0, "preemptions": 0,
        "cached_tokens": 0, "prefill_tokens": 4,
    }  # fmt: skip
    return SimpleNamespace(**{**past, **fields})


@settings(max_examples=60)
@given(workloads(), knobs)
def test_laws_of_both_loops(work, chosen):
    chosen = {**chosen, "gamma": 0}
    of = fleet(len(work.requests), target=tables(1.0, 0.03125), **chosen)
    slow, fast = (replace(work, requests=work.requests.copy()) for _ in range(2))
    replicas = plain.simulate(of, slow).replicas
    pool = Pool(of, fast)
    assert pool.serve()
    joined_late = 2 if chosen["overlap"] else 1
    longest_s = max((step.seconds for replica in replicas for step in replica.steps), default=0.0)
    for requests, rows, request_seconds in (
        (slow.requests, [replica.counters for replica in replicas], request_seconds_of(replicas)),
        (fast.requests, list(pool.replicas), pool.arrays.records.series[:, [WAITING, RUNNING]].sum()),
    ):
        each = list(requests)
        assert not balance.every_request_has_an_end(each)
        assert not any(balance.causality(request) for request in each)
        assert not balance.token_balance(each, rows)
        assert not balance.littles_law(each, float(request_seconds), unheard_s=joined_late * longest_s)
        if (requests["status"] == state.FINISHED).all():
            assert not balance.computed_balance(each, rows)
    for number, (replica, counters) in enumerate(zip(replicas, pool.replicas, strict=True)):
        for requests, busy_s in ((slow.requests, replica.counters.busy_s), (fast.requests, counters.busy_s)):
            here = [request for request in requests if request.replica == number]
            assert not balance.work_conservation(here, float(busy_s), replica.clock_s)


def request_seconds_of(replicas):
    return fsum((step.waiting + step.running) * step.seconds for replica in replicas for step in replica.steps)


@settings(max_examples=40)
@given(workloads(), knobs)
def test_littles_law_is_exact_where_everybody_comes_at_a_boundary(work, chosen):
    # All at once, and nobody waits for a boundary: what is counted step by step is what each of them spends here.
    requests = work.requests.copy()
    requests["arrival_s"] = requests["ready_s"] = 0.0
    all_at_once = replace(
        work, requests=requests, next_turn=None, users=0, admitted=np.arange(len(requests)),
        backlog=np.zeros(0, dtype=np.int64),
    )  # fmt: skip
    requests["cancel_s"] = np.where(np.isfinite(requests["cancel_s"]), 3.0, np.inf)
    replicas = plain.simulate(fleet(len(requests), **chosen), all_at_once).replicas
    assert not balance.littles_law(list(requests), request_seconds_of(replicas), unheard_s=0.0)


def test_littles_law_by_hand():
    # A from 0 to 3 s, alone for one step, then with B, who came at 0.25 and joined at 1 s: 2 s of 2.25 are counted.
    requests, replicas = run(workload([0.0, 0.25], [4, 4], [3, 2]))
    assert request_seconds_of(replicas) == 3.0 + 2.0
    assert not balance.littles_law(list(requests), 5.0, unheard_s=1.0)
    numbers = {"request_seconds": 3.5, "residence_s": 3.0 + 2.75, "least_s": 2.0 + 1.75}
    assert balance.littles_law(list(requests), 3.5, unheard_s=1.0) == numbers
    assert balance.littles_law(list(requests), 6.0, unheard_s=1.0)


def test_an_idle_replica_with_somebody_waiting_is_noticed():
    stays = [row(ready_s=0.0, finish_s=3.0), row(ready_s=2.0, finish_s=5.0), row(ready_s=8.0, finish_s=9.0)]
    assert not balance.work_conservation(stays, 6.0, 9.0)
    assert balance.work_conservation(stays, 5.5, 9.0) == {"present_s": 6.0, "busy_s": 5.5}
    still_there = [row(ready_s=1.0, status=state.RUNNING), row(ready_s=0.0, status=state.ABANDONED)]
    assert not balance.work_conservation(still_there, 3.0, 4.0)
    gone_on = [row(ready_s=1.0, status=state.HANDED_OVER, last_token_s=2.0, finish_s=0.0)]
    assert not balance.work_conservation(gone_on, 1.0, 2.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"arrival_s": 0.5},
        {"scheduled_s": 2.5},
        {"first_token_s": 4.5},
        {"finish_s": 4.5},
        {"generated_tokens": 0, "ready_s": 5.0},
        {"status": state.CANCELLED, "cancel_s": 4.5},
        {"status": state.REFUSED, "generated_tokens": 0, "finish_s": -1.0},
    ],
)
def test_effects_before_their_causes_are_noticed(wrong):
    assert not balance.causality(row())
    assert balance.causality(row(**wrong))


def test_tokens_out_of_nowhere_are_noticed():
    assert not balance.token_balance([row()], [totals()])
    assert balance.token_balance([row(generated_tokens=4)], [totals()]) == {"request": 0, "generated": 4, "output": 3}
    assert balance.token_balance([row(generated_tokens=2)], [totals()]) == {"request": 0, "generated": 2, "output": 3}
    assert balance.token_balance([row(accepted_tokens=1)], [totals()]) == {"request": 0, "accepted": 1, "drafted": 0}
    for name in (
        "emitted_tokens",
        "drafted_tokens",
        "accepted_tokens",
        "sequence_rounds",
        "preemptions",
        "cached_tokens",
    ):
        assert name in balance.token_balance([row()], [totals(**{name: 7})])


def test_tokens_computed_twice_or_never_are_noticed():
    # 4 + 3 − 1 tokens: 4 in the prompt, 2 in steps past it. With 4 recomputed: 10.
    assert not balance.computed_balance([row()], [totals()])
    assert balance.computed_balance([row()], [totals(prefill_tokens=5)]) == {"computed": 7, "expected": 6}
    assert not balance.computed_balance([row(recomputed_tokens=4)], [totals(prefill_tokens=8)])
    assert not balance.computed_balance([row(cached_tokens=3)], [totals(prefill_tokens=1)])


def test_a_request_without_end_is_noticed():
    assert not balance.every_request_has_an_end([row()])
    for status in (state.WAITING, state.RUNNING, state.HANDED_OVER):
        assert balance.every_request_has_an_end([row(), row(status=status)]) == {"without end": 1}
