"""Time series folded and cut keep their sums."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.serving import state
from simulator.serving.timeline import folded, timeline, total_between


@given(st.integers(1, 1024), st.integers(1, 300))
def test_folding_keeps_sums(buckets, points):
    series = np.random.default_rng(buckets).uniform(size=(len(state.SERIES), buckets))
    sums, width_s = folded(series, 0.5, points)
    assert sums.shape[1] <= points
    assert sums.sum(axis=1) == pytest.approx(series.sum(axis=1))
    assert width_s * sums.shape[1] >= 0.5 * buckets


def test_a_timeline_by_hand():
    """Two buckets of 2 s become one stretch of 4 s; two replicas of 50 blocks each."""
    series = np.zeros((len(state.SERIES), 2))
    for name, values in {
        "busy_s": (4.0, 2.0), "running_s": (8.0, 4.0), "waiting_s": (0.0, 2.0), "kv_block_s": (100.0, 100.0),
        "output_tokens": (40.0, 0.0), "prompt_tokens": (0.0, 400.0), "steps": (10.0, 2.0),
    }.items():  # fmt: skip
        series[state.SERIES.index(name)] = values
    found = timeline(series, 2.0, total_blocks=100, replicas=2, points=1)
    assert found.width_s == 4.0
    assert {name: values.tolist() for name, values in found.columns().items()} == {
        "time_s": [2.0], "running": [3.0], "waiting": [0.5], "kv_share": [0.5], "output_tokens_per_s": [10.0],
        "prompt_tokens_per_s": [100.0], "busy_share": [0.75], "steps_per_s": [3.0],
    }  # fmt: skip


def test_steps_that_outlast_a_stretch_go_on_in_the_next():
    # Two steps of 3 s with 8 requests begin in the first 4 s: 2 s of them are the next stretch's.
    series = np.zeros((len(state.SERIES), 2))
    for name, value in {"busy_s": 6.0, "running_s": 48.0, "output_tokens": 12.0, "steps": 2.0}.items():
        series[state.SERIES.index(name), 0] = value
    found = timeline(series, 4.0, total_blocks=1, replicas=1)
    assert found.running == pytest.approx([8.0, 4.0])
    assert found.busy_share == pytest.approx([1.0, 0.5])
    assert found.output_tokens_per_s == pytest.approx([2.0, 1.0])


def test_no_series_is_an_empty_timeline():
    found = timeline(np.zeros((len(state.SERIES), 0)), 1.0, total_blocks=10, replicas=1)
    assert len(found.time_s) == len(found.waiting) == 0


def test_parts_of_buckets_count_in_part():
    row = np.array([4.0, 8.0, 2.0])
    assert total_between(row, 2.0, 0.0, 6.0) == 14.0
    assert total_between(row, 2.0, 1.0, 3.0) == 2.0 + 4.0
    assert total_between(row, 2.0, 5.0, 99.0) == 1.0
    assert total_between(row[:0], 2.0, 0.0, 9.0) == 0.0


@given(st.floats(0, 10), st.floats(0, 10), st.floats(0, 10))
def test_parts_add_up(a, b, c):
    row = np.arange(1.0, 6.0)
    a, b, c = sorted((a, b, c))
    assert total_between(row, 2.0, a, b) + total_between(row, 2.0, b, c) == pytest.approx(total_between(row, 2.0, a, c))
