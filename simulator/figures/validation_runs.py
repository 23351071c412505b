"""Whole runs against their measurements: the roof and what stays under it, figures of a run, courses over time."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from simulator import units
from simulator.calibration.comparison import LEVEL, Course, Quantity, Roof
from simulator.figures import style
from simulator.figures.validation import MOST_POINTS, marker, name_rows, ratio_ticks, thinned
from simulator.output.validation_report import (
    NEAR,
    amount,
    capitalised,
    interval_text,
    is_fitted,
    quantity_error,
    signed,
)

CLOSE = 0.05
"""The inner band around a figure of a run; the outer one is `NEAR`."""
MOST_COURSE_POINTS = 1000
NAME_COLUMNS = 64
"""Characters of a figure's name that a phone has room for."""
_ROW_PX = 38
_PANEL_PX = 190


# --- the roof ---------------------------------------------------------------------------------------------------------
def roof_figure(roof: Roof, subject: str) -> go.Figure | None:
    """FLOP/s reached over FLOP per byte of every measured point, under the two roofs; None without a point."""
    good = (roof.flop > 0) & (roof.moved_bytes > 0) & (roof.measured_s > 0)
    if not good.any():
        return None
    kinds = np.array([str(kind) for kind in roof.kind])[good]
    intensity = roof.flop[good] / roof.moved_bytes[good]
    reached = roof.flop[good] / roof.measured_s[good]
    limit = np.minimum(intensity * roof.bytes_per_s, roof.flop_per_s)
    ridge = roof.flop_per_s / roof.bytes_per_s
    low, high = min(float(intensity.min()), ridge) / 2, max(float(intensity.max()), ridge) * 4
    figure = go.Figure()
    figure.add_scatter(
        x=[low, ridge, high], y=[low * roof.bytes_per_s / 1e12, roof.flop_per_s / 1e12, roof.flop_per_s / 1e12], mode="lines",
        line={"color": style.REFERENCE, "width": 2}, name=f"roof: {style.text(roof.rests_on)}", hoverinfo="skip",
    )  # fmt: skip
    keep = np.sort(np.random.default_rng(0).permutation(len(kinds))[:MOST_POINTS])
    names = list(dict.fromkeys(kinds))
    for index, kind in enumerate(names):
        chosen = keep[kinds[keep] == kind]
        share = reached[chosen] / limit[chosen]
        figure.add_scatter(
            x=intensity[chosen], y=reached[chosen] / 1e12, mode="markers", marker={**marker(index), "opacity": 0.55},
            name=f"{style.text(kind)} (n = {int((kinds == kind).sum()):,})", customdata=share,
            hovertemplate=f"{style.text(kind)}<br>%{{x:.3g}} FLOP per byte, %{{y:.3g}} TFLOP/s: %{{customdata:.0%}} of the "
            "roof above it<extra></extra>",
        )  # fmt: skip
    named = low * (ridge / low) ** 0.4  # the text ends at the roof, above every point
    for x, y, text, anchors in (
        (high, roof.flop_per_s, units.show(roof.flop_per_s, "flop_per_s"), {"xanchor": "right", "yanchor": "bottom"}),
        (
            named,
            named * roof.bytes_per_s,
            units.show(roof.bytes_per_s, "bytes_per_s"),
            {"xanchor": "right", "yanchor": "bottom"},
        ),
    ):
        figure.add_annotation(x=math.log10(x), y=math.log10(y / 1e12), text=text, showarrow=False, **anchors)
    lowest = min(float(reached.min()), low * roof.bytes_per_s) / 1e12
    figure.update_xaxes(type="log", title="FLOP per byte moved", range=[math.log10(low), math.log10(high)], dtick=1)
    figure.update_yaxes(
        type="log",
        title="TFLOP/s reached",
        range=[math.log10(lowest / 1.5), math.log10(roof.flop_per_s / 1e12 * 4)],
        dtick=1,
    )
    above = int((reached > limit).sum())
    tag = f"{subject}: measurements; roof: {roof.rests_on}{thinned(len(keep), len(kinds), '')}"
    if above:
        tag += f"; {above:,} of {len(kinds):,} points lie above the roof: their operands came from a cache, or the roof is too low"
    style.finish(figure, finding=_roof_finding(kinds, reached / limit, names), tag=tag, height=470)
    return style.legend_below(figure, offset=-0.16)


def _roof_finding(kinds: Any, share: Any, names: Sequence[str]) -> str:
    told = []
    for name in names:
        found = share[kinds == name]
        low, middle, high = np.quantile(found, (0.05, 0.5, 0.95))
        told.append(f"{name} {middle:.0%} ({low:.0%} to {high:.0%}, n = {len(found):,})")
    return f"Of the roof above them, points reach in the median (and from p5 to p95): {'; '.join(told)}"


# --- figures of a run -------------------------------------------------------------------------------------------------
def quantity_figure(quantities: Sequence[Quantity], subject: str) -> go.Figure | None:
    """predicted/measured of every figure of a run, with ±5 % and ±10 %; None where nothing is predicted."""
    found = [(q, e) for q in quantities if (e := quantity_error(q)) is not None and e > -1]
    if not found:
        return None
    figure = go.Figure()
    for reach, opacity in ((NEAR, 0.10), (CLOSE, 0.16)):
        figure.add_vrect(1 - reach, 1 + reach, fillcolor=f"rgba(128,128,128,{opacity})", line_width=0, layer="below")
    figure.add_vline(1.0, line={"color": style.REFERENCE, "width": 1.5})
    ratios = [0.88, 1.12]
    groups = (
        (f"within {CLOSE:.0%}", style.GREEN, "circle", -1.0, CLOSE),
        (f"within {NEAR:.0%}", style.ORANGE, "square", CLOSE, NEAR),
        ("further off", style.VERMILLION, "diamond", NEAR, math.inf),
    )
    for name, colour, symbol, above, most in groups:
        rows = [(i, q, 1 + e) for i, (q, e) in enumerate(found) if above < abs(e) <= most]
        if not rows:
            continue
        at = [ratio for *_, ratio in rows]
        ends = [_interval(q) or (ratio, ratio) for _, q, ratio in rows]
        ratios += at + [e for pair in ends for e in pair if e > 0]
        figure.add_scatter(
            x=at, y=[i for i, *_ in rows], mode="markers", name=f"{name} ({len(rows)})", text=[_told(q) for _, q, _ in rows],
            marker={"color": colour, "size": 10, "line": {"width": 2, "color": colour},
                    "symbol": [f"{symbol}-open" if is_fitted(q.basis) else symbol for _, q, _ in rows]},
            error_x={"array": [high - x for x, (_, high) in zip(at, ends, strict=True)], "width": 0, "thickness": 2,
                     "arrayminus": [x - low for x, (low, _) in zip(at, ends, strict=True)], "color": colour},
            hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
    n = len(found)
    axis = ratio_ticks(min(ratios), max(ratios))
    all_px = max(n, 2) * _ROW_PX
    name_rows(figure, [_shortened(q.name) for q, _ in found], 10 ** axis["range"][0])
    figure.update_xaxes(type="log", title="predicted/measured − 1", **axis)
    bases = ", ".join(dict.fromkeys(q.basis for q, _ in found))
    tag = f"{subject} against measurements; {bases}; bands: ±{CLOSE:.0%} and ±{NEAR:.0%}"
    if any(_interval(q) for q, _ in found):
        tag += f"; bars: {LEVEL:.0%} interval"
    if any(is_fitted(q.basis) for q, _ in found):
        tag += "; hollow: fitted on"
    if n < len(quantities):
        tag += f"; without a prediction, in the table only: {len(quantities) - n}"
    style.finish(figure, finding=_quantity_finding(found), tag=tag, height=110 + all_px)
    return style.legend_below(figure, offset=-70 / all_px)


def _interval(q: Quantity) -> tuple[float, float] | None:
    return None if q.low is None or q.high is None else (q.low / q.measured, q.high / q.measured)


def _told(q: Quantity) -> str:
    lines = [q.name, f"measured {amount(q.measured, q.unit)}, predicted {amount(q.predicted, q.unit)}"]
    if interval_text(q):
        lines.append(f"{LEVEL:.0%} interval {interval_text(q)}")
    return "<br>".join(style.text(line) for line in [*lines, q.basis, q.note] if line)


def _shortened(name: str) -> str:
    return style.text(textwrap.shorten(name, NAME_COLUMNS, placeholder=" …"))


def _quantity_finding(found: Sequence[tuple[Quantity, float]]) -> str:
    q, e = max(found, key=lambda pair: abs(pair[1]))
    if len(found) == 1:
        return f"{capitalised(q.name)} is predicted {signed(e)} off"
    close, near = (sum(abs(error) <= reach for _, error in found) for reach in (CLOSE, NEAR))
    return f"{close} of {len(found)} figures are predicted within {CLOSE:.0%}, {near} within {NEAR:.0%}; furthest off: {q.name}, {signed(e)}"


# --- courses ----------------------------------------------------------------------------------------------------------
def course_figure(courses: Sequence[Course], subject: str) -> go.Figure | None:
    """Measured and simulated over time, one panel per course; None without one."""
    found = [c for c in courses if len(c.time_s)]
    if not found:
        return None
    titles = [style.text(f"{c.name}, {c.unit}" if c.unit else c.name) for c in found]
    height = _PANEL_PX * len(found) + 60
    figure = make_subplots(
        rows=len(found), cols=1, shared_xaxes=True, vertical_spacing=min(0.09, 40 / height), subplot_titles=titles
    )
    looks = (("measured", style.ORANGE, "solid", 3.0), ("simulated", style.BLUE, "solid", 1.6))
    for row, course in enumerate(found, start=1):
        n = len(course.time_s)
        keep = np.unique(np.linspace(0, n - 1, min(n, MOST_COURSE_POINTS)).astype(int))
        for (name, colour, dash, width), values in zip(looks, (course.measured, course.simulated), strict=True):
            figure.add_scatter(
                x=course.time_s[keep], y=values[keep], mode="lines", name=name, legendgroup=name, showlegend=row == 1,
                line={"color": colour, "dash": dash, "width": width}, opacity=0.75 if name == "measured" else 1.0,
                hovertemplate=f"{name}: %{{y:.4g}} at %{{x:.4g}} s<extra></extra>", row=row, col=1,
            )  # fmt: skip
    figure.update_yaxes(rangemode="tozero")
    figure.update_xaxes(title="time, s", row=len(found), col=1)
    figure.update_annotations(x=0, xanchor="left", font={"size": 13})
    told = [
        f"{c.name} {amount(c.apart, c.unit, 3)} (mean {amount(float(c.measured.mean()), c.unit, 3)}, n = {len(c.time_s):,})"
        for c in found
    ]
    most = max(len(c.time_s) for c in found)
    tag = f"{subject} against measurements" + thinned(min(most, MOST_COURSE_POINTS), most, " per line")
    style.finish(
        figure, finding=f"Simulated and measured are apart on average: {'; '.join(told)}", tag=tag, height=height
    )
    return style.legend_below(figure, offset=-60 / height)
