"""Where the milliseconds and the gigabytes go: bars by cause, by operator, and of what fills the HBM."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from simulator import units
from simulator.decoding import DecodeResult
from simulator.figures import style
from simulator.memory import MemoryBudget
from simulator.output.rows import CAUSES, memory_parts

SHOWN_OPERATORS = 12
"""Bars by operator; the rest is summed up in one."""


def cause_figure(result: DecodeResult) -> go.Figure:
    """One stacked bar: milliseconds of the step by cause."""
    bars = [
        _part(
            seconds * 1e3, "one step", f"{CAUSES[cause]}, {_percent(seconds / result.step_s)}", style.CAUSE_COLOURS[cause],
            f"{CAUSES[cause]}: {units.show(seconds, 's')} ({seconds / result.step_s:.1%})",
            inside=_percent(seconds / result.step_s) if seconds / result.step_s >= 0.06 else "",
        )
        for cause, seconds in result.by_cause.items()
        if seconds > 0
    ]  # fmt: skip
    largest = result.by_cause[result.binding] / result.step_s
    return style.drawn(
        bars,
        _stacked("milliseconds per step", result.step_s * 1e3),
        finding=f"{CAUSES[result.binding].capitalize()} takes {largest:.0%} of the {units.show(result.step_s, 's')} of a step",
        tag=style.tag_of(result.deployment),
        height=310,
    )


def operator_figure(result: DecodeResult) -> go.Figure:
    """Milliseconds by operator, all its occurrences together, longest on top."""
    operators = list(result.by_operator)
    shown, rest = operators[:SHOWN_OPERATORS], operators[SHOWN_OPERATORS:]
    names = [_times(o.name, o.repeat) for o, _ in shown]
    seconds = [s for _, s in shown]
    colours = [style.operator_colour(o.name) for o, _ in shown]
    hover = [
        f"{_times(o.name, o.repeat)}<br>{units.show(s, 's')} in all, {units.show(o.total_s, 's')} each<br>"
        f"{units.show(o.bytes_, 'bytes')} and {units.show(o.flop, 'flop')} each"
        for o, s in shown
    ]
    if rest:
        names.append(f"{len(rest)} others")
        seconds.append(sum(s for _, s in rest))
        colours.append(style.GREY)
        hover.append("<br>".join(style.text(o.name) for o, _ in rest))
    bars = {
        "type": "bar", "x": [s * 1e3 for s in seconds], "y": names, "orientation": "h", "marker": {"color": colours},
        "text": [units.show(s, "s") for s in seconds], "textposition": "outside", "cliponaxis": False,
        "hovertext": hover, "hoverinfo": "text",
    }  # fmt: skip
    first, first_s = operators[0]
    total_s = result.pass_cost.seconds
    figure = style.drawn(
        [bars],
        {
            "xaxis": {"title": {"text": "milliseconds per step"}, "range": [0, max(seconds) * 1e3 * 1.18]},
            "yaxis": {"autorange": "reversed"},
        },
        finding=f"{first.name} is the longest operator: {first_s / total_s:.0%} of the {units.show(total_s, 's')} on the GPU",
        tag=style.tag_of(result.deployment),
        height=60 + 26 * len(names),
    )
    # The longest bar's figure stands beyond the axis on a narrow screen.
    figure.layout.margin.r = 48
    return figure


def memory_figure(budget: MemoryBudget, tag: str) -> go.Figure:
    """One stacked bar: gigabytes of one GPU's HBM by what fills them."""
    colours = (style.BLUE, style.PINK, style.GREEN, style.GREY, style.SKY, "rgba(128,128,128,0.25)")
    bars = [
        _part(
            size / 1e9, "HBM", f"{name}, {units.show(size, 'bytes')}", colour,
            f"{name}: {units.show(size, 'bytes')} ({size / budget.hbm_bytes:.1%} of HBM)",
        )
        for (name, size), colour in zip(memory_parts(budget), colours, strict=True)
        if size > 0
    ]  # fmt: skip
    return style.drawn(
        bars,
        _stacked("GB of one GPU", budget.hbm_bytes / 1e9),
        finding=f"{units.show(max(0.0, budget.kv_bytes), 'bytes')} left for the KV cache: "
        f"{budget.kv_tokens:,} tokens of context for all sequences together",
        tag=tag,
        height=290,
    )


def _part(size: float, row: str, name: str, colour: str, hover: str, inside: str = "") -> dict[str, Any]:
    """One part of the stacked bar `row`."""
    return {
        "type": "bar", "orientation": "h", "x": [size], "y": [row], "name": name, "marker": {"color": colour},
        "text": inside, "textposition": "inside", "insidetextanchor": "middle", "textangle": 0,
        "hovertemplate": f"{hover}<extra></extra>",
    }  # fmt: skip


def _stacked(title: str, whole: float) -> dict[str, Any]:
    return {
        "barmode": "stack",
        "xaxis": {"title": {"text": title}, "range": [0, whole]},
        "yaxis": {"visible": False},
        "legend": style.LEGEND_AT_FOOT,
    }


def _times(name: str, repeat: int) -> str:
    return style.text(name) + (f" × {repeat}" if repeat > 1 else "")


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else f"{share:.1%}" if share >= 0.001 else "under 0.1%"
