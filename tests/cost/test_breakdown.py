"""Stages of a what-if desk: a smooth maximum of load and compute is joined anew where loads get shorter or longer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.cost.breakdown import OperatorCost, PassCost
from simulator.cost.streaming import stream


def one(memory_s: float, compute_s: float, power: float, overhead_s: float = 1.0) -> PassCost:
    total_s = overhead_s + (memory_s**power + compute_s**power) ** (1.0 / power)
    cost = OperatorCost("op", 1, total_s, memory_s, compute_s, overhead_s, compute_s, weight_bytes=1000.0)
    return PassCost(((1, (cost,)),), (), ())


def test_a_smooth_maximum_by_hand():
    # 1 + √(4² + 3²) = 6 today; with a fourth of the weights kept √(3² + 3²), with loads twice as long √(8² + 3²).
    (today,), (kept,), (longer,) = (one(4.0, 3.0, 2.0).stages(*given) for given in ((), (0.25,), (0.0, 2.0)))
    for stage, load_s, joined_s in ((today, 4.0, 5.0), (kept, 3.0, 18**0.5), (longer, 8.0, 73**0.5)):
        assert stage.load_s == pytest.approx(load_s)
        assert stage.gap_s + max(stage.load_s, stage.compute_s) == pytest.approx(1.0 + joined_s)
    (nothing,) = one(4.0, 3.0, 2.0).stages(1.0)
    assert (nothing.load_s, nothing.gap_s) == (0.0, pytest.approx(1.0))


def test_loads_that_run_ahead_see_no_larger_gap_for_a_larger_desk():
    gaps = [one(4.0, 3.0, 2.0).stages(kept, ahead=True)[0].gap_s for kept in (0.0, 0.25, 0.5, 1.0)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] == gaps[1] == pytest.approx(2.0)  # 5 − 4, though both sides are now equal
    shorter = [one(2.0, 3.0, 2.0).stages(0.0, slower, ahead=True)[0].gap_s for slower in (1.0, 1.5, 4.0)]
    assert shorter == sorted(shorter)
    assert shorter[-1] == pytest.approx(1.0 + 3.0 * (2**0.5 - 1.0))


@given(
    st.floats(0.01, 10.0), st.floats(0.01, 10.0), st.floats(1.0, 30.0), st.floats(0.0, 1.0), st.floats(1.0, 20.0), st.floats(1.0, 16.0),
)  # fmt: skip
def test_faster_memory_is_never_slower_with_any_desk(memory_s, compute_s, power, kept, slower, times):
    for share, longer in ((kept, 1.0), (0.0, slower)):
        slow, fast = (
            stream(one(m, compute_s, power).stages(share, longer), 1e9)[-1].compute_end_s
            for m in (memory_s, memory_s / times)
        )
        assert fast <= slow * (1 + 1e-6)
