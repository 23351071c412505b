"""Distributions against numpy's own functions, and against each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from simulator.serving.distribution import EMPTY, PERCENTILES, Distribution

TIMES = arrays.arrays(np.float64, st.integers(1, 300), elements=st.floats(0, 1e6))


@given(TIMES)
def test_of_values_is_what_numpy_says(values):
    found = Distribution.of(values)
    assert (found.n, found.largest) == (len(values), values.max())
    assert found.mean == values.mean()
    shown = (found.p50, found.p90, found.p95, found.p99)
    assert shown == pytest.approx(tuple(np.percentile(values, PERCENTILES)), rel=1e-12, abs=1e-12 * values.max())
    assert all(values.min() <= p <= values.max() for p in shown)
    assert found.standard_deviation == pytest.approx(values.std(), rel=1e-12, abs=1e-9)


def test_the_values_keep_their_order_unless_they_are_given_away():
    values = np.array([3.0, 1.0, 2.0])
    Distribution.of(values)
    assert values.tolist() == [3.0, 1.0, 2.0]


def test_spread_of_values_that_hardly_differ():
    """Sums of squares would cancel to nothing: 1 s ± 1 ns."""
    values = 1.0 + 1e-9 * np.tile([-1.0, 1.0], 100_000)
    assert Distribution.of(values).standard_deviation == pytest.approx(1e-9, rel=1e-6)


def test_of_values_and_of_counts_agree():
    values = np.array([1.0, 2.0, 3.0, 4.0])
    counts = np.array([1, 0, 2, 1])
    by_values = Distribution.of(np.repeat(values, counts))
    by_counts = Distribution.of_counts(values, counts)
    assert (by_counts.n, by_counts.mean, by_counts.largest) == (4, by_values.mean, 4.0)
    assert by_counts.standard_deviation == pytest.approx(by_values.standard_deviation)
    assert (by_counts.p50, by_counts.p99) == (3.0, 4.0)


def test_of_nothing():
    nothing = Distribution.of(np.array([]))
    assert nothing == EMPTY
    assert nothing.n == 0
    assert np.isnan(nothing.mean)
    assert Distribution.of_counts(np.array([1.0]), np.array([0])) == EMPTY
