"""A line per drafter at its best, a band around the fastest, and a page that needs no network."""

from __future__ import annotations

import pytest

from simulator import AcceptanceConfig, deploy
from simulator.figures import style
from simulator.figures.compare import compare_figure, compare_page
from simulator.planning.which_drafter import Comparison, compare_drafters
from tests.figures.conftest import HOSTILE
from tests.figures.test_browser import chromium, opened

__all__ = ["chromium"]


@pytest.fixture(scope="module")
def found() -> Comparison:
    rates = {"llama-3.2-1b": AcceptanceConfig(alpha=0.6), "eagle-llama-3.1-8b": AcceptanceConfig(alpha=0.5)}
    plain = deploy("llama-3.1-8b", "h100")
    # The last batch is more than the KV cache holds.
    return compare_drafters(
        plain, names=list(rates), acceptance=rates, gammas=(1, 3), trees=(8,), batches=(1, 16, 64, 4096)
    )


def test_lines_are_the_speedups(found: Comparison) -> None:
    figure = compare_figure(found)
    lines = {t.name: t for t in figure.data if t.mode == "lines+markers"}
    assert list(lines) == [one.name for one in found.compared]
    for one in found.compared:
        assert list(lines[one.name].x) == list(found.batches)
        assert list(lines[one.name].y) == [one.choices[b].speedup for b in found.batches]
        assert "does not fit" in lines[one.name].customdata[-1][-1]
        assert [symbol.endswith("-open") for symbol in lines[one.name].marker.symbol] == [False, False, False, True]
    looks = {(t.line.color, t.line.dash, t.marker.symbol[0]) for t in lines.values()}
    assert len(looks) == len(lines)
    assert {t.line.color for t in lines.values()} <= set(style.SERIES_COLOURS)
    assert figure.layout.xaxis.type == "log"
    assert any(shape.y0 == shape.y1 == 1.0 for shape in figure.layout.shapes)


def test_the_band_is_the_fastests(found: Comparison) -> None:
    (band,) = (t for t in compare_figure(found).data if t.fill == "toself")
    won = [b for b in found.batches if found.winner(b) is not None]
    assert list(band.x) == [*won, *reversed(won)]
    ends = [found.winner(b).choices[b].interval for b in won]  # type: ignore[union-attr]
    assert list(band.y) == [*(e.high for e in ends), *(e.low for e in reversed(ends))]


def test_the_finding_names_the_fastest(found: Comparison) -> None:
    finding = compare_figure(found).layout.meta["finding"]
    winner = found.winner(1)
    assert winner is not None
    assert winner.name in finding
    assert "4,096" not in finding


def test_the_page_needs_no_network_and_says_all(found: Comparison, outline) -> None:
    page = outline(compare_page(found, HOSTILE))
    assert not [load for load in page.loads if not load.address.startswith("#")]
    assert page.open == []
    assert len(page.plots) == 1
    for one in found.compared:
        assert one.title in page.text
    assert HOSTILE in page.text


def test_the_page_is_drawn(found: Comparison, chromium: str, tmp_path) -> None:
    document, console = opened(chromium, compare_page(found), tmp_path)
    assert console == []
    assert document.count('class="plot-container') == 1
