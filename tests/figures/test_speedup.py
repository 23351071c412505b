"""Lines carry the speed-ups of the grid, crossovers are marked and named where there is room."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.figures import speedup
from simulator.figures.speedup import speedup_figure


def named(figure):
    return [t for t in figure.data if t.mode == "text"]


def test_lines_are_the_speedups(grid):
    lines = {t.name: t for t in speedup_figure(grid).data if t.mode == "lines+markers"}
    assert list(lines) == [f"γ = {g}" for g in grid.gammas]
    for gamma in grid.gammas:
        line = lines[f"γ = {gamma}"]
        assert list(line.x) == list(grid.batches)
        assert list(line.y) == pytest.approx([grid.cells[gamma, b].speedup for b in grid.batches])
    assert speedup_figure(grid).layout.xaxis.type == "log"


def test_crossovers_are_marked_on_the_line_of_break_even(grid):
    (marks,) = [t for t in speedup_figure(grid).data if t.mode == "markers"]
    expected = [e for g in grid.gammas if (e := grid.crossover(g)) and e <= min(4 * grid.batches[-1], grid.room(g))]
    assert list(zip(marks.x, marks.y, strict=True)) == [(e, 1.0) for e in expected]
    assert expected, "the grid of this test has a crossover"


def test_crossovers_are_named_below_zero(grid):
    figure = speedup_figure(grid)
    (names,) = named(figure)
    expected = {
        f"γ {g}: {e:,}": e
        for g in grid.gammas
        if (e := grid.crossover(g)) and e <= min(4 * grid.batches[-1], grid.room(g))
    }
    assert dict(zip(names.text, names.x, strict=True)) == expected
    low, high = figure.layout.yaxis.range
    assert all(low < y < 0.0 for y in names.y)
    assert min(figure.layout.yaxis.tickvals) == 0.0
    assert max(figure.layout.yaxis.tickvals) <= high


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=12))
def test_names_never_lie_on_each_other(batches):
    span = [-0.05, 3.08]
    crossings = [speedup._Crossing(gamma, batch, "") for gamma, batch in enumerate(batches, start=1)]
    places = speedup._places(crossings, span)
    assert places, "the first one always has room"
    if len(batches) <= speedup._ROWS:
        assert len(places) == len(batches), "so few are all named"
    for row in range(speedup._ROWS):
        at = sorted((crossing.batch for crossing, r in places if r == row))
        for left, right in pairwise(at):
            assert math.log10(right / left) >= speedup._LABEL_SHARE * (span[1] - span[0]) - 1e-9


def test_without_crossovers_the_axis_begins_at_zero(paying_grid):
    figure = speedup_figure(paying_grid)
    assert not named(figure)
    assert figure.layout.yaxis.range[0] == 0.0


@pytest.mark.parametrize("top", [0.3, 1.2, 2.9, 7.7, 31.0, 400.0])
def test_round_ticks_reach_the_top(top):
    ticks = speedup._ticks(top)
    assert ticks[0] == 0.0
    assert ticks[-1] <= top < ticks[-1] + (ticks[1] if len(ticks) > 1 else top)
    assert len(ticks) <= 8


def test_where_nothing_fits_is_shaded(grid):
    assert any(s.type == "rect" for s in speedup_figure(grid).layout.shapes)
