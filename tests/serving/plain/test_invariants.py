"""Every invariant holds on random scenarios, and every one is noticed when it is broken."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.serving import model, plain, state
from simulator.serving.plain.events import Event
from simulator.serving.plain.invariants import INVARIANTS, InvariantViolation, check
from simulator.serving.plain.replica import Replica
from simulator.serving.plain.sequence import Sequence
from simulator.serving.plain.series import Step
from tests.serving.plain.rig import fleet, step_model, tables, workload


def busy_replica():
    """A replica between two steps: D has left, A and B run, C is swapped out; there are 8 blocks of 4."""
    work = workload([0.0] * 4, [8, 8, 8, 3], [9, 9, 9, 1])
    replica = Replica(0, step_model(4, total_blocks=8, swap_blocks=9))
    for index in range(4):
        replica.submit(Sequence(index, index, work.requests[index], work.source, work.end_tokens))
    replica.boundary()
    replica.boundary()
    assert [len(line) for line in (replica.running, replica.line.waiting, replica.left)] == [2, 1, 1]
    return replica


def step(**fields):
    return Step(**{"start_s": 2.0, "seconds": 1.0, "running": 1, "waiting": 0, "used_blocks": 1, "tokens": 1,
                   "prompt_tokens": 0, "emitted_tokens": 1, **fields})  # fmt: skip


BROKEN = {
    "every request is in one place": [
        lambda r: r.running.pop(),
        lambda r: r.line.waiting.append(r.running[0]),
        lambda r: setattr(r.counters, "submitted", 5),
    ],
    "every block is free or used": [
        lambda r: r.pool.take(1),
        lambda r: r.pool.queue.popitem(),
        lambda r: r.running[0].blocks.append(r.running[1].blocks[0]),
        lambda r: r.pool.users.__setitem__(r.running[0].blocks[0], 2),
    ],
    "the table reads both ways": [
        lambda r: r.pool.block_of.popitem(),
        lambda r: r.pool.key_of.popitem(),
        lambda r: r.pool.key_of.__setitem__(*reversed(r.pool.block_of.popitem())),
    ],
    "every sequence has its blocks": [
        lambda r: r.running[0].blocks.pop(),
        lambda r: r.left[0].blocks.append(0),
    ],
    "swap space is conserved": [
        lambda r: setattr(r, "swapped_blocks", 0),
        lambda r: setattr(r.settings, "swap_blocks", 1),
    ],
    "lines are in order": [lambda r: r.running.reverse()],
    "the clock goes forward": [
        lambda r: r.steps.append(step(start_s=1.5)),
        lambda r: setattr(r, "clock_s", 1.5),
        lambda r: r.events.append(Event(0.5, state.ADMITTED, 0, 0)),
    ],
    "cause comes before effect": [
        lambda r: setattr(r.left[0], "first_token_s", 5.0),
        lambda r: setattr(r.left[0], "arrival_s", 0.5),
        lambda r: setattr(r.left[0], "ready_s", 9.0),
        lambda r: setattr(r.left[0], "finish_s", 2.0),
        lambda r: (setattr(r.left[0], "status", state.CANCELLED), setattr(r.left[0], "cancel_s", 9.0)),
    ],
    "budget is never exceeded": [lambda r: r.steps.append(step(tokens=513))],
    "sequences are limited": [lambda r: setattr(r.counters, "most_running", 9)],
    "tokens balance": [
        lambda r: setattr(r.counters, "emitted_tokens", 3),
        lambda r: setattr(r.left[0], "output_tokens", 0),
    ],
}  # fmt: skip


def test_all_are_tried():
    assert set(BROKEN) == set(INVARIANTS)


@pytest.mark.parametrize(("name", "change"), [(name, change) for name, changes in BROKEN.items() for change in changes])
def test_a_broken_rule_is_noticed(name, change):
    replica = busy_replica()
    check(replica)
    change(replica)
    assert INVARIANTS[name](replica)
    with pytest.raises(InvariantViolation, match=r"does not hold at replica 0: .*="):
        check(replica)


def test_a_simulation_stops_at_a_broken_rule(monkeypatch):
    monkeypatch.setitem(
        INVARIANTS, "nobody ever runs", lambda replica: {"running": len(replica.running)} if replica.running else {}
    )
    work = workload([0.0], [4], [4])
    with pytest.raises(InvariantViolation, match="nobody ever runs does not hold at replica 0: running=1"):
        plain.simulate(fleet(1), work)
    plain.simulate(fleet(1), work, invariants=False)


def test_a_cache_too_small_for_one_request_is_a_broken_rule_not_a_livelock():
    # Whoever prepares the arrays rejects such requests; here nobody did.
    with pytest.raises(InvariantViolation, match="every step has tokens"):
        plain.simulate(fleet(1, total_blocks=2), workload([0.0], [8], [4]))


knobs = st.fixed_dictionaries(
    {
        "max_sequences": st.integers(1, 5), "max_batched_tokens": st.integers(5, 40), "total_blocks": st.integers(14, 40),
        "watermark_blocks": st.integers(0, 2), "prefix_caching": st.integers(0, 1), "shares": st.integers(0, 1),
        "prefill_first": st.integers(0, 1), "prompts_per_pass": st.integers(1, 4), "prefill_chunk_tokens": st.integers(1, 40),
        "draft_first": st.integers(0, 1), "padded": st.integers(0, 1), "overlap": st.integers(0, 1), "ranked": st.just(1),
        "gamma": st.integers(0, 4), "max_waiting": st.sampled_from([0, 0, 1, 3]), "swap_blocks": st.sampled_from([0, 4, 99]),
        "queue_timeout_s": st.sampled_from([np.inf, np.inf, 5.0]), "replicas": st.integers(1, 3),
        "router": st.sampled_from(model.ROUTERS), "slack": st.integers(0, 3),
    }
)  # fmt: skip


@st.composite
def workloads(draw):
    n = draw(st.integers(1, 12))

    def each(values):
        return draw(st.lists(values, min_size=n, max_size=n))

    arrival_s, prompts, outputs = sorted(each(st.floats(0, 20))), each(st.integers(1, 30)), each(st.integers(1, 12))
    patience_s = each(st.sampled_from([np.inf, np.inf, 3.0]))
    work = {"rank": each(st.integers(0, 2)), "session": each(st.integers(0, 4)), "patience_s": patience_s}
    kind = draw(st.sampled_from(["open", "turns", "users"]))
    if kind == "turns":
        work["follows"] = [index - 1 if index % 3 else -1 for index in range(n)]
    if kind == "users":
        work["users"] = draw(st.integers(1, n))
        arrival_s = [0.0] * n
    return workload(arrival_s, prompts, outputs, think_s=each(st.sampled_from([0.0, 0.5, 4.0])), **work)


@settings(max_examples=150)
@given(workloads(), knobs, st.floats(0, 1))
def test_all_hold_at_every_step(work, chosen, alpha):
    # One that is violated raises.
    result = plain.simulate(fleet(len(work.requests), rates=[alpha], draft=tables(0.1), **chosen), work)
    ended = (state.FINISHED, state.REFUSED, state.TIMED_OUT, state.CANCELLED, state.ABANDONED)
    assert set(result.requests["status"].tolist()) <= set(ended)
    for replica in result.replicas:
        assert not replica.running
        assert replica.pool.used_blocks == replica.swapped_blocks == 0
