"""Bars of a round add up to its time per token; shares of rounds are those of the law, by hand for a constant rate."""

from __future__ import annotations

import pytest

from simulator import AcceptanceConfig
from simulator.figures.rounds import round_time_figure, tokens_figure
from simulator.speculation.acceptance import Acceptance

SPECULATING = ("drafting", "verification", "host")
PLAIN = ("plain step", "host, plain")


def bars(figure):
    return {trace.name: trace for trace in figure.data if trace.type == "bar"}


def test_parts_add_up_to_the_time_per_token(grid):
    cells = grid.at_each_batch(4)
    found = bars(round_time_figure(cells, "γ = 4", "analytic"))
    assert set(found) == {*SPECULATING, *PLAIN}
    for i, cell in enumerate(cells):
        assert sum(found[name].y[i] for name in SPECULATING) == pytest.approx(1e3 * cell.round.tpot_s)
        assert sum(found[name].y[i] for name in PLAIN) == pytest.approx(1e3 * cell.plain.tpot_s)
        assert sum(found[name].customdata[i][2] for name in SPECULATING) == pytest.approx(1.0)


def test_bars_of_one_batch_stand_beside_each_other(grid):
    cells = grid.at_each_batch(4)
    found = bars(round_time_figure(cells, "γ = 4", "analytic"))
    left, right = found["drafting"], found["plain step"]
    for i in range(len(cells)):
        assert left.x[i] + left.width / 2 <= right.x[i] - right.width / 2
        assert i - 0.5 < left.x[i] - left.width / 2
        assert right.x[i] + right.width / 2 < i + 0.5


def test_what_does_not_fit_is_hatched(grid):
    figure = round_time_figure(grid.at_each_batch(4), "γ = 4", "analytic")
    assert list(bars(figure)["verification"].marker.pattern.shape) == ["", "", "", "/"]
    assert "hatched" in figure.layout.meta["tag"]
    some = round_time_figure(grid.at_each_batch(4)[:2], "γ = 4", "analytic")
    assert "hatched" not in some.layout.meta["tag"]


def test_the_finding_is_of_the_first_and_the_last_batch_that_fits(grid):
    cells = grid.at_each_batch(4)
    assert [cell.fits for cell in cells] == [True, True, True, False]
    shares = [f"{cell.round.verify_s / cell.round.seconds:.0%}" for cell in (cells[0], cells[2])]
    finding = round_time_figure(cells, "γ = 4", "analytic").layout.meta["finding"]
    assert (
        finding
        == f"In a round of γ = 4, verification takes {shares[0]} of the time at batch 1 and {shares[1]} at batch 64"
    )
    (one,) = (round_time_figure(cells[:1], "γ = 4", "analytic").layout.meta["finding"],)
    assert one == f"In a round of γ = 4, verification takes {shares[0]} of the time at batch 1"


def test_a_constant_rate_by_hand():
    # Kept until the first rejection: 0.4, 0.6·0.4, 0.6², and 1·0.4 + 2·0.24 + 3·0.36 = 1.96 tokens.
    figure = tokens_figure(Acceptance((0.6,)), 2, "γ = 2", "analytic")
    (drafted,) = bars(figure).values()
    assert list(drafted.x) == [1, 2, 3]
    assert list(drafted.y) == pytest.approx([0.4, 0.24, 0.36])
    assert [at_least for _, at_least in drafted.customdata] == pytest.approx([1.0, 0.6, 0.36])
    assert figure.layout.shapes[0].x0 == pytest.approx(1.96)
    assert figure.layout.meta["finding"] == (
        "A round of γ = 2 yields 1.96 tokens on average; 36% of rounds yield all 3, 40% only one"
    )


def test_rounds_that_find_nothing_to_draft():
    figure = tokens_figure(Acceptance((0.5,), match_probability=0.4), 1, "γ = 1", "analytic")
    found = bars(figure)
    assert list(found["with drafts"].y) == pytest.approx([0.2, 0.2])
    assert list(found["nothing found to draft"].y) == pytest.approx([0.6])
    assert figure.layout.shapes[0].x0 == pytest.approx(1.2)
    assert figure.layout.showlegend


@pytest.mark.parametrize("icc", [0.0, 0.3])
def test_the_mean_over_rounds_is_told_where_it_is_another(icc):
    law = AcceptanceConfig(alpha=0.8, request_icc=icc).law()
    figure = tokens_figure(law, 5, "γ = 5", "analytic")
    (drafted,) = bars(figure).values()
    assert sum(drafted.y) == pytest.approx(1.0)
    assert figure.layout.shapes[0].x0 == pytest.approx(law.expected_tokens(5), rel=1e-6)
    assert (f"{law.live_tokens(5):.2f}" in figure.layout.meta["tag"]) == (icc > 0.0)


def test_long_drafts_carry_no_numbers():
    assert any(trace.type == "scatter" for trace in tokens_figure(Acceptance((0.9,)), 9, "", "").data)
    assert not any(trace.type == "scatter" for trace in tokens_figure(Acceptance((0.9,)), 10, "", "").data)
