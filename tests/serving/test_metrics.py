"""Metrics by hand, from records written down."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.scenario import Slo
from simulator.serving import state
from simulator.serving.metrics import Distribution, meets, request_metrics
from simulator.serving.replica import gap_bin


def records(*rows):
    """(arrival, scheduled, first token, finish, output tokens) of finished requests."""
    requests = state.records(state.REQUEST, len(rows))
    for request, (arrival, scheduled, first, finish, tokens) in zip(requests, rows, strict=True):
        request.arrival_s, request.scheduled_s, request.first_token_s, request.finish_s = (
            arrival,
            scheduled,
            first,
            finish,
        )
        request.output_tokens = tokens
        request.status = state.FINISHED
    return requests


def test_definitions_by_hand():
    metrics = request_metrics(records((1.0, 1.5, 2.0, 6.0, 9)))
    assert {name: values[0] for name, values in metrics.items()} == {
        "queue_s": 0.5, "ttft_s": 1.0, "e2e_s": 5.0, "tpot_s": 0.5,
    }  # fmt: skip


def test_one_token_has_no_tpot_and_an_unfinished_request_has_nothing():
    requests = records((0.0, 0.0, 1.0, 1.0, 1), (0.0, 0.0, 1.0, 2.0, 5))
    requests[1].status = state.REJECTED
    metrics = request_metrics(requests)
    assert np.isnan(metrics["tpot_s"]).all()
    assert metrics["e2e_s"][0] == 1.0
    assert np.isnan(metrics["e2e_s"][1])


def test_good_requests_meet_every_objective_that_applies():
    requests = records((0, 0, 1, 2, 11), (0, 0, 3, 4, 11), (0, 0, 1, 9, 11), (0, 0, 1, 1, 1))
    slo = Slo(ttft_s=2.0, tpot_s=0.2)
    assert meets(slo, request_metrics(requests)).tolist() == [True, False, False, True]
    assert meets(Slo(), request_metrics(requests)).all()
    assert meets(Slo(e2e_s="2 s"), request_metrics(requests)).tolist() == [True, False, False, True]


def test_distribution_of_values_and_of_counts_agree():
    values = np.array([1.0, 2.0, 3.0, 4.0])
    counts = np.array([1, 0, 2, 1])
    by_values = Distribution.of(np.repeat(values, counts))
    by_counts = Distribution.of_counts(values, counts)
    assert (by_counts.n, by_counts.mean, by_counts.largest) == (4, by_values.mean, 4.0)
    assert by_counts.standard_deviation == pytest.approx(by_values.standard_deviation)
    assert (by_counts.p50, by_counts.p99) == (3.0, 4.0)


def test_nothing_measured_is_said_so():
    nothing = Distribution.of(np.array([]))
    assert nothing.n == 0
    assert np.isnan(nothing.mean)


@given(st.floats(1.1e-5, 5000))
def test_a_gap_is_counted_within_half_a_percent(gap_s):
    assert state.gap_seconds()[gap_bin(gap_s)] == pytest.approx(gap_s, rel=0.0051)


def test_absurd_gaps_fall_into_the_end_bins():
    assert gap_bin(0.0) == 0
    assert gap_bin(1e9) == state.GAP_BINS - 1
