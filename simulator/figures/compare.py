"""Drafters side by side: speed-up against batch, and the page of `memwall compare`."""

from __future__ import annotations

import plotly.graph_objects as go

from simulator.figures import style
from simulator.figures.html_page import HtmlPart, html_page
from simulator.output import rows
from simulator.output.compare_report import drafts_text, tables, verdict
from simulator.planning.which_drafter import Comparison


def compare_figure(found: Comparison) -> go.Figure:
    """Speed-up of each drafter's best drafts against batch; a band around the fastest of each batch."""
    figure = go.Figure()
    batches = list(found.batches)
    ends = [(b, winner.choices[b].interval) for b in batches if (winner := found.winner(b)) is not None]
    if len(ends) > 1:
        figure.add_scatter(
            x=[*(b for b, _ in ends), *(b for b, _ in reversed(ends))],
            y=[*(e.high for _, e in ends), *(e.low for _, e in reversed(ends))], fill="toself", mode="lines",
            line={"width": 0}, fillcolor=style.BAND, name="90 % interval of the fastest", hoverinfo="skip",
        )  # fmt: skip
    highest = 1.0
    for index, one in enumerate(found.compared):
        look = style.series_style(index)
        choices = [one.choices[b] for b in batches]
        symbol = style.SERIES_SYMBOLS[index % len(style.SERIES_SYMBOLS)]
        highest = max(highest, *(c.speedup for c in choices), *(c.interval.high for c in choices))
        figure.add_scatter(
            x=batches, y=[c.speedup for c in choices], mode="lines+markers", name=style.text(one.name), **look,
            marker_symbol=[symbol if c.priced.fits else f"{symbol}-open" for c in choices],
            customdata=[
                [drafts_text(c), c.priced.round.tokens_per_sequence, c.interval.low, c.interval.high, c.cost_ratio,
                 "" if c.priced.fits else "<br>the KV cache does not fit"]
                for c in choices
            ],
            hovertemplate=f"{style.text(one.title)}<br>batch %{{x}}, %{{customdata[0]}}: %{{y:.2f}} × plain decoding "
            "(90 %: %{customdata[2]:.2f} to %{customdata[3]:.2f})<br>%{customdata[1]:.2f} tokens per round, "
            "cost per token %{customdata[4]:.2f} × plain%{customdata[5]}<extra></extra>",
        )  # fmt: skip
    low, high = batches[0], batches[-1]
    style.speedup_over_batches(figure, low, high, top=highest * 1.08)
    tag = f"{style.tag_of(found.deployment)}; context {found.context_tokens} tokens; each drafter at its best drafts, acceptance from "
    tag += found.texts[0] if len(found.texts) == 1 else "different texts: " + "; ".join(found.texts)
    if any(not c.priced.fits for one in found.compared for c in one.choices.values()):
        tag += "; open marks: more sequences than the KV cache holds"
    style.finish(figure, finding=_finding(found), tag=tag, height=460)
    return style.legend_below(figure, offset=-0.18)


def compare_page(found: Comparison, reproduce: str = "memwall compare") -> str:
    """The comparison as HTML."""
    target = found.deployment.target
    tried = f"γ = {', '.join(map(str, found.gammas))}"
    if found.trees:
        tried += f"; trees of {', '.join(map(str, found.trees))} nodes"
    part = HtmlPart(
        title=f"Which speculative method? {target.decoder.name} on {rows.gpus_text(found.deployment)}",
        verdict=verdict(found),
        conditions=[
            *rows.deployment_rows(found.deployment), ("context", f"{found.context_tokens:,} tokens each"), ("drafts tried", tried),
        ],
        tables=tables(found),
        figures=[compare_figure(found)],
        notes=[f"{one.name}: {one.title}." for one in found.compared],
    )  # fmt: skip
    return html_page([part], reproduce)


def _finding(found: Comparison) -> str:
    """Who is fastest at both ends of what the KV cache holds."""
    batches = [batch for batch in found.batches if found.plain[batch].fits]
    if not batches:
        return "The KV cache holds none of these batches"
    first, last = batches[0], batches[-1]
    names = ["plain decoding" if (one := found.winner(b)) is None else one.name for b in (first, last)]
    if first == last:
        return f"At batch {first:,} {names[0]} is fastest"
    if names[0] == names[1]:
        throughout = len({found.winner(b) for b in batches}) == 1
        return f"{names[0]} is fastest at batch {first:,} {'to' if throughout else 'and'} {last:,}"
    return f"{names[0]} is fastest at batch {first:,}, {names[1]} at {last:,}"
