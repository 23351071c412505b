"""What is kept of steps and gaps."""

from math import fsum

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from simulator.serving import state
from simulator.serving.plain.series import Step, gap_counts, time_series
from tests.serving.plain.rig import run, workload

steps = st.lists(
    st.builds(
        Step, st.floats(0, 1e4), st.floats(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 99), st.integers(0, 99),
        st.integers(0, 99), st.integers(0, 9),
    ),
    max_size=30,
).map(lambda steps: sorted(steps, key=lambda step: step.start_s))  # fmt: skip


def test_a_step_is_in_the_bucket_in_which_it_began():
    # Buckets of 1/64 s reach 16 s; a step at 16 s doubles them.
    first, second = Step(1 / 64, 0.5, 2, 1, 7, 3, 2, 1), Step(16.0, 1.0, 1, 0, 3, 1, 0, 1)
    rows, bucket_s = time_series([first])
    assert bucket_s == 1 / 64
    assert [row[1] for row in rows] == [0.5, 1.0, 0.5, 3.5, 1.0, 2.0, 1.0]
    rows, bucket_s = time_series([first, second])
    assert bucket_s == 1 / 32
    assert [row[0] for row in rows] == [0.5, 1.0, 0.5, 3.5, 1.0, 2.0, 1.0]
    assert [row[512] for row in rows] == [1.0, 1.0, 0.0, 3.0, 1.0, 0.0, 1.0]


@given(steps)
def test_nothing_is_lost_however_wide_the_buckets_become(steps):
    rows, bucket_s = time_series(steps)
    assert all(step.start_s < bucket_s * state.BUCKETS for step in steps)
    for row, figures in zip(rows, zip(*(step.figures() for step in steps), strict=True), strict=False):
        assert np.isclose(fsum(row), fsum(figures), rtol=1e-12, atol=0)


@given(st.lists(st.floats(0, 1e5), max_size=20))
def test_gaps_are_counted_between_the_edges_of_their_bin(gaps_s):
    counts, edges_s = gap_counts(gaps_s), np.append(state.gap_edges_s(), np.inf)
    edges_s[0] = -np.inf
    expected, _ = np.histogram(gaps_s, edges_s) if gaps_s else (np.zeros(state.GAP_BINS), None)
    assert counts == expected.tolist()


def test_gaps_of_measured_requests_by_hand():
    # B is warm-up. A's tokens come at 1, 2, 3 s, B's at 2, 3, 4.
    _, (replica,) = run(workload([0.0, 0.5], [4, 4], [3, 3], measured=[1, 0]))
    assert replica.gaps_s == [1.0, 1.0]
