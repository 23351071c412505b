"""Plans of GPUs as an HTML page."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from simulator.figures.candidates import candidates_figure, cheapest_figure
from simulator.figures.html_page import HtmlPart, html_page
from simulator.output.candidates_report import conditions, sections, verdict
from simulator.output.tables import Section
from simulator.planning.candidates import Plans


def candidates_page(
    plans: Plans,
    reproduce: str,
    *,
    more: Sequence[Section] = (),
    figures: Sequence[go.Figure] = (),
    said: Sequence[tuple[str, str]] = (),
    notes: Sequence[str] = (),
) -> str:
    """Verdict, all tables and figures; `more` tables, `figures`, conditions `said` and `notes` are of a simulation of the plan."""
    drawn = [candidates_figure(plans)]
    if plans.candidates:
        drawn.append(cheapest_figure(plans))
    part = HtmlPart(
        title=f"How many GPUs? {plans.decoder.name} at {plans.asked.rate_per_s:.4g} requests/s",
        verdict=verdict(plans),
        conditions=[*conditions(plans), *said],
        tables=[*more, *sections(plans)],
        figures=[*drawn, *figures],
        notes=notes,
    )
    return html_page([part], reproduce)
