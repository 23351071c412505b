"""Results as one HTML file that needs no network: verdict, conditions, table, figures, and what reproduces it.

plotly.js is written into the file once. A content security policy forbids every request, so that a page which would
load anything shows it at once instead of working only where there is a network.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib import resources

import plotly.graph_objects as go
import yaml
from plotly.offline import get_plotlyjs

from simulator import units
from simulator.decoding import DecodeResult, Timeline
from simulator.deployment import Deployment
from simulator.figures import breakdown, roofline, serving, speedup, style
from simulator.figures import timeline as timelines
from simulator.output import rows
from simulator.output.report import (
    Block,
    decode_report,
    simulation_sentence,
    simulation_table,
    speculate_report,
    speculate_sentence,
)
from simulator.output.tables import Section
from simulator.planning.crossover import SpeculateResult
from simulator.scenario import Scenario
from simulator.serving.simulation import SimulationResult

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def decode_page(result: DecodeResult, timeline: Timeline | None = None) -> str:
    """A decode step taken apart, as HTML."""
    schedule = timeline or result.timeline()
    tag = style.tag_of(result.deployment)
    return _page(
        title=f"Why is decoding slow? {result.deployment.target.decoder.name} on {result.deployment.gpu.title}",
        verdict=result.verdict,
        conditions=rows.decode_conditions(result),
        tables=_sections(decode_report(result)),
        figures=[
            breakdown.cause_figure(result),
            timelines.pass_figure(schedule, tag),
            timelines.layers_figure(schedule, tag),
            breakdown.operator_figure(result),
            roofline.roofline_figure(result),
            breakdown.memory_figure(result.budget, tag),
        ],
        reproduce=decode_call(result),
    )


def speculate_page(result: SpeculateResult) -> str:
    """Speed-up over batch and γ, as HTML."""
    return _page(
        title=f"What does speculation buy? {result.deployment.target.decoder.name} on {result.deployment.gpu.title}",
        verdict=speculate_sentence(result),
        conditions=rows.speculate_conditions(result),
        tables=_sections(speculate_report(result)),
        figures=[speedup.speedup_figure(result), speedup.gamma_figure(result)],
        reproduce=speculate_call(result),
    )


def simulation_page(result: SimulationResult) -> str:
    """A simulated scenario, as HTML."""
    scenario = result.scenario
    figures = [serving.latency_figure(result, latency) for latency in serving.LATENCIES]
    figures += [serving.load_figure(result), serving.arrivals_figure(result)]
    histogram = serving.tokens_per_round_figure(result)
    if histogram is not None:
        figures.append(histogram)
    figures.append(breakdown.memory_figure(result.main.budget, style.tag_of(result.deployment)))
    return _page(
        title=scenario.title or f"Many users: {scenario.model} on {result.deployment.gpu.title}",
        verdict=simulation_sentence(result) if len(result.runs) > 1 else plain_sentence(result),
        conditions=rows.simulation_conditions(result),
        tables=[Section("", simulation_table(result))],
        figures=figures,
        reproduce=scenario_yaml(scenario),
    )


def plain_sentence(result: SimulationResult) -> str:
    """What users see where nothing speculates."""
    found = result.main.summary
    return (
        f"{found.measured:,} requests: half of them wait at most {units.show(found.ttft_s.p50, 's')} for the first token and "
        f"{units.show(found.tpot_s.p50, 's')} for each token after it; {found.output_tokens_per_s:,.0f} output tokens/s in all."
    )


# --- what reproduces a result -----------------------------------------------------------------------------------------
def scenario_yaml(scenario: Scenario) -> str:
    """The scenario as the YAML file that gives it back; engine, γ and seed are written out even where they are defaults."""
    data = scenario.model_dump(mode="json", exclude_defaults=True)
    data = {**data, "engine": scenario.engine.model_dump(mode="json", exclude_none=True), "seed": scenario.seed}
    if scenario.speculation is not None:
        data["speculation"] = {**data["speculation"], "gamma": scenario.speculation.gamma}
    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100, default_flow_style=None))


def decode_call(result: DecodeResult) -> str:
    """The Python call that gives this step again."""
    arguments = f"batch={result.batch}, context_tokens={result.context_tokens}, new_tokens={result.new_tokens}"
    return f"{_deploy_call(result.deployment)}\nresult = decode(deployment, {arguments})\n"


def speculate_call(result: SpeculateResult) -> str:
    """The Python call that gives this grid again."""
    return (
        f"{_deploy_call(result.deployment)}\n"
        f"acceptance = Acceptance({result.acceptance.rates!r}, {result.acceptance.request_icc!r}, "
        f"{result.acceptance.match_probability!r})\n"
        f"result = speculate(deployment, acceptance, gammas={list(result.gammas)!r}, batches={list(result.batches)!r}, "
        f"context_tokens={result.context_tokens})\n"
    )


def _deploy_call(deployment: Deployment) -> str:
    target = deployment.target
    names = "Acceptance, EngineChoice, Quantization, decode, deploy, speculate"
    changed = target.quantization.model_dump(exclude_defaults=True)
    quantization = ", ".join(f"{k}={v!r}" for k, v in changed.items())
    settings = ", ".join(f"{k}={v!r}" for k, v in deployment.engine.settings.model_dump().items())
    draft = f", draft={deployment.drafter.name!r}" if deployment.drafter else ""
    return (
        f"from simulator import {names}\n\n"
        f"engine = EngineChoice(name={deployment.engine.name!r}, {settings})\n"
        f"deployment = deploy({target.decoder.name!r}, {target.gpu.name!r}, tp={target.tp}, engine=engine, "
        f"link={target.link.name!r}, quantization=Quantization({quantization}){draft})"
    )


# --- HTML -------------------------------------------------------------------------------------------------------------
def _page(
    *,
    title: str,
    verdict: str,
    conditions: Sequence[tuple[str, str]],
    tables: Sequence[Section],
    figures: Sequence[go.Figure],
    reproduce: str,
) -> str:
    assets = resources.files("simulator.figures")
    css, script = ((assets / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    body = [
        f"<h1>{_escape(title)}</h1>",
        f'<p class="verdict">{_escape(verdict)}</p>',
        '<section aria-label="Conditions"><h2>Conditions</h2><dl class="conditions">',
        *(f"<div><dt>{_escape(k)}</dt><dd>{_escape(v)}</dd></div>" for k, v in conditions),
        "</dl></section>",
        '<section aria-label="Results"><h2>Results</h2><div class="tables">',
        *(_section(section) for section in tables),
        "</div></section>",
        '<section aria-label="Figures"><h2>Figures</h2>',
        *(_figure(figure, index) for index, figure in enumerate(figures)),
        "</section>",
        '<section aria-label="Reproduce"><h2>What reproduces this page</h2>',
        f"<pre><code>{_escape(reproduce)}</code></pre></section>",
    ]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{_escape(title)}</title>",
            f"<style>{css}</style>",
            "</head>",
            "<body>",
            "<main>",
            *body,
            "</main>",
            "<footer>memwall: simulated, not measured. Every figure says what its times rest on.</footer>",
            f"<script>{get_plotlyjs()}</script>",
            f"<script>{script}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _figure(figure: go.Figure, index: int) -> str:
    meta = figure.layout.meta
    plot = style.without_title(figure)
    # A "<" inside a script element could end it; JSON may write it as an escape.
    data = str(plot.to_json()).replace("<", "\\u003c")
    return (
        f'<figure aria-labelledby="finding-{index}">'
        f'<figcaption><h3 id="finding-{index}">{_escape(meta["finding"])}</h3><p>{_escape(meta["tag"])}</p></figcaption>'
        f'<div class="scroll"><div class="plot" id="plot-{index}" '
        f'style="height:{plot.layout.height:.0f}px;min-width:{meta["least_width"]}px"></div></div>'
        f'<script type="application/json" data-plot="plot-{index}">{data}</script>'
        "</figure>"
    )


def _sections(report: Sequence[Block]) -> list[Section]:
    """The tables of what the command line prints; a page has its own sentences."""
    return [block for block in report if isinstance(block, Section)]


def _section(section: Section) -> str:
    table = section.table
    title = f"<h3>{_escape(section.title)}</h3>" if section.title else ""
    note = f'<p class="note">{_escape(section.note)}</p>' if section.note else ""
    # Figures in columns must not break; two columns of words may.
    many = len(table.headers) > 2
    head = "".join(f'<th scope="col">{_escape(h)}</th>' for h in table.headers)
    lines = "".join(
        f'<tr><th scope="row">{_escape(row[0])}</th>' + "".join(f"<td>{_escape(c)}</td>" for c in row[1:]) + "</tr>"
        for row in table.rows
    )
    inner = f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"
    return f'<div class="{"wide" if many else "narrow"}">{title}<div class="scroll{" grid" if many else ""}">{inner}</div>{note}</div>'


def _escape(text: str) -> str:
    return html.escape(text, quote=True)
