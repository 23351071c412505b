"""Collectives: limits, monotonicity, and the bandwidth term by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.cost.collectives import all_gather_s, all_reduce_s, all_to_all_s, point_to_point_s
from simulator.cost.efficiency import CollectiveEfficiency, load_efficiency
from simulator.hardware import load_gpu, load_link

H100 = load_gpu("h100-sxm")
LINK = dataclasses.replace(load_link("nvlink-4"), bytes_per_s=450e9, latency_s=2e-6)
FITTED = load_efficiency(H100).all_reduce
IDEAL = CollectiveEfficiency(
    t0_s=0, peer_s=0, one_shot_bandwidth=1, two_shot_bandwidth=1, pipeline_t0_s=0, pipeline_bandwidth=1,
    small_limit_bytes=8 * 2**20, doubling=1, doubling_again=1, power=200, exchange_t0_s=0, exchange_peer_s=0,
    exchange_bandwidth=1,
)  # fmt: skip


def test_one_gpu_talks_to_nobody():
    messages = np.array([0.0, 1e3, 1e9])
    for collective in (all_reduce_s, all_gather_s, all_to_all_s):
        assert np.all(collective(messages, 1, LINK, FITTED) == 0)


def test_a_large_all_reduce_moves_two_n_minus_one_over_n_of_its_message():
    assert all_reduce_s(450e9, 8, LINK, IDEAL) == pytest.approx(2 * 7 / 8)
    assert all_gather_s(450e9, 8, LINK, IDEAL) == pytest.approx(7 / 8)
    assert all_to_all_s(450e9, 4, LINK, IDEAL) == pytest.approx(3 / 4)
    assert point_to_point_s(450e9, LINK, IDEAL) == pytest.approx(1.0)


def test_a_small_all_reduce_takes_one_step_and_a_larger_one_two():
    # One shot sends 7 messages in one latency of 2 µs, two shots 1.75 in two: they meet where 7·M/B exceeds 4 µs.
    assert all_reduce_s(1e3, 8, LINK, IDEAL) == pytest.approx(2e-6)
    assert all_reduce_s(4e5, 8, LINK, IDEAL) == pytest.approx(4e-6)


def test_infinite_bandwidth_leaves_latency():
    fast = dataclasses.replace(LINK, bytes_per_s=1e30)
    assert all_reduce_s(1e6, 8, fast, FITTED) == pytest.approx(all_reduce_s(0.0, 8, fast, FITTED))
    assert all_gather_s(1e9, 8, fast, FITTED) == pytest.approx(all_gather_s(0.0, 8, fast, FITTED))
    assert all_reduce_s(0.0, 8, fast, FITTED) == pytest.approx(FITTED.t0_s + 2e-6 + 7 * FITTED.peer_s)


def test_no_latency_leaves_transfer():
    e = FITTED._replace(t0_s=0, peer_s=0, pipeline_t0_s=0, exchange_t0_s=0, exchange_peer_s=0)
    instant = dataclasses.replace(LINK, latency_s=0.0)
    assert all_reduce_s(2e9, 2, instant, e) == pytest.approx(2e9 / (e.pipeline_bandwidth * 450e9))
    assert all_to_all_s(2e9, 2, instant, e) == pytest.approx(1e9 / (e.exchange_bandwidth * 450e9))
    assert all_reduce_s(0.0, 2, instant, e) == 0


@given(message=st.floats(0, 1e10), more=st.floats(0, 1e9), gpus=st.sampled_from([2, 3, 4, 8, 16]))
def test_a_larger_message_is_never_cheaper(message, more, gpus):
    for collective in (all_reduce_s, all_gather_s, all_to_all_s):
        here, there = collective(np.array([message, message + more]), gpus, LINK, FITTED)
        assert 0 < here <= there * (1 + 1e-12)


def test_arrays_equal_their_elements():
    messages = np.array([1e2, 1e5, 8 * 2**20, 1e8])
    together = all_reduce_s(messages, 4, LINK, FITTED)
    assert [float(all_reduce_s(m, 4, LINK, FITTED)) for m in messages] == pytest.approx(together.tolist(), rel=1e-12)
