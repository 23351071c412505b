"""Points at their costs and speeds, the cheapest marked, what has no price or misses the objectives said and not hidden."""

from __future__ import annotations

import math

import pytest

from simulator.figures import style
from simulator.figures.candidates import candidates_figure, cheapest_figure, missed_figure
from simulator.planning.candidate_search import DraftOption, find_plans
from simulator.planning.candidates import Plans
from simulator.planning.capacity import Level
from simulator.planning.work import Work
from simulator.slo import Slo
from simulator.speculation.acceptance import AcceptanceConfig

DRAFTS = (DraftOption("llama-3.2-1b", (1, 3), AcceptanceConfig(alpha=0.7)),)


def search(slo: Slo | None = None, **changes: object) -> Plans:
    given: dict[str, object] = {"gpus": ("h100", "l4", "l40s", "mi325x"), "drafts": DRAFTS, **changes}
    level = Level(slo or Slo(ttft_s=1.0, tpot_s=0.03))
    return find_plans("llama-3.1-8b", 60.0, Work.of_lengths(512, 256), level, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def plans() -> Plans:
    return search()


def test_lines_are_the_fronts(plans: Plans) -> None:
    figure = candidates_figure(plans)
    lines = {t.name: t for t in figure.data if t.mode == "lines+markers"}
    assert list(lines) == list(plans.fronts)
    for name, front in plans.fronts.items():
        assert list(lines[name].x) == [c.tokens_per_s_per_user for c in front]
        assert list(lines[name].y) == [c.usd_per_million_tokens for c in front]
        for one, hover in zip(front, lines[name].hovertext, strict=True):
            assert f"{one.gpus:,} × {name}" in hover
            assert f"{one.usd_per_million_tokens:.3g} USD per million output tokens" in hover
            assert one.deployment.target.efficiency.label in hover
    assert figure.layout.yaxis.type == "log"
    looks = {(t.line.color, t.line.dash, t.marker.symbol) for t in lines.values()}
    assert len(looks) == len(lines)


def test_no_plan_is_lost(plans: Plans) -> None:
    figure = candidates_figure(plans)
    points = sum(len(t.x) for t in figure.data if t.name != "cheapest")
    assert points == len(plans.by_cost)
    assert "mi325x" in figure.layout.meta["tag"]
    for axis, values in (("yaxis", [c.usd_per_million_tokens for c in plans.by_cost]),):
        low, high = figure.layout[axis].range
        assert low < math.log10(min(values)) < math.log10(max(values)) < high


def test_the_cheapest_is_marked_and_found(plans: Plans) -> None:
    figure, best = candidates_figure(plans), plans.cheapest
    assert best is not None
    (mark,) = (t for t in figure.data if t.name == "cheapest")
    assert (mark.x[0], mark.y[0]) == (best.tokens_per_s_per_user, best.usd_per_million_tokens)
    assert figure.layout.meta["finding"].startswith(f"{best.gpus} × {best.gpu.name} is the cheapest")
    (line,) = figure.layout.shapes
    assert line.x0 == line.x1 == pytest.approx(1.0 / 0.03)
    assert not candidates_figure(search(Slo(ttft_s=1.0))).layout.shapes


def test_a_gpu_keeps_its_colour_when_costs_change(plans: Plans) -> None:
    def looks(found: Plans) -> dict[str, str]:
        return {t.name: t.marker.color for t in candidates_figure(found).data if t.mode == "lines+markers"}

    other = search(prices_usd_per_h={"l4": 0.3, "h100": 9.0})
    assert list(looks(other)) != list(looks(plans))
    assert {name: looks(other)[name] for name in looks(plans)} == looks(plans)


def test_bars_are_the_cheapest_of_each_gpu(plans: Plans) -> None:
    figure = cheapest_figure(plans)
    bars = {name: usd for t in figure.data for name, usd in zip(t.y, t.x, strict=True)}
    assert {n: bars[n] for n in plans.cheapest_of} == pytest.approx(
        {n: (c.usd_per_s or 0.0) * 3600.0 for n, c in plans.cheapest_of.items()}
    )
    texts = {name: text for t in figure.data for name, text in zip(t.y, t.text, strict=True)}
    assert texts["mi325x"].endswith("no price")
    assert list(figure.layout.yaxis.categoryarray) == [*reversed([*plans.cheapest_of, "mi325x"])]


def test_bars_that_would_hide_the_others_are_said_instead() -> None:
    found = search(prices_usd_per_h={"l4": 500.0})
    figure = cheapest_figure(found)
    assert all("l4" not in t.y for t in figure.data)
    assert "not shown: l4 for" in figure.layout.meta["tag"]


def test_without_prices_gpus_stand_for_cost() -> None:
    found = search(gpus=("mi325x",))
    figure = candidates_figure(found)
    (line,) = (t for t in figure.data if t.mode == "lines+markers")
    assert "GPUs" in figure.layout.yaxis.title.text
    assert line.y[0] == min(c.gpus for c in found.candidates)
    assert "price" in figure.layout.meta["finding"]
    assert "price" in cheapest_figure(found).layout.meta["finding"]


def test_what_misses_the_objectives_is_shown_with_them() -> None:
    found = search(Slo(ttft_s=0.005, tpot_s=0.001))
    figure = candidates_figure(found)
    points = {(x, y) for t in figure.data for x, y in zip(t.x, t.y, strict=True)}
    assert len(figure.data) == 4
    missed = [one.capacity for one in found.rejected if one.capacity is not None]
    assert len(missed) == len(points)
    for one in missed:
        unloaded = one.unloaded
        assert (float(unloaded.tpot_s[0]) * 1e3, float(unloaded.ttft_s[0]) * 1e3) in points
    assert {s.x0 for s in figure.layout.shapes} >= {1.0}
    assert figure.layout.meta["finding"].startswith("Nothing meets TTFT 5 ms and TPOT 1 ms")


def test_what_fits_nowhere_says_so() -> None:
    figure = missed_figure(search(tps=(3,)))
    assert "can be served on none" in figure.layout.meta["finding"]


def test_they_can_be_read_on_a_dark_page(plans: Plans) -> None:
    for figure in (candidates_figure(plans), cheapest_figure(plans)):
        assert style.dark(figure).layout.paper_bgcolor == style.DARK_PAPER
        assert "closed form" in figure.layout.meta["tag"]
