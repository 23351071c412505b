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
    said: str = "",
    under: Sequence[tuple[str, str]] = (),
    tables: Sequence[Section] = (),
    more: Sequence[go.Figure] = (),
    reproduce: str = "find_plans(…)",
    notes: Sequence[str] = (),
) -> str:
    """All plans. `said`, `under` and `tables` take the place of the plans' own verdict, conditions and tables, for whoever has also
    simulated one; `more` figures are that simulation's."""
    drawn = [candidates_figure(plans)]
    if plans.candidates:
        drawn.append(cheapest_figure(plans))
    part = HtmlPart(
        title=f"How many GPUs? {plans.decoder.name} at {plans.asked.rate_per_s:.4g} requests/s",
        verdict=said or verdict(plans),
        conditions=under or conditions(plans),
        tables=tables or sections(plans),
        figures=[*drawn, *more],
        notes=notes,
    )
    return html_page([part], reproduce)
