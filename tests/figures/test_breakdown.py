"""Bars add up to what they divide."""

from __future__ import annotations

import pytest

from simulator.figures import breakdown, style


def test_causes_stack_up_to_the_step(step):
    figure = breakdown.cause_figure(step)
    assert figure.layout.barmode == "stack"
    assert sum(bar.x[0] for bar in figure.data) == pytest.approx(step.step_s * 1e3, rel=1e-12)
    assert figure.layout.xaxis.title.text == "milliseconds per step"


def test_causes_keep_their_colours(step):
    colours = {bar.name.split(",")[0]: bar.marker.color for bar in breakdown.cause_figure(step).data}
    assert colours["reading weights"] == style.CAUSE_COLOURS["weights"]
    assert len(set(style.CAUSE_COLOURS.values())) == len(style.CAUSE_COLOURS)


def test_operators_add_up_to_the_pass_longest_first(step):
    (bars,) = breakdown.operator_figure(step).data
    assert sum(bars.x) == pytest.approx(step.pass_cost.seconds * 1e3, rel=1e-12)
    assert list(bars.x[:-1]) == sorted(bars.x[:-1], reverse=True)
    assert bars.x[0] == pytest.approx(step.by_operator[0][1] * 1e3)


def test_memory_stacks_up_to_the_hbm(step):
    figure = breakdown.memory_figure(step.budget, "tag")
    assert sum(bar.x[0] for bar in figure.data) == pytest.approx(step.budget.hbm_bytes / 1e9, rel=1e-12)
    assert f"{step.budget.kv_tokens:,}" in figure.layout.meta["finding"]


def test_every_figure_says_what_its_times_rest_on(step):
    label = step.deployment.target.efficiency.label
    for figure in (breakdown.cause_figure(step), breakdown.operator_figure(step)):
        assert label in figure.layout.title.text
        assert figure.layout.meta["tag"].startswith(label)
