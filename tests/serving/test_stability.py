"""A queue is said to grow where it does, and hardly ever where it does not: M/M/1 at loads on both sides of 1."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from simulator.serving.stability import BURST, LEVEL, TOO_SHORT, assess

RUNS = 200


def judged(load, n, seed):
    """Verdict on a queue with Poisson arrivals of mean distance 1/load and exponential service of mean 1, from its length
    over time in 512 buckets between the arrivals n/20 and n."""
    draw = np.random.default_rng(seed)
    arrival = np.cumsum(draw.exponential(1.0 / load, n))
    service = draw.exponential(1.0, n)
    walk = np.concatenate([[0.0], np.cumsum(service[:-1] - np.diff(arrival))])
    start = arrival + walk - np.minimum.accumulate(walk)
    low, high = arrival[n // 20], arrival[-1]
    times = np.linspace(low, high, 513)

    def area(t):  # ∫ of the queue's length from 0: who has arrived has waited until t or until it was served
        came, went = np.searchsorted(arrival, t), np.searchsorted(start, t)
        total = np.concatenate([[0.0], np.cumsum(arrival)])[came]
        gone = np.concatenate([[0.0], np.cumsum(start)])[went]
        return came * t - total - (went * t - gone)

    waiting = np.diff(area(times)) / np.diff(times)
    end = start + service
    return assess(
        waiting, offered=int(((arrival >= low) & (arrival <= high)).sum()),
        served=int(((end >= low) & (end <= high)).sum()), window_s=high - low, end_s=high,
    )  # fmt: skip


def growing(load, n, seed):
    return sum(judged(load, n, seed * 1000 + run).stable is False for run in range(RUNS))


@pytest.mark.parametrize("n", [300, 3000])
@pytest.mark.parametrize("load", [0.5, 0.9])
def test_below_saturation_nothing_grows(load, n):
    assert growing(load, n, seed=1) <= stats.binom.ppf(0.9999, RUNS, LEVEL)


def test_at_the_edge_it_hardly_ever_grows():
    """At 0.99 a run of 10,000 is shorter than the queue's memory: a random walk, of which one in a hundred looks like drift."""
    assert growing(0.99, 10_000, seed=2) <= stats.binom.ppf(0.9999, RUNS, 2 * LEVEL)


def test_beyond_saturation_it_grows_at_the_rate_of_the_excess():
    found = [judged(1.2, 5000, seed) for seed in range(100)]
    assert np.mean([f.stable is False for f in found]) > 0.95
    assert np.mean([f.growth_per_s for f in found]) == pytest.approx(0.2, rel=0.1)
    assert np.mean([f.offered_per_s for f in found]) == pytest.approx(1.2, rel=0.02)
    assert np.mean([f.served_per_s for f in found]) == pytest.approx(1.0, rel=0.02)


def test_the_sentence_by_hand():
    found = assess(np.arange(64) * 12.5, offered=3600, served=2790, window_s=300.0, end_s=300.0)
    assert found.stable is False
    assert found.growth_per_s == pytest.approx(64 * 12.5 / 300.0)
    assert found.waiting == pytest.approx(np.mean([60, 61, 62, 63]) * 12.5)
    assert found.sentence == (
        "The queue only grows: 12.0 requests/s arrive, 9.3/s are served; after 300 s 769 wait. "
        "Latencies describe this run's length, not a steady state."
    )


def test_a_queue_that_waits_for_the_batch_to_fill_and_then_grows():
    waiting = np.concatenate([np.zeros(256), np.arange(256) * 2.0])
    assert assess(waiting, offered=1000, served=488, window_s=100.0, end_s=100.0).stable is False


def test_a_peak_that_passes_is_no_growth():
    waiting = np.concatenate([np.linspace(0, 100, 256), np.linspace(100, 0, 256)])
    assert assess(waiting, offered=1000, served=990, window_s=100.0, end_s=100.0).stable is True


def test_a_queue_at_its_limit_does_not_grow():
    waiting = np.concatenate([np.linspace(0, 50, 64), np.full(448, 50.0)])
    assert assess(waiting, offered=1000, served=950, window_s=100.0, end_s=100.0).stable is True


def test_what_cannot_be_told_is_said():
    short = assess(np.arange(5.0), offered=10, served=1, window_s=1.0, end_s=1.0)
    assert (short.stable, short.sentence, short.waiting) == (None, TOO_SHORT, 4.0)
    assert assess(np.zeros(0), offered=0, served=0, window_s=0.0, end_s=0.0).offered_per_s == 0.0
    assert assess(np.arange(99.0), offered=9, served=1, window_s=1.0, end_s=1.0, steady=False).sentence == BURST
