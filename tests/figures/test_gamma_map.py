"""Cells carry the speed-ups of the grid, the line at 1.0 parts those that pay, and what does not fit is not shown as if it did."""

from __future__ import annotations

import math
import re

import pytest

from simulator.figures.gamma_map import gamma_figure


def marks(figure) -> dict[str, set[tuple[float, ...]]]:
    """Corners of each stroke of the shapes that have a name, in rows and columns of cells."""
    return {
        shape.name: {
            tuple(float(number) for number in re.findall(r"-?\d+\.?\d*", stroke))
            for stroke in shape.path.split("M")
            if stroke
        }
        for shape in figure.layout.shapes
        if shape.name
    }


def middles(strokes):
    return {(sum(s[::2]) / len(s[::2]), sum(s[1::2]) / len(s[1::2])) for s in strokes}


def test_heatmap_holds_the_speedups_and_outlines_the_best(grid):
    figure = gamma_figure(grid)
    (heat,) = figure.data
    best = set()
    for j, batch in enumerate(grid.batches):
        for i, gamma in enumerate(grid.gammas):
            cell = grid.cells[gamma, batch]
            if cell.fits:
                assert 2 ** heat.z[i][j] == pytest.approx(cell.speedup)
                assert heat.text[i][j] == f"{cell.speedup:.2f}"
            else:
                assert heat.z[i][j] is None or math.isnan(heat.z[i][j])
        chosen = grid.best_gamma(batch)
        if chosen and grid.cells[chosen, batch].fits:
            best.add((j, grid.gammas.index(chosen)))
    assert {(round(x), round(y)) for x, y in middles(marks(figure)["best γ"])} == best
    assert "outlined" in figure.layout.meta["tag"]


def test_the_line_at_one_parts_what_pays(grid):
    figure = gamma_figure(grid)
    pays = {
        (j, i): grid.cells[g, b].speedup > 1.0
        for i, g in enumerate(grid.gammas)
        for j, b in enumerate(grid.batches)
        if grid.cells[g, b].fits
    }
    # Half-way between the two cells.
    expected = {
        ((j + r[0]) / 2, (i + r[1]) / 2)
        for (j, i), paying in pays.items()
        for r in ((j + 1, i), (j, i + 1))
        if r in pays and pays[r] != paying
    }
    assert expected, "the grid of this test has cells that do not pay"
    assert middles(marks(figure)["break-even"]) == expected
    assert "green line" in figure.layout.meta["tag"]


def test_what_does_not_fit_is_hatched(grid):
    figure = gamma_figure(grid)
    hatched = {(round(x), round(y)) for x, y in middles(marks(figure)["does not fit"])}
    absent = {
        (j, i) for i, g in enumerate(grid.gammas) for j, b in enumerate(grid.batches) if not grid.cells[g, b].fits
    }
    assert hatched == absent
    assert len(absent) == len(grid.gammas)
    assert "hatched" in figure.layout.meta["tag"]


def test_signs_without_meaning_are_not_explained(paying_grid):
    figure = gamma_figure(paying_grid)
    assert set(marks(figure)) == {"best γ"}
    assert "green line" not in figure.layout.meta["tag"]
    assert "hatched" not in figure.layout.meta["tag"]
