"""Stretches: states that keep the mean, shares of rounds against brute force and limits, and laws against simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.records import validate
from simulator.speculation.acceptance import Acceptance, AcceptanceConfig, AnswerLength, Repetition
from simulator.speculation.ladder.sampling import sampled_rounds
from simulator.speculation.stretches import STATES, accepted_shares, repeated_share, round_shares, state_rates

unit = st.floats(0.0, 1.0)
iccs = st.floats(1e-6, 0.8)
chains = st.lists(unit, min_size=1, max_size=5).map(tuple)


# States


@given(st.lists(unit, min_size=1, max_size=6), iccs)
def test_the_mean_over_states_is_the_request_s_rate(rates, icc):
    states = state_rates(np.array(rates), icc)
    assert states.shape == (STATES, len(rates))
    assert states.mean(axis=0) == pytest.approx(np.array(rates), abs=1e-9)
    assert np.all(np.diff(states, axis=0) >= -1e-9)
    assert states.min() >= 0.0
    assert states.max() <= 1.0


@pytest.mark.parametrize(("rate", "icc"), [(0.7, 0.1), (0.5, 0.3), (0.9, 0.05)])
def test_their_variance_is_nearly_the_beta_s(rate, icc):
    # Between bins lies all but the variance inside them, which is a few percent for eight bins.
    share = state_rates(np.array([rate]), icc).var() / (icc * rate * (1 - rate))
    assert 0.9 < share < 1.0


def test_two_halves_of_a_uniform_by_hand():
    # Beta(1, 1) in eight bins: means 1/16, 3/16, …
    assert state_rates(np.array([0.5]), 1 / 3)[:, 0] == pytest.approx((np.arange(8) + 0.5) / 8, abs=1e-9)


# Shares of rounds


def test_shares_of_rounds_by_hand():
    # Nothing kept: 1 token per round. All of γ = 3 kept: 4 tokens. q = 1/2: rounds leave with 1/2 and 15/16.
    accepted = np.array([[1.0, 0, 0, 0], [0, 0, 0, 1.0]])
    weights = np.array([0.25, 0.75])
    by_hand = np.array([0.25 / 0.5, 0.75 / (15 / 16)])
    assert round_shares(accepted, weights, 2.0) == pytest.approx(by_hand / by_hand.sum())
    assert round_shares(accepted, weights, 1.0) == pytest.approx(weights)
    long = np.array([0.25 / 1, 0.75 / 4])
    assert round_shares(accepted, weights, 1e9) == pytest.approx(long / long.sum(), rel=1e-6)


@given(st.lists(chains, min_size=2, max_size=4), st.floats(1.0, 1e4), st.data())
def test_shares_of_rounds_are_stationary(states, tokens, data):
    weights = np.array(data.draw(st.lists(st.floats(0.05, 1.0), min_size=len(states), max_size=len(states))))
    weights /= weights.sum()
    gamma = 4
    rates = np.array([[chain[min(j, len(chain) - 1)] for j in range(gamma)] for chain in states])
    accepted = accepted_shares(rates)
    stays = (accepted * (1 - 1 / tokens) ** np.arange(1, gamma + 2)).sum(axis=1)
    moves = np.diag(stays) + (1 - stays)[:, None] * weights[None, :]
    shares = round_shares(accepted, weights, tokens)
    assert shares @ moves == pytest.approx(shares, abs=1e-9)


# Laws


def drawn_rounds(law: Acceptance, gamma: int, requests: int, rounds: int, seed: int = 1):
    """Drafts kept [rounds, requests], −1 without a proposal, step by step as the definition says, with luck of its own."""
    random = np.random.default_rng(seed)
    rates, row_of = law.stretch_rates(seed, requests, gamma)
    weights, proposes, tokens = law.stretch_weights, law.stretch_proposes, law.stretch_tokens
    state = random.choice(len(weights), size=requests, p=weights)
    kept = np.empty((rounds, requests), dtype=int)
    for step in range(rounds):
        proposed = proposes[state]
        if proposes.all():
            proposed = random.random(requests) < law.match_probability
        luck = random.random((requests, gamma)) < rates[row_of, state]
        kept[step] = np.where(proposed, np.cumprod(luck, axis=1).sum(axis=1), -1)
        for position in range(gamma + 1):
            anew = (position <= np.maximum(kept[step], 0)) & (random.random(requests) < 1 / tokens[state])
            state = np.where(anew, random.choice(len(weights), size=requests, p=weights), state)
    return kept


@pytest.mark.parametrize(
    "law",
    [
        Acceptance((0.8, 0.7, 0.6), stretch_icc=0.3, mean_stretch_tokens=15.0),
        Acceptance((0.8, 0.7, 0.6), request_icc=0.1, stretch_icc=0.2, mean_stretch_tokens=6.0),
        Acceptance((0.7,), match_probability=0.6, stretch_icc=0.4, mean_stretch_tokens=10.0),
        Acceptance((0.9, 0.8), match_probability=0.3, match_tokens=12.0),
        Acceptance((0.9, 0.8), match_probability=0.3, match_tokens=12.0, request_icc=0.2),
    ],
    ids=["stretches", "requests too", "matches apart", "matches in stretches", "those with requests"],
)  # fmt: skip
def test_the_law_agrees_with_simulation(law):
    gamma, requests = 3, 4000
    kept = drawn_rounds(law, gamma, requests, 310)[60:]  # the first rounds still know that position 0 began a stretch
    tokens = 1.0 + np.maximum(kept, 0)
    by_request = tokens.mean(axis=0)
    error = by_request.std() / np.sqrt(requests)
    assert abs(by_request.mean() - law.expected_tokens(gamma)) < 4 * error
    # A full batch of equal answers: rounds from 100 tokens to 250, whose ends are alike.
    reached = np.cumsum(tokens, axis=0)
    assert reached[-1].min() >= 250
    first, last = (reached < 100).argmin(axis=0), (reached < 250).argmin(axis=0)
    written = np.take_along_axis(reached, np.stack([first, last]), axis=0)
    beside = written[1] - written[0] - law.live_tokens(gamma) * (last - first)
    assert abs(beside.mean()) < 4 * beside.std() / np.sqrt(requests)
    found = (kept >= 0).mean(axis=0)
    assert abs(found.mean() - law.match_share(gamma)) < 4 * found.std() / np.sqrt(requests) + 1e-12
    lengths = np.array([(kept == x).mean(axis=0) for x in range(gamma + 1)])  # [x, requests]
    share = lengths.mean(axis=1) / found.mean()
    error = lengths.std(axis=1) / np.sqrt(requests) / found.mean()
    assert np.all(np.abs(share - law.length_distribution(gamma)) < 5 * error)


@given(chains, iccs, st.floats(1.0, 1e6), st.sampled_from([0.0, 0.1]), st.integers(0, 5))
def test_the_distribution_has_the_mean(rates, icc, tokens, request_icc, gamma):
    for law in (
        Acceptance(rates, request_icc, 1.0, icc, tokens),
        Acceptance(rates, request_icc, 0.4, icc, tokens),
        Acceptance(rates, request_icc, 0.4, match_tokens=tokens),
    ):
        p = law.length_distribution(gamma)
        assert p.sum() == pytest.approx(1.0)
        mean = 1 + law.match_share(gamma) * (p @ np.arange(gamma + 1))
        assert mean == pytest.approx(law.expected_tokens(gamma))
        assert 1.0 <= law.expected_tokens(gamma) <= gamma + 1 + 1e-9
        assert law.live_tokens(gamma) <= law.expected_tokens(gamma) + 1e-9


@given(chains, st.integers(1, 5), st.sampled_from([0.0, 0.1]))
def test_stretches_that_do_not_differ_or_end_at_once_change_nothing_for_one_draft(rates, gamma, request_icc):
    plain = Acceptance(rates, request_icc)
    alike = Acceptance(rates, request_icc, stretch_icc=0.0, mean_stretch_tokens=20.0)
    assert alike.expected_tokens(gamma) == plain.expected_tokens(gamma)
    # A new state at every position: one draft sees the mean of the states.
    anew = Acceptance(rates, request_icc, stretch_icc=0.3, mean_stretch_tokens=1.0)
    assert anew.expected_tokens(1) == pytest.approx(plain.expected_tokens(1))


def test_matches_anew_at_every_position_are_independent_matches():
    apart = Acceptance((0.8, 0.7), match_probability=0.4)
    stretched = Acceptance((0.8, 0.7), match_probability=0.4, match_tokens=1.0)
    assert stretched.expected_tokens(4) == pytest.approx(apart.expected_tokens(4))
    assert stretched.match_share(4) == pytest.approx(0.4)


def test_long_stretches_weigh_rounds_not_positions():
    # Half of the text never matches, half always gives 5 tokens: 1 / (½·1 + ½·⅕) per round.
    law = Acceptance((1.0,), match_probability=0.5, match_tokens=1e8)
    assert law.expected_tokens(4) == pytest.approx(1 / (0.5 + 0.1), rel=1e-6)
    assert law.match_share(4) == pytest.approx(1 / 6, rel=1e-6)


# Loops

LOOPS = Repetition(every_tokens=900.0, tokens=300.0, conditional=0.97)


def test_share_in_loops_by_its_differential_equation():
    # P' = (1 − P) / E − P / L from P(0) = 0, in steps of a hundredth of a token.
    inside, total, step = 0.0, 0.0, 0.01
    for _ in range(60_000):
        total += inside * step
        inside += step * ((1.0 - inside) / 900.0 - inside / 300.0)
    assert repeated_share(900.0, 300.0, np.array([600.0]))[0] == pytest.approx(total / 600.0, rel=1e-3)
    assert repeated_share(900.0, 300.0, np.array([1e9]))[0] == pytest.approx(0.25, rel=1e-6)
    assert repeated_share(900.0, 300.0, np.array([1.0]))[0] < 1e-3


@pytest.mark.parametrize("icc", [0.0, 0.1])
@pytest.mark.parametrize("stretch_icc", [0.0, 0.1])
def test_loops_in_short_and_long_answers(icc, stretch_icc):
    random = np.random.default_rng(2)
    lengths = AnswerLength(correlation=0.5, median_tokens=120.0, log_std=1.0)
    law = Acceptance((0.8, 0.7, 0.6), icc, 1.0, stretch_icc, 15.0 if stretch_icc else None, None, lengths, LOOPS)
    answers = np.maximum(1, np.exp(np.log(120.0) + random.normal(size=30_000))).astype(int)
    rounds = sampled_rounds(law, 3, answers, seed=4)
    # All tokens over all rounds, but for last rounds, which the ends of answers cut off.
    steps = rounds.steps - 1.0
    tokens = rounds.answer_tokens - rounds.tokens[rounds.is_last]
    ratio = tokens.sum() / steps.sum()
    error = np.std(tokens - ratio * steps) / np.sqrt(len(steps)) / steps.mean()
    # What the closed form leaves out: answers begin with a loop in 4 of 900, and rounds jump over the ends of loops.
    assert abs(ratio - law.live_tokens(3)) < 4 * error + 0.01 * ratio
    # Without a known length, those of an endless answer.
    endless = Acceptance((0.8, 0.7, 0.6), icc, 1.0, stretch_icc, 15.0 if stretch_icc else None, None, None, LOOPS)
    long = sampled_rounds(endless, 3, np.full(1500, 20_000), seed=4)
    own = long.answer_tokens / long.steps
    assert abs(own.mean() - endless.expected_tokens(3)) < 4 * own.std() / np.sqrt(len(own)) + 0.005 * own.mean()


def test_states_with_loops():
    law = Acceptance((0.8, 0.7), repetition=LOOPS)
    assert law.stretch_rates(0, 3, 2)[0].tolist() == [[[0.8, 0.7], [0.97, 0.97]]]
    begins, weights = 1.0 / law.stretch_tokens, law.stretch_weights
    assert begins[0] * weights[1] == pytest.approx(1 / 900)  # per position outside
    assert 1.0 / begins[1] == 300.0
    assert Acceptance((0.8,), 0.1, 1.0, 0.1, 9.0, None, None, LOOPS).stretch_rates(0, 3, 2)[0].shape == (2000, 9, 2)


# What the loop gets


def test_shapes_without_stretches():
    law = Acceptance((0.8, 0.7), request_icc=0.1)
    rates, row_of = law.stretch_rates(3, 50, 4, first=7)
    plain, plain_row_of = law.per_request(3, 50, 4, first=7)
    assert np.array_equal(rates[:, 0], plain)
    assert np.array_equal(row_of, plain_row_of)
    assert law.stretch_weights.tolist() == [1.0]
    assert law.stretch_proposes.tolist() == [True]
    assert law.stretch_tokens.tolist() == [float("inf")]


def test_shapes_with_matches():
    law = Acceptance((0.8, 0.7), match_probability=0.25, match_tokens=9.0)
    rates, _ = law.stretch_rates(3, 50, 2)
    assert rates.tolist() == [[[0.8, 0.7], [0.0, 0.0]]]
    assert law.stretch_weights.tolist() == [0.25, 0.75]
    assert law.stretch_proposes.tolist() == [True, False]
    assert law.stretch_tokens.tolist() == [9.0, 9.0]


@given(st.integers(0, 2**62), st.integers(1, 30), st.integers(1, 30), st.integers(0, 1000))
def test_a_request_s_row_does_not_depend_on_how_many_there_are(seed, few, more, first):
    law = Acceptance((0.8, 0.7), 0.1, 1.0, 0.2, 12.0)
    short, short_row = law.stretch_rates(seed, few, 2, first)
    long, long_row = law.stretch_rates(seed, few + more, 2, first)
    assert np.array_equal(short[short_row], long[long_row][:few])
    shifted, shifted_row = law.stretch_rates(seed, few + more, 2, first + 1)
    assert np.array_equal(shifted[shifted_row][:-1], long[long_row][1:])


def law_of(data) -> Acceptance:
    return validate(AcceptanceConfig, data, "here").law()


def test_what_a_user_gives():
    law = law_of({"alpha": 0.8, "request_icc": 0.1, "stretch_icc": 0.2, "stretch_tokens": 14})
    assert law == Acceptance((0.8,), 0.1, 1.0, 0.2, 14.0)
    law = law_of({"alpha": 0.8, "match_probability": 0.4, "match_tokens": 9})
    assert law.stretch_tokens.tolist() == [9.0, 9.0]
    # Limits of a sweep are no mistakes.
    assert len(law_of({"alpha": 0.8, "stretch_icc": 0, "stretch_tokens": 9}).stretch_weights) == 1
    assert len(law_of({"alpha": 0.8, "match_probability": 1, "match_tokens": 9}).stretch_weights) == 1


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"alpha": 0.5, "stretch_icc": 0.2}, "stretch_tokens='(absent)' must be given with stretch_icc"),
        ({"alpha": 0.5, "stretch_icc": 1.0, "stretch_tokens": 9}, "stretch_icc=1.0 must be between 0 and 0.8"),
        ({"alpha": 0.5, "stretch_icc": 0.1, "stretch_tokens": 0.5}, "stretch_tokens=0.5 must be between 1 and"),
        ({"alpha": 0.5, "stretch_icc": 0.1, "stretch_tokens": float("inf")}, "stretch_tokens=inf must be"),
        ({"alpha": 0.5, "match_tokens": 0.0, "match_probability": 0.5}, "match_tokens=0.0 must be between 1 and"),
        ({"alpha": 0.5, "stretch_icc": 0.1, "stretch_tokens": 9, "match_tokens": 9, "match_probability": 0.5}, "be left out with match_tokens"),
        ({"alpha": 0.5, "repetition": {"every_tokens": 5, "tokens": 9, "conditional": 0.9}}, "every_tokens=5.0 must be between 20 and"),
        ({"alpha": 0.5, "repetition": {"every_tokens": 500, "tokens": 9, "conditional": 1.9}}, "conditional=1.9 must be between 0 and 1"),
        ({"alpha": 0.5, "repetition": {"every_tokens": 500, "tokens": 9, "conditional": 0.9}, "match_tokens": 9, "match_probability": 0.5}, "be left out with match_tokens"),
        ({"alpha": 0.5, "repetition": {"every_tokens": 500, "tokens": 9, "conditional": 0.9}, "stretch_icc": 0.1, "stretch_tokens": 400}, "be at most half of the 500 tokens between loops"),
        ({"replay": "x.jsonl", "stretch_tokens": 9}, "stretch_tokens=9.0 must be left out with replay"),
        ({"replay": "x.jsonl", "match_tokens": 9}, "match_tokens=9.0 must be left out with replay"),
    ],
)  # fmt: skip
def test_impossible_stretches(data, said):
    with pytest.raises(InputError) as caught:
        law_of(data)
    assert said in str(caught.value)
