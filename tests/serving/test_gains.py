"""What speculation does to each request, compared with the same request without: pairs, means and ratios by hand."""

from __future__ import annotations

import numpy as np
import pytest

from simulator import load_scenario, simulate
from simulator.serving import state
from simulator.serving.gains import FIELDS, POINTS, gain, gains, paired


@pytest.fixture(scope="module")
def result():
    return simulate(load_scenario("chat-8b-h100-eagle", load={"requests": 900}))


def test_figures_are_those_of_the_summaries_where_everybody_finished(result):
    found = gains(result)
    assert [g.field for g in found] == list(FIELDS)
    for g in found:
        ours, plain = (getattr(run.summary, g.field) for run in result.runs)
        assert g.n == ours.n == plain.n
        assert g.difference_s == pytest.approx(ours.mean - plain.mean)
        for point in POINTS:
            assert g.speedup[point].ratio == pytest.approx(getattr(plain, point) / getattr(ours, point))


def test_pairs_are_the_same_requests(result):
    for field in FIELDS:
        ours, plain = paired(result, field)
        assert len(ours) == len(plain)
    ours, plain = paired(result, "e2e_s")
    requests = result.plain.requests
    measured = requests[requests["measured"] == 1]
    assert (plain == (measured["finish_s"] - measured["arrival_s"])).all()


def test_whoever_finishes_only_one_way_is_left_out(result):
    lost = result.main.requests.copy()
    lost["status"][600:650] = state.CANCELLED
    main = result.main.__class__(**{**vars(result.main), "requests": lost})
    part = result.__class__(result.scenario, result.deployment, result.traffic, (main, result.plain))
    assert [g.n for g in gains(part)] == [g.n - 50 for g in gains(result)]


def test_a_gain_by_hand():
    found = gain("tpot_s", np.array([1.0, 2.0, 3.0, 2.0]), np.array([2.0, 4.0, 3.0, 1.0]))
    assert found.difference_s == -0.5
    assert found.faster_share == 0.5
    assert found.speedup["mean"].ratio == 10.0 / 8.0
    assert found.speedup["p50"].ratio == 2.5 / 2.0
    assert found.difference is None


def test_one_run_alone_has_nothing_to_be_compared_with():
    assert gains(simulate(load_scenario("mixed-classes", load={"requests": 50}))) == ()


def test_other_luck_mostly_gives_a_ratio_within_the_interval():
    """The interval says what another draw would give: of forty seeds, nine in ten lie within it and their own."""
    scenario = load_scenario("chat-8b-h100-eagle", load={"requests": 1500})
    found = []
    for seed in range(40):
        (tpot,) = (g for g in gains(simulate(scenario.model_copy(update={"seed": seed}))) if g.field == "tpot_s")
        found.append((tpot.speedup["mean"].ratio, tpot.speedup["mean"].width.half_width))
    ratios, widths = np.array(found).T
    truth = ratios.mean()
    assert np.sum(np.abs(ratios - truth) <= widths) >= 30  # P(fewer) < 0.5 % at 90 %
    # And not for being wide: seeds differ by about as much as each of them says.
    assert widths.mean() == pytest.approx(1.645 * ratios.std(ddof=1), rel=0.6)
