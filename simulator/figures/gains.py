"""Speculation on against off: how much faster the same requests are, and how sure that is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import plotly.graph_objects as go

from simulator.figures import style
from simulator.figures.serving import BELOW, result_tag
from simulator.serving.confidence import Ratio
from simulator.serving.gains import POINTS, Gain, gains
from simulator.serving.simulation import SimulationResult

_KINDS = {
    "faster": ("faster with speculation", style.BLUE, "circle"),
    "slower": ("slower with speculation", style.VERMILLION, "diamond"),
    "open": ("cannot tell", style.GREY, "circle-open"),
}
_TICKS = (
    (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 20.0),
    (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0),
)
"""Where speed-ups differ much, and where they do not."""


def difference_figure(result: SimulationResult, found: tuple[Gain, ...] | None = None) -> go.Figure | None:
    """Speed-up of mean, p50, p95 and p99 of TTFT, TPOT and E2E with 90 % intervals, and the line at 1.0; None where only one
    variant was simulated. `found`: the `gains` of `result`, where they are known."""
    found = gains(result) if found is None else found
    if not found:
        return None
    rows = [(g, point, g.speedup[point]) for g in found for point in POINTS if point in g.speedup]
    # Latencies stand in groups, the first on top.
    places = [float(-i - 0.6 * found.index(g)) for i, (g, _, _) in enumerate(rows)]
    traces = []
    for kind, (name, colour, symbol) in _KINDS.items():
        here = [(y, *row) for y, row in zip(places, rows, strict=True) if _kind(row[2]) == kind]
        if not here:
            continue
        widths = [0.0 if r.width is None else r.width.half_width for _, _, _, r in here]
        traces.append({
            "type": "scatter", "mode": "markers", "name": name, "x": [r.ratio for _, _, _, r in here], "y": [y for y, *_ in here],
            "marker": {"color": colour, "size": 10, "symbol": symbol, "line": {"width": 2, "color": colour}},
            "error_x": {"type": "data", "array": widths, "color": colour, "thickness": 2.5, "width": 5},
            "text": [_hover(g, point, r) for _, g, point, r in here], "hovertemplate": "%{text}<extra></extra>",
        })  # fmt: skip
    ends = [end for _, _, r in rows for end in _ends(r)] + [1.0]
    low, high = min(ends) / 1.05, max(ends) * 1.05
    ticks = [t for t in _TICKS[high / low < 4.0] if low <= t <= high]
    layout: dict[str, Any] = {
        "xaxis": {"type": "log", "title": {"text": "speed-up by speculation, ×"}, "range": [math.log10(low), math.log10(high)],
                  "tickvals": ticks, "ticktext": [f"{t:g}" for t in ticks], "tickangle": 0},
        "yaxis": {"tickvals": places, "ticktext": [f"{_name(g)} {point}" for g, point, _ in rows], "zeroline": False,
                  "range": [places[-1] - 0.7, 0.7]},
        "shapes": [{"type": "line", "x0": 1, "x1": 1, "y0": 0, "y1": 1, "yref": "paper",
                    "line": {"color": style.REFERENCE, "dash": "dash", "width": 1.5}}],
        "annotations": [{"x": 0.0, "y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False, "font": {"size": 12},
                         "text": "1.0 = as fast without"}],
        "legend": {**BELOW, "y": -0.16}, "showlegend": True,
    }  # fmt: skip
    same = "the same requests and luck"
    if len(result.runs) > 1 and not np.array_equal(*(run.requests["arrival_s"] for run in result.runs[:2])):
        same += ", but users ask again after their answers: arrivals differ"
    compared = max(gain.n for gain in found)
    if compared < result.main.summary.measured:
        same = f"{compared:,} of them compared, which finished both ways: {same}"
    tag = f"{result_tag(result)}; {same}; whiskers: 90 % of other draws of both"
    return style.drawn(traces, layout, finding=_finding(found), tag=tag, height=90 + 28 * len(rows))


def _name(gain: Gain) -> str:
    return gain.field.removesuffix("_s").upper()


def _ends(ratio: Ratio) -> tuple[float, float]:
    half = 0.0 if ratio.width is None else ratio.width.half_width
    return max(ratio.ratio - half, 0.05 * ratio.ratio), ratio.ratio + half


def _kind(ratio: Ratio) -> str:
    if ratio.width is None:
        return "open"
    low, high = _ends(ratio)
    return "faster" if low > 1.0 else "slower" if high < 1.0 else "open"


def _hover(gain: Gain, point: str, ratio: Ratio) -> str:
    head = f"{_name(gain)} {point}: {ratio.ratio:.3f} ×"
    if ratio.width is None:
        return f"{head}<br>too few requests for an interval"
    low, high = _ends(ratio)
    return f"{head}<br>{low:.3f} to {high:.3f} with 90 %<br>{gain.n:,} requests compared"


def _finding(found: tuple[Gain, ...]) -> str:
    means = {g.field: g.speedup["mean"] for g in found if "mean" in g.speedup}
    said = [
        f"{subject} {_times(means[field])}"
        for field, subject in (("tpot_s", "tokens come"), ("ttft_s", "first tokens"), ("e2e_s", "whole answers"))
        if field in means
    ]
    text = f"With speculation {', '.join(said[:-1])} and {said[-1]}" if len(said) > 1 else f"With speculation {said[0]}"
    return f"{text}, on average"


def _times(ratio: Ratio) -> str:
    if _kind(ratio) == "open":
        return f"about as fast ({ratio.ratio:.2f} ×)"
    low, high = _ends(ratio)
    if ratio.ratio >= 1.0:
        return f"{ratio.ratio:.2f} × faster ({low:.2f} to {high:.2f})"
    return f"{1 / ratio.ratio:.2f} × slower ({1 / high:.2f} to {1 / low:.2f})"
