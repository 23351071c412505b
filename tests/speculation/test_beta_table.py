"""The table of beta quantiles against the exact ones, and means that the table keeps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import betaincinv

from simulator.speculation.acceptance import Acceptance
from simulator.speculation.beta_table import LARGEST_ERROR, beta_quantiles


def shapes(icc: float, mean: float) -> tuple[float, float]:
    kappa = 1.0 / icc - 1.0
    return kappa * mean, kappa * (1.0 - mean)


def hard_probabilities() -> np.ndarray:
    # 53-bit numbers as the simulation draws them, with as many close to 0 and to 1 as in between.
    near = 10.0 ** -np.linspace(0.0, 15.9, 3000)
    return np.floor(np.concatenate([np.linspace(0.0, 1.0, 3001)[:-1], near, 1.0 - near]) * 2.0**53) / 2.0**53


def exact_quantiles(p: float, q: float, u: np.ndarray) -> np.ndarray:
    # With tiny p and q some processors make the quantile at 1 NaN.
    return np.where(u < 1.0, betaincinv(p, q, u), 1.0)


iccs = st.floats(-9.0, -0.0044).map(lambda exponent: 10.0**exponent) | st.sampled_from([1e-9, 0.1, 0.75, 0.99])
means = st.floats(2e-6, 1 - 2e-6) | st.sampled_from([2e-6, 0.5, 0.8, 1 - 2e-6])


@settings(max_examples=60)
@given(iccs, means)
def test_no_quantile_is_further_off_than_promised(icc, mean):
    p, q = shapes(icc, mean)
    u = hard_probabilities()
    # With both shape parameters tiny the quantile jumps between two neighbouring numbers u: either side of the jump will do there.
    beside = 2.0**-51
    below, above = (
        exact_quantiles(p, q, np.maximum(u - beside, 0.0)),
        exact_quantiles(p, q, np.minimum(u + beside, 1.0)),
    )
    found = np.interp(u, *beta_quantiles(p, q))
    assert np.maximum(below - found, found - above).max() < LARGEST_ERROR
    smooth = above - below < LARGEST_ERROR / 10
    assert np.abs(found - exact_quantiles(p, q, u))[smooth].max() < LARGEST_ERROR


def test_ends_are_0_and_1_where_the_exact_function_fails(monkeypatch):
    def failing(p, q, u):
        return np.where(np.asarray(u) < 1.0, betaincinv(p, q, u), np.nan)

    monkeypatch.setattr("scipy.special.betaincinv", failing)
    u, x = beta_quantiles.__wrapped__(1e-12, 1e-17)
    assert (u[-1], x[-1]) == (1.0, 1.0)
    assert np.isfinite(x).all()


@settings(max_examples=60)
@given(iccs, means)
def test_the_table_rises_from_0_to_1_and_keeps_the_mean(icc, mean):
    u, x = beta_quantiles(*shapes(icc, mean))
    assert (u[0], u[-1], x[0], x[-1]) == (0.0, 1.0, 0.0, 1.0)
    assert np.all(np.diff(u) > 0)
    assert np.all(np.diff(x) >= 0)
    # The mean of Beta(p, q) is p / (p + q); that of what is linear between nodes, the sum of its trapezia.
    assert np.sum(np.diff(u) * (x[1:] + x[:-1]) / 2) == pytest.approx(mean, abs=1e-5)


def test_uniform_and_square_root_by_hand():
    u = np.linspace(0.0, 1.0, 777)
    assert np.interp(u, *beta_quantiles(1.0, 1.0)) == pytest.approx(u, abs=1e-12)
    # Beta(2, 1) has the distribution function x².
    assert np.interp(u, *beta_quantiles(2.0, 1.0)) == pytest.approx(np.sqrt(u), abs=1e-5)


def test_means_by_depth():
    law = Acceptance((0.9, 0.75, 0.4), request_icc=0.12)
    evenly = (np.arange(1_000_000) + 0.5) / 1_000_000
    assert law.at_quantile(evenly, 3).mean(axis=0) == pytest.approx([0.9, 0.75, 0.4], abs=1e-5)
