"""Requests that join a pool in chunks, while those that have left are forgotten: as if all had been there from the beginning."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.serving import model, state
from simulator.serving.model import ROUTERS
from simulator.serving.pool import Pool
from simulator.serving.relocation import relocate
from tests.serving.plain import rig
from tests.serving.rig import fresh
from tests.serving.test_equals_plain import COUNTERS, EXAMPLES, models, served, workloads


@st.composite
def scenarios(draw):
    """Open loops of several times a dozen requests that nobody waits for, and a fleet for them."""
    works = [draw(workloads(feedback=False)) for _ in range(draw(st.integers(1, 3)))]
    work = one_after_the_other(works)
    n = len(work.requests)
    chosen = draw(models(n))
    shares = bool(work.requests["pieces"].any()) or len(np.unique(work.requests["session"])) < n
    chosen["shares"] = int(chosen["prefix_caching"] == 1 and (shares or draw(st.booleans())))
    if not chosen["ranked"]:
        work.requests["rank"] = 0
    return rig.fleet(n, replicas=draw(st.integers(1, 3)), router=draw(st.sampled_from(ROUTERS)), **chosen), work


def one_after_the_other(works):
    """Workloads as one: each begins when the last request of the one before has come."""
    requests, source, end_tokens, start_s, pieces = [], [], [], 0.0, 0
    for work in works:
        own = fresh(work).requests
        for name in ("arrival_s", "ready_s", "cancel_s"):
            own[name] += start_s
        own["first_piece"] += pieces
        start_s, pieces = float(own["arrival_s"][-1]), pieces + len(work.source)
        requests.append(own)
        source.append(work.source)
        end_tokens.append(work.end_tokens)
    joined = state.records(state.REQUEST, sum(map(len, requests)))
    joined[:] = np.concatenate(requests)
    joined["number"] = np.arange(len(joined))
    admitted = np.arange(len(joined))
    return model.Workload(joined, admitted, np.concatenate(source), np.concatenate(end_tokens))


def part(work, start, end):
    """Requests start … end − 1 of an open loop as a workload of their own."""
    requests = state.records(state.REQUEST, end - start)
    requests[:] = work.requests[start:end]
    first = int(requests["first_piece"].min())
    last = int((requests["first_piece"] + requests["pieces"]).max())
    requests["first_piece"] -= first
    return model.Workload(requests, np.arange(end - start), work.source[first:last], work.end_tokens[first:last])


def streamed(fleet, work, starts):
    """The records of `work`, whose requests from each of `starts` on join only when the first of them arrives, and the pool."""
    records = fresh(work).requests
    longest = int((records["prompt_tokens"] + records["output_tokens"]).max())
    bounds = [0, *starts, len(records)]
    pool = Pool(fleet, part(work, 0, bounds[1]), longest=longest)
    rates, row_of = fleet.models[0].acceptance, fleet.models[0].row_of
    for start, end in pairwise(bounds[1:]):
        pool.serve(float(records["arrival_s"][start]))
        here = pool.arrays.requests
        gone = here["status"] > state.RUNNING
        records[here["number"][gone]] = here[gone]
        numbers = np.concatenate([here["number"][~gone], np.arange(start, end)])
        relocate(pool, ~gone, part(work, start, end), rates, row_of[numbers])
        assert len(pool.arrays.requests) == len(numbers)
    pool.serve()
    here = pool.arrays.requests
    records[here["number"]] = here
    return records, pool


@settings(max_examples=EXAMPLES // 2, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(scenarios(), st.data())
def test_property_the_same_records_and_counters(scenario, data):
    fleet, work = scenario
    n = len(work.requests)
    starts = data.draw(st.lists(st.integers(1, n - 1), unique=True, max_size=8).map(sorted)) if n > 1 else []
    whole, one = served(fleet, work)
    parts, other = streamed(fleet, work, starts)
    for name in whole.dtype.names:
        if name != "first_piece":
            np.testing.assert_array_equal(whole[name], parts[name], err_msg=name)
    assert one.arrays.records.gaps.tobytes() == other.arrays.records.gaps.tobytes()
    assert one.arrays.records.series.tobytes() == other.arrays.records.series.tobytes()
    for name in COUNTERS:
        assert (one.replicas[name] == other.replicas[name]).all(), name


def test_golden_a_request_keeps_its_place_in_the_line():
    # One sequence at a time, a step of one second each: 0 runs from 0 to 4, the others wait, the last two join at 2.5.
    work = rig.workload([0.0, 1.0, 2.0, 2.5, 3.0], [4] * 5, [4] * 5)
    fleet = rig.fleet(5, max_sequences=1)
    records, pool = streamed(fleet, work, [3])
    assert records["finish_s"].tolist() == [4.0, 8.0, 12.0, 16.0, 20.0]
    assert pool.arrays.requests["number"].tolist() == [0, 1, 2, 3, 4]  # nobody had left at 2.5


def test_golden_who_has_left_is_forgotten_though_the_lists_knew_them():
    work = rig.workload([0.0, 0.0, 10.0, 11.0], [4] * 4, [2] * 4, patience_s=[30.0, 30.0, 30.0, 0.5])
    fleet = rig.fleet(4, max_sequences=1)
    records, pool = streamed(fleet, work, [2])
    assert pool.arrays.requests["number"].tolist() == [2, 3]
    assert records["finish_s"].tolist() == [2.0, 4.0, 12.0, 12.0]
    assert records["status"].tolist() == [state.FINISHED] * 3 + [state.CANCELLED]


def test_rates_go_with_their_requests():
    # Every draft of request 2 is accepted, none of the others': it needs a quarter of the rounds, wherever it lies.
    rates = np.array([[0.0] * 3, [0.0] * 3, [1.0] * 3])
    work = rig.workload([0.0, 0.5, 100.0], [4] * 3, [9] * 3)
    one = replace(rig.step_model(3, gamma=3), acceptance=rates[:, None, :], row_of=np.arange(3))
    fleet = model.Fleet([one], np.zeros(1, dtype=np.int64))
    records, _ = streamed(fleet, work, [2])
    assert records["decode_rounds"].tolist() == [8, 8, 2]
