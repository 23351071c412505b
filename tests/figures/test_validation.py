"""Figures of a validation: their data are the points, their findings the statistics, and none is without data."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from simulator.calibration.comparison import Comparison, Course, Quantity, Roof, interval_factor
from simulator.figures.validation import MOST_POINTS, coverage_figure, errors_figure, points_figure, ratio_ticks
from simulator.figures.validation_page import validation_figures
from simulator.figures.validation_residuals import BINS, MOST_NAMES, residual_figure, residual_figures
from simulator.figures.validation_runs import course_figure, quantity_figure, roof_figure
from tests.validation_sample import comparison, sample

STEPS = comparison("steps", sd=0.05, claimed=0.05)
DRAFTS = comparison("drafts", sd=0.08, claimed=0.04, bias=0.02, seed=2)


def few(n: int = 20, log_sd: object = 0.05, **labels: object) -> Comparison:
    measured = np.geomspace(1e-3, 1.0, n)
    found = {"batch": np.arange(n), **labels}
    return Comparison("few", measured, measured * 1.1, "not fitted on", found, log_sd)  # type: ignore[arg-type]


def traces(figure, mode="markers"):
    return [trace for trace in figure.data if trace.mode == mode and trace.text is not None]


def test_every_figure_has_a_finding_and_says_what_it_rests_on():
    figures = validation_figures(sample())
    assert len(figures) == 10  # points, errors, coverage, four labels, roof, quantities, courses
    for figure in figures:
        assert "calibration h200-mine" in figure.layout.meta["tag"]
        assert figure.layout.meta["finding"]
    assert len({figure.layout.meta["finding"] for figure in figures}) == 10
    assert sum("n = " in figure.layout.meta["finding"] for figure in figures) == 9  # quantities count "4 of 6 figures"


def test_no_figure_without_data():
    whole = sample()
    assert validation_figures(replace(whole, comparisons=(), quantities=(), courses=(), roof=None)) == []
    assert len(validation_figures(replace(whole, comparisons=()))) == 3
    empty = STEPS.where(np.zeros(len(STEPS), bool), "none")
    assert validation_figures(replace(whole, comparisons=[empty], quantities=(), courses=(), roof=None)) == []
    unclaimed = replace(STEPS, log_sd=None, labels={})
    assert len(validation_figures(replace(whole, comparisons=[unclaimed], quantities=(), courses=(), roof=None))) == 2
    assert quantity_figure([Quantity("a", "s", 1.0, None, "not fitted on")], "s") is None
    assert course_figure([Course("a", "s", np.array([]), np.array([]), np.array([]))], "s") is None
    zeros = np.zeros(2)
    assert roof_figure(Roof(1e12, 1e14, "datasheet", zeros, zeros, zeros, np.array(["a", "b"])), "s") is None


# --- points -----------------------------------------------------------------------------------------------------------
def test_points_are_the_measurements_and_the_predictions():
    figure = points_figure([STEPS], "subject")
    (cloud,) = traces(figure)
    assert np.array_equal(cloud.x, STEPS.measured_s)
    assert np.array_equal(cloud.y, STEPS.predicted_s)
    assert f"{np.quantile(np.abs(STEPS.errors), 0.9):.1%}" in figure.layout.meta["finding"]
    assert "drawn" not in figure.layout.meta["tag"]
    diagonal, upper, lower = figure.data[:3]
    assert np.allclose(diagonal.y, diagonal.x)
    assert np.allclose(upper.y, 1.1 * np.array(upper.x))
    assert np.allclose(lower.y, 0.9 * np.array(lower.x))


def test_many_points_are_thinned_alike_and_never_lose_the_worst():
    many = comparison("many", sd=0.05, claimed=0.05)
    several = [replace(many, name=f"c{i}") for i in range(4)]
    first, second = (points_figure(several, "subject") for _ in range(2))
    clouds = traces(first)
    drawn = sum(len(cloud.x) for cloud in clouds)
    assert MOST_POINTS <= drawn <= MOST_POINTS + 40
    assert f"{drawn:,} of 3,200 points drawn" in first.layout.meta["tag"]
    worst = np.argsort(-np.abs(many.errors))[:10]
    for cloud in clouds:
        assert set(many.predicted_s[worst]) <= set(cloud.y)
    assert first.to_json() == second.to_json()


def test_a_bar_meets_the_diagonal_where_the_interval_holds():
    points = few(log_sd=np.where(np.arange(20) < 10, 0.01, 0.2))
    (cloud,) = traces(points_figure([points], "subject"))
    low = np.array(cloud.y) - np.array(cloud.error_y.arrayminus)
    high = np.array(cloud.y) + np.array(cloud.error_y.array)
    # 10 % too slow: outside of a factor of exp(1.645 · 0.01), inside one of exp(1.645 · 0.2).
    assert ((low <= cloud.x) & (cloud.x <= high)).tolist() == [False] * 10 + [True] * 10
    assert traces(points_figure([STEPS], "subject"))[0].error_y.array is None


def test_the_error_curve_is_the_distribution():
    figure = errors_figure([few(), STEPS], "subject")
    curve = figure.data[1]
    off = np.abs(STEPS.errors)
    for x, y in list(zip(curve.x, curve.y, strict=True))[:: len(curve.x) // 7]:
        assert 100 * np.mean(off <= x / 100 * (1 + 1e-12)) == pytest.approx(y)
    assert curve.y[-1] == 100
    assert max(curve.x) == pytest.approx(100 * off.max())


def test_a_single_miss_beyond_the_axis_is_told():
    measured = np.ones(100)
    predicted = np.full(100, 1.01)
    predicted[7] = 30.0
    figure = errors_figure([Comparison("a", measured, predicted, "not fitted on")], "subject")
    assert figure.layout.xaxis.range[1] < 100
    assert "the furthest point (2900%) lies beyond the right end" in figure.layout.meta["tag"]


def test_coverage_follows_the_law_that_was_put_in():
    figure = coverage_figure([STEPS, DRAFTS], "subject")
    _, honest, narrow = figure.data
    assert honest.y == pytest.approx(honest.x, abs=100 / 800)
    # ln(measured/predicted) is normal with mean −0.02 and standard deviation 0.08, claimed are mean 0 and 0.04.
    for claimed, reached in zip(narrow.x, narrow.y, strict=True):
        limit = math.log(interval_factor(0.04, claimed / 100))
        expected = 0.5 * (
            math.erf((limit - 0.02) / 0.08 / math.sqrt(2)) + math.erf((limit + 0.02) / 0.08 / math.sqrt(2))
        )
        assert reached == pytest.approx(100 * expected, abs=100 / 400)
    assert "some are too narrow" in figure.layout.meta["finding"]
    assert "as claimed, within chance" in coverage_figure([STEPS], "subject").layout.meta["finding"]
    assert "wider than need be" in coverage_figure([replace(STEPS, log_sd=0.2)], "subject").layout.meta["finding"]
    assert coverage_figure([replace(STEPS, log_sd=None)], "subject") is None


# --- errors by label --------------------------------------------------------------------------------------------------
def test_every_point_stands_in_the_slot_of_its_value():
    figure = residual_figure([STEPS], "batch", "subject")
    cloud, medians = traces(figure)
    values = sorted(set(STEPS.labels["batch"].tolist()))
    assert list(figure.layout.xaxis.ticktext) == [str(v) for v in values]
    ratio = STEPS.predicted_s / STEPS.measured_s
    for position, value in enumerate(values):
        here = np.abs(np.array(cloud.x) - position) < 0.5
        assert sorted(np.array(cloud.y)[here]) == pytest.approx(sorted(ratio[STEPS.labels["batch"] == value]))
        assert medians.y[position] == pytest.approx(np.median(ratio[STEPS.labels["batch"] == value]))


def test_the_claimed_interval_is_a_box_in_every_slot():
    figure = residual_figure([STEPS, replace(DRAFTS, log_sd=None)], "batch", "subject")
    boxes = [trace for trace in figure.data if trace.fill == "toself"]
    assert len(boxes) == 1
    factor = float(interval_factor(0.05))
    corners = {round(y, 9) for y in boxes[0].y if y is not None}
    assert corners == {round(factor, 9), round(1 / factor, 9)}
    assert boxes[0].name == "90% interval claimed"


def test_a_drift_is_found():
    batch = np.repeat([1, 8, 64], 50)
    measured = np.ones(150)
    predicted = np.select([batch == 1, batch == 8], [0.95, 1.0], 1.2)
    drifting = Comparison("steps", measured, predicted, "not fitted on", {"batch": batch})
    finding = residual_figure([drifting], "batch", "subject").layout.meta["finding"]
    assert "from −5.0% (1, n = 50) to +20.0% (64, n = 50)" in finding
    assert "150 points" in finding


def test_labels_in_order_and_only_those_that_differ():
    labels = {
        "zeta": np.arange(20) % 3,
        "keys": np.arange(20),
        "same": np.ones(20),
        "context_tokens": np.arange(20) % 4,
    }
    figures = residual_figures([few(**labels)], "subject")
    assert [f.layout.xaxis.title.text for f in figures] == ["batch", "context tokens", "keys", "zeta"]


def test_many_numbers_are_binned_and_no_point_is_lost():
    points = few(400)
    figure = residual_figure([points], "batch", "subject")
    assert len(figure.layout.xaxis.ticktext) == BINS
    assert figure.layout.xaxis.ticktext[0] == "0–49"
    assert len(traces(figure)[0].x) == 400


def test_of_many_names_the_worst_are_drawn_and_the_rest_counted():
    names = np.array([f"m{i:02}" for i in range(40)] * 5)
    measured = np.ones(200)
    predicted = 1 + np.array([i / 100 for i in range(40)] * 5)
    points = Comparison("a", measured, predicted, "not fitted on", {"model": names})
    figure = residual_figure([points], "model", "subject")
    assert list(figure.layout.yaxis.ticktext) == [f"m{i}" for i in range(40 - MOST_NAMES, 40)]
    assert f"{40 - MOST_NAMES} more model values" in figure.layout.meta["tag"]


def test_a_far_miss_stands_at_the_edge_and_is_counted():
    measured = np.ones(200)
    predicted = np.where(np.arange(200) % 2, 1.02, 0.98)
    predicted[3] = 9.0
    points = Comparison("a", measured, predicted, "not fitted on", {"batch": np.arange(200) % 4})
    figure = residual_figure([points], "batch", "subject")
    assert "1 point further off stands at the edge" in figure.layout.meta["tag"]
    cloud = traces(figure)[0]
    at = int(np.argmax(cloud.y))
    assert math.log10(cloud.y[at]) <= figure.layout.yaxis.range[1]
    assert "+800.0%" in cloud.text[at]


def test_missing_labels_stand_nowhere():
    batch = np.where(np.arange(20) < 5, np.nan, np.arange(20) % 2)
    figure = residual_figure([few(batch=batch), STEPS], "batch", "subject")
    assert "nan" not in str(figure.layout.xaxis.ticktext)
    names = np.array(["a", "b", "", None] * 5, dtype=object)
    assert list(residual_figure([few(kind=names)], "kind", "subject").layout.yaxis.ticktext) == ["a", "b"]


@pytest.mark.parametrize("reach", [1.001, 1.02, 1.08, 1.3, 1.7, 3.0, 50.0, 3000.0])
def test_ticks_of_a_ratio_are_percent_and_few(reach):
    axis = ratio_ticks(1 / reach, reach)
    assert 3 <= len(axis["tickvals"]) <= 12
    for value, text in zip(axis["tickvals"], axis["ticktext"], strict=True):
        assert 10 ** axis["range"][0] <= value <= 10 ** axis["range"][1]
        assert float(text.replace("−", "-").rstrip("%")) / 100 == pytest.approx(value - 1, abs=0.0051)
    assert "0" in axis["ticktext"]


# --- whole runs -------------------------------------------------------------------------------------------------------
def test_roof_points_at_their_intensity_and_those_above_are_counted():
    flop, moved = np.array([1e12, 4e12, 1e12]), np.array([1e12, 1e10, 1e12])
    roof = Roof(2e12, 1e14, "datasheet", flop, moved, np.array([1.0, 0.05, 0.25]), np.array(["a", "b", "a"]))
    figure = roof_figure(roof, "subject")
    line, a, b = figure.data
    assert max(line.y) == pytest.approx(100)
    assert line.y[0] == pytest.approx(line.x[0] * 2)
    assert sorted(a.x) == [1.0, 1.0]
    assert sorted(a.y) == [1.0, 4.0]  # TFLOP/s; the roof above one FLOP per byte is 2
    assert (b.x[0], b.y[0]) == (400.0, pytest.approx(80.0))
    assert sorted(a.customdata) == pytest.approx([0.5, 2.0])
    assert "1 of 3 points lie above the roof" in figure.layout.meta["tag"]
    assert "datasheet" in figure.layout.meta["tag"]


def test_quantities_are_ratios_in_order_with_their_intervals():
    quantities = [
        Quantity("near", "s", 2.0, 2.06, "not fitted on", 1.8, 2.2),
        Quantity("middling", "s", 1.0, 0.92, "fitted on these"),
        Quantity("far", "tokens/s", 100.0, 150.0, "not fitted on"),
        Quantity("none", "s", 1.0, None, "not fitted on"),
        Quantity("zero", "", 0.0, 1.0, "not fitted on"),
    ]
    figure = quantity_figure(quantities, "subject")
    near, middling, far, names = figure.data
    assert list(names.text) == ["near", "middling", "far"]
    assert (near.x[0], middling.x[0], far.x[0]) == pytest.approx((1.03, 0.92, 1.5))
    assert (near.y[0], middling.y[0], far.y[0]) == (0, 1, 2)
    assert near.x[0] + near.error_x.array[0] == pytest.approx(1.1)
    assert near.x[0] - near.error_x.arrayminus[0] == pytest.approx(0.9)
    assert middling.marker.symbol[0].endswith("-open")
    finding, tag = figure.layout.meta["finding"], figure.layout.meta["tag"]
    assert finding == "1 of 3 figures are predicted within 5%, 2 within 10%; furthest off: far, +50.0%"
    assert "in the table only: 2" in tag


def test_courses_have_a_panel_each_with_both_lines():
    courses = sample().courses
    figure = course_figure(courses, "subject")
    assert len(figure.data) == 6
    for course, (measured, simulated) in zip(
        courses, zip(figure.data[::2], figure.data[1::2], strict=True), strict=True
    ):
        assert np.array_equal(measured.y, course.measured)
        assert np.array_equal(simulated.y, course.simulated)
        assert measured.xaxis == simulated.xaxis
    assert "n = 184" in figure.layout.meta["finding"]
    assert sum(trace.showlegend for trace in figure.data) == 2
