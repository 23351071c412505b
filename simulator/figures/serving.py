"""Many users: how long they wait, and what the replicas do meanwhile, with speculation and without on the same axes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

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
MOST_SCATTER_POINTS = 1500

FloatArray = NDArray[np.float64]


class Latency(NamedTuple):
    """A latency of `metrics.request_metrics` in words."""

    field: str
    name: str
    axis: str


LATENCIES = (
    Latency("ttft_s", "to the first token", "time to first token (TTFT)"),
    Latency("tpot_s", "per token after the first", "time per output token (TPOT)"),
    Latency("e2e_s", "to the last token", "arrival to last token (E2E)"),
)


def measured(run: Run, field: str, class_of: int | None = None) -> FloatArray:
    """One value per measured request (of one class), seconds, ascending: what the summary's distribution of `field` is taken
    over."""
    values = request_metrics(run.requests)[field]
    which = (run.requests["measured"] == 1) & ~np.isnan(values)
    if class_of is not None:
        which &= run.requests["class_of"] == class_of
    return np.sort(values[which])


def latency_figure(result: SimulationResult, latency: Latency) -> go.Figure:
    """Share of requests at or below each latency, one curve per variant, and the objective if there is one."""
    figure = go.Figure()
    limit_s = getattr(result.scenario.slo, latency.field)
    values = [measured(run, latency.field) for run in result.runs]
    scale, unit = (1e3, "ms") if latency.field == "tpot_s" else (1.0, "s")
    for run, sorted_s in zip(result.runs, values, strict=True):
        _add_curve(figure, sorted_s, scale, unit, _look(run))
    values += _add_classes(figure, result, latency, scale, unit)
    if limit_s is not None:
        figure.add_vline(limit_s * scale, line={"color": style.VERMILLION, "dash": "dot", "width": 2})
        figure.add_annotation(
            x=np.log10(limit_s * scale), y=0, yref="paper", yanchor="bottom", xanchor="right", textangle=-90, showarrow=False,
            text=f"objective {units.show(limit_s, 's')}", font={"size": 12}, xshift=-2,
        )  # fmt: skip
    low, high = _range([v for v in values if len(v)], limit_s)
    figure.update_xaxes(type="log", title=f"{latency.axis}, {unit}", **_ticks(low * scale, high * scale))
    figure.update_yaxes(title="share of requests, %", range=[0, 101])
    style.finish(figure, finding=_median_sentence(result, values, latency), tag=_tag(result), height=360)
    return style.legend_below(figure)


def _add_curve(figure: go.Figure, sorted_s: FloatArray, scale: float, unit: str, look: dict[str, Any]) -> None:
    if len(sorted_s) == 0:
        return
    keep = np.unique(np.linspace(0, len(sorted_s) - 1, MOST_CURVE_POINTS).astype(int))
    figure.add_scatter(
        x=sorted_s[keep] * scale, y=100.0 * (keep + 1) / len(sorted_s), mode="lines", **look,
        hovertemplate=f"%{{y:.1f}} % of requests within %{{x:.4g}} {unit}<extra></extra>",
    )  # fmt: skip


def _add_classes(
    figure: go.Figure, result: SimulationResult, latency: Latency, scale: float, unit: str
) -> list[FloatArray]:
    """A curve per class of the variant asked for, where there are several, the largest classes first; their values."""
    classes = result.main.summary.classes
    if len(classes) < 2:
        return []
    largest = sorted(range(len(classes)), key=lambda c: -classes[c].measured)[:MOST_CLASSES]
    found = []
    for place, c in enumerate(largest):
        sorted_s = measured(result.main, latency.field, c)
        colour = CLASS_COLOURS[place % len(CLASS_COLOURS)]
        dash = "solid" if place < len(CLASS_COLOURS) else "dashdot"
        look = {"name": style.text(classes[c].name), "line": {"color": colour, "width": 1.5, "dash": dash}}
        _add_curve(figure, sorted_s, scale, unit, look)
        limit_s = classes[c].slo.get(latency.field)
        if limit_s is not None and limit_s != getattr(result.scenario.slo, latency.field):
            figure.add_vline(limit_s * scale, line={"color": colour, "dash": "dot", "width": 1.5})
        found.append(sorted_s)
    return found


def arrivals_figure(result: SimulationResult) -> go.Figure:
    """Time to first token of every request (thinned evenly) against its arrival."""
    figure = go.Figure()
    drawn = 0
    worst, when = 0.0, 0.0
    for run in reversed(result.runs):
        ttft_s = request_metrics(run.requests)["ttft_s"]
        has = np.nonzero(~np.isnan(ttft_s))[0]
        if len(has) == 0:
            continue
        keep = has[:: max(1, -(-len(has) // MOST_SCATTER_POINTS))]
        drawn += len(keep)
        peak = has[np.argmax(ttft_s[has])]
        if run is result.main:
            worst, when = float(ttft_s[peak]), float(run.requests["arrival_s"][peak])
        figure.add_scatter(
            x=run.requests["arrival_s"][keep], y=ttft_s[keep], mode="markers", name=style.VARIANT_NAMES[run.variant],
            marker={"color": style.VARIANT_COLOURS[run.variant], "size": 5, "opacity": 0.55,
                    "symbol": "circle" if run.variant == "speculation" else "diamond"},
            hovertemplate="arrived at %{x:.1f} s, first token after %{y:.3g} s<extra></extra>",
        )  # fmt: skip
    if result.scenario.slo.ttft_s is not None:
        figure.add_hline(result.scenario.slo.ttft_s, line={"color": style.VERMILLION, "dash": "dot", "width": 2})
    figure.update_xaxes(title="arrival, s")
    figure.update_yaxes(title="time to first token, s", rangemode="tozero")
    who = " with speculation" if len(result.runs) > 1 else ""
    finding = (
        f"The longest wait for a first token{who}: {units.show(worst, 's')}, for a request that came at {when:,.0f} s"
    )
    total = sum(len(run.requests) for run in result.runs)
    tag = _tag(result) + (f"; {drawn:,} of {total:,} requests drawn" if drawn < total else "")
    style.finish(figure, finding=finding, tag=tag, height=380)
    return style.legend_below(figure)


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
    style.finish(figure, finding=finding, tag=_tag(result), height=420)
    return style.legend_below(figure)


def load_figure(result: SimulationResult) -> go.Figure:
    """Over time: requests running and waiting, KV cache filled, tokens in and out per second; all replicas together."""
    panels: tuple[str, ...] = (
        "requests running",
        "requests waiting",
        "KV cache filled, %",
        "output, tokens/s",
        "prompts computed, tokens/s",
    )
    changes = any(run.happened for run in result.runs)
    if changes:
        panels = (*panels, "replicas serving")
    spacing = 0.045 * 5 / len(panels)
    figure = make_subplots(rows=len(panels), cols=1, shared_xaxes=True, vertical_spacing=spacing, subplot_titles=panels)
    for run in result.runs:
        found = timeline_of(run)
        lines = (
            found.running, found.waiting, 100.0 * found.kv_share, found.output_tokens_per_s, found.prompt_tokens_per_s,
        )  # fmt: skip
        for row, y in enumerate(lines, start=1):
            look = _look(run)
            look["line"] = {**look["line"], "width": 1.6, "dash": "solid"}
            figure.add_scatter(
                x=found.time_s, y=y, mode="lines", **look, legendgroup=run.variant, showlegend=row == 1,
                hovertemplate="%{y:.4g} at %{x:.0f} s<extra></extra>", row=row, col=1,
            )  # fmt: skip
        if changes:
            _add_replicas(figure, run, row=len(panels))
    window = result.main.summary
    if window.window == ARRIVALS:
        figure.add_vrect(
            window.window_start_s, window.window_start_s + window.window_s, fillcolor=style.BAND, opacity=0.35,
            line_width=0, layer="below",
        )  # fmt: skip
    figure.update_yaxes(rangemode="tozero")
    if max(timeline_of(run).waiting.max(initial=0.0) for run in result.runs) < 1.0:
        figure.update_yaxes(range=[0, 1], row=2, col=1)  # hundredths of a request are no queue
    figure.update_xaxes(title="simulated time, s (shaded: what rates are taken over)", row=len(panels), col=1)
    figure.update_annotations(x=0, xanchor="left", font={"size": 13})
    style.finish(figure, finding=_load_sentence(result), tag=_tag(result), height=160 * len(panels))
    return style.legend_below(figure, offset=-0.1)


def _add_replicas(figure: go.Figure, run: Run, row: int) -> None:
    """How many replicas take requests, a step at every change, up to the end of the run."""
    times_s, counts = serving_over_time(run.kinds, run.happened)
    end_s = run.cluster.end_s if run.cluster else float(times_s[-1])
    inside = times_s <= end_s  # who was starting when the last request left may be ready later
    look = _look(run)
    look["line"] = {**look["line"], "width": 1.6, "dash": "solid", "shape": "hv"}
    figure.add_scatter(
        x=np.append(times_s[inside], end_s), y=np.append(counts[inside], counts[inside][-1]), mode="lines", **look,
        legendgroup=run.variant, showlegend=False, hovertemplate="%{y} from %{x:.0f} s<extra></extra>", row=row, col=1,
    )  # fmt: skip


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
    return (
        f"With speculation {main.mean_running:.1f} requests run together{each} on average, without "
        f"{plain.mean_running:.1f}: "
        + ("those that finish sooner leave room" if main.mean_running < plain.mean_running else "no room is gained")
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
    style.finish(figure, finding=finding, tag=_tag(result), height=150 + 50 * len(names))
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
        tag=_tag(result),
        height=340,
    )


def _median_sentence(result: SimulationResult, values: list[FloatArray], latency: Latency) -> str:
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


def _ticks(low: float, high: float) -> dict[str, Any]:
    """1, 2, 5 of every decade, or fewer where that crowds; plotly's own ticks on a log axis skip or abbreviate."""
    steps = (1, 2, 5) if high / low < 1000 else (1,)
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = [m * 10.0**d for d in decades for m in steps if low <= m * 10.0**d <= high]
    axis: dict[str, Any] = {"range": [float(np.log10(low)), float(np.log10(high))]}
    return (
        {**axis, "tickvals": ticks, "ticktext": [f"{t:g}" for t in ticks], "tickangle": 0} if len(ticks) >= 2 else axis
    )


def _tag(result: SimulationResult) -> str:
    return f"{basis(result)}; {result.main.summary.measured:,} requests measured, seed {result.scenario.seed}"
