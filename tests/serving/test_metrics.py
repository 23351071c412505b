"""Metrics by hand, from records written down."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.serving import state
from simulator.serving.class_metrics import TOO_LARGE
from simulator.serving.classes import RequestClass
from simulator.serving.metrics import ReplicaHardware, request_metrics
from simulator.slo import Slo
from tests.serving.served import random_records, records, summary


def series_of(**rows):
    found = np.zeros((len(state.SERIES), len(next(iter(rows.values())))))
    for name, values in rows.items():
        found[state.SERIES.index(name)] = values
    return found


def test_definitions_by_hand():
    metrics = request_metrics(records((1.0, 1.5, 2.0, 6.0, 9)))
    assert {name: values[0] for name, values in metrics.items()} == {
        "queue_s": 0.5, "ttft_s": 1.0, "e2e_s": 5.0, "tpot_s": 0.5,
    }  # fmt: skip


def test_one_token_has_no_tpot_and_an_unfinished_request_has_nothing():
    requests = records((0.0, 0.0, 1.0, 1.0, 1), (0.0, 0.0, 1.0, 2.0, 5))
    requests[1].status = state.REJECTED
    metrics = request_metrics(requests)
    assert np.isnan(metrics["tpot_s"]).all()
    assert metrics["e2e_s"][0] == 1.0
    assert np.isnan(metrics["e2e_s"][1])


@pytest.mark.parametrize("seed", range(5))
def test_every_row_read_is_accounted_for(seed):
    requests = random_records(4000, seed=seed, classes=3)
    requests["status"][::97] = state.WAITING
    requests["status"][1::97] = state.RUNNING
    requests["status"][2::97] = state.HANDED_OVER
    dropped = {"no tokens": 11, "unreadable": 3}
    classes = tuple(RequestClass(name=name) for name in "abc")
    found = summary(requests, classes=classes, dropped=dropped, interrupted_s=300.0)
    assert sum(found.requests.values()) == 4000 + 14
    assert found.requests["finished"] == (requests["status"] == state.FINISHED).sum()
    assert found.requests[TOO_LARGE] == (requests["status"] == state.REJECTED).sum()
    assert found.requests["unfinished"] == np.isin(requests["status"], (0, 1, state.HANDED_OVER)).sum()
    for name in ("finished", "refused", "timed out", "cancelled", "abandoned"):
        assert found.requests[name] == sum(c.requests.get(name, 0) for c in found.classes)


def test_only_what_occurs_is_named_but_finished_always():
    requests = records((0, 0, 1, 2, 5))
    assert summary(requests).requests == {"finished": 1}
    requests["status"] = state.REFUSED
    assert summary(requests).requests == {"finished": 0, "refused": 1}


def test_the_drain_is_no_low_throughput():
    """One token a second from 0 to 100 s, while requests arrive; then the last one drags on alone at a tenth for 1000 s."""
    rows = [(float(t), t, t + 0.5, t + 1.0, 2) for t in range(101)]
    rows[-1] = (100.0, 100.0, 101.0, 1100.0, 100)
    series = series_of(output_tokens=np.concatenate([np.full(100, 1.0), np.full(1000, 0.1)]))
    found = summary(records(*rows), series=series, bucket_s=1.0)
    assert (found.window, found.window_start_s, found.window_s) == ("arrivals", 0.0, 100.0)
    assert found.output_tokens_per_s == pytest.approx(1.0)
    assert found.requests_per_s == 1.0
    assert found.makespan_s == 1100.0


def test_a_run_shorter_than_a_bucket_of_its_series():
    """Late on, buckets are wide; the run's own 2 s of one of 64 s hold all its tokens."""
    series = series_of(output_tokens=np.array([0.0, 256.0]), prompt_tokens=np.array([0.0, 512.0]))
    found = summary(records((100.0, 100.0, 101.0, 102.0, 256)), series=series, bucket_s=64.0)
    assert (found.window, found.window_s) == ("whole run", 2.0)
    assert (found.output_tokens_per_s, found.prompt_tokens_per_s, found.requests_per_s) == (128.0, 256.0, 0.5)


def test_a_saturated_run_shows_its_capacity_and_says_so():
    """2/s arrive for 200 s, 1/s is served until 400 s: rates of the arrivals' time, not of the whole run nor of the offer."""
    n = 400
    rows = [(i / 2, i, i + 0.5, i + 1.0, 2) for i in range(n)]
    series = series_of(output_tokens=np.full(400, 2.0))
    found = summary(records(*rows), series=series, bucket_s=1.0, slo=Slo(ttft_s=50.0))
    assert found.requests_per_s == pytest.approx(1.0, rel=0.01)
    assert found.output_tokens_per_s == pytest.approx(2.0)
    assert found.stability.stable is False
    assert found.stability.offered_per_s == pytest.approx(2.0, rel=0.01)
    assert found.stability.growth_per_s == pytest.approx(1.0, rel=0.01)
    assert "The queue only grows: 2.0 requests/s arrive, 1.0/s leave; after 200 s" in found.stability.sentence
    # Request i waits i/2 s: the first 100 of them meet 50 s, all within the first 100 s.
    assert found.goodput_per_s == pytest.approx(100 / 199.5)
    assert found.good_share == 0.25


def test_goodput_never_exceeds_throughput():
    found = summary(random_records(5000), slo=Slo(ttft_s=1.0))
    assert 0 < found.goodput_per_s < found.requests_per_s


def test_who_is_refused_was_not_well_served():
    requests = records((0, 0, 1, 2, 5), (5, 0, 0, 5, 5), (9, 9, 10, 11, 5), (9.5, 0, 0, 9.9, 5))
    requests["status"][[1, 3]] = state.REFUSED, state.TIMED_OUT
    assert summary(requests).good_share == 0.5


def test_classes_are_judged_by_their_own_objectives():
    requests = records((0, 0, 1, 2, 11), (1, 1, 4, 5, 11), (2, 2, 3, 4, 11), (30, 30, 33, 34, 11))
    requests["class_of"] = [0, 0, 1, 1]
    requests["prompt_tokens"], requests["cached_tokens"] = [100, 100, 50, 50], [0, 80, 0, 10]
    classes = (RequestClass(name="chat", slo=Slo(ttft_s=2.0)), RequestClass(name="batch"))
    found = summary(requests, slo=Slo(e2e_s=100.0), classes=classes)
    chat, batch = found.classes
    assert (chat.name, chat.slo, chat.measured, chat.good_share) == ("chat", {"ttft_s": 2.0}, 2, 0.5)
    assert (batch.name, batch.slo, batch.measured, batch.good_share) == ("batch", {"e2e_s": 100.0}, 2, 1.0)
    assert (chat.ttft_s.mean, batch.ttft_s.mean, found.ttft_s.mean) == (2.0, 2.0, 2.0)
    assert (chat.cached_share, batch.cached_share, found.cached_share) == (0.4, 0.1, 0.3)
    assert (chat.prompt_tokens, found.cached_tokens) == (200, 90)
    assert chat.goodput_per_s + batch.goodput_per_s == pytest.approx(found.goodput_per_s)
    assert (chat.requests, batch.requests) == ({"finished": 2}, {"finished": 2})


def test_a_single_class_is_everybody():
    found = summary(random_records(500))
    (everybody,) = found.classes
    assert everybody.name == "all"
    assert everybody.ttft_s == found.ttft_s
    assert everybody.requests == found.requests


def test_one_run_determines_its_means_with_a_half_width():
    found = summary(random_records(20_000)).confidence
    assert {"ttft_s.mean", "ttft_s.p99", "tpot_s.mean", "e2e_s.p50", "queue_s.p95"} <= set(found)
    assert summary(random_records(50)).confidence == {}


def test_counters_of_mixed_replicas():
    """Two kinds of GPU; the second is held for half of the run."""
    fast, slow = (state.records(state.REPLICA, 1)[0] for _ in range(2))
    fast.busy_s, fast.hbm_bytes, fast.flop, fast.most_blocks = 80.0, 50e12, 40e15, 50
    slow.busy_s, slow.hbm_bytes, slow.flop, slow.most_blocks = 10.0, 10e12, 0.0, 15
    hardware = [ReplicaHardware(2, 100, 1e12, 1e15, 1e-3), ReplicaHardware(1, 20, 0.5e12, 1e15, 2e-3)]
    series = series_of(kv_block_s=np.full(100, 41.0), running_s=np.full(100, 1.8), output_tokens=np.full(100, 0.2))
    found = summary_of([fast, slow], hardware, series, held_s=[100.0, 50.0])
    assert found.gpu_busy_share == pytest.approx(90 / 150)
    assert found.bandwidth_share == pytest.approx(60e12 / (100 * 1e12 + 50 * 0.5e12))
    assert found.flop_share == pytest.approx(40e15 / 150e15)
    assert found.kv_occupancy_most == 0.75
    assert found.kv_occupancy_mean == pytest.approx(4100 / (80 * 100 + 10 * 20))
    assert found.mean_running == pytest.approx(2.0)
    usd, tokens = 2 * 1e-3 * 100 + 2e-3 * 50, 20  # delivered: those who finished got 10 of them
    assert found.usd_per_million_tokens == pytest.approx(usd / tokens * 1e6)
    silent = series_of(kv_block_s=np.full(100, 41.0))
    assert summary_of([fast, slow], hardware, silent, held_s=[100.0, 50.0]).usd_per_million_tokens is None
    free = [hardware[0], ReplicaHardware(1, 20, 0.5e12, 1e15, None)]
    assert summary_of([fast, slow], free, series, held_s=[100.0, 50.0]).usd_per_million_tokens is None
    assert summary_of([fast, slow], hardware, series).gpu_busy_share == pytest.approx(90 / 200)


def summary_of(replicas, hardware, series, **more):
    from simulator.serving.metrics import summarise

    gaps = np.zeros(state.GAP_BINS, dtype=np.int64)
    requests = records((0.0, 0.0, 1.0, 90.0, 5), (50.0, 50.0, 51.0, 100.0, 5))
    return summarise(requests, replicas, gaps, hardware=hardware, series=series, bucket_s=1.0, slo=Slo(), **more)


def test_waiting_for_a_link_is_no_time_in_the_batch():
    """30 arrivals in 29 s, each 30 s until its end: 29 of these the link was taken by others."""
    requests = records(*((float(t), t, t + 0.5, t + 30.0, 2) for t in range(30)))
    assert summary(requests, bucket_s=0.1).window == "whole run"
    assert summary(requests, bucket_s=0.1, link_wait_s=29.0).window == "arrivals"


def test_nothing_finished_is_no_failure():
    requests = records((0, 0, 1, 2, 5))
    requests["status"] = state.WAITING
    found = summary(requests, interrupted_s=0.5)
    assert found.requests == {"finished": 0, "unfinished": 1}
    assert (found.interrupted_s, found.measured, found.output_tokens_per_s) == (0.5, 0, 0.0)
    assert np.isnan(found.ttft_s.mean)


def test_equal_inputs_equal_summaries():
    """Also where figures are NaN."""
    assert summary(random_records(300)) == summary(random_records(300))
