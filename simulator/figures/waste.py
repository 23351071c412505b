"""What speculation wastes: drafts that reach nobody, and the FLOP, bytes and energy they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from simulator import units
from simulator.figures import style
from simulator.figures.batch_axis import batch_axis, break_even
from simulator.planning.crossover import Cell
from simulator.speculation.round import RoundCost

_SHARE_IN_BAR = 0.08
"""Smallest part of the longest bar in which its number can be read."""
_MOST_EVEN = 4.0
"""Share of plain decoding's up to which an even scale shows the other lines too."""


def drafted_figure(rounds: Mapping[str, RoundCost], axis: str, tag: str) -> go.Figure:
    """Tokens of a round by what becomes of them, for each of the named `rounds`, such as by γ or by nodes; `axis` says what
    the names are."""
    names, costs = list(rounds), list(rounds.values())
    kept = [cost.tokens_per_sequence - 1.0 for cost in costs]
    wasted = [cost.wasted_tokens_per_sequence for cost in costs]
    highest = max(1.0 + k + w for k, w in zip(kept, wasted, strict=True))
    bars = [
        _tokens("the target's own token", style.GREY, names, [1.0] * len(costs), costs, highest),
        _tokens("drafts that reach the user", style.BLUE, names, kept, costs, highest),
        _tokens("wasted drafts", style.VERMILLION, names, wasted, costs, highest),
    ]
    some = [i for i, cost in enumerate(costs) if cost.drafted_per_sequence > 0.0]
    shares = [
        (_number(costs[i].drafted_per_sequence), f"{kept[i] / costs[i].drafted_per_sequence:.0%}")
        for i in dict.fromkeys((*some[:1], *some[-1:]))
    ]
    finding = "; ".join(
        f"of {drafted}, {share}" if k else f"Of {drafted} drafted per round, {share} reach the user"
        for k, (drafted, share) in enumerate(shares)
    )
    layout = {
        "barmode": "stack",
        "xaxis": {"title": {"text": axis}, "type": "category", "showgrid": False},
        "yaxis": {"title": {"text": "tokens per round and sequence"}},
        "legend": style.LEGEND_AT_FOOT,
    }
    return style.drawn(
        bars, layout, finding=finding or "Nothing is drafted", tag=tag, height=400
    )  # fmt: skip


def _tokens(
    name: str, colour: str, names: list[str], tokens: list[float], costs: list[RoundCost], highest: float
) -> dict[str, Any]:
    drafted = [cost.drafted_per_sequence for cost in costs]
    return {
        "type": "bar", "name": name, "x": names, "y": tokens, "marker": {"color": colour},
        "text": [f"{t:.2f}" if t >= _SHARE_IN_BAR * highest else "" for t in tokens], "textposition": "inside",
        "textangle": 0, "insidetextanchor": "middle", "insidetextfont": {"color": "#ffffff"}, "constraintext": "none",
        "customdata": [[d, cost.tokens_per_sequence] for d, cost in zip(drafted, costs, strict=True)],
        "hovertemplate": f"%{{x}}, {name}: %{{y:.2f}} per round<br>%{{customdata[0]:.2f}} drafted, %{{customdata[1]:.2f}} tokens reach "
        "the user<extra></extra>",
    }  # fmt: skip


def _number(drafted: float) -> str:
    return f"{drafted:,.0f}" if abs(drafted - round(drafted)) < 0.005 else f"{drafted:,.2f}"


class _Line(NamedTuple):
    name: str
    shares: list[float]
    """Of what plain decoding spends per token."""
    amounts: list[str]
    colour: str
    dash: str = "solid"


def waste_figure(cells: Sequence[Cell], name: str, tag: str) -> go.Figure:
    """What each token that reaches a user wastes, over the batch, beside what plain decoding spends on a token; and all the
    energy that speculation takes.

    `cells` at rising batches, all drafting `name` (such as "γ = 4"), best with their work known (`SpeculateResult.at_each_batch`).
    """
    batches = [cell.round.sequences for cell in cells]
    flop = [cell.round.wasted_flop_per_token for cell in cells]
    moved = [cell.round.wasted_bytes_per_token for cell in cells]
    wasted_j = [cell.round.wasted_joules_per_token for cell in cells]
    all_j = [cell.round.joules_per_token for cell in cells]
    plain_flop = [cell.plain.work.plain.flop / cell.plain.sequences for cell in cells]
    plain_bytes = [cell.plain.bytes_per_token for cell in cells]
    plain_j = [cell.plain.joules_per_token for cell in cells]
    lines = [
        _Line("wasted FLOP", _over(flop, plain_flop), [units.show(v, "flop") for v in flop], style.VERMILLION),
        _Line("wasted bytes", _over(moved, plain_bytes), [units.show(v, "bytes") for v in moved], style.BLUE),
        _Line("wasted energy", _over(wasted_j, plain_j), [f"{v:.3g} J" for v in wasted_j], style.ORANGE),
        _Line("all energy", _over(all_j, plain_j), [f"{v:.3g} J" for v in all_j], style.ORANGE, "dash"),
    ]
    traces = [
        {"type": "scatter", "mode": "lines+markers", "name": line.name, "x": batches, "y": line.shares,
         "line": {"color": line.colour, "width": 2.5, "dash": line.dash},
         "marker": {"color": line.colour, "size": 8, "symbol": symbol},
         "customdata": [[amount, "" if cell.fits else "<br>the KV cache does not fit"]
                        for amount, cell in zip(line.amounts, cells, strict=True)],
         "hovertemplate": f"{line.name}, batch %{{x:,}}: %{{customdata[0]}} per token,<br>%{{y:.1%}} of plain decoding's%{{customdata[1]}}"
         "<extra></extra>"}
        for line, symbol in zip(lines, style.SERIES_SYMBOLS, strict=False)
    ]  # fmt: skip
    layout = {
        "xaxis": batch_axis(batches[0], batches[-1]),
        "yaxis": {
            "title": {"text": "per token, relative to plain decoding"},
            "tickformat": ".0%",
            **_scale([share for line in lines for share in line.shares]),
        },
        "shapes": [break_even()],
        "legend": style.LEGEND_AT_FOOT,
    }
    energy = lines[-1].shares
    fitting = [i for i, cell in enumerate(cells) if cell.fits] or list(range(len(cells)))
    ends = list(dict.fromkeys((fitting[0], fitting[-1])))
    said = " and ".join(f"{energy[i]:.0%} at batch {batches[i]:,}" for i in ends)
    return style.drawn(
        traces, layout, finding=f"Waste included, a token of {name} takes {said} of plain decoding's energy",
        tag=f"{tag}; energy: TDP times time, an estimate", height=440,
    )  # fmt: skip


def _scale(shares: list[float]) -> dict[str, Any]:
    """From zero on; logarithmic where a tree wastes so many times what plain decoding takes that nothing else could be read."""
    if max(shares) <= _MOST_EVEN or min(shares) <= 0.0:
        return {"rangemode": "tozero"}
    return {"type": "log", "dtick": 1, "minor": {"dtick": "D1", "showgrid": False}}


def _over(values: list[float], plain: list[float]) -> list[float]:
    return [value / base if base > 0.0 else 0.0 for value, base in zip(values, plain, strict=True)]
