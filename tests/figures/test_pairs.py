"""Two figures on the same axes."""

from __future__ import annotations

import plotly.graph_objects as go

from simulator.figures.pairs import on_same_axes


def figure(title, x, y=None):
    return go.Figure(layout={"xaxis": {"range": x, "title": {"text": title}}, "yaxis": {"range": y}})


def test_ranges_become_their_union():
    a, b = on_same_axes(figure("ms", [0, 5]), figure("ms", [1, 9]))
    assert tuple(a.layout.xaxis.range) == tuple(b.layout.xaxis.range) == (0, 9)


def test_a_falling_axis_stays_falling():
    a, b = on_same_axes(figure("ms", [5, 0]), figure("ms", [9, 1]))
    assert tuple(a.layout.xaxis.range) == tuple(b.layout.xaxis.range) == (9, 0)


def test_other_units_and_free_axes_are_left_alone():
    a, b = on_same_axes(figure("ms", [0, 5], [0, 1]), figure("µs", [0, 900], None))
    assert tuple(a.layout.xaxis.range) == (0, 5)
    assert tuple(b.layout.xaxis.range) == (0, 900)
    assert tuple(a.layout.yaxis.range) == (0, 1)
    assert b.layout.yaxis.range is None


def test_the_figures_themselves_stay_as_they_were():
    a = figure("ms", [0, 5])
    on_same_axes(a, figure("ms", [0, 9]))
    assert tuple(a.layout.xaxis.range) == (0, 5)
