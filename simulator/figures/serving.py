"""Many users: how long they wait, and what the replicas do meanwhile, with speculation and without on the same axes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from simulator import units
from simulator.figures import style
from simulator.output.rows import basis
from simulator.serving import state
from simulator.serving.class_metrics import END_NAMES
from simulator.serving.cluster_metrics import serving_over_time
from simulator.serving.intervals import FIGURES, Intervals
from simulator.serving.metrics import request_metrics
from simulator.serving.simulation import Run, SimulationResult
from simulator.serving.timeline import Timeline, timeline
from simulator.serving.window import ARRIVALS

MOST_CURVE_POINTS = 400
MOST_TIMELINE_POINTS = 240
MOST_CLASSES = 6
CLASS_COLOURS = (style.GREEN, style.PINK, style.SKY, style.GREY)
MOST_SCATTER_POINTS = 1000

FloatArray = NDArray[np.float64]


class Latency(NamedTuple):
    """A latency of `metrics.request_metrics` in words."""

    field: str
    name: str
    axis: str
    worst: str
    """What its largest value is."""
    scale: float = 1.0
    """From s to `unit`."""
    unit: str = "s"


LATENCIES = (
    Latency("ttft_s", "to the first token", "time to first token (TTFT)", "The longest wait for a first token"),
    Latency("tpot_s", "per token after the first", "time per output token (TPOT)", "The slowest tokens", 1e3, "ms"),
    Latency("e2e_s", "to the last token", "arrival to last token (E2E)", "The longest wait for a whole answer"),
)

BELOW = {"orientation": "h", "x": 0, "xanchor": "left", "y": -0.22, "yanchor": "top", "itemsizing": "constant"}
"""A legend under the x axis."""


def measured(run: Run, field: str, class_of: int | None = None) -> FloatArray:
    """One value per measured request (of one class), seconds, ascending: what the summary's distribution of `field` is taken
    over."""
    values = request_metrics(run.requests)[field]
    which = (run.requests["measured"] == 1) & ~np.isnan(values)
    if class_of is not None:
        which &= run.requests["class_of"] == class_of
    return np.sort(values[which])


def latency_figure(result: SimulationResult, latency: Latency) -> go.Figure:
    """Share of requests at or below each latency, one curve per variant and class, and the objectives if there are any."""
    limit_s = getattr(result.scenario.slo, latency.field)
    values = [measured(run, latency.field) for run in result.runs]
    traces = [_curve(v, latency, _look(run)) for run, v in zip(result.runs, values, strict=True)]
    shapes = [] if limit_s is None else [_limit("x", limit_s * latency.scale)]
    classes = result.main.summary.classes
    largest = sorted(range(len(classes)), key=lambda c: -classes[c].measured)[:MOST_CLASSES]
    for place, c in enumerate(largest if len(classes) > 1 else ()):
        values.append(measured(result.main, latency.field, c))
        colour = CLASS_COLOURS[place % len(CLASS_COLOURS)]
        dash = "solid" if place < len(CLASS_COLOURS) else "dashdot"
        look = {"name": style.text(classes[c].name), "line": {"color": colour, "width": 1.5, "dash": dash}}
        traces.append(_curve(values[-1], latency, look))
        own_s = classes[c].slo.get(latency.field)
        if own_s is not None and own_s != limit_s:
            shapes.append(_limit("x", own_s * latency.scale, colour, 1.5))
    low, high = _range([v for v in values if len(v)], limit_s)
    layout = {
        "xaxis": {"type": "log", "title": {"text": f"{latency.axis}, {latency.unit}"},
                  **ticks(low * latency.scale, high * latency.scale)},
        "yaxis": {"title": {"text": "share of requests, %"}, "range": [0, 101]},
        "shapes": shapes, "legend": BELOW, "showlegend": True,
    }  # fmt: skip
    if limit_s is not None:
        layout["annotations"] = [{
            "x": math.log10(limit_s * latency.scale), "y": 0, "yref": "paper", "yanchor": "bottom", "xanchor": "right",
            "textangle": -90, "showarrow": False, "text": f"objective {units.show(limit_s, 's')}", "font": {"size": 12},
            "xshift": -2,
        }]  # fmt: skip
    finding = _median_sentence(result, values, latency)
    return style.drawn([t for t in traces if t], layout, finding=finding, tag=result_tag(result), height=360)


def _curve(sorted_s: FloatArray, latency: Latency, look: dict[str, Any]) -> dict[str, Any]:
    if len(sorted_s) == 0:
        return {}
    keep = np.unique(np.linspace(0, len(sorted_s) - 1, MOST_CURVE_POINTS).astype(int))
    return {
        "type": "scatter", "x": sorted_s[keep] * latency.scale, "y": 100.0 * (keep + 1) / len(sorted_s), "mode": "lines",
        **look, "hovertemplate": f"%{{y:.1f}} % of requests within %{{x:.4g}} {latency.unit}<extra></extra>",
    }  # fmt: skip


def _limit(axis: str, at: float, colour: str = style.VERMILLION, width: float = 2) -> dict[str, Any]:
    """An objective: a line across the whole figure at `at` of one of its axes."""
    across = "y" if axis == "x" else "x"
    return {
        "type": "line", f"{axis}0": at, f"{axis}1": at, f"{across}0": 0, f"{across}1": 1, f"{across}ref": f"{across} domain",
        "line": {"color": colour, "dash": "dot", "width": width},
    }  # fmt: skip


def arrivals_figure(result: SimulationResult, latency: Latency = LATENCIES[0]) -> go.Figure:
    """A latency of every request (thinned evenly) against its arrival, and its objective."""
    drawn = 0
    worst, when = 0.0, 0.0
    traces = []
    for run in reversed(result.runs):
        took_s = request_metrics(run.requests)[latency.field]
        has = np.nonzero(~np.isnan(took_s))[0]
        if len(has) == 0:
            continue
        keep = has[:: max(1, -(-len(has) // MOST_SCATTER_POINTS))]
        drawn += len(keep)
        peak = has[np.argmax(took_s[has])]
        if run is result.main:
            worst, when = float(took_s[peak]), float(run.requests["arrival_s"][peak])
        traces.append({
            "type": "scatter", "x": run.requests["arrival_s"][keep], "y": took_s[keep] * latency.scale, "mode": "markers",
            "name": style.VARIANT_NAMES[run.variant],
            "marker": {"color": style.VARIANT_COLOURS[run.variant], "size": 5, "opacity": 0.55,
                       "symbol": "circle" if run.variant == "speculation" else "diamond"},
            "hovertemplate": f"arrived at %{{x:.1f}} s: %{{y:.3g}} {latency.unit} {latency.name}<extra></extra>",
        })  # fmt: skip
    limit_s = getattr(result.scenario.slo, latency.field)
    layout = {
        "xaxis": {"title": {"text": "arrival, s"}},
        "yaxis": {"title": {"text": f"{latency.axis}, {latency.unit}"}, "rangemode": "tozero"},
        "shapes": [] if limit_s is None else [_limit("y", limit_s * latency.scale)],
        "legend": BELOW, "showlegend": True,
    }  # fmt: skip
    who = " with speculation" if len(result.runs) > 1 else ""
    finding = f"{latency.worst}{who}: {units.show(worst, 's')}, for a request that came at {when:,.0f} s"
    if worst == 0.0:
        finding = "No request has finished"
    total = sum(len(run.requests) for run in result.runs)
    tag = result_tag(result) + (f"; {drawn:,} of {total:,} requests drawn" if drawn < total else "")
    return style.drawn(traces, layout, finding=finding, tag=tag, height=380)


def interval_figure(result: SimulationResult, intervals: Intervals) -> go.Figure:
    """How far each figure may lie from its prediction, in percent of it: one bar per figure and variant."""
    figure = go.Figure()
    widest, where = 0.0, ""
    names = {
        **{f"{latency.field}.{point}": f"{latency.field.removesuffix('_s').upper()} {point}"
           for latency in LATENCIES for point in ("mean", "p50", "p99")},
        "output_tokens_per_s": "output tokens/s", "goodput_per_s": "goodput",
    }  # fmt: skip
    for run in result.runs:
        found = [(names[f], i) for f in FIGURES if (i := intervals.get(run.variant, f)) is not None]
        middle = [math.sqrt(i.low * i.high) for _, i in found]
        low = [100.0 * (1.0 - i.low / m) for (_, i), m in zip(found, middle, strict=True)]
        high = [100.0 * (i.high / m - 1.0) for (_, i), m in zip(found, middle, strict=True)]
        if high and max(high) > widest:
            widest, where = max(high), found[int(np.argmax(high))][0]
        figure.add_scatter(
            x=[0.0] * len(found), y=[name for name, _ in found], mode="markers", name=style.VARIANT_NAMES[run.variant],
            orientation="h", marker={"color": style.VARIANT_COLOURS[run.variant], "size": 9},
            error_x={"type": "data", "symmetric": False, "array": high, "arrayminus": low, "thickness": 2.5,
                     "color": style.VARIANT_COLOURS[run.variant]},
            customdata=np.round(np.column_stack([low, high]), 1),
            hovertemplate="%{y}: −%{customdata[0]} % to +%{customdata[1]} %<extra></extra>",
        )  # fmt: skip
    figure.update_layout(scattermode="group", scattergap=0.5)
    figure.update_xaxes(title="90 % interval around the prediction, %")
    figure.update_yaxes(autorange="reversed")
    finding = f"The least certain figure is {where}: up to +{widest:.0f} % off with 90 %, as far as times are uncertain"
    style.finish(figure, finding=finding, tag=result_tag(result), height=420)
    return style.legend_below(figure)


def load_figure(result: SimulationResult) -> go.Figure:
    """Over time: requests running and waiting, KV cache filled, tokens in and out per second, and replicas serving where that
    changes; all replicas together."""
    panels = [
        "requests running",
        "requests waiting",
        "KV cache filled, %",
        "output, tokens/s",
        "prompts computed, tokens/s",
    ]
    changes = any(run.happened for run in result.runs)
    if changes:
        panels.append("replicas serving")
    timelines = [timeline_of(run) for run in result.runs]
    traces = []
    for run, found in zip(result.runs, timelines, strict=True):
        lines = (
            found.running, found.waiting, 100.0 * found.kv_share, found.output_tokens_per_s, found.prompt_tokens_per_s,
        )  # fmt: skip
        traces += [_line(run, k, found.time_s, y, "%{y:.4g} at %{x:.0f} s") for k, y in enumerate(lines)]
        if changes:
            traces.append(_replicas(run, len(lines)))
    # Panels from top to bottom over one axis of time.
    height, gap = 1.0 / len(panels), 0.035 * 5 / len(panels)
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": "simulated time, s"}, "anchor": _axis("y", len(panels) - 1)},
        "annotations": [
            {"text": panel, "x": 0, "xref": "paper", "xanchor": "left", "y": 1.0 - k * height - gap, "yref": "paper",
             "yanchor": "bottom", "showarrow": False, "font": {"size": 13}}
            for k, panel in enumerate(panels)
        ],
        "legend": {**BELOW, "y": -0.08}, "showlegend": True,
    }  # fmt: skip
    for k in range(len(panels)):
        low, high = 1.0 - (k + 1) * height, 1.0 - k * height - gap
        layout[_axis("yaxis", k)] = {"domain": [max(0.0, low), high], "anchor": "x", "rangemode": "tozero"}
    if max(found.waiting.max(initial=0.0) for found in timelines) < 1.0:
        layout["yaxis2"]["range"] = [0, 1]  # hundredths of a request are no queue
    window = result.main.summary
    if window.window == ARRIVALS:
        layout["shapes"] = [{
            "type": "rect", "x0": window.window_start_s, "x1": window.window_start_s + window.window_s, "y0": 0, "y1": 1,
            "yref": "paper", "fillcolor": style.BAND, "opacity": 0.35, "line": {"width": 0}, "layer": "below",
        }]  # fmt: skip
    tag = result_tag(result) + ("; shaded: what rates are taken over" if "shapes" in layout else "")
    return style.drawn(traces, layout, finding=_load_sentence(result), tag=tag, height=160 * len(panels))


def _axis(name: str, panel: int) -> str:
    """What plotly calls an axis of the panel: ``y``, ``y2``, …"""
    return name if panel == 0 else f"{name}{panel + 1}"


def _line(run: Run, panel: int, x: FloatArray, y: FloatArray, hover: str, shape: str = "linear") -> dict[str, Any]:
    look = _look(run)
    look["line"] = {**look["line"], "width": 1.6, "dash": "solid", "shape": shape}
    return {
        "type": "scatter", "x": x, "y": y, "mode": "lines", **look, "legendgroup": run.variant, "showlegend": panel == 0,
        "yaxis": _axis("y", panel), "hovertemplate": f"{hover}<extra></extra>",
    }  # fmt: skip


def _replicas(run: Run, panel: int) -> dict[str, Any]:
    """How many replicas take requests, a step at every change, up to the end of the run."""
    times_s, counts = serving_over_time(run.kinds, run.happened)
    end_s = run.cluster.end_s if run.cluster else float(times_s[-1])
    inside = times_s <= end_s  # who was starting when the last request left may be ready later
    x, y = np.append(times_s[inside], end_s), np.append(counts[inside], counts[inside][-1])
    return _line(run, panel, x, y, "%{y} from %{x:.0f} s", "hv")


def timeline_of(run: Run) -> Timeline:
    """The run's time series in as many points as are drawn."""
    replicas = sum(kind.pool.built for kind in run.kinds)
    return timeline(
        run.series, run.bucket_s, total_blocks=run.fleet_blocks, replicas=replicas, points=MOST_TIMELINE_POINTS
    )


def _load_sentence(result: SimulationResult) -> str:
    main, plain = result.main.summary, result.plain.summary
    growing = [run for run in result.runs if run.summary.stability.stable is False]
    if growing:
        first = growing[0].summary.stability.sentence.partition(". ")[0]
        return f"{style.VARIANT_NAMES[growing[0].variant]}: {first[0].lower()}{first[1:]}".capitalize()
    each = " on each replica" if sum(kind.pool.built for kind in result.main.kinds) > 1 else ""
    if result.main is result.plain:
        return (
            f"At most {main.most_running} requests run together on one replica, and {main.kv_occupancy_most:.0%} of the KV "
            "cache is full"
        )
    ours, theirs = f"{main.mean_running:.1f}", f"{plain.mean_running:.1f}"
    fewer = ours != theirs and main.mean_running < plain.mean_running
    return f"With speculation {ours} requests run together{each} on average, without {theirs}: " + (
        "those that finish sooner leave room" if fewer else "no room is gained"
    )


def ends_figure(result: SimulationResult) -> go.Figure | None:
    """How requests ended, one bar per way and variant; None where all of them finished."""
    counts = [{name: run.summary.requests.get(name, 0) for name in END_NAMES} for run in result.runs]
    names = [name for name in END_NAMES if any(c[name] for c in counts)]
    if names == ["finished"] or not names:
        return None
    figure = go.Figure()
    for run, found in zip(result.runs, counts, strict=True):
        total = max(1, sum(found.values()))
        figure.add_bar(
            y=names, x=[100.0 * found[name] / total for name in names], orientation="h", name=style.VARIANT_NAMES[run.variant],
            marker={"color": style.VARIANT_COLOURS[run.variant], "line": {"width": 0}},
            text=[f"{found[name]:,}" for name in names], textposition="auto",
            hovertemplate="%{y}: %{text} requests, %{x:.2f} %<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title="share of requests, %", range=[0, 100])
    figure.update_yaxes(autorange="reversed")
    main, total = counts[0], max(1, sum(counts[0].values()))
    lost = {name: n for name, n in main.items() if name != "finished" and n}
    most = max(lost, key=lambda name: lost[name], default="")
    finding = f"{main['finished'] / total:.1%} of the requests get their answer"
    finding += f"; most of the others are {most}" if most else ""
    style.finish(figure, finding=finding, tag=result_tag(result), height=150 + 50 * len(names))
    return style.legend_below(figure)


def tokens_per_round_figure(result: SimulationResult) -> go.Figure | None:
    """How many tokens a round yields, request by request; None where nothing speculates."""
    run = result.main
    requests = run.requests
    has = (requests["status"] == state.FINISHED) & (requests["measured"] == 1) & (requests["rounds"] > 0)
    if run.gamma == 0 or not has.any():
        return None
    per_round = 1.0 + requests["accepted_tokens"][has] / requests["rounds"][has]
    step = 0.1
    edges = np.arange(1.0, run.gamma + 1.0 + 2 * step, step)
    counts, _ = np.histogram(per_round, edges)
    figure = go.Figure(
        go.Bar(
            x=edges[:-1] + step / 2, y=counts, width=step * 0.92,
            marker={"color": style.VARIANT_COLOURS["speculation"], "line": {"width": 0}},
            hovertemplate="%{y} requests with about %{x:.2f} tokens per round<extra></extra>",
        )
    )  # fmt: skip
    mean = run.summary.tokens_per_round
    figure.add_vline(mean, line={"color": style.VERMILLION, "dash": "dot", "width": 2})
    figure.add_annotation(
        x=mean, y=1, yref="paper", yanchor="bottom", showarrow=False, text=f"all rounds: {mean:.2f}", font={"size": 12}
    )
    figure.update_xaxes(title=f"tokens per round (at most {run.gamma + 1})", range=[0.9, run.gamma + 1.15])
    figure.update_yaxes(title="requests")
    p5, p95 = np.percentile(per_round, (5, 95))
    return style.finish(
        figure,
        finding=f"A round yields {mean:.2f} tokens; nine in ten requests see between {p5:.2f} and {p95:.2f}",
        tag=result_tag(result),
        height=340,
    )


def _median_sentence(result: SimulationResult, values: list[FloatArray], latency: Latency) -> str:
    if not len(values[0]):
        return f"No request has a {latency.axis}" if latency.field == "tpot_s" else "No request has finished"
    medians = [units.show(float(np.median(v)), "s") if len(v) else "no value" for v in values[: len(result.runs)]]
    if len(result.runs) == 1:
        return f"Half of the requests need at most {medians[0]} {latency.name}"
    return f"Half of the requests need at most {medians[0]} {latency.name}, without speculation {medians[1]}"


def _look(run: Run) -> dict[str, Any]:
    return {
        "name": style.VARIANT_NAMES[run.variant],
        "line": {"color": style.VARIANT_COLOURS[run.variant], "dash": style.VARIANT_DASH[run.variant], "width": 2.5},
    }


def _range(values: list[FloatArray], limit_s: float | None) -> tuple[float, float]:
    """From the fastest request to the slowest, and the objective with them."""
    ends = [float(v[0]) for v in values] + [float(v[-1]) for v in values]
    ends = [e for e in ends if e > 0] + ([limit_s] if limit_s else [])
    return (min(ends) / 1.15, max(ends) * 1.15) if ends else (0.1, 1.0)


def ticks(low: float, high: float) -> dict[str, Any]:
    """1, 2, 5 of every decade, or fewer where that crowds; plotly's own ticks on a log axis skip or abbreviate."""
    steps = (1, 2, 5) if high / low < 1000 else (1,)
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    at = [m * 10.0**d for d in decades for m in steps if low <= m * 10.0**d <= high]
    axis: dict[str, Any] = {"range": [float(np.log10(low)), float(np.log10(high))]}
    return {**axis, "tickvals": at, "ticktext": [f"{t:g}" for t in at], "tickangle": 0} if len(at) >= 2 else axis


def result_tag(result: SimulationResult) -> str:
    """What a simulation's times rest on, of how many requests."""
    return f"{basis(result)}; {result.main.summary.measured:,} requests measured, seed {result.scenario.seed}"
