"""Probabilities of candidates by rank."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.speculation.ranks import TOP_RANKS, RankLaw, typical_shares

rates = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=6)

# Top-1 to top-5 accuracy of Medusa-1's first head (Medusa repository, assets/medusa_acc.csv, 2023-08).
MEDUSA = {"7b": (0.5604, 0.6717, 0.7271, 0.7599, 0.7799), "13b": (0.5939, 0.7053, 0.7578, 0.7925, 0.8161),
          "33b": (0.6046, 0.7162, 0.7649, 0.7983, 0.8223)}  # fmt: skip


@given(rates)
def test_typical_candidates_are_probabilities_that_fall_with_rank(top1):
    table = RankLaw.typical(top1).table(len(top1))
    assert table.shape == (len(top1), TOP_RANKS)
    assert (table >= 0.0).all()
    assert (table.sum(axis=1) <= 1.0 + 1e-12).all()
    assert (np.diff(table, axis=1) <= 1e-12).all()
    assert table[:, 0] == pytest.approx(top1)


@pytest.mark.parametrize("size", MEDUSA)
def test_typical_candidates_are_those_that_were_published(size):
    published = MEDUSA[size]
    found = np.cumsum(RankLaw.typical(published[:1]).table(1)[0])[: len(published)]
    assert found == pytest.approx(published, rel=0.035)


def test_the_formula_of_typical_shares():
    assert typical_shares(np.array(0.5), 3) == pytest.approx([0.232, 0.232 * 2 ** -(0.593 + 0.4465)])


@given(rates, st.floats(0.0, 1.0))
def test_a_request_with_other_luck_keeps_the_shares_of_the_misses_and_the_order(top1, other):
    law = RankLaw.typical(top1)
    at_mean, at_other = law.table(1)[0], law.probability(np.array([other]))[0]
    assert at_other[0] == other
    shares = np.array(law.shares[0])
    assert at_mean[1:] == pytest.approx((1.0 - top1[0]) * shares, abs=1e-9)
    limit = other if top1[0] >= 1e-9 else 1.0
    assert at_other[1:] == pytest.approx(np.minimum((1.0 - other) * shares, limit), abs=1e-9)


def test_measured_probabilities_come_back():
    matrix = [(0.6, 0.2, 0.1), (0.5, 0.5), (1.0,)]
    table = RankLaw.measured(matrix).table(4)
    assert table == pytest.approx(np.array([[0.6, 0.2, 0.1], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))


@pytest.mark.parametrize("matrix", [[], [()], [(0.5, 1.2)], [(-0.1,)], [(0.6, 0.72, 0.8)], [(float("nan"),)]])
def test_what_is_no_probability_is_refused(matrix):
    with pytest.raises(InputError, match="ranks"):
        RankLaw.measured(matrix)
