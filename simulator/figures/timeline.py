"""The library and the desk: when the HBM hauls weights and when the SMs multiply them.

By layer a bar's width is how long the layer lasts and its height the share of that time in which the track is busy, so
that a bar's area is busy time and 80 layers stay readable. Of the first layers every tile is drawn as it is.
"""

from __future__ import annotations

from collections.abc import Iterable

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from simulator import units
from simulator.decoding import Span, Timeline
from simulator.figures import style
from simulator.output.rows import count

TRACKS = ("HBM load", "SM compute")
TRACK_NAMES = {"HBM load": "Library: HBM loads", "SM compute": "Desk: SMs multiply"}
SHOWN_LAYERS = 2
MOST_TILES = 3000
"""Above this many tiles in the first layers, operators are drawn instead."""

_MULTIPLIED = {
    "stream": "each is multiplied while it arrives",
    "wipe": "each is multiplied once it has arrived, and the desk is wiped",
    "prefetch": "the next are on their way while one is multiplied",
}
_THINNEST_PX = 1.2
"""Stroke around each bar: a multiplication of a fraction of a microsecond stays visible."""


def pass_figure(timeline: Timeline, tag: str) -> go.Figure:
    """The whole pass by layer: two tracks, busy share of each layer's time."""
    spans = timeline.spans("layer")
    ms = timeline.seconds > 2e-3
    scale, unit = (1e3, "ms") if ms else (1e6, "µs")
    figure = make_subplots(
        rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.12, subplot_titles=list(TRACK_NAMES.values())
    )
    for row, track in enumerate(TRACKS, start=1):
        mine = [span for span in spans if span.track == track]
        figure.add_bar(
            x=[(s.start_s + s.end_s) / 2 * scale for s in mine],
            width=[(s.end_s - s.start_s) * scale for s in mine],
            y=[100 * s.busy_s / (s.end_s - s.start_s) for s in mine],
            marker={"color": style.TRACK_COLOURS[track], "line": {"width": 0.5, "color": style.TRACK_COLOURS[track]}},
            opacity=0.85, name=TRACK_NAMES[track], showlegend=False,
            hovertext=[_hover(s) for s in mine], hoverinfo="text",
            row=row, col=1,
        )  # fmt: skip
        figure.update_yaxes(title="busy, %", range=[0, 105], row=row, col=1)
    figure.update_xaxes(title=f"time from the start of the pass, {unit}", row=2, col=1)
    figure.update_xaxes(range=[0, timeline.seconds * scale])
    hbm, sms = timeline.busy
    layers = count(_layers(timeline), "layer")
    style.finish(
        figure,
        finding=f"Over {layers} in {units.show(timeline.seconds, 's')} the HBM is busy {hbm:.0%} of the time, "
        f"the SMs {sms:.0%}",
        tag=tag,
        height=400,
    )
    return _left_titles(figure)


def layers_figure(timeline: Timeline, tag: str, layers: int = SHOWN_LAYERS) -> go.Figure:
    """The first `layers` layers as bars in time, coloured by operator; every load and every multiplication."""
    layers = min(layers, _layers(timeline))
    detail = "tile"
    spans = _first_layers(timeline, detail, layers)
    if len(spans) > 2 * MOST_TILES:
        detail = "operator"
        spans = _first_layers(timeline, detail, layers)
    start_s = min((s.start_s for s in spans), default=0.0)
    end_s = max((s.end_s for s in spans), default=0.0)
    figure = go.Figure()
    legend: set[str] = set()
    for name in _in_order(_operator(s) for s in spans):
        mine = [s for s in spans if _operator(s) == name]
        colour = style.operator_colour(name)
        figure.add_bar(
            base=[(s.start_s - start_s) * 1e6 for s in mine],
            x=[(s.end_s - s.start_s) * 1e6 for s in mine],
            y=[-TRACKS.index(s.track) for s in mine],
            orientation="h", width=0.6, name=style.text(_family(name)), legendgroup=colour, showlegend=colour not in legend,
            marker={"color": colour, "line": {"width": _THINNEST_PX, "color": colour}},
            hovertext=[_hover(s) for s in mine], hoverinfo="text",
        )  # fmt: skip
        legend.add(colour)
    figure.update_layout(barmode="overlay")
    figure.update_yaxes(visible=False, range=[-1.35, 0.65])
    for row, track in enumerate(TRACKS):
        figure.add_annotation(
            x=0, xref="paper", y=-row + 0.32, xanchor="left", yanchor="bottom", showarrow=False, text=TRACK_NAMES[track],
            font={"size": 14},
        )  # fmt: skip
    figure.update_xaxes(title="time from the start of layer 1, µs", range=[0, (end_s - start_s) * 1e6])
    for layer in range(1, layers):
        boundary = min((s.start_s for s in spans if s.name.startswith(f"layer {layer + 1} ")), default=start_s)
        if boundary > start_s:
            figure.add_vline((boundary - start_s) * 1e6, line={"color": style.REFERENCE, "dash": "dot", "width": 1.5})
            figure.add_annotation(
                x=(boundary - start_s) * 1e6, y=0.32, yanchor="bottom", xanchor="left", showarrow=False, xshift=4,
                text=f"layer {layer + 1} begins", font={"size": 12},
            )  # fmt: skip
    what = {"tile": "loads", "operator": "operators"}[detail]
    loads = sum(s.track == "HBM load" for s in spans)
    moved = sum(s.bytes_ for s in spans)
    style.finish(
        figure,
        finding=f"The first {count(layers, 'layer')}: {loads} {what}, {units.show(moved, 'bytes')} in all, hauled one after the "
        f"other; {_MULTIPLIED[timeline.overlap]}",
        tag=tag,
        height=330,
    )
    return style.legend_below(figure)


def _layers(timeline: Timeline) -> int:
    return len({stage.layer for stage in timeline.stages if stage.layer >= 0})


def _first_layers(timeline: Timeline, detail: str, layers: int) -> list[Span]:
    wanted = tuple(f"layer {i + 1} " for i in range(layers))
    return [span for span in timeline.spans(detail) if span.name.startswith(wanted)]


def _operator(span: Span) -> str:
    return span.name.split(" ", 2)[-1]


def _family(name: str) -> str:
    """What operators of one colour have in common."""
    return {
        style.PINK: "waiting for other GPUs",
        style.SKY: "attention over the KV cache",
        style.GREY: "norms, rotary, activation",
        style.ORANGE: "attention's weights",
        style.GREEN: "embedding and LM head",
    }.get(style.operator_colour(name), "MLP weights")


def _in_order(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _hover(span: Span) -> str:
    lasts = units.show(span.end_s - span.start_s, "s")
    busy = (
        "" if span.busy_s >= (span.end_s - span.start_s) * 0.999 else f", busy {units.show(span.busy_s, 's')} of them"
    )
    moved = f"<br>{units.show(span.bytes_, 'bytes')}" if span.bytes_ else ""
    return f"{style.text(span.name)}, {span.track}<br>{lasts} from {units.show(span.start_s, 's')}{busy}{moved}"


def _left_titles(figure: go.Figure) -> go.Figure:
    figure.update_annotations(x=0, xanchor="left", font={"size": 14})
    return figure
