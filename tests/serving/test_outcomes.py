"""What is kept of a record, whole, in chunks and out of order, and how little memory it takes."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.serving import state
from simulator.serving.classes import RequestClass
from simulator.serving.outcomes import TIMES, TOTALS, Outcomes
from simulator.slo import Slo
from tests.serving.served import random_records, records, summary

CLASSES = (RequestClass(name="a", slo=Slo(ttft_s=0.5)), RequestClass(name="b"), RequestClass(name="c"))


@given(st.lists(st.integers(1, 2999), max_size=6), st.integers(0, 2**32 - 1))
def test_chunks_give_the_summary_of_the_whole(cuts, seed):
    """To the last bit, whatever the chunks and their order."""
    requests = random_records(3000, seed=3, classes=3)
    order = np.random.default_rng(seed)
    edges = [0, *sorted(set(cuts)), 3000]
    chunks = list(pairwise(edges))
    streamed = Outcomes(3000)
    for k in order.permutation(len(chunks)):
        start, end = chunks[k]
        streamed.add(requests[start:end], start)
    more = {"classes": CLASSES, "slo": Slo(tpot_s=0.015), "dropped": {"unreadable": 7}}
    assert summary(streamed, **more) == summary(requests, **more)


def test_scattered_requests_find_their_place():
    requests = random_records(10_000, classes=2)
    index = np.random.default_rng(1).permutation(10_000)
    streamed = Outcomes(10_000)
    streamed.scatter(requests[index[:5000]], index[:5000])
    streamed.scatter(requests[index[5000:]], index[5000:])
    assert summary(streamed, classes=CLASSES[:2]) == summary(requests, classes=CLASSES[:2])


def test_times_are_those_of_finished_requests():
    requests = records((1.0, 1.5, 2.0, 6.0, 9), (0.0, 0.0, 1.0, 1.0, 1), (0.0, 0.0, 1.0, 2.0, 5))
    requests[2].status = state.CANCELLED
    found = Outcomes.of(requests)
    times = {name: found.time_s(name, found.finished).tolist() for name in TIMES}
    assert times == {"queue_s": [0.5, 0.0], "ttft_s": [1.0, 1.0], "e2e_s": [5.0, 1.0], "tpot_s": [0.5]}
    assert found.stay_s[2] == 2.0


def test_whoever_is_rejected_leaves_as_it_comes():
    """Its record has no time of that; a later turn that never came has no arrival either."""
    requests = records((7.0, 0.0, 0.0, 0.0, 9), (np.nan, 0.0, 0.0, 0.0, 9), (8.0, 8.0, 9.0, 9.5, 2))
    requests["status"][:2] = state.REJECTED
    found = Outcomes.of(requests)
    assert found.stay_s[0] == 0.0
    assert np.isnan(found.stay_s[1])
    shown = summary(requests)
    assert (shown.makespan_s, shown.requests) == (2.5, {"finished": 1, "larger than the KV cache": 2})
    assert shown.good_share == pytest.approx(1 / 3)


def test_totals_are_those_of_finished_requests():
    requests = random_records(20_000, classes=3)
    found = Outcomes.of(requests)
    finished = requests["status"] == state.FINISHED
    for name in TOTALS:
        for c in range(3):
            assert found.totals[name][c] == requests[name][finished & (requests["class_of"] == c)].sum()


def test_a_class_that_comes_late_is_counted_from_there():
    first, second = random_records(100, seed=1), random_records(100, seed=2)
    second["class_of"] = 2
    found = Outcomes(200)
    found.add(first, 0)
    found.add(second, 100)
    third = first[:0]
    found.add(third, 200)
    finished = [r["status"] == state.FINISHED for r in (first, second)]
    assert found.totals["prompt_tokens"].tolist() == [
        first["prompt_tokens"][finished[0]].sum(), 0, second["prompt_tokens"][finished[1]].sum(),
    ]  # fmt: skip


def test_ten_million_requests_fit_half_a_gigabyte():
    """50 bytes each at most, the summary's own copies included; measured on 400,000 of them."""
    n, chunk = 400_000, 20_000
    requests = random_records(chunk)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        found = Outcomes(n)
        for start in range(0, n, chunk):
            found.add(requests, start)
        summary(found, slo=Slo(ttft_s=1.0, tpot_s=0.02))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    fixed = 4e6  # slices of 65,536 and the time series, whatever n
    assert (peak - before - fixed) / n <= 50


@pytest.mark.parametrize("field", ["ttft_s", "stay_s", "queue_s", "arrival_s"])
def test_nothing_told_is_nothing_known(field):
    assert np.isnan(getattr(Outcomes(3), field)).all()
