"""When does speculation stop paying? Speed-up over the batch, one line per γ."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import plotly.graph_objects as go

from simulator.figures import style
from simulator.figures.batch_axis import speedup_layout
from simulator.planning.crossover import LARGEST_BATCH, SpeculateResult

_LABEL_SHARE = 0.22
"""What a label of a crossover takes of the axis on a phone."""
_ROWS, _ROW_SHARE = 4, 0.07
"""Rows of such labels below zero, and the height of one as a share of the speed-ups'."""


class _Crossing(NamedTuple):
    gamma: int
    batch: int
    colour: str


def speedup_figure(result: SpeculateResult) -> go.Figure:
    """Speed-up against batch, one line per γ, crossovers marked and, as far as there is room, named."""
    batches = list(result.batches)
    ends = [result.intervals[batch] for batch in batches]
    top = 1.1 * max(*(cell.speedup for cell in result.cells.values()), *(end.high for end in ends))
    traces: list[dict[str, Any]] = [
        {"type": "scatter", "x": [*batches, *batches[::-1]], "y": [*(e.high for e in ends), *(e.low for e in ends[::-1])],
         "fill": "toself", "mode": "lines", "line": {"width": 0}, "fillcolor": style.BAND,
         "name": "90 % interval of the best γ", "hoverinfo": "skip", "showlegend": False}
    ]  # fmt: skip
    crossings = []
    for index, gamma in enumerate(result.gammas):
        cells = [result.cells[gamma, batch] for batch in batches]
        traces.append({
            "type": "scatter", "x": batches, "y": [cell.speedup for cell in cells], "mode": "lines+markers",
            "name": f"γ = {gamma}", **style.series_style(index),
            "customdata": [[c.round.tokens_per_sequence, c.round.tpot_s * 1e3, c.plain.tpot_s * 1e3,
                            "" if c.fits else "<br>the KV cache does not fit"] for c in cells],
            "hovertemplate": f"γ = {gamma}, batch %{{x}}: %{{y:.2f}} × faster<br>%{{customdata[0]:.2f}} tokens per round<br>"
            "%{customdata[1]:.2f} ms per token, without %{customdata[2]:.2f} ms%{customdata[3]}<extra></extra>",
        })  # fmt: skip
        end = result.crossover(gamma)
        if end and end <= min(4 * batches[-1], result.room(gamma)):
            crossings.append(_Crossing(gamma, end, style.SERIES_COLOURS[index % len(style.SERIES_COLOURS)]))
    low, high = batches[0], max([batches[-1], *(c.batch for c in crossings)])
    layout = speedup_layout(low, high, top)
    signs = ["grey: 90 % interval of the best γ"]
    if crossings:
        named = _places(crossings, layout["xaxis"]["range"])
        traces += _crossover_marks(crossings, named, top)
        lowest = -_ROW_SHARE * top * (1 + max(row for _, row in named))
        layout["yaxis"] |= {"range": [lowest, top], "tickvals": _ticks(top)}
        signs.append("circles: last batch that pays")
    _shade_where_nothing_fits(layout, result, top)
    layout["legend"] = style.LEGEND_AT_FOOT
    return style.drawn(traces, layout, finding=_finding(result), tag="; ".join([_tag(result), *signs]), height=520)


def _crossover_marks(
    crossings: list[_Crossing], named: list[tuple[_Crossing, int]], top: float
) -> list[dict[str, Any]]:
    """Circles at the crossings, and a line from each of the `named` down to its name in the row given."""
    rings = {
        "type": "scatter", "x": [c.batch for c in crossings], "y": [1.0] * len(crossings), "mode": "markers",
        "name": "last batch that pays", "showlegend": False,
        "marker": {"color": [c.colour for c in crossings], "size": 15, "symbol": "circle-open", "line": {"width": 2.5}},
        "customdata": [c.gamma for c in crossings],
        "hovertemplate": "γ = %{customdata} pays up to batch %{x:,}<extra></extra>",
    }  # fmt: skip
    heights = [-top * _ROW_SHARE * (row + 0.5) for _, row in named]
    drops = {
        "type": "scatter", "x": [x for c, _ in named for x in (c.batch, c.batch, None)],
        "y": [y for height in heights for y in (1.0, height + 0.4 * _ROW_SHARE * top, None)], "mode": "lines",
        "line": {"color": style.REFERENCE, "width": 1, "dash": "dot"}, "hoverinfo": "skip", "showlegend": False,
    }  # fmt: skip
    names = {
        "type": "scatter", "x": [c.batch for c, _ in named], "y": heights, "mode": "text",
        "text": [f"γ {c.gamma}: {c.batch:,}" for c, _ in named], "textfont": {"size": 12}, "cliponaxis": False, "hoverinfo": "skip",
        "showlegend": False,
    }  # fmt: skip
    return [drops, rings, names]


def _places(crossings: list[_Crossing], span: list[float]) -> list[tuple[_Crossing, int]]:
    """The crossings that can be named, and the row of each; a name stands in the middle of its line."""
    width = span[1] - span[0]
    ends = [-math.inf] * _ROWS  # of the last name in each row, as shares of the axis
    found = []
    for crossing in sorted(crossings, key=lambda c: c.batch):
        at = (math.log10(crossing.batch) - span[0]) / width
        row = next((row for row, end in enumerate(ends) if at - _LABEL_SHARE / 2 >= end), None)
        if row is not None:
            ends[row] = at + _LABEL_SHARE / 2
            found.append((crossing, row))
    return found


def _ticks(top: float) -> list[float]:
    """Round speed-ups from 0 on, at most seven."""
    step = next(step for step in (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, top) if top <= 7 * step)
    return [step * i for i in range(int(top / step) + 1)]


def _finding(result: SpeculateResult) -> str:
    """Until which of the batches that fit the shortest and the longest draft pay."""
    chosen = list(dict.fromkeys((result.gammas[-1], result.gammas[0])))
    words = {gamma: _until(result, gamma) for gamma in chosen}
    if len(set(words.values())) == 1 and len(chosen) > 1:
        return f"γ = {result.gammas[0]} and γ = {result.gammas[-1]} pay {words[chosen[0]]}"
    return ", ".join(f"γ = {g} pays {w}" for g, w in words.items())


def _until(result: SpeculateResult, gamma: int) -> str:
    end = result.pays_up_to(gamma)
    return (
        "at no batch"
        if end == 0
        else "at every batch that fits"
        if end == result.room(gamma)
        else f"up to batch {end:,}"
    )


def _shade_where_nothing_fits(layout: dict[str, Any], result: SpeculateResult, top: float) -> None:
    full = [b for b in result.batches if not any(result.cells[g, b].fits for g in result.gammas)]
    if not full:
        return
    # A little to the left of the first batch that does not fit, and beyond the right end of the axis.
    layout["shapes"].append(
        {"type": "rect", "x0": full[0] / 1.15, "x1": 2.0 * LARGEST_BATCH, "yref": "y domain", "y0": 0, "y1": 1,
         "fillcolor": "rgba(128,128,128,0.18)", "line": {"width": 0}, "layer": "below"}
    )  # fmt: skip
    layout["annotations"].append(
        {"x": math.log10(full[0] / 1.1), "y": 0.02 * top, "xanchor": "left", "yanchor": "bottom", "showarrow": False,
         "text": "the KV cache does not fit", "font": {"size": 12}, "textangle": -90}
    )  # fmt: skip


def _tag(result: SpeculateResult) -> str:
    return f"{style.tag_of(result.deployment)}; context {result.context_tokens} tokens"
