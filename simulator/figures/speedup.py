"""When does speculation stop paying? Speed-up over the batch, and over batch and γ."""

from __future__ import annotations

import math

import plotly.graph_objects as go

from simulator.figures import style
from simulator.planning.crossover import LARGEST_BATCH, SpeculateResult

_CELL_PX = 44
_COLOURS = [[0.0, "#D6604D"], [0.25, "#F4A582"], [0.5, "#F7F7F7"], [0.75, "#92C5DE"], [1.0, "#4393C3"]]
"""Red below break-even, blue above, white at it; safe for colour-blind readers (ColorBrewer RdBu without its darkest
ends, so that dark figures can be read in every cell)."""


def speedup_figure(result: SpeculateResult) -> go.Figure:
    """Speed-up against batch, one line per γ, crossovers marked."""
    figure = go.Figure()
    batches = list(result.batches)
    crossings: list[tuple[int, int, str]] = []
    ends = [result.intervals[batch] for batch in batches]
    highest = max(*(cell.speedup for cell in result.cells.values()), *(end.high for end in ends))
    figure.add_scatter(
        x=[*batches, *batches[::-1]], y=[*(e.high for e in ends), *(e.low for e in ends[::-1])], fill="toself",
        mode="lines", line={"width": 0}, fillcolor=style.BAND, name="90 % interval of the best γ", hoverinfo="skip",
    )  # fmt: skip
    for index, gamma in enumerate(result.gammas):
        look = style.series_style(index)
        cells = [result.cells[gamma, batch] for batch in batches]
        figure.add_scatter(
            x=batches, y=[cell.speedup for cell in cells], mode="lines+markers", name=f"γ = {gamma}", **look,
            customdata=[[c.round.tokens_per_sequence, c.round.tpot_s * 1e3, c.plain.tpot_s * 1e3,
                         "" if c.fits else "<br>the KV cache does not fit"] for c in cells],
            hovertemplate=f"γ = {gamma}, batch %{{x}}: %{{y:.2f}} × faster<br>%{{customdata[0]:.2f}} tokens per round<br>"
            "%{customdata[1]:.2f} ms per token, without %{customdata[2]:.2f} ms%{customdata[3]}<extra></extra>",
        )  # fmt: skip
        end = result.crossover(gamma)
        if end:
            crossings.append((gamma, end, style.SERIES_COLOURS[index % len(style.SERIES_COLOURS)]))
    shown = [c for c in crossings if c[1] <= 4 * batches[-1]]
    for index, (gamma, end, colour) in enumerate(shown):
        figure.add_scatter(
            x=[end], y=[1.0], mode="markers", name="last batch that pays", showlegend=index == 0,
            marker={"color": colour, "size": 15, "symbol": "circle-open", "line": {"width": 2.5}},
            hovertemplate=f"γ = {gamma} pays up to batch {end}<extra></extra>",
        )  # fmt: skip
    _shade_where_nothing_fits(figure, result)
    low, high = batches[0], max([batches[-1], *(end for _, end, _ in shown)])
    style.speedup_over_batches(figure, low, high, top=highest * 1.1)
    style.finish(figure, finding=_crossover_finding(result), tag=_tag(result), height=480)
    return style.legend_below(figure, offset=-0.18)


def gamma_figure(result: SpeculateResult) -> go.Figure:
    """Heatmap of speed-up over batch and γ; the best γ of each batch is outlined, what does not fit is hatched."""
    columns, rows = [f"{b:,}" for b in result.batches], [str(g) for g in result.gammas]
    grid = [[result.cells[g, b] for b in result.batches] for g in result.gammas]
    span = max(abs(math.log2(c.speedup)) for line in grid for c in line if c.speedup > 0) or 1.0
    ticks = [span * i / 2 for i in range(-2, 3)]
    figure = go.Figure(
        go.Heatmap(
            x=columns, y=rows,
            z=[[math.log2(c.speedup) if c.fits and c.speedup > 0 else None for c in line] for line in grid],
            text=[[f"{c.speedup:.2f}" if c.fits else "" for c in line] for line in grid],
            texttemplate="%{text}", textfont={"color": style.INK}, zmin=-span, zmax=span, colorscale=_COLOURS, xgap=2, ygap=2, hoverongaps=False,
            customdata=[[c.speedup for c in line] for line in grid],
            hovertemplate="batch %{x}, γ = %{y}: %{customdata:.2f} × plain decoding<extra></extra>",
            colorbar={"title": {"text": "speed-up"}, "tickvals": ticks,
                      "ticktext": [f"{2**t:.2f} ×" for t in ticks], "thickness": 14, "outlinewidth": 0},
        )
    )  # fmt: skip
    for i, line in enumerate(grid):
        for j, cell in enumerate(line):
            if not cell.fits:
                _hatch(figure, i, j)
    for j, batch in enumerate(result.batches):
        best = result.best_gamma(batch)
        if best and result.cells[best, batch].fits:
            i = result.gammas.index(best)
            figure.add_shape(
                type="rect",
                x0=j - 0.48,
                x1=j + 0.48,
                y0=i - 0.46,
                y1=i + 0.46,
                line={"color": style.ORANGE, "width": 4},
            )
    signs = "; outlined: best γ of its batch"
    if not all(c.fits for line in grid for c in line):
        signs += "; hatched: the KV cache does not fit"
    figure.update_xaxes(title="sequences in a batch", type="category", showgrid=False)
    figure.update_yaxes(title="γ, drafted per round", type="category", showgrid=False)
    return style.finish(
        figure, finding=_gamma_finding(result), tag=_tag(result) + signs, height=max(300, 130 + 38 * len(rows)),
        least_width=140 + _CELL_PX * len(columns),
    )  # fmt: skip


def _crossover_finding(result: SpeculateResult) -> str:
    """Until which batch the shortest and the longest draft pay."""
    chosen = list(dict.fromkeys((result.gammas[-1], result.gammas[0])))
    ends = {gamma: result.crossover(gamma) for gamma in chosen}
    words = {
        g: "at every batch" if e is None else "at no batch" if e == 0 else f"up to batch {e:,}" for g, e in ends.items()
    }
    if len(set(words.values())) == 1 and len(chosen) > 1:
        return f"γ = {result.gammas[0]} and γ = {result.gammas[-1]} pay {words[chosen[0]]}"
    return ", ".join(f"γ = {g} pays {w}" for g, w in words.items())


def _gamma_finding(result: SpeculateResult) -> str:
    fitting = [b for b in result.batches if any(result.cells[g, b].fits for g in result.gammas)]
    if not fitting:
        return "The KV cache of no batch fits"
    first, last = fitting[0], fitting[-1]
    names = [f"γ = {g}" if (g := result.best_gamma(b)) else "plain decoding" for b in (first, last)]
    gammas = [result.best_gamma(b) for b in (first, last)]
    if gammas[0] < gammas[1]:
        return f"Best is {names[0]} at batch {first}, {names[1]} at {last}"
    if first == last or names[0] == names[1]:
        return (
            f"{names[0]} is best from batch {first} to {last}"
            if first != last
            else f"{names[0]} is best at batch {first}"
        )
    return f"The larger the batch, the shorter the best draft: {names[0]} at batch {first}, {names[1]} at {last}"


def _shade_where_nothing_fits(figure: go.Figure, result: SpeculateResult) -> None:
    full = [b for b in result.batches if not any(result.cells[g, b].fits for g in result.gammas)]
    if not full:
        return
    # A little to the left of the first batch that does not fit, and beyond the right end of the axis.
    figure.add_vrect(
        full[0] / 1.15, 2.0 * LARGEST_BATCH, fillcolor="rgba(128,128,128,0.18)", line_width=0, layer="below"
    )
    figure.add_annotation(
        x=math.log10(full[0] / 1.1), y=0, xanchor="left", yanchor="bottom", showarrow=False, text="the KV cache does not fit",
        font={"size": 12}, textangle=-90,
    )  # fmt: skip


def _hatch(figure: go.Figure, i: int, j: int) -> None:
    box = {"x0": j - 0.46, "x1": j + 0.46, "y0": i - 0.44, "y1": i + 0.44}
    figure.add_shape(type="rect", **box, line={"width": 0}, fillcolor="rgba(128,128,128,0.25)", layer="below")
    figure.add_shape(type="line", **box, line={"color": style.REFERENCE, "width": 1})


def _tag(result: SpeculateResult) -> str:
    return f"{style.tag_of(result.deployment)}; context {result.context_tokens} tokens"
