"""A round of drafting and verifying: what its time goes to, and how many tokens come out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from simulator import units
from simulator.figures import style
from simulator.figures.batch_axis import doublings
from simulator.planning.crossover import Cell
from simulator.speculation.acceptance import Acceptance

_APART, _WIDE = 0.2, 0.36
"""Middle of a bar beside its batch's place, and its width, where neighbouring batches are 1 apart."""
_LABELLED = 10
"""Bars of a distribution that carry their number."""


def round_time_figure(cells: Sequence[Cell], name: str, tag: str) -> go.Figure:
    """Time per token that reaches a user over the batch: a round's by part, over the tokens it yields, beside a plain step's.

    `cells` at rising batches, all drafting `name` (such as "γ = 4").
    """
    places = list(range(len(cells)))
    rounds, what = [(cell.round, cell.fits) for cell in cells], f"a round of {style.text(name)}"
    plains = [(cell.plain, True) for cell in cells]
    bars = [
        _part("drafting", style.ORANGE, -_APART, rounds, [c.round.draft_s for c in cells], what),
        _part("verification", style.BLUE, -_APART, rounds, [c.round.verify_s for c in cells], what),
        _part("host", style.GREY, -_APART, rounds, [c.round.host_s for c in cells], what),
        _part("plain step", style.SKY, _APART, plains, [c.plain.verify_s for c in cells], "a plain step"),
        _part("host, plain", style.YELLOW, _APART, plains, [c.plain.host_s for c in cells], "a plain step"),
    ]
    absent = any(not cell.fits for cell in cells)
    fitting = [cell for cell in cells if cell.fits] or cells
    first, last = fitting[0], fitting[-1]
    ends = [first] if first is last else [first, last]
    shares = [f"{c.round.verify_s / c.round.seconds:.0%}" for c in ends]
    said = f"{shares[0]} of the time at batch {first.round.sequences:,}"
    said += f" and {shares[1]} at batch {last.round.sequences:,}" if len(ends) > 1 else ""
    layout = {
        "barmode": "stack",
        "xaxis": {"title": {"text": "sequences in a batch"}, "tickvals": places, "tickangle": 0, "showgrid": False,
                  "ticktext": doublings([cell.round.sequences for cell in cells]), "range": [-0.5, len(cells) - 0.5]},
        "yaxis": {"title": {"text": "ms per token"}},
        "legend": style.LEGEND_AT_FOOT,
    }  # fmt: skip
    return style.drawn(
        bars, layout, finding=f"In a round of {name}, verification takes {said}",
        tag=f"{tag}; left: {name}, a round's time over the tokens it yields; right: plain decoding"
        + ("; hatched: the KV cache does not fit" if absent else ""),
        height=440,
    )  # fmt: skip


def _part(
    name: str, colour: str, beside: float, costs: Sequence[tuple[Any, bool]], parts_s: Sequence[float], what: str
) -> dict[str, Any]:
    return {
        "type": "bar", "name": name, "x": [i + beside for i in range(len(costs))], "width": _WIDE,
        "y": [1e3 * part_s / cost.tokens_per_sequence for (cost, _), part_s in zip(costs, parts_s, strict=True)],
        "marker": {"color": colour, "pattern": {"shape": ["" if fits else "/" for _, fits in costs], "size": 6}},
        "customdata": [
            [f"batch {cost.sequences:,}", units.show(part_s, "s"), part_s / cost.seconds, units.show(cost.seconds, "s"),
             cost.tokens_per_sequence]
            for (cost, _), part_s in zip(costs, parts_s, strict=True)
        ],
        "hovertemplate": f"{name}, %{{customdata[0]}}: %{{y:.3g}} ms per token<br>%{{customdata[1]}}, %{{customdata[2]:.0%}} of "
        f"{what}, which takes %{{customdata[3]}}<br>and yields %{{customdata[4]:.2f}} tokens<extra></extra>",
    }  # fmt: skip


def tokens_figure(law: Acceptance, depth: int, name: str, tag: str) -> go.Figure:
    """How many tokens a round yields: shares of the rounds, averaged over requests, of at most `depth` accepted drafts.

    `law` is of a chain of `depth` drafts or of a tree of that depth, called `name`.
    """
    found = law.match_share(depth)
    kept = (found * law.length_distribution(depth)).tolist()
    mean = 1.0 + sum(x * share for x, share in enumerate(kept))
    whole = [kept[0] + 1.0 - found, *kept[1:]]
    tokens = list(range(1, depth + 2))
    bars = [
        {"type": "bar", "name": "with drafts", "x": tokens, "y": kept, "marker": {"color": style.BLUE},
         "customdata": [[tokens[i] - 1, sum(whole[i:])] for i in range(depth + 1)],
         "hovertemplate": "%{x} tokens, %{customdata[0]} of them drafted: %{y:.1%} of rounds<br>%{x} or more: "
         "%{customdata[1]:.1%}<extra></extra>"}
    ]  # fmt: skip
    if found < 1.0:
        bars.append({
            "type": "bar", "name": "nothing found to draft", "x": [1], "y": [1.0 - found], "marker": {"color": style.GREY},
            "hovertemplate": "nothing to draft, 1 token: %{y:.1%} of rounds<extra></extra>",
        })  # fmt: skip
    if depth < _LABELLED:
        bars.append({
            "type": "scatter", "mode": "text", "x": tokens, "y": whole, "text": [f"{share:.0%}" for share in whole],
            "textposition": "top center", "hoverinfo": "skip", "showlegend": False, "cliponaxis": False,
        })  # fmt: skip
    highest = max(whole) * 1.2
    layout = {
        "barmode": "stack",
        "xaxis": {"title": {"text": f"tokens per round (at most {depth + 1})"}, "range": [0.4, depth + 1.6],
                  "dtick": 1 if depth <= 12 else 4, "tick0": 1 if depth <= 12 else 0, "showgrid": False},
        "yaxis": {"title": {"text": "share of rounds"}, "tickformat": ".0%", "range": [0, highest]},
        "shapes": [{"type": "line", "x0": mean, "x1": mean, "yref": "y domain", "y0": 0, "y1": 1,
                    "line": {"color": style.VERMILLION, "dash": "dot", "width": 2}}],
        "annotations": [{"x": mean, "y": 1, "yref": "y domain", "yanchor": "bottom", "showarrow": False,
                         "text": f"mean: {mean:.2f}", "font": {"size": 12}}],
        "showlegend": found < 1.0, "legend": style.LEGEND_AT_FOOT,
    }  # fmt: skip
    live = law.live_tokens(depth)
    unlike = (
        f"; averaged over requests; over the rounds of a full batch {live:.2f}, as the unlucky take more rounds"
        if abs(live / mean - 1.0) > 0.005
        else ""
    )
    return style.drawn(
        bars, layout, finding=f"A round of {name} yields {mean:.2f} tokens on average; {whole[-1]:.0%} of rounds yield all "
        f"{depth + 1}, {whole[0]:.0%} only one",
        tag=tag + unlike, height=340,
    )  # fmt: skip
