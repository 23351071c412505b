"""A queue is said to grow where it does, and hardly ever where it does not: M/M/1 at loads on both sides of 1."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from simulator.serving.stability import BURST, LEVEL, STRETCHES, TOO_SHORT, assess

RUNS = 200


def judged(load, n, seed):
    """Verdict on a queue with Poisson arrivals of mean distance 1/load and exponential service of mean 1, from the number in
    the system at 17 times between the arrivals n/20 and n."""
    draw = np.random.default_rng(seed)
    arrival = np.cumsum(draw.exponential(1.0 / load, n))
    service = draw.exponential(1.0, n)
    walk = np.concatenate([[0.0], np.cumsum(service[:-1] - np.diff(arrival))])
    end = arrival + walk - np.minimum.accumulate(walk) + service
    low, high = arrival[n // 20], arrival[-1]
    times = np.linspace(low, high, STRETCHES + 1)
    number = np.searchsorted(arrival, times, "right") - np.searchsorted(end, times, "right")
    left = int(((end > low) & (end <= high)).sum())
    return assess(
        number.astype(float), offered=int(((arrival > low) & (arrival <= high)).sum()),
        left=left, finished=left, window_s=high - low, end_s=high, service_s=1.0,
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


def test_a_batch_that_fills_for_half_of_the_run_is_no_queue():
    """Everybody stays for 10 s of the 20 s that 2/s arrive: 20 are under way, and nobody waits."""
    number = np.minimum(np.linspace(0.0, 40.0, 17), 20.0)
    found = assess(number, offered=40, left=20, finished=20, window_s=20.0, end_s=20.0, service_s=10.0)
    assert found.stable is None
    assert found.sentence.startswith(
        "The run is too short to tell whether the queue grows: 2.0 requests/s arrive, 1.0/s leave"
    )


def test_the_sentence_by_hand():
    found = assess(np.arange(17) * 50.625, offered=3600, left=2790, finished=2790, window_s=300.0, end_s=300.0)
    assert found.stable is False
    assert found.growth_per_s == pytest.approx(2.7)
    assert found.in_system == 810.0
    assert found.sentence == (
        "The queue only grows: 12.0 requests/s arrive, 9.3/s leave; after 300 s 810 are in the system. "
        "Latencies describe this run's length, not a steady state."
    )


def test_who_leaves_without_an_answer_is_told_apart():
    found = assess(np.full(17, 5.0), offered=3600, left=3600, finished=900, window_s=300.0, end_s=300.0)
    assert found.sentence == "The queue does not grow: 12.0 requests/s arrive, 12.0/s leave (of them 3.0/s finished)."
    assert found.finished_per_s == 3.0


def test_a_queue_that_waits_for_the_batch_to_fill_and_then_grows():
    number = np.concatenate([np.zeros(8), np.arange(9) * 64.0])
    assert assess(number, offered=1000, left=488, finished=488, window_s=100.0, end_s=100.0).stable is False


def test_a_peak_that_passes_is_no_growth():
    number = np.concatenate([np.linspace(0, 100, 8), np.linspace(100, 10, 9)])
    assert assess(number, offered=1000, left=990, finished=990, window_s=100.0, end_s=100.0).stable is True


def test_a_queue_at_its_limit_does_not_grow():
    number = np.concatenate([np.linspace(0, 50, 3), np.full(14, 50.0)])
    assert assess(number, offered=1000, left=950, finished=950, window_s=100.0, end_s=100.0).stable is True


def test_who_leaves_much_over_is_never_called_stable():
    """Ten times as many at the end, all in the last stretch: no drift that t could tell, and no steady state either."""
    number = np.concatenate([np.full(16, 10.0), [110.0]])
    assert assess(number, offered=1000, left=900, finished=900, window_s=100.0, end_s=100.0).stable is None


def test_what_cannot_be_told_is_said():
    few = {"finished": 1, "left": 1, "window_s": 1.0, "end_s": 1.0}
    short = assess(np.arange(5.0), offered=100, **few)
    assert (short.stable, short.sentence, short.in_system) == (None, TOO_SHORT, 4.0)
    assert assess(np.arange(17.0), offered=15, **few).sentence == TOO_SHORT
    assert assess(np.zeros(0), offered=0, left=0, finished=0, window_s=0.0, end_s=0.0).offered_per_s == 0.0
    assert assess(np.arange(17.0), offered=99, **few, steady=False).sentence == BURST
