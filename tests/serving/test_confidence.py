"""Intervals hold what theory says as often as they claim: waiting times of M/D/1 and M/M/1 by Lindley's recursion."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
from scipy import stats

from simulator.serving.confidence import BATCHES, batch_means, describe, lag_one, ratios, student
from simulator.serving.distribution import Distribution
from simulator.uncertainty import LEVEL

RUNS = 400


def waits(load, n, *, fixed, seed):
    """Waiting times of `RUNS` queues [RUNS, n] with mean service 1, after a warm-up of n/10 (Lindley, 1952):
    W' = max(0, W + S − A), which unrolls to a running sum less its least value so far."""
    draw = np.random.default_rng(seed)
    warm = n // 10
    shape = (RUNS, n + warm)
    service = np.ones(shape) if fixed else draw.exponential(1.0, shape)
    gaps = draw.exponential(1.0 / load, shape)
    walk = np.cumsum(service[:, :-1] - gaps[:, 1:], axis=1)
    walk = np.concatenate([np.zeros((RUNS, 1)), walk], axis=1)
    return (walk - np.minimum.accumulate(walk, axis=1))[:, warm:]


@pytest.mark.parametrize(("fixed", "load"), [(True, 0.5), (True, 0.8), (False, 0.5), (False, 0.8)])
def test_the_mean_wait_lies_inside_as_often_as_claimed(fixed, load):
    """Pollaczek and Khinchine: ρ/(2(1 − ρ)) for M/D/1, twice that for M/M/1."""
    expected = load / (1.0 - load) * (0.5 if fixed else 1.0)
    found = [(v.mean(), batch_means(v)) for v in waits(load, 20_000, fixed=fixed, seed=int(10 * load) + fixed)]
    inside = sum(abs(mean - expected) <= width.half_width for mean, width in found)
    low, high = stats.binom.interval(0.9999, RUNS, LEVEL)
    assert (
        low - 0.05 * RUNS <= inside <= high
    )  # skewed, correlated batches cost a few percent of coverage at these lengths


def test_percentiles_of_waits_lie_inside_too():
    """M/M/1: P(W > t) = ρ·exp(−(1 − ρ)t), so the p-th percentile is ln(ρ/(1 − p))/(1 − ρ)."""
    load = 0.5
    inside = {"p50": 0, "p90": 0, "p95": 0, "p99": 0}
    for v in waits(load, 20_000, fixed=False, seed=7):
        distribution, widths = describe(v.copy())
        for name in inside:
            expected = np.log(load / (1.0 - int(name[1:]) / 100.0)) / (1.0 - load)
            inside[name] += abs(getattr(distribution, name) - expected) <= widths[name].half_width
    # Half of them do not wait at all: at p50 the law has a jump, and an interval around 0 is right.
    low, high = stats.binom.interval(0.9999, RUNS, LEVEL)
    for name in ("p90", "p95", "p99"):
        assert low - 0.05 * RUNS <= inside[name] <= high, (name, inside)


def test_near_saturation_the_correlation_is_said():
    """At load 0.99 waits of 5,000 customers are all alike: the batches are few and their correlation is reported."""
    found = [batch_means(v) for v in waits(0.99, 5_000, fixed=False, seed=3)[:50]]
    assert np.mean([f.correlation for f in found]) > 0.1
    assert np.mean([f.batches for f in found]) < 16


def test_independent_values_have_the_usual_interval():
    values = np.random.default_rng(5).normal(10.0, 2.0, 32_000)
    found = batch_means(values)
    assert found.batches == BATCHES[0]
    assert found.batch_size == 1000
    assert found.half_width == pytest.approx(student(31) * 2.0 / np.sqrt(32_000), rel=0.35)


def test_student_factors_are_those_of_the_tables():
    assert student(10, 0.95) == pytest.approx(2.228, abs=5e-4)
    assert student(31, 0.9) == pytest.approx(1.696, abs=5e-4)


def test_correlation_of_neighbours_by_hand():
    assert lag_one(np.array([1.0, -1.0, 1.0, -1.0])) == -0.75
    assert lag_one(np.full(9, 2.0)) == 0.0


def test_a_trend_is_not_averaged_away():
    """Batches of a steady rise are not alike: the fewest are taken, their likeness is said, and the interval widened."""
    found = batch_means(np.linspace(0.0, 1.0, 3200))
    assert found.batches == BATCHES[-1]
    assert found.correlation > 0.5
    means = np.linspace(0.0, 1.0, 3200).reshape(8, 400).mean(axis=1)
    plain = student(7) * means.std(ddof=1) / np.sqrt(8)
    assert found.half_width > 1.5 * plain


def test_too_few_values_have_no_interval():
    assert batch_means(np.arange(63.0)) is None
    distribution, widths = describe(np.arange(63.0))
    assert (distribution.n, widths) == (63, {})
    _, widths = describe(np.random.default_rng(1).exponential(1.0, 800))
    assert set(widths) == {"mean", "p50", "p90", "p95"}  # 8 batches of 100 hold 1 value beyond their p99


def test_describing_is_the_distribution():
    values = np.random.default_rng(2).exponential(1.0, 10_007)
    described, plain = (astuple(d) for d in (describe(values.copy())[0], Distribution.of(values)))
    assert described == pytest.approx(plain, rel=1e-14)  # sums in another order


def test_the_first_values_that_do_not_go_up_are_left_out():
    values = np.concatenate([[1e9] * 31, np.random.default_rng(4).normal(0.0, 1.0, 3200)])
    assert batch_means(values).half_width < 1.0


def test_a_ratio_of_the_same_customers_lies_inside_as_often_as_claimed():
    """M/M/1 at load 0.6 and 0.4, the same customers: mean waits ρ/(1 − ρ); percentiles ln(ρ/(1 − p))/(1 − ρ)."""
    loads = (0.6, 0.4)
    slow, fast = (waits(load, 20_000, fixed=False, seed=9) for load in loads)
    expected = {"mean": 1.5 / (2 / 3)}
    for p in (90, 95, 99):
        of = [np.log(load / (1.0 - p / 100.0)) / (1.0 - load) for load in loads]
        expected[f"p{p}"] = of[0] / of[1]
    inside = dict.fromkeys(expected, 0)
    for x, y in zip(slow, fast, strict=True):
        found = ratios(x, y)
        for point, value in expected.items():
            inside[point] += abs(found[point].ratio - value) <= found[point].width.half_width
    low, high = stats.binom.interval(0.9999, RUNS, LEVEL)
    for n in inside.values():
        assert low - 0.05 * RUNS <= n <= high, inside


def test_what_both_have_in_common_cancels_from_a_ratio():
    """Without noise of their own the ratio is exact; alone, each mean is as uncertain as ever."""
    y = np.random.default_rng(8).exponential(1.0, 3200)
    for point, found in ratios(2.5 * y, y).items():
        assert found.ratio == pytest.approx(2.5)
        assert found.width is None or found.width.half_width == pytest.approx(0.0, abs=1e-12), point
    other = np.random.default_rng(9).exponential(2.5, 3200)
    assert ratios(other, y)["mean"].width.half_width > 0.05


def test_a_ratio_to_nothing_is_none_and_few_values_have_no_interval():
    values = np.arange(1.0, 41.0)
    assert ratios(np.zeros(0), np.zeros(0)) == {}
    assert ratios(values, np.zeros(40)) == {}
    assert set(ratios(values, np.concatenate([np.zeros(39), [1.0]]))) == {"mean", "p99"}
    assert all(found.width is None for found in ratios(values, values).values())
