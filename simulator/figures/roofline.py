"""The roofline: what each operator and each whole pass does per byte, and how fast it does it, under the two roofs of the
datasheet; and whole steps that somebody measured on this GPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from simulator import units
from simulator.calibration.measured_points import MeasuredPoint
from simulator.decoding import DecodeResult
from simulator.figures import style
from simulator.pass_work import PassWork

LARGEST_MARKER_PX = 40.0
SMALLEST_MARKER_PX = 7.0
_PASS_LOOKS = {
    "plain": (style.ORANGE, "circle"), "verify": (style.VERMILLION, "diamond"), "draft": (style.GREEN, "square"),
}  # fmt: skip


def roofline_figure(
    result: DecodeResult, passes: Sequence[PassWork] = (), measured: Sequence[MeasuredPoint] = ()
) -> go.Figure:
    """FLOP/s over FLOP/byte of every operator that multiplies (hollow; a marker's area is its share of the step), of whole
    `passes` (filled), and of `measured` steps and rounds on this GPU (crosses; small where they are of other models)."""
    target = result.deployment.target
    bandwidth = target.gpu.hbm_bytes_per_s
    peak = target.gpu.peak_flop_per_s(target.formats.activations)
    ridge = peak / bandwidth
    operators = [(o, s) for o, s in result.by_operator if o.flop > 0 and o.bytes_ > 0 and o.total_s > 0]
    others: list[PassWork | MeasuredPoint] = [*passes, *measured]
    scale, unit = (1e12, "TFLOP/s") if peak >= 1e12 else (1e9, "GFLOP/s")
    intensities = [*(o.flop / o.bytes_ for o, _ in operators), *(p.flop_per_byte for p in others), ridge]
    low, high = min(intensities) / 4, max(intensities) * 8
    rates = [*(o.flop / o.total_s for o, _ in operators), *(p.flop_per_s for p in others), low * bandwidth]
    roof = {
        "type": "scatter", "mode": "lines", "x": [low, ridge, high], "y": [low * bandwidth / scale, peak / scale, peak / scale],
        "line": {"color": style.REFERENCE, "width": 2}, "name": "datasheet roof" if target.gpu.what_if is None else "made-up roof", "hoverinfo": "skip",
    }  # fmt: skip
    # Roofs are named along themselves; on log axes annotations take exponents.
    named = low * (ridge / low) ** 0.85  # the text ends at the roof, above every point
    notes = [
        {"x": math.log10(high), "y": math.log10(peak / scale), "xanchor": "right", "yanchor": "bottom", "showarrow": False,
         "text": f"dense peak {units.show(peak, 'flop_per_s')}"},
        {"x": math.log10(named), "y": math.log10(named * bandwidth / scale), "xanchor": "right", "yanchor": "bottom",
         "showarrow": False, "text": f"HBM {units.show(bandwidth, 'bytes_per_s')}"},
    ]  # fmt: skip
    basis = "made up" if target.gpu.what_if is not None else "from the datasheet"
    tag = f"{style.tag_of(result.deployment)}; roofs {basis}"
    if measured:
        where = "this GPU" if target.gpu.what_if is None else f"the {target.gpu.what_if.of.title} that exists"
        implied = sum(not p.stated for p in measured)
        tag += f"; crosses: {len(measured)} measured on {where}"
        tag += f" ({implied} of them by what the source implies)" if implied else ""
        tag += ", the engine's host time included"
    return style.drawn(
        [roof, *_operators(operators, result.step_s, scale), *(_pass(p, scale) for p in passes),
         *_measured(measured, target.decoder.name, scale)],
        {
            "xaxis": {"type": "log", "title": {"text": "FLOP per byte moved"}, "dtick": 1,
                      "range": [math.log10(low), math.log10(high)]},
            "yaxis": {"type": "log", "title": {"text": f"{unit} reached"}, "dtick": 1,
                      "range": [math.log10(min(rates) / 2 / scale), math.log10(peak / scale * 4)]},
            "annotations": notes,
            "legend": style.LEGEND_AT_FOOT,
        },
        finding=_finding(result, passes, ridge) if operators else "No operator of this step multiplies",
        tag=tag,
        height=560,
    )  # fmt: skip


def _operators(operators: Sequence[tuple[Any, float]], step_s: float, scale: float) -> list[dict[str, Any]]:
    longest = max((s for _, s in operators), default=1.0)
    return [
        {
            "type": "scatter", "mode": "markers", "x": [o.flop / o.bytes_], "y": [o.flop / o.total_s / scale],
            "name": f"{style.text(o.name)}, {seconds / step_s:.0%} of the step",
            "marker": {
                "color": style.SERIES_COLOURS[index % len(style.SERIES_COLOURS)],
                # Hollow, largest first: many operators do the same FLOP per byte and stand on one spot.
                "symbol": f"{style.SERIES_SYMBOLS[index % len(style.SERIES_SYMBOLS)]}-open",
                "size": max(SMALLEST_MARKER_PX, LARGEST_MARKER_PX * math.sqrt(seconds / longest)),
                "line": {"width": 2.5},
            },
            "hovertemplate": f"{style.text(o.name)} × {o.repeat}<br>{o.flop / o.bytes_:.3g} FLOP per byte<br>"
            f"{units.show(o.flop / o.total_s, 'flop_per_s')}<br>{units.show(seconds, 's')} of the step<extra></extra>",
        }
        for index, (o, seconds) in enumerate(operators)
    ]  # fmt: skip


def _pass(work: PassWork, scale: float) -> dict[str, Any]:
    colour, symbol = _PASS_LOOKS[work.kind]
    name = style.text(work.name)
    return {
        "type": "scatter", "mode": "markers", "x": [work.flop_per_byte], "y": [work.flop_per_s / scale],
        "name": f"whole pass: {name}",
        "marker": {"color": colour, "symbol": symbol, "size": 15, "line": {"width": 1.5, "color": style.INK}},
        "hovertemplate": f"Whole pass: {name}<br>{_where(work)}<br>{units.show(work.seconds, 's')} without host time"
        "<extra></extra>",
    }  # fmt: skip


def _measured(points: Sequence[MeasuredPoint], model: str, scale: float) -> list[dict[str, Any]]:
    traces = []
    for own, name, size, colour in (
        (True, "measured: this model", 12, style.PINK), (False, "measured: other models", 8, style.GREY),
    ):  # fmt: skip
        mine = [p for p in points if (p.model == model) == own]
        if mine:
            traces.append({
                "type": "scatter", "mode": "markers", "x": [p.flop_per_byte for p in mine],
                "y": [p.flop_per_s / scale for p in mine], "name": f"{name} (n = {len(mine)})",
                "marker": {"color": colour, "symbol": "x-thin", "size": size, "line": {"width": 2, "color": colour}},
                "text": ["<br>".join(map(style.text, _told(p))) + f"<br>{_where(p)}" for p in mine],
                "hovertemplate": "%{text}<extra></extra>",
            })  # fmt: skip
    return traces


def _told(point: MeasuredPoint) -> list[str]:
    return [
        f"Measured: {point.name}",
        f"{units.show(point.seconds, 's')}, host time included",
        point.source,
        *([point.note] if point.note else []),
    ]


def _where(point: PassWork | MeasuredPoint) -> str:
    return f"{point.flop_per_byte:.3g} FLOP per byte, {units.show(point.flop_per_s, 'flop_per_s')}"


def _finding(result: DecodeResult, passes: Sequence[PassWork], ridge: float) -> str:
    by_kind = {p.kind: p for p in passes}
    if "verify" not in by_kind or "plain" not in by_kind:
        per_byte = result.pass_cost.total("flop") / result.pass_cost.total("bytes_")
        side, wall = ("left", "memory") if per_byte < ridge else ("right", "compute")
        return f"The step does {per_byte:.3g} FLOP per byte, {side} of the ridge at {ridge:.0f}: it stands at the {wall} wall"
    plain, verify = by_kind["plain"], by_kind["verify"]
    if verify.flop_per_byte < ridge:
        stand = f"both stand left of the ridge at {ridge:.0f}"
    elif plain.flop_per_byte < ridge:
        stand = f"the ridge at {ridge:.0f} is between them"
    else:
        stand = f"both stand right of the ridge at {ridge:.0f}"
    return (
        f"{verify.name[0].upper()}{verify.name[1:]} takes {verify.seconds / plain.seconds:.2f} × as long as plain decoding, at "
        f"{verify.flop_per_byte:.3g} FLOP per byte instead of {plain.flop_per_byte:.3g}: {stand}"
    )
