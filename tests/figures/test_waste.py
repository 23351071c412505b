"""Tokens are all accounted for, and what is wasted is told beside what plain decoding spends."""

from __future__ import annotations

import pytest

from simulator import speculate
from simulator.figures.waste import drafted_figure, waste_figure


def test_every_verified_token_is_accounted_for(grid):
    rounds = {str(g): grid.cells[g, 8].round for g in grid.gammas}
    own, kept, wasted = drafted_figure(rounds, "γ", "analytic").data
    assert list(own.x) == ["1", "4", "8"]
    for i, gamma in enumerate(grid.gammas):
        assert own.y[i] + kept.y[i] + wasted.y[i] == pytest.approx(gamma + 1)
        assert own.y[i] + kept.y[i] == pytest.approx(grid.acceptance.live_tokens(gamma))


def test_the_finding_of_drafts_by_hand(grid):
    # α = 0.7: 0.7 of one draft, and of four 0.7 + 0.49 + 0.343 + 0.2401 = 1.7731.
    rounds = {str(g): grid.cells[g, 8].round for g in (1, 4)}
    assert drafted_figure(rounds, "γ", "").layout.meta["finding"] == (
        "Of 1 drafted per round, 70% reach the user; of 4, 44%"
    )
    one = drafted_figure({"4": grid.cells[4, 8].round}, "γ", "")
    assert one.layout.meta["finding"] == "Of 4 drafted per round, 44% reach the user"
    none = drafted_figure({"0": grid.cells[4, 8].plain}, "γ", "")
    assert none.layout.meta["finding"] == "Nothing is drafted"


def test_waste_is_relative_to_plain_decoding(grid):
    cells = grid.at_each_batch(4)
    lines = {trace.name: trace for trace in waste_figure(cells, "γ = 4", "analytic").data}
    for i, cell in enumerate(cells):
        assert cell.plain.wasted_flop_per_token == 0.0
        plain_flop = cell.plain.work.verify.flop / cell.plain.sequences
        assert lines["wasted FLOP"].y[i] == pytest.approx(cell.round.wasted_flop_per_token / plain_flop)
        assert lines["wasted bytes"].y[i] * cell.plain.bytes_per_token == pytest.approx(
            cell.round.wasted_bytes_per_token
        )
        # Every GPU draws its TDP all the time, so energy goes as time does.
        assert lines["all energy"].y[i] == pytest.approx(1.0 / cell.speedup)
        assert lines["wasted energy"].y[i] < lines["all energy"].y[i]
    assert all(line.customdata[3][1] and not line.customdata[0][1] for line in lines.values())


def test_plain_decoding_wastes_nothing(grid):
    cells = grid.at_each_batch(4)[:1]
    nothing = [type(cell)(cell.plain, cell.plain, True) for cell in cells]
    figure = waste_figure(nothing, "nothing", "")
    assert [trace.y[0] for trace in figure.data] == [0.0, 0.0, 0.0, 1.0]
    assert (
        figure.layout.meta["finding"]
        == "Waste included, a token of nothing takes 100% at batch 1 of plain decoding's energy"
    )


def test_a_scale_on_which_every_line_can_be_read(grid):
    assert waste_figure(grid.at_each_batch(4), "γ = 4", "").layout.yaxis.type is None
    wasteful = speculate(grid.deployment, grid.acceptance, gammas=[40], batches=[1, 8], context_tokens=512)
    figure = waste_figure(wasteful.at_each_batch(), "γ = 40", "")
    assert max(y for line in figure.data for y in line.y) > 10.0
    assert figure.layout.yaxis.type == "log"


def test_the_finding_leaves_out_what_does_not_fit(grid):
    said = waste_figure(grid.at_each_batch(4), "γ = 4", "").layout.meta["finding"]
    assert "at batch 64 " in said
    assert "4,096" not in said
