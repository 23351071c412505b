import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.randomness import STREAM_INTERARRIVAL, uniform
from simulator.serving.arrivals import RateProfile, Renewal, Stage
from simulator.serving.traffic import generate, parse_traffic, with_load

SEED = 20250201
Z = 3.29  # 99.9 % two-sided
LENGTHS = {"prompt": 10, "output": 10}
RAMP = {"duration_s": 1000, "rate_per_s": 5, "to_rate_per_s": 45}


def poisson(**fields):
    return parse_traffic({"kind": "poisson", "lengths": LENGTHS, **fields}, "test")


def staged(*stages, **fields):
    return poisson(stages=list(stages), **fields)


def daily(factors, **fields):
    return poisson(**{"rate_per_s": 0.5, "requests": 50_000, "diurnal": factors, **fields})


# Literal, by hand


def test_stages_by_hand():
    # Two requests are expected in the first 10 s at 0.2 /s, none in the next 10 s, then 1 /s.
    profile = RateProfile.of_stages(
        [Stage(duration_s=10, rate_per_s=0.2), Stage(duration_s=10, rate_per_s=0), Stage(duration_s=5, rate_per_s=1)]
    )
    assert profile.time_s(np.array([0.5, 1.5, 2.5, 6.0, 9.0])).tolist() == [2.5, 7.5, 20.5, 24.0, 27.0]
    assert profile.expected(np.array([0.0, 5.0, 15.0, 22.0, 30.0])).tolist() == [0, 1, 2, 4, 12]


def test_a_ramp_by_hand():
    # Rate t on [0, 10]: t²/2 requests are expected by t.
    profile = RateProfile.of_stages([Stage(duration_s=10, rate_per_s=0, to_rate_per_s=10)])
    np.testing.assert_allclose(profile.time_s(np.array([0.0, 2.0, 8.0, 50.0, 60.0])), [0, 2, 4, 10, 11])
    down = RateProfile.of_stages([Stage(duration_s=10, rate_per_s=10, to_rate_per_s=0)])
    np.testing.assert_allclose(down.time_s(np.array([42.0, 48.0, 49.5])), [6, 8, 9])


def test_a_day_by_hand():
    # Factors 1 and 3 twelve hours apart, mean rate 2 /s: 1 /s at midnight, 3 /s at noon, straight lines between.
    profile = RateProfile.of_day(daily([1, 3]).diurnal, 2.0)
    day_s, six_h = 86_400.0, 21_600.0
    assert profile.per_period == 2 * day_s
    # By six o'clock the rate has risen from 1 to 2: 1.5 on average.
    assert profile.expected(np.array([six_h, day_s, day_s + six_h])).tolist() == [
        1.5 * six_h,
        2 * day_s,
        2 * day_s + 1.5 * six_h,
    ]
    np.testing.assert_allclose(profile.time_s(np.array([1.5 * six_h, 2 * day_s + 1.5 * six_h])), [six_h, day_s + six_h])


def test_the_simulation_may_begin_at_nine():
    profile = RateProfile.of_day(daily({"factors": [1, 3], "start_s": "6 h"}).diurnal, 2.0)
    # Six hours from 6 to 12 o'clock, rate from 2 to 3.
    assert profile.expected(np.array([21_600.0])).tolist() == [2.5 * 21_600]


def test_arrivals_are_the_unit_process_seen_through_the_profile():
    arrival_s, unit = generate(staged(RAMP), SEED).arrival_s[:5], 0.0
    for i in range(5):
        unit += -math.log(1 - uniform(SEED, i, STREAM_INTERARRIVAL, 0))
        # 5 t + 40/1000 t²/2 = unit
        assert arrival_s[i] == pytest.approx((-5 + math.sqrt(25 + 0.08 * unit)) / 0.04, rel=1e-9)


# Theory, with a confidence interval


def test_stages_have_their_expected_numbers():
    stages = [
        {"duration_s": 500, "rate_per_s": 20},
        {"duration_s": 300, "rate_per_s": 0},
        RAMP,
        {"duration_s": 200, "rate_per_s": 3},
    ]
    arrival_s = generate(staged(*stages), SEED).arrival_s
    counts = np.histogram(arrival_s, [0, 500, 800, 1800, 2000])[0]
    for count, expected in zip(counts, (10_000, 0, 25_000, 600), strict=True):
        assert abs(count - expected) <= Z * math.sqrt(expected)


def test_arrivals_within_a_ramp_follow_its_cumulative():
    # Given their number, arrivals of an inhomogeneous Poisson process are independent with distribution Λ(t)/Λ(end).
    t = generate(staged(RAMP), SEED).arrival_s
    share = (5 * t + 0.02 * t**2) / 25_000
    n = len(t)
    empirical = np.arange(1, n + 1) / n
    assert np.abs(empirical - share).max() < math.sqrt(math.log(2 / 0.001) / (2 * n)) + 1 / n


def test_hours_have_their_expected_numbers():
    factors = [1, 0, 2, 5]
    requests = generate(daily(factors, rate_per_s=1, requests=400_000), SEED)
    hours = (requests.arrival_s / 21_600).astype(int)
    whole = hours < 16  # four whole days
    counts = np.bincount(hours[whole] % 4, minlength=4)
    for quarter, count in enumerate(counts):
        expected = 4 * 21_600 * (factors[quarter] + factors[(quarter + 1) % 4]) / 2 / 2
        assert abs(count - expected) < Z * math.sqrt(expected)


def test_bursty_gaps_stay_bursty_at_every_rate():
    # In expected requests the gaps are gamma with CV² = 1/b, whatever the rate.
    traffic = parse_traffic({"kind": "gamma", "burstiness": 0.25, "stages": [RAMP], "lengths": LENGTHS}, "test")
    t = generate(traffic, SEED).arrival_s
    gaps = np.diff(5 * t + 0.02 * t**2)
    n = len(gaps)
    assert abs(gaps.mean() - 1) < Z * math.sqrt(4 / n)
    assert abs(gaps.var() - 4) < Z * 4 * math.sqrt((2 + 6 / 0.25) / n)


# Limits


def test_one_level_stage_is_a_constant_rate():
    level = generate(staged({"duration_s": 10, "rate_per_s": 8}, requests=1000), SEED).arrival_s
    constant = generate(poisson(rate_per_s=8, requests=1000), SEED).arrival_s
    np.testing.assert_allclose(level, constant, rtol=1e-13)


def test_a_flat_day_is_a_constant_rate():
    flat = generate(daily([3, 3, 3], rate_per_s=8, requests=1000), SEED).arrival_s
    np.testing.assert_allclose(flat, generate(poisson(rate_per_s=8, requests=1000), SEED).arrival_s, rtol=1e-9)


def test_the_last_stage_goes_on_where_requests_are_asked_for():
    few, many = (generate(staged({"duration_s": 10, "rate_per_s": 2}, requests=n), SEED) for n in (5, 500))
    np.testing.assert_array_equal(few.arrival_s, many.arrival_s[:5])
    assert len(many) == 500
    assert many.arrival_s[-1] > 100


def test_nobody_comes_in_a_pause():
    stages = [
        {"duration_s": 5, "rate_per_s": 3},
        {"duration_s": 1000, "rate_per_s": 0},
        {"duration_s": 5, "rate_per_s": 3},
    ]
    arrival_s = generate(staged(*stages), SEED).arrival_s
    assert not ((arrival_s > 5) & (arrival_s < 1005)).any()
    assert (arrival_s > 1005).any()


# Same numbers again


def test_another_rate_keeps_the_stages_proportions():
    slow = staged({"duration_s": 100, "rate_per_s": 1}, {"duration_s": 100, "rate_per_s": 2, "to_rate_per_s": 4})
    fast = with_load(slow, rate_per_s=8)  # mean (1 + 3)/2 = 2
    assert [(s.rate_per_s, s.last_rate_per_s) for s in fast.stages] == [(4, 4), (8, 16)]
    assert with_load(daily([1, 2]), rate_per_s=8).rate_per_s == 8


def test_a_profile_moves_the_same_requests():
    lengths = {"prompt": {"kind": "uniform", "low": 1, "high": 1000}, "output": 5}
    plain = generate(poisson(rate_per_s=8, requests=500, lengths=lengths), SEED)
    moved = generate(daily([1, 9], rate_per_s=8, requests=500, lengths=lengths), SEED)
    np.testing.assert_array_equal(plain.prompt_tokens, moved.prompt_tokens)


# Conservation


_STAGE = st.builds(
    Stage,
    duration_s=st.floats(0.01, 1e6),
    rate_per_s=st.just(0.0) | st.floats(1e-6, 1e3),
    to_rate_per_s=st.none() | st.just(0.0) | st.floats(1e-6, 1e3),
)


@given(stages=st.lists(_STAGE, min_size=1, max_size=6), shares=st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_the_inverse_undoes_the_cumulative(stages, shares):
    profile = RateProfile.of_stages(stages)
    total = profile.before[-1]
    expected = np.sort(np.array(shares)) * total
    time_s = profile.time_s(expected)
    end_s = sum(stage.duration_s for stage in stages)
    assert ((time_s >= 0) & (time_s <= end_s * (1 + 1e-12))).all() or total == 0
    np.testing.assert_allclose(profile.expected(np.minimum(time_s, end_s)), expected, rtol=1e-6, atol=1e-6 * total)


@given(
    factors=st.lists(st.sampled_from([0.0, 1.0]) | st.floats(1e-6, 100), min_size=2, max_size=24).filter(
        lambda f: max(f) > 1e-3
    ),
    period_s=st.floats(1, 1e6),
    start=st.floats(0, 3),
    shares=st.lists(st.floats(0, 5), min_size=1, max_size=20),
)
def test_the_inverse_undoes_a_day(factors, period_s, start, shares):
    diurnal = daily({"factors": factors, "period_s": period_s, "start_s": start * period_s}).diurnal
    profile = RateProfile.of_day(diurnal, 2.0)
    assert profile.per_period == pytest.approx(2 * period_s)
    expected = np.sort(np.array(shares)) * profile.per_period
    time_s = profile.time_s(expected)
    np.testing.assert_allclose(
        profile.expected(np.maximum(time_s, 0)), expected, rtol=1e-6, atol=1e-6 * profile.per_period
    )


@given(cuts=st.lists(st.integers(1, 40), min_size=1, max_size=8), shape=st.sampled_from([1.0, 0.3]))
def test_pieces_continue_exactly(cuts, shape):
    profile = RateProfile.of_stages([Stage(**RAMP), Stage(duration_s=10, rate_per_s=1)])
    whole = Renewal(profile, shape, SEED).times(0, sum(cuts))
    stream, first, pieces = Renewal(profile, shape, SEED), 0, []
    for count in cuts:
        pieces.append(stream.times(first, count))
        first += count
    assert np.concatenate(pieces).tobytes() == whole.tobytes()


# What goes wrong


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda: poisson(requests=5), r"rate_per_s='\(absent\)' must be given, or stages"),
        (lambda: poisson(rate_per_s=5), r"requests='\(absent\)' must be given"),
        (lambda: staged(RAMP, rate_per_s=5), "rate_per_s='.given.' must be left out where there are stages"),
        (lambda: staged(RAMP, diurnal=[1, 2]), "diurnal='.given.' must be left out where there are stages"),
        (lambda: staged({"duration_s": 5, "rate_per_s": 0}), "must have a rate above 0 somewhere"),
        (lambda: staged({"duration_s": 1e6, "rate_per_s": 11}), "must bring at most ten million requests"),
        (lambda: staged({"duration_s": 5, "rate": 3}), "stages.0.rate must .* did you mean rate_per_s"),
        (lambda: staged({"duration_s": "5 GB", "rate_per_s": 3}), "stages.0.duration_s='5 GB' must be a number with"),
        (lambda: staged({"duration_s": 0, "rate_per_s": 3}), "stages.0.duration_s=0 must be greater than"),
        (lambda: staged({"duration_s": 5, "rate_per_s": 1e-300}), "rate_per_s=1e-300 must be 0 or at least 1e-6"),
        (lambda: with_load(staged(RAMP), rate_per_s=1e-9), "stages.0.rate_per_s=.* must be 0 or at least 1e-6"),
        (lambda: daily([1]), "diurnal.factors=.* must"),
        (lambda: daily([0, 0]), "must have a factor above 0"),
        (lambda: daily([1, -1]), "diurnal.factors.1=-1 must be greater than"),
        (
            lambda: generate(staged({"duration_s": 5, "rate_per_s": 3, "to_rate_per_s": 0}, requests=9999), SEED),
            r"requests=9999 must be at most \d+, which arrive before the last stage ends",
        ),
        (lambda: generate(staged({"duration_s": 0.001, "rate_per_s": 0.001}), SEED), "bring at least one request"),
    ],
)
def test_mistakes_are_one_sentence(change, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        change()
    assert "\n" not in str(caught.value)
