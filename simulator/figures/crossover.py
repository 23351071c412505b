"""Maps of speculation: speed-up over load and drafts, the best drafts over load and context, crossings, and the closed form
against simulation."""

from __future__ import annotations

import math

import numpy as np
import plotly.graph_objects as go

from simulator.figures import style
from simulator.operators import FloatArray
from simulator.planning.load_map import LEAST_GAIN, LoadMap
from simulator.planning.simulated_map import SimulatedMap, steps_apart

_CELL_PX = 46
_COLOURS = [[0.0, "#D6604D"], [0.25, "#F4A582"], [0.5, "#F7F7F7"], [0.75, "#92C5DE"], [1.0, "#4393C3"]]
"""As of `figures.speedup`: red below break-even, blue above, white at it."""
_STEPS = ["#F7F7F7", "#DEEBF7", "#BDD7E7", "#9ECAE1", "#6BAED6", "#4292C6", "#FDD0A2", "#FDAE6B", "#F79646"]
"""Plain decoding, then more and more drafts; light enough for dark figures in every cell."""


def speed_map(found: LoadMap, work: int, simulated: SimulatedMap | None = None) -> go.Figure:
    """Heat map of speed-up over load and drafts at one context, simulated where a simulation is given; the best way of each load
    is outlined, loads that are not carried are hatched, and a line is drawn where 1 is crossed."""
    speed = found.speedup[:, work] if simulated is None else simulated.speedup[:, work]
    columns, rows = [_load(found, v) for v in found.axis.values], [d.name for d in found.draftings]
    with np.errstate(invalid="ignore", divide="ignore"):
        z = np.log2(speed)
    known = z[np.isfinite(z)]
    span = float(np.abs(known).max()) if len(known) else 1.0
    span = span or 1.0
    ticks = [span * i / 2 for i in range(-2, 3)]
    carried = (
        found.carried[:, work] & found.plain_states[work].carried if simulated is None else _carried(simulated, work)
    )
    figure = go.Figure(
        go.Heatmap(
            x=columns, y=rows, z=[[v if math.isfinite(v) else None for v in line] for line in z.tolist()],
            text=[[f"{v:.2f}" if math.isfinite(v) else "" for v in line] for line in speed.tolist()],
            texttemplate="%{text}", textfont={"color": style.INK}, zmin=-span, zmax=span, colorscale=_COLOURS, xgap=2, ygap=2,
            hoverongaps=False, customdata=[[v if math.isfinite(v) else None for v in line] for line in speed.tolist()],
            hovertemplate="%{y}, %{x}: %{customdata:.2f} × plain decoding<extra></extra>",
            colorbar={"title": {"text": "speed-up"}, "tickvals": ticks, "ticktext": [f"{2**t:.2f} ×" for t in ticks],
                      "thickness": 14, "outlinewidth": 0},
        )
    )  # fmt: skip
    for i in range(len(rows)):
        for k in range(len(columns)):
            if not carried[i, k]:
                _hatch(figure, i, k)
    _break_even(figure, speed)
    filled = np.nan_to_num(speed)
    for k in range(len(columns)):
        i = int(filled[:, k].argmax())
        if filled[i, k] > LEAST_GAIN:
            figure.add_shape(
                type="rect",
                x0=k - 0.47,
                x1=k + 0.47,
                y0=i - 0.45,
                y1=i + 0.45,
                line={"color": style.ORANGE, "width": 4},
            )
    figure.update_xaxes(title=_axis(found), type="category", showgrid=False, tickangle=0)
    figure.update_yaxes(type="category", showgrid=False)
    context = f"context {found.works[work].context_tokens:,.0f} tokens"
    how = "closed form" if simulated is None else f"simulated, {simulated.requests:,} requests per cell"
    signs = "outlined: best of its load; dark line: as fast as plain decoding"
    if not carried.all():
        signs += "; hatched: not carried, requests/s compared"
    return style.finish(
        figure, finding=_map_finding(found, work, speed, how), tag=f"{style.tag_of(found.deployment)}; {how}; {context}; {signs}",
        height=max(300, 130 + 34 * len(rows)), least_width=170 + _CELL_PX * len(columns),
    )  # fmt: skip


def best_map(found: LoadMap) -> go.Figure:
    """The best way to draft over load and context; blank where none pays."""
    columns = [_load(found, v) for v in found.axis.values]
    rows = [f"{w.context_tokens:,.0f}" for w in found.works]
    ways = len(found.draftings)
    z = found.best + 1
    names = ["plain", *(d.name for d in found.draftings)]
    colours = [_STEPS[0], *(_STEPS[1 + round(i * (len(_STEPS) - 2) / max(1, ways - 1))] for i in range(ways))]
    scale = []
    for i, colour in enumerate(colours):
        scale += [[i / len(colours), colour], [(i + 1) / len(colours), colour]]
    gain = np.nanmax(np.nan_to_num(found.speedup), axis=0)
    figure = go.Figure(
        go.Heatmap(
            x=columns, y=rows, z=z, zmin=-0.5, zmax=ways + 0.5, colorscale=scale, showscale=False, xgap=2, ygap=2,
            text=[[_short(names[i]) for i in line] for line in z.tolist()], texttemplate="%{text}", textfont={"color": style.INK},
            customdata=np.dstack([np.array(names)[z], np.maximum(gain, 1.0)]),
            hovertemplate="%{x}, context %{y}: %{customdata[0]}, %{customdata[1]:.2f} ×<extra></extra>",
        )
    )  # fmt: skip
    figure.update_xaxes(title=_axis(found), type="category", showgrid=False, tickangle=0)
    figure.update_yaxes(title="mean context, tokens", type="category", showgrid=False)
    return style.finish(
        figure, finding=_best_finding(found), tag=f"{style.tag_of(found.deployment)}; closed form; numbers are γ, T is a tree, – plain decoding",
        height=max(260, 130 + 44 * len(rows)), least_width=150 + _CELL_PX * len(columns),
    )  # fmt: skip


def crossing_figure(found: LoadMap) -> go.Figure:
    """The last load at which each way to draft pays, with its 90 % interval, one line per context."""
    figure = go.Figure()
    top = float(found.loads[-1])
    names = [d.name for d in found.draftings]
    for j, work in enumerate(found.works):
        look = style.series_style(j)
        crossings = [found.crossing(i, j) for i in range(len(names))]
        at = [top if c.load is None else c.load for c in crossings]
        low = [top if c.low is None else c.low for c in crossings]
        high = [top if c.high is None else c.high for c in crossings]
        figure.add_scatter(
            x=names, y=at, mode="lines+markers", name=f"context {work.context_tokens:,.0f}", **look,
            error_y={
                "type": "data", "symmetric": False, "array": [max(0.0, h - a) for h, a in zip(high, at, strict=True)],
                "arrayminus": [max(0.0, a - b) for a, b in zip(at, low, strict=True)], "thickness": 1.5, "width": 5,
            },
            customdata=[[_end(top, c.load), _end(top, c.low), _end(top, c.high)] for c in crossings],
            hovertemplate="%{x}: pays up to %{customdata[0]} (90 %: %{customdata[1]} to %{customdata[2]})<extra></extra>",
        )  # fmt: skip
    figure.add_hline(top, line={"color": style.REFERENCE, "dash": "dash", "width": 1.5})
    figure.add_annotation(
        x=0, xref="paper", y=math.log10(top) if top > 0 else 0, xanchor="left", yanchor="bottom", showarrow=False,
        text="end of the map: pays beyond", font={"size": 12},
    )  # fmt: skip
    figure.update_yaxes(
        title=f"last load that pays, {_axis(found)}", type="log", dtick=0.30103, range=_log_range(found)
    )
    figure.update_xaxes(type="category", tickangle=0)
    style.finish(
        figure, finding=_crossing_finding(found), tag=f"{style.tag_of(found.deployment)}; bars: 90 % interval of the times",
        height=460, least_width=110 + 62 * len(names),
    )  # fmt: skip
    return style.legend_below(figure, offset=-0.14)


def agreement_figure(found: LoadMap, simulated: SimulatedMap, work: int) -> go.Figure:
    """Speed-up over load: lines in closed form, markers simulated."""
    figure = go.Figure()
    ways = range(len(found.draftings))
    shown = (
        list(ways)
        if len(found.draftings) <= 5
        else sorted({round(i) for i in np.linspace(0, len(found.draftings) - 1, 5)})
    )
    for place, i in enumerate(shown):
        look = style.series_style(place)
        figure.add_scatter(
            x=found.axis.values, y=found.speedup[i, work], mode="lines", name=f"{found.draftings[i].name}, closed form",
            line=look["line"], hovertemplate="%{x}: %{y:.2f} ×<extra></extra>", legendgroup=str(i),
        )  # fmt: skip
        figure.add_scatter(
            x=found.axis.values, y=simulated.speedup[i, work], mode="markers", name="simulated", marker=look["marker"],
            hovertemplate="%{x}: %{y:.2f} × simulated<extra></extra>", legendgroup=str(i),
        )  # fmt: skip
    figure.add_hline(1.0, line={"color": style.REFERENCE, "dash": "dash", "width": 1.5})
    _log_load(figure, found)
    figure.update_yaxes(title="speed-up, ×", rangemode="tozero")
    arrivals = (
        ""
        if found.axis.kind == "users"
        else f", burstiness {simulated.burstiness:g}"
        if simulated.burstiness != 1
        else ", Poisson arrivals"
    )
    style.finish(
        figure, finding=_agreement_finding(found, simulated, work),
        tag=f"{simulated.requests:,} requests per cell{arrivals}; context {found.works[work].context_tokens:,.0f} tokens", height=470,
    )  # fmt: skip
    return style.legend_below(figure, offset=-0.17)


# --- findings --------------------------------------------------------------------------------------------------------
def _map_finding(found: LoadMap, work: int, speed: FloatArray, how: str) -> str:
    filled = np.nan_to_num(speed)
    pays = np.flatnonzero(filled.max(axis=0) > LEAST_GAIN)
    context = f"{found.works[work].context_tokens:,.0f} tokens"
    if not len(pays):
        return f"No way to draft pays at a context of {context} ({how.split(',', maxsplit=1)[0]})"
    i, k = np.unravel_index(int(filled.argmax()), filled.shape)
    end = (
        "at every load" if pays[-1] == speed.shape[1] - 1 else f"up to {found.axis.text(float(found.loads[pays[-1]]))}"
    )
    best = f"{filled[i, k]:.2f} × at best with {found.draftings[int(i)].name}"
    return f"Speculation pays {end} at a context of {context}: {best} ({how.split(',', maxsplit=1)[0]})"


def _best_finding(found: LoadMap) -> str:
    ends = []
    for load in (0, len(found.loads) - 1):
        names = list(
            dict.fromkeys("plain decoding" if i < 0 else found.draftings[int(i)].name for i in found.best[:, load])
        )
        ends.append(f"{' or '.join(names)} at {found.axis.text(float(found.loads[load]))}")
    return f"Best is {ends[0]}, {ends[1]}"


def _crossing_finding(found: LoadMap) -> str:
    first, last = (found.crossing(i, 0) for i in (0, len(found.draftings) - 1))
    top = float(found.loads[-1])
    names = found.draftings[0].name, found.draftings[-1].name
    words = [f"{n} {_pays(top, c.load)}" for n, c in zip(names, (first, last), strict=True)]
    return (
        f"{', '.join(dict.fromkeys(words))} {_axis(found)} at a context of {found.works[0].context_tokens:,.0f} tokens"
    )


def _agreement_finding(found: LoadMap, simulated: SimulatedMap, work: int) -> str:
    apart = np.abs(steps_apart(found, simulated)[:, work])
    with np.errstate(invalid="ignore"):
        off = np.abs(simulated.speedup[:, work] / found.speedup[:, work] - 1.0)
    off = off[np.isfinite(off)]
    median = f"; speed-ups differ by {np.median(off):.1%} in the median, {off.max():.0%} at most" if len(off) else ""
    return f"Simulated and closed-form crossings lie {int(apart.max())} load{'s' * (int(apart.max()) != 1)} of the map apart at most{median}"


# --- parts -----------------------------------------------------------------------------------------------------------
def _axis(found: LoadMap) -> str:
    return "users" if found.axis.kind == "users" else "requests/s"


def _load(found: LoadMap, value: float) -> str:
    return f"{value:,.0f}" if found.axis.kind == "users" else f"{value:.3g}"


def _end(top: float, load: float | None) -> str:
    return f"more than {top:,.3g}" if load is None else f"{load:,.3g}"


def _pays(top: float, load: float | None) -> str:
    return "never pays" if load == 0 else f"pays beyond {top:,.3g}" if load is None else f"pays up to {load:,.3g}"


def _short(name: str) -> str:
    if name == "plain":
        return "–"
    return name.removeprefix("γ = ") if name.startswith("γ") else f"T{name.rpartition(' ')[2]}"


def _log_range(found: LoadMap) -> list[float]:
    low, high = math.log10(found.axis.values[0]), math.log10(found.axis.values[-1])
    return [low - 0.05, high + 0.12]


def _log_load(figure: go.Figure, found: LoadMap) -> None:
    low, high = _log_range(found)
    powers = range(math.floor(low / math.log10(2)), math.ceil(high / math.log10(2)) + 1)
    ticks = [2.0**p for p in powers if low <= p * math.log10(2) <= high]
    figure.update_xaxes(
        type="log", title=f"{_axis(found)} (log₂)", tickvals=ticks, ticktext=[f"{t:,.4g}" for t in ticks], range=[low, high],
        tickangle=0,
    )  # fmt: skip


def _carried(simulated: SimulatedMap, work: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    plain = [row is not None and bool(row["carried"]) for row in simulated.plain[work]]
    lines = [
        [p and row is not None and bool(row["carried"]) for p, row in zip(plain, block[work], strict=True)]
        for block in simulated.rows
    ]
    return np.array(lines, dtype=bool)


def _break_even(figure: go.Figure, speed: FloatArray) -> None:
    """The line along the edges of cells between those above 1 and those below."""
    above = np.nan_to_num(speed) > 1.0
    rows, columns = above.shape
    look = {"type": "line", "line": {"color": style.INK, "width": 2}}
    for i in range(rows):
        for k in range(columns):
            if k + 1 < columns and above[i, k] != above[i, k + 1]:
                figure.add_shape(x0=k + 0.5, x1=k + 0.5, y0=i - 0.5, y1=i + 0.5, **look)
            if i + 1 < rows and above[i, k] != above[i + 1, k]:
                figure.add_shape(x0=k - 0.5, x1=k + 0.5, y0=i + 0.5, y1=i + 0.5, **look)


def _hatch(figure: go.Figure, i: int, k: int) -> None:
    for start in (-0.45, 0.0):
        figure.add_shape(
            type="line", x0=k + start, x1=k + start + 0.45, y0=i - 0.42, y1=i + 0.42,
            line={"color": style.REFERENCE, "width": 1},
        )  # fmt: skip
