"""Rungs: closed forms, laws found again in rounds drawn from them, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.speculation.acceptance import Acceptance, AnswerLength, Repetition
from simulator.speculation.ladder.rounds import Rounds
from simulator.speculation.ladder.rungs import (
    FITS,
    ConstantRate,
    Loops,
    Matches,
    RateByDepth,
    Replayed,
    RequestEffect,
    Stretches,
    rungs_for,
)
from simulator.speculation.ladder.sampling import sampled_rounds
from simulator.speculation.ladder.statistics import Statistics
from simulator.speculation.recording import Recording

LENGTHS = AnswerLength(correlation=0.4, median_tokens=120, log_std=0.9)


def recording_of(law: Acceptance, gamma: int, requests: int, seed: int = 11) -> Recording:
    answers = np.maximum(2, np.exp(np.log(120) + 0.9 * np.random.default_rng(seed).normal(size=requests))).astype(int)
    rounds = sampled_rounds(law, gamma, answers, seed)
    parts = [slice(a, b) for a, b in zip(rounds.first[:-1], rounds.first[1:], strict=True)]
    accepted = tuple(tuple((rounds.tokens[p] - 1).tolist()) for p in parts)
    return Recording(accepted, tuple(tuple(rounds.drafted[p].tolist()) for p in parts), gamma, "drawn")


# Closed forms


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=6))
def test_one_rate_keeps_the_mean(conditional):
    rates = np.array(conditional)
    wanted = 1 + np.cumprod(rates).sum()
    assert ConstantRate.of(rates).expected_length(len(rates)) == pytest.approx(wanted, abs=2e-3)
    assert RateByDepth.of(rates).expected_length(len(rates)) == pytest.approx(wanted, abs=1e-3)


def test_depths_that_nobody_reached():
    assert RateByDepth.of(np.array([0.5, 0.0, np.nan])).settings.conditional == (0.5, 0.0, 0.0)
    assert RateByDepth.of(np.array([np.nan, np.nan])).settings.conditional == (0.0, 0.0)


def test_rates_by_depth_of_a_law_without_effects():
    law = Acceptance((0.8, 0.6, 0.7))
    found = RateByDepth.fit(recording_of(law, 3, 800)).settings.conditional
    # Tens of thousands of rounds: a standard error of 0.3 % and less.
    assert found == pytest.approx((0.8, 0.6, 0.7), abs=0.015)


# Laws found again


def check(kind, law, gamma, requests=700):
    recording = recording_of(law, gamma, requests)
    rung = FITS[kind](recording)
    recorded = Statistics.of(Rounds.of(recording), gamma)
    again = Statistics.of(rung.sample(np.tile(Rounds.of(recording).answer_tokens, 4), 77), gamma)
    return rung.settings, recorded, again


def test_a_request_effect():
    settings, recorded, again = check(
        RequestEffect, Acceptance((0.8, 0.7, 0.6), request_icc=0.1, answer_length=LENGTHS), 3
    )
    assert settings.request_icc == pytest.approx(0.1, rel=0.25)
    assert settings.answer_length.correlation == pytest.approx(0.4, abs=0.12)
    assert settings.answer_length.log_std == pytest.approx(0.9, rel=0.1)
    assert settings.conditional == pytest.approx((0.8, 0.7, 0.6), abs=0.03)
    for name, within in (("mean", 0.015), ("p10", 0.03), ("p90", 0.03)):
        assert getattr(again, name) == pytest.approx(getattr(recorded, name), rel=within), name


def test_stretches():
    law = Acceptance((0.8, 0.7, 0.6), 0.05, 1.0, 0.25, 20.0, None, LENGTHS)
    settings, recorded, again = check(Stretches, law, 3)
    assert settings.stretch_icc == pytest.approx(0.25, rel=0.3)
    assert settings.stretch_tokens == pytest.approx(20.0, rel=0.4)
    assert again.block_variance_ratio == pytest.approx(recorded.block_variance_ratio, rel=0.12)
    assert again.lag_1_within == pytest.approx(recorded.lag_1_within, abs=0.03)


def test_loops():
    loops = Repetition(every_tokens=800.0, tokens=250.0, conditional=0.98)
    law = Acceptance((0.7, 0.6, 0.5), 0.05, 1.0, 0.0, None, None, LENGTHS, loops)
    settings, recorded, again = check(Loops, law, 3, 1200)
    assert settings.repetition.conditional > 0.9
    assert settings.repetition.every_tokens == pytest.approx(800, rel=0.6)
    assert again.block_variance_ratio == pytest.approx(recorded.block_variance_ratio, rel=0.15)
    assert again.mean == pytest.approx(recorded.mean, rel=0.02)


def test_matches_in_stretches():
    law = Acceptance((0.85, 0.8), 0.05, 0.4, match_tokens=15.0, answer_length=LENGTHS)
    settings, recorded, again = check(Matches, law, 2)
    assert settings.match_probability == pytest.approx(0.4, abs=0.05)
    assert settings.match_tokens == pytest.approx(15.0, rel=0.3)
    assert again.proposed == pytest.approx(recorded.proposed, abs=0.02)
    assert again.proposed_lag_1 == pytest.approx(recorded.proposed_lag_1, abs=0.04)


def test_answers_all_alike_tell_nothing_of_length():
    rounds = sampled_rounds(Acceptance((0.7,), request_icc=0.1), 2, np.full(60, 80), 3)
    parts = [slice(a, b) for a, b in zip(rounds.first[:-1], rounds.first[1:], strict=True)]
    accepted = tuple(tuple((rounds.tokens[p] - 1).tolist()) for p in parts)
    found = RequestEffect.fit(Recording(accepted, tuple((2,) * len(a) for a in accepted), 2, "drawn"))
    assert found.settings.answer_length is None


# Which rungs, and what is refused


def test_few_requests_fit_the_first_rungs_and_replay():
    recording = Recording(((1, 0), (2, 1)), ((2, 2), (2, 2)), 2, "two")
    assert rungs_for(recording) == (ConstantRate, RateByDepth, Replayed)
    with pytest.raises(InputError, match="requests=2 must be at least 20: fewer do not tell how requests differ"):
        RequestEffect.fit(recording)


def test_rounds_without_drafts_ask_for_matches():
    law = Acceptance((0.8,), match_probability=0.5)
    assert Matches in rungs_for(recording_of(law, 2, 30))
    assert Matches not in rungs_for(recording_of(Acceptance((0.8,)), 2, 30))


def test_replay_is_the_recording():
    recording = Recording(((4, 1, 0), (2, 3)), ((4, 4, 4), (4, 4)), 4, "by hand")
    rung = Replayed.fit(recording)
    assert rung.expected_length(4) == pytest.approx(15 / 5)
    assert rung.sample([8, 7], 0).tokens.tolist() == [5, 2, 1, 3, 4]
    with pytest.raises(InputError, match="be named in a scenario as a file"):
        rung.config()
