"""The roofline: what each operator does per byte, and how fast it does it, under the two roofs of the datasheet."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from simulator import units
from simulator.decoding import DecodeResult
from simulator.figures import style

LARGEST_MARKER_PX = 40.0
SMALLEST_MARKER_PX = 7.0


def roofline_figure(result: DecodeResult) -> go.Figure:
    """FLOP/s over FLOP/byte of every operator that multiplies; a marker's area is its share of the step."""
    target = result.deployment.target
    bandwidth = target.gpu.hbm_bytes_per_s
    peak = target.gpu.peak_flop_per_s(target.formats.activations)
    ridge = peak / bandwidth
    points = [(o, s) for o, s in result.by_operator if o.flop > 0 and o.bytes_ > 0 and o.total_s > 0]
    intensities = [o.flop / o.bytes_ for o, _ in points]
    low = min([*intensities, ridge]) / 4
    high = max([*intensities, ridge]) * 8
    figure = go.Figure()
    figure.add_scatter(
        x=[low, ridge, high], y=[low * bandwidth / 1e12, peak / 1e12, peak / 1e12], mode="lines",
        line={"color": style.REFERENCE, "width": 2}, name="datasheet roof", hoverinfo="skip",
    )  # fmt: skip
    longest = max((s for _, s in points), default=1.0)
    for index, (o, seconds) in enumerate(points):
        figure.add_scatter(
            x=[o.flop / o.bytes_], y=[o.flop / o.total_s / 1e12], mode="markers",
            name=f"{style.text(o.name)}, {seconds / result.step_s:.0%} of the step",
            marker={
                "color": style.SERIES_COLOURS[index % len(style.SERIES_COLOURS)],
                # Hollow, largest first: many operators do the same FLOP per byte and stand on one spot.
                "symbol": f"{style.SERIES_SYMBOLS[index % len(style.SERIES_SYMBOLS)]}-open",
                "size": max(SMALLEST_MARKER_PX, LARGEST_MARKER_PX * math.sqrt(seconds / longest)),
                "line": {"width": 2.5},
            },
            hovertemplate=f"{style.text(o.name)} × {o.repeat}<br>{o.flop / o.bytes_:.3g} FLOP per byte<br>"
            f"{units.show(o.flop / o.total_s, 'flop_per_s')}<br>{units.show(seconds, 's')} of the step<extra></extra>",
        )  # fmt: skip
    # Roofs are named along themselves; on log axes annotations take exponents.
    figure.add_annotation(
        x=math.log10(high), y=math.log10(peak / 1e12), xanchor="right", yanchor="bottom", showarrow=False,
        text=f"dense peak {units.show(peak, 'flop_per_s')}",
    )  # fmt: skip
    named = low * (ridge / low) ** 0.06  # left of every operator, as `low` is a quarter of the lowest
    figure.add_annotation(
        x=math.log10(named), y=math.log10(named * bandwidth / 1e12), xanchor="left", yanchor="top", showarrow=False,
        text=f"HBM {units.show(bandwidth, 'bytes_per_s')}", xshift=8, yshift=2,
    )  # fmt: skip
    figure.update_xaxes(type="log", title="FLOP per byte moved", range=[math.log10(low), math.log10(high)], dtick=1)
    lowest = min([o.flop / o.total_s for o, _ in points] + [low * bandwidth]) / 1e12
    figure.update_yaxes(
        type="log", title="TFLOP/s reached", range=[math.log10(lowest / 2), math.log10(peak / 1e12 * 4)], dtick=1
    )
    style.finish(
        figure, finding=_finding(result, points, ridge), tag=f"{style.tag_of(result.deployment)}; roofs from the datasheet",
        height=470,
    )  # fmt: skip
    return style.legend_below(figure)


def _finding(result: DecodeResult, points: Sequence[object], ridge: float) -> str:
    flop, moved = result.pass_cost.total("flop"), result.pass_cost.total("bytes_")
    if not points or moved <= 0:
        return "No operator of this step multiplies"
    side = "left" if flop / moved < ridge else "right"
    wall = "the memory wall" if side == "left" else "the compute wall"
    return f"The step does {flop / moved:.3g} FLOP per byte, {side} of the ridge at {ridge:.0f}: it stands at {wall}"
