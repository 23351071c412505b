"""The figure of sweeps: one panel each, held-out and training points apart, others' text as text."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulator.figures.validation_page import validation_page
from simulator.figures.validation_sweeps import sweep_figure
from tests.figures import test_browser
from tests.figures.conftest import HOSTILE
from tests.output.test_validation_sweeps import sweep, validation

chromium = test_browser.chromium


def test_points_are_drawn_where_they_belong():
    figure = sweep_figure([sweep(), sweep(name="another")], "constants")
    assert len(figure.data) == 2 * 4
    band, line, held, trained = figure.data[:4]
    assert list(held.x) == [2, 3]
    assert list(held.y) == pytest.approx([4.0, 5.0])
    assert list(trained.x) == [0]
    assert held.marker.symbol == "circle"
    assert trained.marker.symbol == "circle-open"
    assert list(line.y) == pytest.approx([8.0, 4.4, 4.0])
    assert max(band.y) == pytest.approx(8.0 * 1.15)
    assert "some head, batch 4 15.0% (worst −20.0%, n = 2)" in figure.layout.meta["finding"]
    assert [a.text for a in figure.layout.annotations] == [
        "some head, batch 4",
        "another",
        *["best γ: 2, predicted 3"] * 2,
    ]
    assert sweep_figure([], "constants") is None


def test_the_page_takes_the_place_of_other_figures_and_escapes(outline):
    hostile = validation(replace(sweep(), name=HOSTILE, training=HOSTILE))
    page = validation_page(hostile, "memwall validate x.csv")
    found = outline(page)
    assert len(found.plots) == 1
    assert not found.open
    assert [load for load in found.loads if not load.address.startswith("#")] == []
    assert HOSTILE not in page


def test_it_is_drawn(chromium, tmp_path):
    document, console = test_browser.opened(
        chromium, validation_page(validation(sweep()), "memwall validate x.csv"), tmp_path
    )
    assert console == []
    assert document.count('class="plot-container') == 1
