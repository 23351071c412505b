"""Means over replications hold the truth as often as they claim, and paired ratios are as sure as pairs are alike."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from simulator.errors import InputError
from simulator.serving.intervals import RATIO
from simulator.serving.replications import across, replicate
from simulator.uncertainty import LEVEL

RUNS = 400


def pairs(draw, n, common):
    """Exponential `x` with mean 2 and `y` with mean 4; the same draws stretched where `common`."""
    x = draw.exponential(2.0, n)
    y = 2.0 * x * draw.normal(1.0, 0.05, n) if common else draw.exponential(4.0, n)
    return [{("speculation", "t"): a, ("plain", "t"): b} for a, b in zip(x, y, strict=True)]


@pytest.mark.parametrize("common", [True, False])
def test_means_and_ratios_lie_inside_as_often_as_claimed(common):
    draw = np.random.default_rng(11)
    inside = {"mean": 0, "ratio": 0}
    for _ in range(RUNS):
        found = across(pairs(draw, 40, common))
        mean, ratio = found.get("speculation", "t"), found.get(RATIO, "t")
        inside["mean"] += abs(mean.mean - 2.0) <= mean.half_width
        inside["ratio"] += abs(ratio.mean - 0.5) <= ratio.half_width
    low, high = stats.binom.interval(0.9999, RUNS, LEVEL)
    for n in inside.values():
        assert low - 0.03 * RUNS <= n <= high  # forty skewed values cost a percent or two


def test_common_luck_makes_the_ratio_sure():
    draw = np.random.default_rng(3)
    paired, apart = (across(pairs(draw, 40, common)).get(RATIO, "t").half_width for common in (True, False))
    assert paired < 0.2 * apart


def test_by_hand():
    """x = 1, 3 and y = 2, 6: R = 0.5 without doubt; t of one degree of freedom at 90 % is 6.314."""
    found = across([{("a", "t"): 1.0, ("b", "t"): 2.0}, {("a", "t"): 3.0, ("b", "t"): 6.0}])
    assert found.n == 2
    assert found.get("a", "t").mean == 2.0
    assert found.get("a", "t").half_width == pytest.approx(6.3138, rel=1e-4)  # 6.314·√2/√2
    assert (found.get(RATIO, "t").mean, found.get(RATIO, "t").half_width) == (0.5, 0.0)


def test_what_some_replication_lacks_has_no_mean():
    found = across([{("a", "t"): 1.0, ("a", "u"): 1.0}, {("a", "t"): np.nan, ("a", "u"): 2.0}])
    assert found.get("a", "t") is None
    assert found.get("a", "u").mean == 1.5
    assert found.get(RATIO, "u") is None


@pytest.mark.parametrize("n", [1, 0, 1001])
def test_one_replication_says_nothing(n):
    with pytest.raises(InputError, match="replications"):
        replicate(None, n)
