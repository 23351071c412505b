"""Statistics of rounds against numbers worked out by hand, NumPy on the rounds themselves, and independence."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.speculation.ladder.rounds import Rounds
from simulator.speculation.ladder.statistics import Statistics, Sums, autocorrelation, token_shares
from simulator.speculation.recording import Recording

counts = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=90), min_size=1, max_size=8)


def rounds_of(accepted, drafted=None, gamma=4) -> Rounds:
    drafted = [[gamma] * len(row) for row in accepted] if drafted is None else drafted
    return Rounds.of(Recording(tuple(map(tuple, accepted)), tuple(map(tuple, drafted)), gamma, "by hand"))


def test_by_hand():
    found = Statistics.of(rounds_of([[4, 1, 0], [2, 3]]), 4)
    assert found.mean == pytest.approx(15 / 5)
    assert found.by_request == pytest.approx([8 / 3, 7 / 2])
    assert found.request_mean == pytest.approx((8 / 3 + 7 / 2) / 2)
    assert found.variance == pytest.approx((25 + 4 + 1 + 9 + 16) / 5 - 9)
    # Neighbours: (5, 2), (2, 1), (3, 4), about 3.
    assert found.lag_1 == pytest.approx(((2 * -1) + (-1 * -2) + (0 * 1)) / 3 / found.variance)
    # The last rounds (0 and 3 kept) refuse nothing: 4 of 4 kept a first draft, 3 of 4 a second, then 2 of 3 and 1 of 1.
    assert found.conditional == pytest.approx([4 / 4, 3 / 4, 2 / 3, 1 / 1])
    assert np.isnan(found.block_variance_ratio)


def test_drafts_that_were_not_made_are_not_refused():
    found = Statistics.of(rounds_of([[1, 0, 2, 1]], [[1, 0, 4, 4]]), 4)
    # First drafts: kept, none, kept, kept. Second: one refused of none drafted, the third kept two.
    assert found.conditional[:3] == pytest.approx([1.0, 1.0, 0.0])
    assert found.proposed == 0.75
    assert np.isnan(found.conditional[3])


@given(counts)
def test_sums_give_what_the_rounds_give(accepted):
    rounds = rounds_of(accepted)
    found = Statistics.of(rounds, 4)
    rows = [np.array(row) + 1.0 for row in accepted]
    every = np.concatenate(rows)
    assert found.mean == pytest.approx(every.mean())
    assert found.variance == pytest.approx(every.var(), abs=1e-9)
    assert found.p10 == pytest.approx(np.quantile([row.mean() for row in rows], 0.1))
    blocks = [row[i : i + 32].sum() for row in rows for i in range(0, len(row) - 31, 32)]
    if len(blocks) >= 8 and every.var() > 0:
        assert found.block_variance_ratio == pytest.approx(np.var(blocks) / 32 / every.var(), abs=1e-9)
        beside = [row[i : i + 32].sum() - 32 * row.mean() for row in rows for i in range(0, len(row) - 31, 32)]
        within = np.sum([((row - row.mean()) ** 2).sum() for row in rows]) / len(every)
        if within > 0:
            assert found.block_variance_ratio_within == pytest.approx(
                np.mean(np.square(beside)) / 32 / within, abs=1e-9
            )
    pairs = [((row[:-1] - every.mean()) * (row[1:] - every.mean())) for row in rows]
    if sum(map(len, pairs)) and every.var() > 0:
        assert found.lag_1 == pytest.approx(np.concatenate(pairs).mean() / every.var(), abs=1e-9)
        assert autocorrelation(rounds, np.array([1]), within=False)[0] == pytest.approx(found.lag_1, abs=1e-9)
        if sum(((row - row.mean()) ** 2).sum() for row in rows) > 0:
            assert autocorrelation(rounds, np.array([1]), within=True)[0] == pytest.approx(found.lag_1_within, abs=1e-9)
    assert token_shares(rounds, 4) == pytest.approx(np.bincount(every.astype(int), minlength=6)[1:] / len(every))


@given(counts, st.data())
def test_requests_drawn_again_are_those_requests(accepted, data):
    rounds = rounds_of(accepted)
    drawn = np.array(data.draw(st.lists(st.integers(0, len(accepted) - 1), min_size=1, max_size=6)))
    again = Sums.of(rounds, 4).drawn(drawn)
    directly = Sums.of(rounds.chosen(drawn), 4)
    for name in Sums.__dataclass_fields__:
        assert np.array_equal(getattr(again, name), getattr(directly, name)), name


@given(counts)
def test_joined_parts_are_the_whole(accepted):
    rounds = rounds_of(accepted)
    middle = len(rounds) // 2
    parts = [rounds.chosen(np.arange(middle)), rounds.chosen(np.arange(middle, len(rounds)))] if middle else [rounds]
    whole = Rounds.joined(parts)
    for name in ("tokens", "drafted", "first"):
        assert np.array_equal(getattr(whole, name), getattr(rounds, name)), name


def test_independent_steps_have_ratio_1_and_no_correlation():
    random = np.random.default_rng(3)
    found = Statistics.of(rounds_of(random.integers(0, 5, (400, 320)).tolist()), 4)
    blocks = 400 * 10
    assert abs(found.block_variance_ratio - 1) < 4 * np.sqrt(2 / blocks)
    assert abs(found.lag_1) < 4 / np.sqrt(400 * 319)


def test_requests_that_never_change_have_ratio_32():
    found = Statistics.of(rounds_of([[k % 5] * 64 for k in range(20)]), 4)
    assert found.block_variance_ratio == pytest.approx(32.0)
    assert found.lag_1 == pytest.approx(1.0)
