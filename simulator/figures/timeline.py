"""The library and the desk: when the HBM hauls weights and when the SMs multiply them, from the whole pass down to single tiles.

A bar's height is the share of its time in which its track is busy, so that areas are busy time, whether a bar is a layer or a
tile, and 80 layers stay readable.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from simulator import units
from simulator.decoding import Span, Timeline
from simulator.errors import InputError
from simulator.figures import style
from simulator.output.rows import count

TRACKS = ("HBM load", "SM compute")
TRACK_NAMES = {"HBM load": "Library: HBM loads", "SM compute": "Desk: SMs multiply"}
TILE_LAYERS = 2
"""Of so many layers every tile is drawn."""
OPERATOR_LAYERS = 12
"""Of so many every operator; of more, whole layers."""
MOST_BARS = 3000
"""What would take more is drawn less finely."""

_MULTIPLIED = {
    "stream": "each is multiplied while it arrives",
    "wipe": "each is multiplied once it has arrived, and the desk is wiped",
    "prefetch": "the next are on their way while one is multiplied",
}
_FAMILIES = {
    style.BLUE: "MLP weights", style.ORANGE: "attention's weights", style.SKY: "attention over the KV cache",
    style.GREY: "norms, rotary, activation", style.PINK: "waiting for other GPUs", style.GREEN: "embedding and LM head",
}  # fmt: skip
"""What operators of one colour have in common."""
_FEET = {"HBM load": 1.5, "SM compute": 0.0}
_THINNEST_PX = 1.2
"""Stroke around each bar: a multiplication of a fraction of a microsecond stays visible."""
_SHADE = 0.75
_NAMED_BARS, _NAMED_LAYERS = 300, 6


def gantt_figure(timeline: Timeline, tag: str, first_layer: int = 1, last_layer: int | None = None) -> go.Figure:
    """Loads above, arithmetic below, from `first_layer` to `last_layer` (both included, from 1; left out: the last one): a bar
    per layer, of a few layers per operator, of one or two per tile. Embedding and LM head stand beside the first and last layer.

    Raises InputError where there are no such layers.
    """
    layers = _layers(timeline, first_layer, last_layer)
    detail, spans = _spans(timeline, layers)
    start_s = min(s.start_s for s in spans) if layers.start else 0.0
    end_s = max(s.end_s for s in spans)
    scale, unit = (1e3, "ms") if end_s - start_s > 2e-3 else (1e6, "µs")
    groups: dict[tuple[str, str, str], list[Span]] = {}
    for span in spans:
        colour, name = _colour(span, detail)
        groups.setdefault((colour, name, span.track), []).append(span)
    named = len(spans) <= _NAMED_BARS and detail != "tile"
    traces = [
        _bars(mine, track, colour, name, start_s, scale, unit, named=named) for (colour, name, track), mine in groups.items()
    ]  # fmt: skip
    legend: set[str] = set()
    for trace in traces:
        trace["showlegend"] = trace["name"] not in legend
        legend.add(trace["name"])
    since = "the pass" if layers.start == 0 else f"layer {layers.start + 1}"
    shapes, notes = _boundaries(spans, layers, start_s, scale) if detail != "layer" else ([], [])
    notes += [
        {"x": 0, "xref": "paper", "y": _FEET[track] + 1.03, "xanchor": "left", "yanchor": "bottom", "showarrow": False,
         "text": f"{TRACK_NAMES[track]}, busy {_percent(_busy_s(spans, track) / (end_s - start_s))}", "font": {"size": 14}}
        for track in TRACKS
    ]  # fmt: skip
    return style.drawn(
        traces,
        {
            "barmode": "overlay",
            "xaxis": {"title": {"text": f"time from the start of {since}, {unit}"}, "range": [0, (end_s - start_s) * scale]},
            "yaxis": {"visible": False, "fixedrange": True, "range": [-0.32 if shapes else -0.05, 2.85]},
            "shapes": shapes,
            "annotations": notes,
            "uniformtext": {"minsize": 10, "mode": "hide"},
            "legend": style.LEGEND_AT_FOOT,
        },
        finding=_finding(timeline, spans, layers, detail, end_s - start_s),
        tag=tag + ("" if detail == "tile" else "; a bar is as high as the share of its time that is busy"),
        height=370,
    )  # fmt: skip


def _layers(timeline: Timeline, first: int, last: int | None) -> range:
    count = timeline.layers
    last = count if last is None else last
    if not 1 <= first <= max(count, 1):
        raise InputError("first_layer", first, f"be from 1 to {count}, the model's layers")
    if not first <= last <= max(count, 1):
        raise InputError("last_layer", last, f"be from {first} to {count}, the model's layers")
    return range(first - 1, last)


def _spans(timeline: Timeline, layers: range) -> tuple[str, list[Span]]:
    """The finest detail in which `layers` stay readable."""
    if len(layers) <= TILE_LAYERS:
        spans = timeline.spans("tile", layers)
        if len(spans) <= MOST_BARS:
            return "tile", spans
    if len(layers) <= OPERATOR_LAYERS:
        return "operator", timeline.spans("operator", layers)
    return "layer", timeline.spans("layer", layers)


def _colour(span: Span, detail: str) -> tuple[str, str]:
    """Colour and what it stands for."""
    inside = span.name.startswith("layer ")
    if detail == "layer" and inside:
        return style.TRACK_COLOURS[span.track], f"a layer's {'loads' if span.track == TRACKS[0] else 'arithmetic'}"
    colour = style.operator_colour(span.name.split(" ", 2)[-1] if inside else span.name)
    return colour, _FAMILIES[colour]


def _bars(
    spans: Sequence[Span], track: str, colour: str, name: str, start_s: float, scale: float, unit: str, *, named: bool
) -> dict[str, Any]:
    """One trace: bars of one colour on one track."""
    start = np.array([s.start_s - start_s for s in spans]) * scale
    lasts = np.array([s.end_s - s.start_s for s in spans]) * scale
    share = np.minimum(1.0, [s.busy_s / (s.end_s - s.start_s) for s in spans])
    moved = [s.bytes_ / 1e6 for s in spans]
    # Neighbours of one colour are told apart by every other one's shade.
    shade = np.where(np.arange(len(spans)) % 2, _SHADE, 1.0) if track == TRACKS[0] else 1.0
    amount = "<br>%{customdata[3]:,.3~r} MB" if track == TRACKS[0] else ""
    return {
        "type": "bar", "orientation": "h", "base": start, "x": lasts, "y": _FEET[track] + share / 2, "width": share,
        "name": name, "legendgroup": name, "hovertext": [style.text(s.name) for s in spans],
        "text": [_label(s) for s in spans] if named else None, "textposition": "inside", "insidetextanchor": "middle",
        "textangle": 0, "marker": {"color": colour, "line": {"width": _THINNEST_PX, "color": colour}, "opacity": shade},
        "customdata": np.column_stack([start, lasts / scale * 1e6, share, moved]),
        "hovertemplate": f"%{{hovertext}}, {track}<br>%{{customdata[1]:,.3~r}} µs from %{{customdata[0]:,.4~r}} {unit}, "
        f"%{{customdata[2]:.2~p}} busy{amount}<extra></extra>",
    }  # fmt: skip


def _label(span: Span) -> str:
    """What is written into a bar where there is room."""
    if span.track != TRACKS[0]:
        return ""
    words = span.name.split(" ", 2)
    return style.text(words[-1] if words[0] == "layer" else span.name)


def _boundaries(
    spans: Sequence[Span], layers: range, start_s: float, scale: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A line where each layer begins, and its name at the foot."""
    begins: dict[int, float] = {}
    for span in spans:
        words = span.name.split(" ", 2)
        if words[0] == "layer":
            layer = int(words[1])
            begins[layer] = min(begins.get(layer, span.start_s), span.start_s)
    shapes, notes = [], []
    for layer, at_s in begins.items():
        x = (at_s - start_s) * scale
        shapes.append({"type": "line", "x0": x, "x1": x, "y0": -0.3, "y1": _FEET["HBM load"] + 1.0,
                       "line": {"color": style.REFERENCE, "dash": "dot", "width": 1.5}})  # fmt: skip
        text = f"layer {layer}" if len(layers) <= _NAMED_LAYERS else str(layer)
        notes.append({"x": x, "y": -0.3, "xanchor": "left", "yanchor": "bottom", "showarrow": False, "xshift": 3,
                      "text": text, "font": {"size": 12}})  # fmt: skip
    return shapes, notes


def _finding(timeline: Timeline, spans: Sequence[Span], layers: range, detail: str, seconds: float) -> str:
    hbm, sms = (_percent(_busy_s(spans, track) / seconds) for track in TRACKS)
    if detail == "tile":
        loads = sum(s.track == TRACKS[0] for s in spans)
        moved = units.show(sum(s.bytes_ for s in spans), "bytes")
        return (
            f"{_which(timeline, layers)}: {count(loads, 'load')}, {moved} in {units.show(seconds, 's')}, hauled one after the "
            f"other; {_MULTIPLIED[timeline.overlap]}"
        )
    if len(layers) == timeline.layers:
        layers_ = count(len(layers), "layer")
        return f"Over {layers_} in {units.show(seconds, 's')} the HBM is busy {hbm} of the time, the SMs {sms}"
    takes = "takes" if len(layers) == 1 else "take"
    return f"{_which(timeline, layers)} {takes} {units.show(seconds, 's')}; the HBM is busy {hbm} of the time, the SMs {sms}"


def _which(timeline: Timeline, layers: range) -> str:
    first, last, every = layers.start + 1, layers.stop, timeline.layers
    if every == 1:
        return "The one layer"
    if len(layers) == every:
        return f"All {every} layers"
    if first == last:
        return f"Layer {first} of {every}"
    return f"Layers {first} {'and' if last == first + 1 else 'to'} {last} of {every}"


def _busy_s(spans: Sequence[Span], track: str) -> float:
    return sum(s.busy_s for s in spans if s.track == track)


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.0995 or share == 0 else f"{share:.1%}" if share >= 0.001 else f"{share:.2%}"
