"""The canary: what it hears on a clock of our own decides what is measured again."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from simulator.reference_decoder.canary import ATTEMPTS, PATIENCE_S, Canary


class Machine:
    """`slow` is the time of a song: 1 on a quiet machine."""

    def __init__(self):
        self.slow, self.asleep_s = 1.0, 0.0

    def sleep(self, seconds):
        self.asleep_s += seconds


@pytest.fixture
def machine():
    return Machine()


@pytest.fixture
def canary(machine, monkeypatch):
    # What it sings does not matter here.
    monkeypatch.setattr(Canary, "_once_s", lambda self: machine.slow)
    return Canary(now_s=lambda: machine.asleep_s, sleep=machine.sleep)


def test_a_quiet_machine_is_measured_once(canary, machine):
    assert canary.quietly(lambda: "result") == ("result", 1.0, 1)
    assert machine.asleep_s == 0.0


def test_noise_in_the_middle_means_another_attempt(canary, machine):
    states = iter([1.3, 1.0, 1.0])

    def measure():
        machine.slow = next(states)
        return machine.slow

    # The first ends in noise; the second begins in it and ends in quiet; the third has quiet on both sides.
    assert canary.quietly(measure) == (1.0, 1.0, 3)


def test_the_quietest_of_noisy_attempts_is_kept_and_says_so(canary, machine):
    states = iter([1.5, 1.2, 1.4])

    def measure():
        machine.slow = next(states)
        return machine.slow

    machine.slow = 1.2
    result, disturbance, attempts = canary.quietly(measure)
    assert attempts == ATTEMPTS
    assert (result, disturbance) == (1.4, pytest.approx(1.4))  # 1.2 before, 1.5, 1.2 and 1.4 after: 1.5, 1.5, 1.4


def test_quiet_is_waited_for_but_not_for_ever(canary, machine):
    machine.slow = 2.0
    canary.quietly(lambda: None, attempts=1)
    assert PATIENCE_S <= machine.asleep_s <= PATIENCE_S + 0.2


def test_a_real_canary_sings():
    canary = Canary()
    assert canary.disturbance() >= 1.0
    assert canary.best_s > 0.0
