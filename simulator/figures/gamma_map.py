"""Speed-up over batch and γ as a map: where speculation pays, and which γ is best at each batch."""

from __future__ import annotations

import math
from typing import Any

import plotly.graph_objects as go

from simulator.figures import style
from simulator.planning.crossover import Cell, SpeculateResult

_CELL_PX = 44
_COLOURS = [[0.0, "#D6604D"], [0.25, "#F4A582"], [0.5, "#F7F7F7"], [0.75, "#92C5DE"], [1.0, "#4393C3"]]
"""Red below break-even, blue above, white at it; safe for colour-blind readers (ColorBrewer RdBu without its darkest
ends, so that dark figures can be read in every cell)."""


def gamma_figure(result: SpeculateResult) -> go.Figure:
    """Heatmap of speed-up over batch and γ, with the line at 1.0; the best γ of each batch is outlined, what does not fit is
    hatched."""
    columns, rows = [f"{b:,}" for b in result.batches], [str(g) for g in result.gammas]
    grid = [[result.cells[g, b] for b in result.batches] for g in result.gammas]
    span = max(abs(math.log2(c.speedup)) for line in grid for c in line if c.speedup > 0) or 1.0
    ticks = [span * i / 2 for i in range(-2, 3)]
    heat = {
        "type": "heatmap", "x": columns, "y": rows,
        "z": [[math.log2(c.speedup) if c.fits and c.speedup > 0 else None for c in line] for line in grid],
        "text": [[f"{c.speedup:.2f}" if c.fits else "" for c in line] for line in grid],
        "texttemplate": "%{text}", "textfont": {"color": style.INK}, "zmin": -span, "zmax": span, "colorscale": _COLOURS,
        "xgap": 2, "ygap": 2, "hoverongaps": False,
        "customdata": [[[c.speedup, c.round.tpot_s * 1e3, c.plain.tpot_s * 1e3] for c in line] for line in grid],
        "hovertemplate": "batch %{x}, γ = %{y}: %{customdata[0]:.2f} × plain decoding<br>%{customdata[1]:.2f} ms per token, "
        "without speculation %{customdata[2]:.2f} ms<extra></extra>",
        "colorbar": {"title": {"text": "speed-up"}, "tickvals": ticks, "ticktext": [f"{2**t:.2f} ×" for t in ticks],
                     "thickness": 14, "outlinewidth": 0},
    }  # fmt: skip
    shapes, signs = _marks(result, grid)
    layout = {
        "xaxis": {"title": {"text": "sequences in a batch"}, "type": "category", "showgrid": False},
        "yaxis": {"title": {"text": "γ, drafted per round"}, "type": "category", "showgrid": False},
        "shapes": shapes,
    }
    return style.drawn(
        [heat], layout, finding=_finding(result),
        tag="; ".join([f"{style.tag_of(result.deployment)}; context {result.context_tokens} tokens", *signs]),
        height=max(300, 130 + 38 * len(rows)), least_width=140 + _CELL_PX * len(columns),
    )  # fmt: skip


def _marks(result: SpeculateResult, grid: list[list[Cell]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Shapes over the map, one per sign whatever the number of cells, and what each sign means."""
    shapes, signs = [], []
    absent = [(i, j) for i, line in enumerate(grid) for j, cell in enumerate(line) if not cell.fits]
    if absent:
        boxes = "".join(_box(i, j, 0.46, 0.44) for i, j in absent)
        strokes = "".join(f"M{j - 0.46},{i - 0.44}L{j + 0.46},{i + 0.44}" for i, j in absent)
        grey = {"fillcolor": "rgba(128,128,128,0.25)", "line": {"width": 0}, "layer": "below"}
        shapes.append({"type": "path", "name": "does not fit", "path": boxes, **grey})
        shapes.append({"type": "path", "path": strokes, "line": {"color": style.REFERENCE, "width": 1}})
    edges = _break_even(grid)
    if edges:
        shapes.append({"type": "path", "name": "break-even", "path": edges, "line": {"color": style.GREEN, "width": 4}})
        signs.append("green line: 1.0 ×")
    best = [
        (result.gammas.index(gamma), j)
        for j, batch in enumerate(result.batches)
        if (gamma := result.best_gamma(batch)) and result.cells[gamma, batch].fits
    ]
    if best:
        outlines = "".join(_box(i, j, 0.46, 0.44) for i, j in best)
        line = {"color": style.ORANGE, "width": 4}
        shapes.append({"type": "path", "name": "best γ", "path": outlines, "line": line})
        signs.append("outlined: best γ of its batch")
    if absent:
        signs.append("hatched: the KV cache does not fit")
    return shapes, signs


def _box(i: int, j: int, wide: float, high: float) -> str:
    left, right, low, top = j - wide, j + wide, i - high, i + high
    return f"M{left},{low}L{right},{low}L{right},{top}L{left},{top}Z"


def _break_even(grid: list[list[Cell]]) -> str:
    """The border between cells that pay and cells that don't, as an SVG path."""
    pays = [[cell.speedup > 1.0 if cell.fits else None for cell in line] for line in grid]
    path = ""
    for i, line in enumerate(pays):
        for j, paying in enumerate(line):
            right = line[j + 1] if j + 1 < len(line) else None
            above = pays[i + 1][j] if i + 1 < len(pays) else None
            if None not in (paying, right) and paying != right:
                path += f"M{j + 0.5},{i - 0.5}L{j + 0.5},{i + 0.5}"
            if None not in (paying, above) and paying != above:
                path += f"M{j - 0.5},{i + 0.5}L{j + 0.5},{i + 0.5}"
    return path


def _finding(result: SpeculateResult) -> str:
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
