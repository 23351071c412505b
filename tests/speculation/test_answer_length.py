"""Luck that goes with the length of an answer: the population stays, the correlation is the one given, batches weigh it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtri

from simulator.errors import InputError
from simulator.records import validate
from simulator.speculation.acceptance import Acceptance, AcceptanceConfig, AnswerLength

LENGTHS = AnswerLength(correlation=0.5, median_tokens=100.0, log_std=1.2)


def answers(requests: int, seed: int = 5) -> np.ndarray:
    return np.exp(np.log(100.0) + 1.2 * np.random.default_rng(seed).normal(size=requests))


def test_the_population_stays_and_long_answers_are_luckier():
    tokens = answers(40_000)
    place = LENGTHS.shifted(np.random.default_rng(1).random(len(tokens)), tokens)
    share = np.histogram(place, bins=10, range=(0, 1))[0] / len(tokens)
    assert np.all(np.abs(share - 0.1) < 4 * np.sqrt(0.09 / len(tokens)))
    found = np.corrcoef(ndtri(place), np.log(tokens))[0, 1]
    assert abs(found - 0.5) < 4 * (1 - 0.5**2) / np.sqrt(len(tokens))


@given(st.floats(0.0, 1.0, exclude_max=True), st.integers(1, 10**6), st.floats(-0.99, 0.99))
def test_places_stay_places(quantile, tokens, correlation):
    lengths = AnswerLength(correlation=correlation, median_tokens=100.0, log_std=1.0)
    assert 0.0 <= lengths.shifted(np.array([quantile]), [tokens])[0] <= 1.0
    even = AnswerLength(correlation=0.0, median_tokens=100.0, log_std=1.0)
    assert even.shifted(np.array([quantile]), [tokens])[0] == pytest.approx(quantile, abs=1e-9)


def test_a_full_batch_weighs_long_answers():
    law = Acceptance((0.8, 0.7), request_icc=0.15, answer_length=LENGTHS)
    tokens = answers(200_000)
    rates, row_of = law.per_request(3, len(tokens), 2, answer_tokens=tokens)
    own = 1.0 + rates[row_of, 0] + rates[row_of, 0] * rates[row_of, 1]
    # Σ tokens / Σ rounds, with the error of a ratio.
    ratio = tokens.sum() / (tokens / own).sum()
    beside = tokens - ratio * tokens / own
    error = beside.std() / np.sqrt(len(tokens)) / (tokens / own).mean()
    assert abs(ratio - law.live_tokens(2)) < 4 * error
    assert law.live_tokens(2) > Acceptance((0.8, 0.7), request_icc=0.15).live_tokens(2)
    assert law.expected_tokens(2) == Acceptance((0.8, 0.7), request_icc=0.15).expected_tokens(2)


def test_unknown_lengths_are_those_of_the_population():
    law = Acceptance((0.8, 0.7), request_icc=0.15, answer_length=LENGTHS)
    apart = Acceptance((0.8, 0.7), request_icc=0.15)
    assert np.array_equal(law.per_request(3, 50, 2)[0], apart.per_request(3, 50, 2)[0])
    stretched = Acceptance((0.8,), 0.15, 1.0, 0.1, 20.0, None, LENGTHS)
    without, with_long = (stretched.stretch_rates(3, 500, 2, answer_tokens=t)[1] for t in (None, np.full(500, 1e4)))
    assert with_long.mean() > without.mean()
    assert with_long.max() < 2000


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"correlation": 1.0}, "correlation=1.0 must be above -1 and below 1"),
        ({"median_tokens": 0}, "median_tokens=0.0 must be at least 1 output token"),
        ({"log_std": 0}, "log_std=0.0 must be between 0.01 and 10"),
    ],
)
def test_impossible_lengths(change, said):
    data = {"alpha": 0.5, "answer_length": {"correlation": 0.3, "median_tokens": 100, "log_std": 1.0, **change}}
    with pytest.raises(InputError) as caught:
        validate(AcceptanceConfig, data, "here")
    assert said in str(caught.value)
