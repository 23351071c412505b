"""Timing."""

import itertools

import pytest
import torch

from simulator.reference_decoder import clock as clock_module
from simulator.reference_decoder.clock import Clock, Rotation, Timing

CPU = torch.device("cpu")


def test_a_timing_is_a_median_with_its_spread():
    timing = Timing.of([5.0, 1.0, 2.0, 4.0, 3.0])
    assert timing == Timing(median_s=3.0, min_s=1.0, q1_s=2.0, q3_s=4.0, max_s=5.0, n=5)
    assert timing.scaled(0.5) == Timing(1.5, 0.5, 1.0, 2.0, 2.5, 5)
    assert list(timing.fields()) == ["median_s", "min_s", "q1_s", "q3_s", "max_s", "n"]


def test_work_is_warmed_up_and_then_timed(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(clock_module.time, "perf_counter", lambda: float(next(ticks)))
    calls = []
    timing = Clock(CPU, within_s=1e9).time(lambda: calls.append(next(ticks)), warmup=2, most=4)
    assert len(calls) == 6
    assert timing == Timing.of([2.0] * 4)  # between two readings of the clock lies the one tick of the work


@pytest.mark.parametrize(("within_s", "n"), [(0.0, 3), (1e9, 7)])
def test_the_time_limit_bounds_repeats_from_above_and_least_from_below(within_s, n):
    assert Clock(CPU, within_s).time(lambda: None, least=3, most=7).n == n


def test_buffers_take_turns_until_the_cache_has_turned_over():
    clock = Clock(CPU)
    clock.last_cache_bytes = 1000
    rotation = Rotation(torch.zeros(50), clock)  # 200 bytes: 20 fill the cache four times, and one more
    addresses = [rotation.next().data_ptr() for _ in range(42)]
    assert len(set(addresses)) == 21
    assert addresses[:21] == addresses[21:]


def test_a_resident_buffer_is_always_the_same():
    rotation = Rotation(torch.zeros(50), Clock(CPU), resident=True)
    assert rotation.next() is rotation.next()


def test_the_last_cache_has_a_size():
    assert Clock(CPU).last_cache_bytes >= 2**18
