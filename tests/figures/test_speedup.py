"""Lines and cells carry the speed-ups of the grid; what does not fit is not shown as if it did."""

from __future__ import annotations

import math

import pytest

from simulator.figures.speedup import gamma_figure, speedup_figure


def test_lines_are_the_speedups(grid):
    lines = {t.name: t for t in speedup_figure(grid).data if t.mode == "lines+markers"}
    assert list(lines) == [f"γ = {g}" for g in grid.gammas]
    for gamma in grid.gammas:
        line = lines[f"γ = {gamma}"]
        assert list(line.x) == list(grid.batches)
        assert list(line.y) == pytest.approx([grid.cells[gamma, b].speedup for b in grid.batches])
    assert speedup_figure(grid).layout.xaxis.type == "log"


def test_crossovers_are_marked_on_the_line_of_break_even(grid):
    marks = [t for t in speedup_figure(grid).data if t.mode == "markers"]
    expected = [e for g in grid.gammas if (e := grid.crossover(g)) and e <= 4 * grid.batches[-1]]
    assert [(m.x[0], m.y[0]) for m in marks] == [(e, 1.0) for e in expected]
    assert expected, "the grid of this test has a crossover"


def test_heatmap_holds_the_speedups_and_outlines_the_best(grid):
    figure = gamma_figure(grid)
    (heat,) = figure.data
    outlines = {(s.x0 + 0.48, s.y0 + 0.46) for s in figure.layout.shapes if s.line.width == 4}
    for j, batch in enumerate(grid.batches):
        for i, gamma in enumerate(grid.gammas):
            cell = grid.cells[gamma, batch]
            if cell.fits:
                assert 2 ** heat.z[i][j] == pytest.approx(cell.speedup)
                assert heat.text[i][j] == f"{cell.speedup:.2f}"
            else:
                assert heat.z[i][j] is None or math.isnan(heat.z[i][j])
        best = grid.best_gamma(batch)
        if best and grid.cells[best, batch].fits:
            assert any(x == pytest.approx(j) and y == pytest.approx(grid.gammas.index(best)) for x, y in outlines)


def test_what_does_not_fit_is_hatched(grid):
    hatched = [s for s in gamma_figure(grid).layout.shapes if s.type == "line"]
    assert len(hatched) == sum(not cell.fits for cell in grid.cells.values()) == len(grid.gammas)
    assert "hatched" in gamma_figure(grid).layout.meta["tag"]
    assert any(s.type == "rect" for s in speedup_figure(grid).layout.shapes)
