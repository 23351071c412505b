"""A map of speculation as an HTML page."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.figures import crossover
from simulator.figures.html_page import HtmlPart, html_page
from simulator.output import crossover_report, rows
from simulator.output.tables import Section
from simulator.planning.load_map import LoadMap
from simulator.planning.simulated_map import SimulatedMap


def crossover_page(
    found: LoadMap,
    simulated: SimulatedMap | None = None,
    doubt: Sequence[LoadMap] = (),
    schedule: str = "",
    reproduce: str = "memwall crossover",
) -> str:
    """Maps in closed form, simulated ones where there are any, and all tables of the report; `schedule` is text for an engine."""
    report = crossover_report.crossover_report(found, simulated, doubt)
    figures = [crossover.best_map(found)]
    figures += [crossover.speed_map(found, j) for j in range(len(found.works))]
    figures.append(crossover.crossing_figure(found))
    if simulated is not None:
        figures += [crossover.agreement_figure(found, simulated, j) for j in range(len(found.works))]
        figures += [crossover.speed_map(found, j, simulated) for j in range(len(found.works))]
    drafter = found.deployment.drafter.title if found.deployment.drafter else ""
    law = found.draftings[0].law
    conditions = rows.deployment_rows(found.deployment)
    conditions += [("acceptance", rows.acceptance_text(law))] if law else []
    conditions += [
        ("answers", ", ".join(dict.fromkeys(f"{w.output_tokens:,.0f} tokens on average" for w in found.works))),
        ("prompts", ", ".join(f"{w.prompt_tokens:,.0f}" for w in found.works) + " tokens"),
    ]
    part = HtmlPart(
        title=f"Where does speculation pay? {found.deployment.target.decoder.name} with {drafter}",
        verdict=crossover_report.verdict(found),
        conditions=conditions,
        tables=[block for block in report if isinstance(block, Section)],
        figures=figures,
    )
    return html_page([part], "\n\n".join(filter(None, [reproduce, schedule])))
