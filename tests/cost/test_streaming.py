"""The layer pipeline: literal trajectories, closed form = event-level twin, and its limits."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.cost.streaming import Stage, busy_share, stream, stream_events
from simulator.errors import InputError

OVERLAPS = ["stream", "wipe", "prefetch"]
seconds = st.floats(0, 1e-2, allow_subnormal=False)
stages = st.lists(
    st.builds(Stage, st.just("op"), st.integers(0, 3), seconds, seconds, seconds, st.integers(0, 5000)),
    min_size=1,
    max_size=12,
)


def layer(load_s: float, compute_s: float, bytes_: int, gap_s: float = 0.0) -> Stage:
    return Stage("op", 0, gap_s, load_s, compute_s, bytes_)


def spans(tiles):
    return [(t.load_start_s, t.load_end_s, t.compute_start_s, t.compute_end_s) for t in tiles]


@given(stages, st.integers(2, 6000), st.sampled_from(OVERLAPS))
def test_recurrence_equals_event_level_twin(stages, desk_bytes, overlap):
    closed, events = stream(stages, desk_bytes, overlap), stream_events(stages, desk_bytes, overlap)
    assert [t.bytes_ for t in closed] == [t.bytes_ for t in events]
    for a, b in zip(spans(closed), spans(events), strict=True):
        assert a == pytest.approx(b, rel=1e-9, abs=1e-15)


def test_article_desk_loads_then_multiplies_then_wipes():
    # A desk of 10 bytes, two layers of 20 bytes: two desk-fulls each, 4 s of load and 1 s of compute per desk-full.
    tiles = stream([layer(8, 2, 20), layer(8, 2, 20)], 10, "wipe")
    assert spans(tiles) == [(0, 4, 4, 5), (5, 9, 9, 10), (10, 14, 14, 15), (15, 19, 19, 20)]


def test_streamed_memory_bound_operator_hides_its_compute():
    tiles = stream([layer(8, 2, 20), layer(8, 2, 20, gap_s=1)], 20)
    assert spans(tiles) == [(0, 4, 3, 4), (4, 8, 7, 8), (9, 13, 12, 13), (13, 17, 16, 17)]


def test_what_the_sms_need_beyond_arithmetic_occupies_them_but_is_no_multiplication():
    # 8 s on the SMs, of which 2 s multiply: one second of each tile's four, and the next operator waits for all of it.
    slow = Stage("op", 0, 0.0, 4, 8, 20, 2)
    assert spans(stream([slow, layer(1, 1, 10)], 20, "prefetch")) == [(0, 2, 3, 4), (2, 4, 7, 8), (4, 5, 8, 9)]
    assert stream([slow, layer(1, 1, 10)], 20, "wipe")[-1].compute_end_s == 4 + 8 + 1 + 1
    assert busy_share(stream([slow], 20)) == (0.5, 0.25)


@given(stages, st.floats(0, 1), st.integers(2, 6000), st.sampled_from(OVERLAPS))
def test_how_much_of_it_is_arithmetic_changes_no_other_time(stages, share, desk_bytes, overlap):
    less = [replace(s, arithmetic_s=share * s.compute_s) for s in stages]
    for a, b in zip(stream(stages, desk_bytes, overlap), stream(less, desk_bytes, overlap), strict=True):
        assert (a.load_start_s, a.load_end_s, a.compute_end_s) == (b.load_start_s, b.load_end_s, b.compute_end_s)
    for a, b in zip(stream(less, desk_bytes, overlap), stream_events(less, desk_bytes, overlap), strict=True):
        assert (a.compute_start_s, a.compute_end_s) == pytest.approx(
            (b.compute_start_s, b.compute_end_s), rel=1e-9, abs=1e-15
        )


def test_prefetch_hides_the_gap_and_the_compute_bound_operator():
    compute_bound, memory_bound = layer(2, 8, 10), layer(8, 2, 10, gap_s=1)
    assert stream([compute_bound, memory_bound], 40, "stream")[-1].compute_end_s == 8 + 1 + 8
    assert stream([compute_bound, memory_bound], 40, "prefetch")[-1].compute_end_s == 2 + 8 + 1


@given(stages, st.integers(2, 6000))
def test_streamed_pass_is_the_sum_of_its_operators(stages, desk_bytes):
    total = sum(s.gap_s + max(s.load_s, s.compute_s) for s in stages)
    assert stream(stages, desk_bytes)[-1].compute_end_s == pytest.approx(total, rel=1e-9, abs=1e-15)


@given(stages, st.integers(2, 6000))
def test_article_desk_adds_loads_and_computes(stages, desk_bytes):
    total = sum(s.gap_s + s.load_s + s.compute_s for s in stages)
    assert stream(stages, desk_bytes, "wipe")[-1].compute_end_s == pytest.approx(total, rel=1e-9, abs=1e-15)


@given(stages, st.integers(2, 3000), st.integers(1, 4))
def test_prefetch_is_never_slower_and_never_beats_the_busier_resource(stages, desk_bytes, factor):
    ahead = stream(stages, desk_bytes * factor, "prefetch")[-1].compute_end_s
    assert ahead <= stream(stages, desk_bytes, "stream")[-1].compute_end_s * (1 + 1e-9) + 1e-15
    assert ahead >= max(sum(s.load_s for s in stages), sum(s.gap_s + s.compute_s for s in stages)) * (1 - 1e-9)


@given(stages, st.integers(2, 6000), st.sampled_from(OVERLAPS))
def test_desk_is_never_overfull_and_bytes_are_conserved(stages, desk_bytes, overlap):
    tiles = stream(stages, desk_bytes, overlap)
    assert sum(t.bytes_ for t in tiles) == sum(s.bytes_ for s in stages)
    starts, ends = (np.array([getattr(t, name) for t in tiles]) for name in ("load_start_s", "compute_end_s"))
    come = np.cumsum([t.bytes_ for t in tiles])  # tiles come and go in order
    gone = np.concatenate([[0], come])[np.searchsorted(ends, starts, side="right")]
    held = come[np.searchsorted(starts, starts, side="right") - 1] - gone
    assert held.max() <= desk_bytes


def test_busy_shares_add_up_by_hand():
    assert busy_share(stream([layer(8, 2, 20), layer(8, 2, 20)], 20)) == (1.0, 0.25)
    assert busy_share([]) == (0.0, 0.0)


def test_a_desk_without_room_is_refused():
    with pytest.raises(InputError, match="desk_bytes=1 must be at least 2"):
        stream([layer(1, 1, 10)], 1)
