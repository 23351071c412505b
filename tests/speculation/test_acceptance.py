"""Laws of acceptance: closed forms, conditional ↔ marginal, the request effect, and sampling that agrees."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.randomness import uniform, uniform_array
from simulator.records import validate
from simulator.speculation.acceptance import (
    Acceptance,
    AcceptanceConfig,
    chain_tokens,
    conditional_from_marginal,
)

rates = st.floats(0.0, 1.0)
chains = st.lists(rates, min_size=1, max_size=8).map(tuple)
gammas = st.integers(1, 12)


def law(data) -> Acceptance:
    return validate(AcceptanceConfig, data if isinstance(data, dict) else {"conditional": data}, "here").law()


# Closed forms


@given(st.floats(0.0, 0.999), gammas)
def test_constant_rate_is_the_geometric_sum(alpha, gamma):
    assert Acceptance((alpha,)).expected_tokens(gamma) == pytest.approx((1 - alpha ** (gamma + 1)) / (1 - alpha))


def test_ends_of_the_scale():
    assert Acceptance((1.0,)).expected_tokens(5) == 6.0
    assert Acceptance((0.0,)).expected_tokens(5) == 1.0
    assert Acceptance((0.7,)).expected_tokens(0) == 1.0


def test_rates_by_depth_by_hand():
    # 1 + .9 + .9·.8 + .9·.8·.5 + .9·.8·.5·.5: the last rate holds beyond the end
    assert Acceptance((0.9, 0.8, 0.5)).expected_tokens(4) == pytest.approx(1 + 0.9 + 0.72 + 0.36 + 0.18)
    assert chain_tokens(np.array([[0.5, 0.5], [1.0, 0.0]])) == pytest.approx([1.75, 2.0])


@given(chains, gammas)
def test_longer_chains_yield_more_and_never_more_than_all(conditional, gamma):
    acceptance = Acceptance(conditional)
    assert acceptance.expected_tokens(gamma) <= acceptance.expected_tokens(gamma + 1) + 1e-12
    assert 1.0 <= acceptance.expected_tokens(gamma) <= gamma + 1


@given(chains, gammas, st.floats(0.0, 1.0))
def test_rounds_without_a_match_yield_one_token(conditional, gamma, match):
    always, sometimes = (Acceptance(conditional, match_probability=p).expected_tokens(gamma) for p in (1.0, match))
    assert sometimes == pytest.approx(match * always + (1 - match))


# Conditional and marginal


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=8))
def test_marginal_and_back(conditional):
    marginal = tuple(np.cumprod(conditional))
    assert conditional_from_marginal(marginal) == pytest.approx(conditional)


@given(st.lists(rates, min_size=1, max_size=8).map(lambda m: tuple(sorted(m, reverse=True))))
def test_acceptance_length_is_one_plus_the_marginals(marginal):
    # What engines log: acceptance length = 1 + Σ accepted / drafted by position.
    assert law({"marginal": marginal}).expected_tokens(len(marginal)) == pytest.approx(1 + sum(marginal))


def test_nothing_reaches_beyond_a_certain_refusal():
    assert conditional_from_marginal((0.5, 0.0, 0.0)) == (0.5, 0.0, 0.0)


# The request effect: each request has its own luck


@pytest.mark.parametrize("icc", [0.08, 0.16, 0.5])
def test_request_effect_keeps_each_depth_s_mean_and_its_icc(icc):
    mean = np.array([0.9, 0.8, 0.55])
    drawn, row = Acceptance(tuple(mean), request_icc=icc).per_request(seed=3, requests=20_000, gamma=3)
    assert list(row) == list(range(20_000))
    error = drawn.std(axis=0) / np.sqrt(len(drawn))
    assert np.all(np.abs(drawn.mean(axis=0) - mean) < 4 * error)
    # Between-request variance of a beta with this mean is ICC·a·(1 − a).
    centred = (drawn - mean) ** 2
    error = centred.std(axis=0) / np.sqrt(len(drawn))
    assert np.all(np.abs(centred.mean(axis=0) - icc * mean * (1 - mean)) < 4 * error)


def test_a_lucky_request_is_lucky_at_every_depth():
    drawn, _ = Acceptance((0.8, 0.6), request_icc=0.2).per_request(seed=0, requests=500, gamma=2)
    assert np.array_equal(drawn[:, 0].argsort(), drawn[:, 1].argsort())


@given(chains, gammas, st.floats(0.02, 0.6))
def test_uneven_luck_yields_more_tokens_at_the_same_mean(conditional, gamma, icc):
    # E[Π p_i] ≥ Π E[p_i] for luck that rises together (Chebyshev's sum inequality); for one draft they are equal.
    even, uneven = Acceptance(conditional), Acceptance(conditional, request_icc=icc)
    assert uneven.expected_tokens(gamma) >= even.expected_tokens(gamma) - 2e-3 * gamma
    assert uneven.expected_tokens(1) == pytest.approx(even.expected_tokens(1), abs=2e-3)


def test_uneven_luck_by_hand():
    # ICC → 1 at one rate: requests are all right or all wrong, so τ → 1 + a·γ.
    assert Acceptance((0.6,), request_icc=0.999).expected_tokens(5) == pytest.approx(1 + 0.6 * 5, rel=5e-3)
    # Two drafts: 1 + a + a² + ICC·a·(1 − a).
    tau = Acceptance((0.6,), request_icc=0.3).expected_tokens(2)
    assert tau == pytest.approx(1 + 0.6 + 0.36 + 0.3 * 0.24, rel=1e-3)


@given(st.integers(0, 2**62), st.integers(1, 30), st.integers(1, 30))
def test_luck_of_a_request_does_not_depend_on_how_many_there_are(seed, few, more):
    acceptance = Acceptance((0.8, 0.7), request_icc=0.1)
    short, _ = acceptance.per_request(seed, few, 2)
    long, _ = acceptance.per_request(seed, few + more, 2)
    assert np.array_equal(long[:few], short)
    assert np.array_equal(acceptance.per_request(seed, few, 1)[0], short[:, :1])


def test_without_the_effect_all_requests_share_one_row():
    drawn, row = Acceptance((0.8, 0.7)).per_request(0, 5, 3)
    assert drawn.tolist() == [[0.8, 0.7, 0.7]]
    assert row.tolist() == [0] * 5


# The distribution of accepted lengths


@given(chains, st.integers(0, 8), st.sampled_from([0.0, 0.1, 0.4]))
def test_length_distribution_is_one_and_has_the_mean(conditional, gamma, icc):
    acceptance = Acceptance(conditional, request_icc=icc)
    p = acceptance.length_distribution(gamma)
    assert p.shape == (gamma + 1,)
    assert p.min() >= -1e-12
    assert p.sum() == pytest.approx(1.0)
    assert 1 + p @ np.arange(gamma + 1) == pytest.approx(acceptance.expected_tokens(gamma))


def accepted(draws: np.ndarray, conditional: np.ndarray) -> np.ndarray:
    """Length of the leading run of accepted drafts; draws: [rounds, gamma]."""
    return np.cumprod(draws < conditional, axis=-1).sum(axis=-1)


@pytest.mark.parametrize("icc", [0.0, 0.2])
def test_sampling_agrees_with_the_closed_form(icc):
    gamma, rounds = 4, 200_000
    acceptance = Acceptance((0.8, 0.7, 0.75), request_icc=icc)
    # One round for each of many requests, so that rounds are independent whatever the request effect.
    by_request, row = acceptance.per_request(7, rounds, gamma)
    draws = uniform_array(7, np.arange(rounds)[:, None], 1, np.arange(1, gamma + 1)[None, :])
    lengths = accepted(draws, by_request[row])
    assert abs(lengths.mean() + 1 - acceptance.expected_tokens(gamma)) < 4 * lengths.std() / np.sqrt(rounds)
    expected = acceptance.length_distribution(gamma)
    share = np.bincount(lengths, minlength=gamma + 1) / rounds
    assert np.all(np.abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / rounds) + 1e-4)


def test_scalar_draws_are_the_array_s():
    assert uniform(7, 3, 1, 2) == uniform_array(7, 3, 1, 2)


# What a user may give


def test_short_forms():
    assert law({"alpha": 0.8}) == AcceptanceConfig.model_validate(0.8).law() == Acceptance((0.8,))
    assert AcceptanceConfig.model_validate([0.8, 0.7]).law() == Acceptance((0.8, 0.7))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "acceptance='(absent)' must give exactly one of alpha, conditional, marginal"),
        ({"alpha": 0.5, "marginal": [0.5]}, "must give exactly one of"),
        ({"alpha": 1.2}, "alpha=1.2 must be between 0 and 1"),
        ({"alpha": -0.1}, "alpha=-0.1 must be between 0 and 1"),
        ({"alpha": float("nan")}, "alpha=nan must be"),
        ({"alpha": "high"}, "alpha='high' must be a number"),
        ({"conditional": []}, "conditional='0 entries' must have 1 to 64 entries"),
        ({"conditional": [0.5] * 65}, "conditional='65 entries' must have 1 to 64 entries"),
        ({"conditional": [0.5, 1.5]}, "must be between 0 and 1 at every depth"),
        ({"marginal": [0.5, 0.6]}, "must not rise with depth (are these conditional rates?)"),
        ({"alpha": 0.5, "request_icc": 1.0}, "request_icc=1.0 must be between 0 and 0.99"),
        ({"alpha": 0.5, "match_probability": 2.0}, "match_probability=2.0 must be between 0 and 1"),
        ({"alfa": 0.5}, "did you mean alpha?"),
    ],
)
def test_impossible_rates(data, said):
    with pytest.raises(InputError) as caught:
        law(data)
    assert said in str(caught.value)
    assert str(caught.value).startswith("here: ")


@given(chains, gammas, st.floats(0.0, 1.0, exclude_max=True) | st.floats(-300, -1).map(lambda exponent: 10.0**exponent))
def test_every_permitted_law_is_finite_and_soon(conditional, gamma, icc):
    tau = Acceptance(conditional, request_icc=icc).expected_tokens(gamma)
    assert 1.0 <= tau <= gamma + 1 + 1e-9


@pytest.mark.parametrize("icc", [1e-300, 1e-12, 1e-9, 0.75, 1 - 1e-12])
@pytest.mark.parametrize("rate", [5e-324, 1e-9, 2e-6, 1 - 2e-6, 1 - 1.2e-16])
def test_vanishing_effects_and_rates_stay_finite(icc, rate):
    assert Acceptance((rate,), request_icc=icc).expected_tokens(3) == pytest.approx(1 + 3 * rate, abs=2e-3)
