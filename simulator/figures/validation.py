"""Predicted against measured, point by point: how close, where the errors stand, and whether the intervals hold.

Errors are drawn as predicted/measured on a logarithmic axis, ticked in percent, so that half as long and twice as long are
equally far off and an interval prediction / f … prediction × f is symmetrical.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from simulator import units
from simulator.calibration.comparison import LEVEL, Comparison, interval_factor
from simulator.figures import style
from simulator.output.validation_document import COVERAGE_LEVELS
from simulator.output.validation_report import (
    label_text,
    limits,
    signed,
    span,
    worst_indices,
)

MOST_POINTS = 1500
"""Points drawn in one figure; the ten worst of each comparison are always among them."""
MOST_BARS = 120
"""Up to so many points each carries its interval as a bar."""


def points_figure(comparisons: Sequence[Comparison], subject: str) -> go.Figure:
    """Predicted over measured time, log-log, with the diagonal and ±10 %."""
    figure = go.Figure()
    kept = {id(c): chosen for c, chosen in zip(comparisons, drawn_points(comparisons), strict=True)}
    times = np.concatenate([np.concatenate([c.measured_s, c.predicted_s]) for c in comparisons])
    low, high = float(times.min()) / 1.3, float(times.max()) * 1.3
    for factor, dash, name in ((1.0, "solid", "as measured"), (1.1, "dot", "±10%"), (0.9, "dot", "±10%")):
        figure.add_scatter(
            x=[low, high], y=[low * factor, high * factor], mode="lines", name=name, showlegend=factor != 0.9,
            line={"color": style.REFERENCE, "width": 1.5, "dash": dash}, hoverinfo="skip",
        )  # fmt: skip
    bars = sum(len(chosen) for chosen in kept.values()) <= MOST_BARS and any(c.log_sd is not None for c in comparisons)
    for index, c in enumerate(comparisons):
        chosen = kept[id(c)]
        error_y = {}
        if bars and c.log_sd is not None:
            least, most = (edge[chosen] for edge in limits(c))
            error_y = {
                "array": most - c.predicted_s[chosen], "arrayminus": c.predicted_s[chosen] - least, "width": 0, "thickness": 1.2,
            }  # fmt: skip
        figure.add_scatter(
            x=c.measured_s[chosen], y=c.predicted_s[chosen], mode="markers", name=f"{style.text(c.name)} (n = {len(c):,})",
            marker={**marker(index), "opacity": 0.8 if bars else 0.55}, error_y=error_y, text=hover(c, chosen),
            hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
    for update, title in ((figure.update_xaxes, "measured"), (figure.update_yaxes, "predicted")):
        update(type="log", title=f"{title} time", **time_ticks(low, high))
    off = [float(np.quantile(np.abs(c.errors), 0.9)) for c in comparisons]
    worst = max(comparisons, key=lambda c: abs(c.worst_error))
    nine = span(comparisons, lambda c: float(np.quantile(np.abs(c.errors), 0.9)), ".0%" if min(off) >= 0.1 else ".1%")
    n = sum(len(c) for c in comparisons)
    who = f", {worst.name}" if len(comparisons) > 1 else ""
    finding = f"Nine in ten predictions lie within {nine} of the measurement (n = {n:,}; worst {signed(worst.worst_error)}{who})"
    drawn = sum(len(chosen) for chosen in kept.values())
    tag = tag_of(comparisons, subject) + thinned(drawn, n)
    if bars:
        tag += f"; a bar is the {LEVEL:.0%} interval: where it meets the diagonal, it holds the measurement"
    style.finish(figure, finding=finding, tag=tag, height=560)
    return style.legend_below(figure, offset=-0.13)


def errors_figure(comparisons: Sequence[Comparison], subject: str) -> go.Figure:
    """Share of points that are at most so far off, one curve per comparison."""
    figure = go.Figure()
    for index, c in enumerate(comparisons):
        look: dict[str, Any] = style.series_style(index)
        off = np.sort(np.abs(c.errors))
        keep = np.unique(np.linspace(0, len(off) - 1, 400).astype(int))
        figure.add_scatter(
            x=100.0 * np.concatenate([[0.0], off[keep]]), y=100.0 * np.concatenate([[0.0], (keep + 1) / len(off)]),
            mode="lines", line={**look["line"], "shape": "hv"}, name=f"{style.text(c.name)} (n = {len(c):,})",
            hovertemplate="%{y:.1f}% of points within %{x:.3g}%<extra></extra>",
        )  # fmt: skip
    ends = [abs(c.worst_error) for c in comparisons]
    # A single miss must not press everything else into a corner; the table names it.
    end = min(max(ends), 3.0 * max(c.p95_error for c in comparisons))
    figure.update_xaxes(title="|predicted/measured − 1|, %", range=[0, 102.0 * end or 1.0])
    figure.update_yaxes(title="share of points, %", range=[0, 101])
    tag = tag_of(comparisons, subject)
    if max(ends) > end:
        tag += f"; the furthest point ({max(ends):.0%}) lies beyond the right end"
    half = span(comparisons, lambda c: c.median_error)
    most = span(comparisons, lambda c: c.p95_error, ".0%" if min(c.p95_error for c in comparisons) >= 0.1 else ".1%")
    n = sum(len(c) for c in comparisons)
    finding = f"Half of the points are within {half}, 95% within {most} (n = {n:,})"
    style.finish(figure, finding=finding, tag=tag, height=360)
    return style.legend_below(figure)


def coverage_figure(comparisons: Sequence[Comparison], subject: str) -> go.Figure | None:
    """Share of points inside their interval over the share claimed; None where no interval is claimed."""
    claiming = [(i, c) for i, c in enumerate(comparisons) if c.log_sd is not None]
    if not claiming:
        return None
    figure = go.Figure()
    ends = [100.0 * COVERAGE_LEVELS[0], 100.0 * COVERAGE_LEVELS[-1]]
    figure.add_scatter(
        x=ends, y=ends, mode="lines", name="as claimed", line={"color": style.REFERENCE, "width": 1.5}, hoverinfo="skip"
    )
    reached = []
    for index, c in claiming:
        shares = [c.coverage(level) or 0.0 for level in COVERAGE_LEVELS]
        reached += shares
        widths = [float(np.median(interval_factor(np.asarray(c.log_sd), level))) for level in COVERAGE_LEVELS]
        held = [f"{round(share * len(c)):,} of {len(c):,}" for share in shares]
        look = style.series_style(index)
        figure.add_scatter(
            x=[100.0 * level for level in COVERAGE_LEVELS], y=[100.0 * share for share in shares], mode="lines+markers", **look,
            name=f"{style.text(c.name)} (n = {len(c):,})", customdata=list(zip(held, widths, strict=True)),
            hovertemplate="%{x:g}% intervals (factor %{customdata[1]:.3f}) hold %{y:.1f}%: %{customdata[0]}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(
        title="share that the interval claims to hold, %", range=[48, 101], tickvals=[50, 60, 70, 80, 90, 99]
    )
    figure.update_yaxes(title="share that it holds, %", range=[min(48.0, 100.0 * min(reached) - 4), 102])
    those = [c for _, c in claiming]
    held_text = span(those, lambda c: c.coverage() or 0.0, ".0%", count=True)
    n = f" (n = {len(those[0]):,})" if len(those) == 1 else ""
    style.finish(
        figure, finding=f"{LEVEL:.0%} intervals hold {held_text} of their points{n}: {_judged(those)}",
        tag=tag_of(those, subject) + "; above the line: wider than need be, below it: too narrow", height=400,
    )  # fmt: skip
    return style.legend_below(figure)


def _judged(comparisons: Sequence[Comparison]) -> str:
    """Whether the coverage differs from the claim by more than two standard errors of a share of n."""
    apart = [((c.coverage() or 0.0) - LEVEL) / math.sqrt(LEVEL * (1 - LEVEL) / len(c)) for c in comparisons]
    if min(apart) < -2:
        return "too narrow" if max(apart) < -2 else "some are too narrow"
    if max(apart) > 2:
        return "wider than need be" if min(apart) > 2 else "some are wider than need be"
    return "as claimed, within chance"


# --- what the figures share -------------------------------------------------------------------------------------------
def ratio_ticks(low: float, high: float) -> dict[str, Any]:
    """Range and ticks of a logarithmic axis of predicted/measured, ticked as a difference in percent."""
    low, high = low / 1.02, high * 1.02
    reach = max(high, 1 / low)
    step = next((s for s in (0.01, 0.02, 0.05, 0.1, 0.2) if reach <= 1 + 3.5 * s), None)
    if step is not None:
        ticks = [1 + k * step for k in range(-3, 4)]
    elif reach <= 4:
        ticks = [0.25, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0, 4.0]
    else:
        ticks = [0.001, 0.01, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0, 1000.0]
    ticks = [t for t in ticks if low <= t <= high]
    return {
        "range": [math.log10(low), math.log10(high)], "tickvals": ticks, "tickangle": 0,
        "ticktext": [f"{signed(t - 1, '+.0%')}" if abs(t - 1) > 1e-9 else "0" for t in ticks],
    }  # fmt: skip


def time_ticks(low: float, high: float) -> dict[str, Any]:
    """Range and ticks of a logarithmic axis of times in s."""
    steps = (
        (1, 1.5, 2, 3, 5, 7)
        if high / low < 5
        else (1, 2, 5)
        if high / low < 60
        else (1, 3)
        if high / low < 1000
        else (1,)
    )
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [m * 10.0**d for d in decades for m in steps if low <= m * 10.0**d <= high]
    return {
        "range": [math.log10(low), math.log10(high)], "tickvals": ticks, "ticktext": [units.show(t, "s") for t in ticks],
        "tickangle": 0,
    }  # fmt: skip


def name_rows(figure: go.Figure, names: Sequence[str], left: float) -> None:
    """Names the rows 0, 1, … of a figure above their marks, at the `left` end of the plot: beside them, a narrow screen has no
    room. `names` may hold markup."""
    figure.add_scatter(
        x=[left] * len(names), y=[i - 0.46 for i in range(len(names))], mode="text", text=names, hoverinfo="skip",
        textposition="middle right", showlegend=False, textfont={"size": 12}, cliponaxis=False,
    )  # fmt: skip
    figure.update_yaxes(range=[len(names) - 0.6, -0.75], showticklabels=False, showgrid=False, zeroline=False)


def drawn_points(comparisons: Sequence[Comparison]) -> list[NDArray[np.intp]]:
    """Indices of the points to draw of each comparison: all, or a random part that two runs choose alike, and the worst."""
    total = sum(len(c) for c in comparisons)
    if total <= MOST_POINTS:
        return [np.arange(len(c)) for c in comparisons]
    chosen = []
    for c in comparisons:
        some = np.random.default_rng(0).permutation(len(c))[: round(MOST_POINTS * len(c) / total)]
        chosen.append(np.union1d(some, worst_indices(c)))
    return chosen


def thinned(drawn: int, n: int, after: str = ", the worst among them") -> str:
    """What a tag says where not every point is drawn."""
    return f"; {drawn:,} of {n:,} points drawn{after}" if drawn < n else ""


def hover(c: Comparison, indices: Sequence[int] | NDArray[np.intp]) -> list[str]:
    """What is told of each point under the pointer."""
    low, high = limits(c)
    lines = []
    for i in indices:
        measured, predicted = (units.show(float(t[i]), "s") for t in (c.measured_s, c.predicted_s))
        between = (
            f"<br>{LEVEL:.0%} interval {units.show(low[i], 's')} – {units.show(high[i], 's')}"
            if c.log_sd is not None
            else ""
        )
        named = "<br>".join(part for part in (style.text(c.name), style.text(label_text(c, i))) if part)
        lines.append(f"{named}<br>measured {measured}, predicted {predicted}: {signed(c.errors[i])}{between}")
    return lines


def marker(index: int) -> dict[str, Any]:
    """How the points of the `index`-th of several comparisons look, in every figure."""
    return {"color": colour(index), "symbol": style.SERIES_SYMBOLS[index % len(style.SERIES_SYMBOLS)], "size": 7}


def colour(index: int) -> str:
    """The colour of the `index`-th of several comparisons."""
    return style.SERIES_COLOURS[index % len(style.SERIES_COLOURS)]


def tag_of(comparisons: Sequence[Comparison], subject: str) -> str:
    """What is held against what, and how it was kept from the fit."""
    bases = list(dict.fromkeys(c.basis for c in comparisons))
    return f"{subject} against measurements; {', '.join(bases)}"
