"""Classes of requests side by side: how long each waits, and whether it gets what it was promised."""

from __future__ import annotations

import math
from typing import Any

import plotly.graph_objects as go

from simulator import units
from simulator.figures import style
from simulator.figures.serving import BELOW, LATENCIES, Latency, result_tag, ticks
from simulator.serving.class_metrics import ClassSummary
from simulator.serving.simulation import SimulationResult


def classes_figure(result: SimulationResult, latency: Latency = LATENCIES[0]) -> go.Figure | None:
    """Median to 99th percentile of a latency, one line per class and variant, and each class's own objective; None where
    there are no classes."""
    classes = result.main.summary.classes
    if len(classes) < 2:
        return None
    traces: list[dict[str, Any]] = []
    seen: list[float] = []
    variants = len(result.runs)
    for number, run in enumerate(result.runs):
        offset = 0.0 if variants == 1 else 0.16 * (2 * number - 1)
        x: list[float | None] = []
        y: list[float | None] = []
        said: list[str] = []
        for place, kind in enumerate(run.summary.classes):
            spread = getattr(kind, latency.field)
            if not spread.n:
                continue
            ends = [spread.p50 * latency.scale, spread.p99 * latency.scale]
            seen += ends
            x += [*ends, None]
            y += [-place - offset] * 2 + [None]
            said += [f"{style.text(kind.name)}: {name} {units.show(value, 's')}, n = {spread.n:,}"
                     for name, value in (("median", spread.p50), ("p99", spread.p99))] + [""]  # fmt: skip
        traces.append({
            "type": "scatter", "mode": "lines+markers", "x": x, "y": y, "name": style.VARIANT_NAMES[run.variant],
            "line": {"color": style.VARIANT_COLOURS[run.variant], "width": 4},
            "marker": {"size": 10, "symbol": [s for _ in range(len(x) // 3) for s in ("circle", "line-ns-open", "circle")],
                       "color": style.VARIANT_COLOURS[run.variant], "line": {"width": 3, "color": style.VARIANT_COLOURS[run.variant]}},
            "text": said, "hovertemplate": "%{text}<extra></extra>",
        })  # fmt: skip
    limits = [(place, kind.slo[latency.field]) for place, kind in enumerate(classes) if kind.slo.get(latency.field)]
    if limits:
        seen += [limit * latency.scale for _, limit in limits]
        traces.append({
            "type": "scatter", "mode": "markers", "name": "objective of the class", "x": [v * latency.scale for _, v in limits],
            "y": [-place for place, _ in limits], "hovertemplate": f"objective %{{x:.4g}} {latency.unit}<extra></extra>",
            "marker": {"symbol": "line-ns-open", "size": 22, "color": style.VERMILLION, "line": {"width": 3}},
        })  # fmt: skip
    seen = [value for value in seen if value > 0.0] or [1.0]
    layout = {
        "xaxis": {"type": "log", "title": {"text": f"{latency.field.removesuffix('_s').upper()}, {latency.unit} (median to 99th percentile)"},
                  **ticks(min(seen) / 1.3, max(seen) * 1.3)},
        "yaxis": {"tickvals": [-place for place in range(len(classes))], "zeroline": False,
                  "ticktext": [style.text(kind.name) for kind in classes], "range": [-len(classes) + 0.4, 0.6]},
        "legend": {**BELOW, "y": -0.3}, "showlegend": True,
    }  # fmt: skip
    finding = _finding(classes)
    return style.drawn(traces, layout, finding=finding, tag=result_tag(result), height=150 + 60 * len(classes))


def _finding(classes: tuple[ClassSummary, ...]) -> str:
    known = [kind for kind in classes if not math.isnan(kind.good_share)]
    if not known:
        return "No request of any class has ended"
    worst = min(known, key=lambda kind: kind.good_share)
    if not any(kind.slo for kind in classes):
        slow = max(known, key=lambda kind: kind.e2e_s.p50 if kind.e2e_s.n else 0.0)
        return f"Answers take longest in the class {slow.name}: half of them {units.show(slow.e2e_s.p50, 's')}"
    if worst.good_share >= 0.9995:
        return "Every class gets what it was promised"
    return f"The class {worst.name} fares worst: {worst.good_share:.1%} of its requests meet their objectives"
