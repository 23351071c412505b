"""Predicted against measured where only a summary is at hand: errors by kind of operator, quantiles of many points, and what
intervals hold. Axes are those of `validation`: predicted/measured, logarithmic, ticked as a difference in percent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from simulator.calibration.comparison import LEVEL
from simulator.calibration.error_record import LABELS, MEASURED, ErrorRecord, Slot
from simulator.calibration.evidence import Evidence
from simulator.figures import style
from simulator.figures.validation import colour, marker, name_rows, ratio_ticks, time_ticks
from simulator.output.validation_report import label_name, points, signed

NEAR = 0.1
"""The band around no error."""
MOST_SERIES = 4
"""Comparisons in one figure of courses."""
MOST_TICKS = 6
"""Of a numeric label; half of a page has room for no more."""
_ROW_PX = 50


# --- a calibration's own errors -----------------------------------------------------------------------------------------
def operators_figure(evidence: Evidence) -> go.Figure:
    """Mean error of each kind of operator with its number of points, over the upper end of its 90 % interval."""
    operators = list(evidence.operators)
    rows = list(range(len(operators)))
    ends = [100 * (o.factor() - 1) for o in operators]
    figure = go.Figure()
    figure.add_bar(
        y=rows, x=ends, orientation="h", name=f"upper end of the {LEVEL:.0%} interval", width=0.5,
        marker={"color": style.BAND, "line": {"width": 1, "color": style.REFERENCE}}, customdata=[o.factor() for o in operators],
        hovertemplate=f"{LEVEL:.0%} are claimed to lie within a factor of %{{customdata:.3f}}<extra></extra>",
    )  # fmt: skip
    for measured, name, shade, shape in (
        (True, "mean error, measured", style.BLUE, ""), (False, "mean error, assumed", style.ORANGE, "/"),
    ):  # fmt: skip
        chosen = [(i, o) for i, o in enumerate(operators) if o.measured == measured]
        if chosen:
            figure.add_bar(
                y=[i for i, _ in chosen], x=[100 * o.mape for _, o in chosen], orientation="h", name=name, width=0.26,
                marker={"color": shade, "pattern": {"shape": shape}}, customdata=[style.text(o.name) for _, o in chosen],
                hovertemplate=f"%{{customdata}}: %{{x:.1f}}% off on average, {name.partition(', ')[2]}<extra></extra>",
            )  # fmt: skip
    name_rows(figure, [f"{style.text(o.name)}: {_mean_text(o.mape, o.points, o.measured)}" for o in operators], 0.0)
    figure.update_layout(barmode="overlay")
    figure.update_xaxes(title="|predicted/measured − 1|, %", range=[0, 1.03 * max(ends)])
    style.finish(
        figure, finding=_operators_finding(evidence), tag=_basis(evidence), height=96 + _ROW_PX * len(rows)
    )  # fmt: skip
    return style.legend_below(figure, offset=-70 / (_ROW_PX * len(rows)))


def _mean_text(mape: float, n: int | None, measured: bool) -> str:
    return f"{mape:.1%}" + (f", n = {n:,}" if n else "" if measured else ", assumed")


def _operators_finding(evidence: Evidence) -> str:
    known = [o for o in evidence.operators if o.measured]
    if not known:
        least = min(o.mape for o in evidence.operators)
        return f"Nothing was measured on this device: every kind of operator is taken to be off by {least:.0%} or more"
    best, worst = min(known, key=lambda o: o.mape), max(known, key=lambda o: o.mape)
    assumed = len(evidence.operators) - len(known)
    rest = (
        f"; {assumed} of {len(evidence.operators)} kinds {'was' if assumed == 1 else 'were'} not measured"
        if assumed
        else ""
    )
    if best is worst:
        return f"On what the fit did not see, {best.name} is off by {best.mape:.1%} on average{rest}"
    return (
        f"On what the fit did not see, mean errors run from {best.mape:.1%} ({best.name}) to {worst.mape:.1%} "
        f"({worst.name}){rest}"
    )


def _basis(evidence: Evidence) -> str:
    c = evidence.calibration
    return f"{evidence.efficiency.label}; {c.source}; {c.date}"


# --- quantiles of what no fit saw ---------------------------------------------------------------------------------------
def spread_figure(records: Sequence[ErrorRecord], subject: str) -> go.Figure:
    """predicted/measured of each comparison: nine in ten, the middle half, the median, and the interval that was claimed."""
    rows = list(range(len(records)))
    figure = go.Figure()
    boxes: dict[str, list[float | None]] = {"x": [], "y": []}
    for i, r in enumerate(records):
        if r.interval_factor is not None:
            f = r.interval_factor
            boxes["x"] += [1 / f, f, f, 1 / f, 1 / f, None]
            boxes["y"] += [i - 0.25, i - 0.25, i + 0.25, i + 0.25, i - 0.25, None]
    if boxes["x"]:
        figure.add_scatter(
            **boxes, mode="lines", fill="toself", fillcolor=style.BAND, line={"width": 0}, hoverinfo="skip",
            name=f"{LEVEL:.0%} interval claimed",
        )  # fmt: skip
    for name, first, last, width in (("nine in ten", 0, 4, 2), ("middle half", 1, 3, 9)):
        ends: dict[str, list[float | None]] = {"x": [], "y": []}
        for i, r in enumerate(records):
            ends["x"] += [r.ratios[first], r.ratios[last], None]
            ends["y"] += [i, i, None]
        figure.add_scatter(
            **ends, mode="lines", line={"color": style.BLUE, "width": width}, name=name, hoverinfo="skip"
        )
    figure.add_scatter(
        x=[r.ratios[2] for r in records], y=rows, mode="markers", name="median",
        text=[f"{style.text(f'{r.name}, {r.basis}')}<br>{_told(r.ratios, r.points)}" for r in records],
        marker={"symbol": "line-ns", "size": 18, "line": {"color": style.ORANGE, "width": 4}},
        hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip
    low = min(min(r.ratios[0], 1 / (r.interval_factor or 1.0)) for r in records)
    high = max(max(r.ratios[4], r.interval_factor or 1.0) for r in records)
    axis = ratio_ticks(low, high)
    name_rows(figure, _row_names(records), 10 ** axis["range"][0])
    figure.update_layout(
        xaxis={**axis, "type": "log", "title": "predicted/measured − 1"}, shapes=[_line_at_one("x")]
    )  # fmt: skip
    closest, widest = (f(records, key=lambda r: r.p95_error) for f in (min, max))
    within = (
        f"{closest.p95_error:.0%} ({closest.name}) to {widest.p95_error:.0%} ({widest.name})"
        if closest is not widest
        else f"{closest.p95_error:.0%}"
    )
    biased = max(records, key=lambda r: abs(r.bias))
    style.finish(
        figure, finding=f"95% of the points are within {within}; the largest bias is {signed(biased.bias)} ({biased.name})",
        tag=f"{subject} against measurements that the fits did not see", height=100 + _ROW_PX * len(records),
    )  # fmt: skip
    return style.legend_below(figure, offset=-70 / (_ROW_PX * len(records)))


def middles_figure(records: Sequence[ErrorRecord], subject: str) -> go.Figure:
    """Predicted over measured time, log-log, with the diagonal and ±10 %: medians of stretches of the measured time, with bars
    that hold nine in ten of a stretch's points."""
    drawn = [r for r in records if MEASURED in r.by][: len(style.SERIES_COLOURS)]
    figure = go.Figure()
    times = [s.median_s for r in drawn for s in r.by[MEASURED]]
    low, high = min(times) / 1.6, max(times) * 1.6
    figure.add_scatter(
        x=[low, high, high, low], y=[low * (1 - NEAR), high * (1 - NEAR), high * (1 + NEAR), low * (1 + NEAR)], mode="lines",
        fill="toself", fillcolor=style.BAND, line={"width": 0}, name=f"±{NEAR:.0%}", hoverinfo="skip",
    )  # fmt: skip
    figure.add_scatter(
        x=[low, high],
        y=[low, high],
        mode="lines",
        name="as measured",
        line={"color": style.REFERENCE, "width": 1.5},
        hoverinfo="skip",
    )
    for index, r in enumerate(drawn):
        slots = r.by[MEASURED]
        middle = [s.median_s * s.ratios[2] for s in slots]
        figure.add_scatter(
            x=[s.median_s for s in slots], y=middle, mode="markers", name=f"{style.text(r.name)} (n = {r.points:,})",
            marker={**marker(index), "size": 9}, text=[f"{style.text(r.name)}, {_told(s.ratios, s.points)}" for s in slots],
            hovertemplate="%{text}<extra></extra>",
            error_y={"array": [s.median_s * (s.ratios[4] - s.ratios[2]) for s in slots], "width": 0, "thickness": 2,
                     "arrayminus": [s.median_s * (s.ratios[2] - s.ratios[0]) for s in slots]},
        )  # fmt: skip
    figure.update_layout(
        xaxis={"type": "log", "title": "measured time", **time_ticks(low, high)},
        yaxis={"type": "log", "title": "predicted time", **time_ticks(low, high)},
    )
    apart = [(abs(s.ratios[2] - 1), r, s) for r in drawn for s in r.by[MEASURED]]
    near = sum(a <= NEAR for a, *_ in apart)
    _, worst, slot = max(apart, key=lambda found: found[0])
    n = sum(r.points for r in drawn)
    style.finish(
        figure,
        finding=f"The median prediction is within {NEAR:.0%} in {near} of {len(apart)} stretches of time, and furthest off at "
        f"{signed(slot.ratios[2] - 1)} ({worst.name})",
        tag=f"{subject} in {n:,} predictions of what their fits did not see; a mark is the median of a stretch of times, its bar "
        "holds nine in ten",
        height=520,
    )  # fmt: skip
    return style.legend_below(figure, offset=-0.14)


def held_coverage_figure(records: Sequence[ErrorRecord], subject: str) -> go.Figure | None:
    """Which share of each comparison's points its intervals hold, beside the shares that they claim to hold; None where nothing
    is claimed."""
    claiming = [r for r in records if r.coverage]
    if not claiming:
        return None
    figure = go.Figure()
    levels = list(claiming[0].coverage)
    rows = list(range(len(claiming)))
    for index, level in enumerate(levels):
        figure.add_scatter(
            x=[100 * r.coverage[level] for r in claiming], y=rows, mode="markers", name=f"{float(level):.0%} intervals hold",
            marker={**marker(index), "size": 11}, customdata=[round(r.coverage[level] * r.points) for r in claiming],
            text=[f"of {r.points:,} ({style.text(r.name)})" for r in claiming],
            hovertemplate=f"{float(level):.0%} intervals hold %{{customdata:,}} %{{text}}: %{{x:.1f}}%<extra></extra>",
        )  # fmt: skip
    shares = [100 * share for r in claiming for share in r.coverage.values()]
    least = min([*shares, 100 * float(levels[0])]) - 4
    name_rows(figure, _row_names(claiming), least)
    claimed = [100 * float(level) for level in levels]
    figure.update_layout(
        xaxis={"title": "share of points inside, %", "tickvals": claimed, "range": [least, 101], "tickangle": 0,
               "showgrid": False},
        shapes=[
            {**_line_at_one("x"), "x0": x, "x1": x, "line": {"color": colour(i), "width": 1.5, "dash": "dot"}}
            for i, x in enumerate(claimed)
        ],
    )  # fmt: skip
    key = f"{LEVEL:g}"
    few, most = (f(claiming, key=lambda r: r.coverage[key]) for f in (min, max))
    finding = (
        f"{LEVEL:.0%} intervals hold {few.coverage[key]:.0%} ({few.name}) to {most.coverage[key]:.0%} ({most.name})"
    )
    if few.coverage[key] == most.coverage[key]:
        finding = f"{LEVEL:.0%} intervals hold {few.coverage[key]:.0%} of {points(few.points)} ({few.name})"
    style.finish(
        figure, finding=finding,
        tag=f"{subject}; points that the fits did not see; dotted: what is claimed; right of it intervals are wider than need be, "
        "left of it too narrow", height=100 + _ROW_PX * len(rows),
    )  # fmt: skip
    return style.legend_below(figure, offset=-70 / (_ROW_PX * len(rows)))


def course_labels(records: Sequence[ErrorRecord]) -> list[str]:
    """Numeric labels (batch, tokens, context, …) over which errors have a course."""
    return [label for label in LABELS if any(_numeric(r.by.get(label, ())) for r in records)]


def _numeric(slots: Sequence[Slot]) -> bool:
    return len(slots) > 1 and all(s.at is not None and s.at > 0 for s in slots)


def course_figure(records: Sequence[ErrorRecord], label: str, subject: str) -> go.Figure:
    """predicted/measured over one of `course_labels`."""
    records = [r for r in records if _numeric(r.by.get(label, ()))][:MOST_SERIES]
    figure = go.Figure()
    names = [r.name for r in records]
    step = 1.0
    for index, r in enumerate(records):
        slots = r.by[label]
        # Side by side, by a few percent of their values, so that bars of several comparisons do not cover each other.
        aside = 1.05 ** (index - (len(records) - 1) / 2)
        middle = [s.ratios[2] for s in slots]
        figure.add_scatter(
            x=[(s.at or 1.0) * aside for s in slots], y=middle, mode="lines+markers",
            name=style.text(r.name if names.count(r.name) == 1 else f"{r.name}, {r.basis}"), **_look(index),
            error_y={"array": [s.ratios[4] - s.ratios[2] for s in slots], "width": 0, "thickness": 2,
                     "arrayminus": [s.ratios[2] - s.ratios[0] for s in slots]},
            text=[f"{style.text(r.name)}, {_label(label)} {s.text}: {_told(s.ratios, s.points)}" for s in slots],
            hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
        step = max(step, *(s.ratios[4] for s in slots), *(1 / s.ratios[0] for s in slots))
    values = sorted({s.at or 1.0 for r in records for s in r.by[label]})
    low, high = math.log10(values[0]), math.log10(values[-1])
    ticks = [2.0**k for k in range(-1, 40) if values[0] / 1.5 <= 2.0**k <= values[-1] * 1.5]
    every = max(1, math.ceil(len(ticks) / MOST_TICKS))
    reach = min(step, 2.5)
    figure.update_layout(
        xaxis={"type": "log", "title": f"{_label(label)} (log₂)", "range": [low - 0.15, high + 0.15], "tickangle": 0,
               "tickvals": ticks[::every], "ticktext": [_count(t, label) for t in ticks[::every]]},
        yaxis={**ratio_ticks(1 / reach, reach), "type": "log", "title": "predicted/measured − 1"},
        shapes=[_line_at_one("y"), _near()],
    )  # fmt: skip
    found = [(s.ratios[2] - 1, r, s) for r in records for s in r.by[label]]
    ends = [min(found, key=lambda f: f[0]), max(found, key=lambda f: f[0])]
    several = len(records) > 1
    told = " to ".join(
        f"{signed(median)} ({f'{r.name} at ' if several else ''}{s.text}, n = {s.points:,})" for median, r, s in ends
    )
    style.finish(
        figure, finding=f"By {_label(label)} the median error runs from {told}",
        tag=f"{subject} against measurements that the fits did not see; bars hold nine in ten of a value's points; pale band ±10%",
        height=400,
    )  # fmt: skip
    return style.legend_below(figure, offset=-0.2)


# --- what the figures share ---------------------------------------------------------------------------------------------
def _told(ratios: Sequence[float], n: int) -> str:
    return (
        f"median {signed(ratios[2] - 1)}, half of the points {signed(ratios[1] - 1)} to {signed(ratios[3] - 1)}, nine in ten "
        f"{signed(ratios[0] - 1)} to {signed(ratios[4] - 1)} (n = {n:,})"
    )


def _label(label: str) -> str:
    return {"gamma": "γ", "message_bytes": "size of a message"}.get(label, label_name(label))


def _count(value: float, label: str) -> str:
    if label.endswith("_bytes") and value >= 2**10:
        size, sign = next((s, t) for s, t in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")) if value >= s)
        return f"{value / size:g} {sign}"
    return f"{value:,g}" if value < 1 else f"{value:,.0f}"


def _row_names(records: Sequence[ErrorRecord]) -> list[str]:
    """Name and number of points; where two are called alike, also how their points were kept from the fit."""
    names = [r.name for r in records]
    return [
        style.text(f"{r.name}{f', {r.basis}' if names.count(r.name) > 1 else ''}, n = {r.points:,}") for r in records
    ]


def _look(index: int) -> dict[str, Any]:
    look: dict[str, Any] = style.series_style(index)
    return {"line": {**look["line"], "width": 1.5}, "marker": {**marker(index), "size": 8}}


def _line_at_one(axis: str) -> dict[str, Any]:
    """The line of no error, across the plot."""
    other = "y" if axis == "x" else "x"
    return {
        "type": "line", "line": {"color": style.REFERENCE, "width": 1.5}, f"{axis}0": 1, f"{axis}1": 1, f"{axis}ref": axis,
        f"{other}0": 0, f"{other}1": 1, f"{other}ref": f"{other} domain", "layer": "below",
    }  # fmt: skip


def _near() -> dict[str, Any]:
    return {
        "type": "rect", "x0": 0, "x1": 1, "xref": "x domain", "y0": 1 - NEAR, "y1": 1 + NEAR, "yref": "y",
        "fillcolor": "rgba(128,128,128,0.12)", "line": {"width": 0}, "layer": "below",
    }  # fmt: skip
