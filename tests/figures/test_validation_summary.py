"""Summaries drawn: marks stand where the quantiles are, shares are those that intervals hold, findings name the extremes."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.calibration.comparison import Comparison
from simulator.calibration.error_record import MEASURED, record_of, whole
from simulator.calibration.evidence import devices, evidence
from simulator.figures.validation_summary import (
    course_figure,
    course_labels,
    held_coverage_figure,
    middles_figure,
    operators_figure,
    spread_figure,
)


def record(name="matmul", factor=1.0, claimed=0.1, n=400):
    """Predictions `factor` times what was measured, but for noise of 10 %."""
    rng = np.random.default_rng(len(name))
    measured = np.exp(rng.uniform(-9, -4, n))
    predicted = factor * measured * np.exp(0.1 * rng.standard_normal(n))
    labels = {"tokens": np.tile([1, 8, 64, 512], n // 4)}
    return record_of(Comparison(name, measured, predicted, "held out by matrix", labels, claimed))


RECORDS = [record(), record("decode attention", 1.2), record("matmul, up to 64 tokens")]


def trace(figure, name):
    (found,) = [t for t in figure.data if t.name == name]
    return found


@pytest.mark.parametrize("name", devices())
def test_a_devices_figures_say_what_they_rest_on(name):
    e = evidence(name)
    figures = [operators_figure(e)]
    if e.errors is not None:
        records = whole(e.errors.records)
        figures += [spread_figure(records, "s"), middles_figure(records, "s"), held_coverage_figure(records, "s")]
        figures += [course_figure(records, label, "s") for label in course_labels(records)]
    for figure in figures:
        assert figure.layout.meta["finding"]
        assert figure.layout.meta["tag"]
        assert figure.layout.xaxis.title.text
    assert e.efficiency.label in figures[0].layout.meta["tag"]


def test_what_was_measured_and_what_is_assumed_are_told_apart():
    e = evidence("h100-sxm")
    figure = operators_figure(e)
    measured, assumed = trace(figure, "mean error, measured"), trace(figure, "mean error, assumed")
    assert list(measured.x) == [pytest.approx(100 * o.mape) for o in e.operators if o.measured]
    assert list(assumed.customdata) == ["elementwise"]
    (interval,) = [t for t in figure.data if (t.name or "").startswith("upper end")]
    assert list(interval.x) == [pytest.approx(100 * (o.factor() - 1)) for o in e.operators]
    assert "1 of 7 kinds was not measured" in figure.layout.meta["finding"]
    assert "Nothing was measured on this device" in operators_figure(evidence("b200")).layout.meta["finding"]


def test_spreads_are_the_quantiles():
    figure = spread_figure(RECORDS[:2], "subject")
    assert list(trace(figure, "median").x) == [r.ratios[2] for r in RECORDS[:2]]
    nine = trace(figure, "nine in ten")
    assert list(nine.x[:2]) == [RECORDS[0].ratios[0], RECORDS[0].ratios[4]]
    assert f"+{RECORDS[1].bias:.1%} (decode attention)" in figure.layout.meta["finding"]


def test_middles_stand_on_the_diagonal_times_the_median_ratio():
    figure = middles_figure(RECORDS[:2], "subject")
    marks = trace(figure, "decode attention (n = 400)")
    slots = RECORDS[1].by[MEASURED]
    np.testing.assert_allclose(marks.y, [s.median_s * s.ratios[2] for s in slots])
    np.testing.assert_allclose(np.array(marks.y) - marks.error_y.arrayminus, [s.median_s * s.ratios[0] for s in slots])
    assert "(decode attention)" in figure.layout.meta["finding"]


def test_coverage_is_the_share_that_each_interval_holds():
    figure = held_coverage_figure(RECORDS[:2], "subject")
    ninety = trace(figure, "90% intervals hold")
    assert list(ninety.x) == [pytest.approx(100 * r.coverage["0.9"]) for r in RECORDS[:2]]
    assert ninety.x[0] > 85 > ninety.x[1]  # what is 20 % off lies outside more often
    assert "(decode attention) to" in figure.layout.meta["finding"]
    assert held_coverage_figure([record(claimed=None)], "subject") is None


def test_courses_follow_each_label():
    assert course_labels(RECORDS[:1]) == ["tokens"]
    figure = course_figure(RECORDS[:1], "tokens", "subject")
    (line,) = figure.data
    assert list(line.x) == [1, 8, 64, 512]
    assert list(line.y) == [s.ratios[2] for s in RECORDS[0].by["tokens"]]
    assert "By tokens" in figure.layout.meta["finding"]


def test_parts_of_a_comparison_do_not_count_twice():
    assert [r.name for r in whole(RECORDS)] == ["matmul", "decode attention"]


def test_names_are_escaped():
    figures = [f([record("<b>x")], "<i>") for f in (spread_figure, middles_figure, held_coverage_figure)]
    for figure in [*figures, course_figure([record("<b>x")], "tokens", "<i>")]:
        assert "<b>x" not in figure.to_json().replace('"finding"', "").partition('"meta"')[0]
        for t in figure.data:
            assert "<b>" not in str(t.name) + str(t.text)
