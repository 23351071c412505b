"""Time per token over γ: measured, predicted with its interval, and which points the prediction was fitted on."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from simulator import units
from simulator.calibration.comparison import LEVEL, Sweep
from simulator.figures import style
from simulator.output.validation_report import signed

_PANEL_PX = 250


def sweep_figure(sweeps: Sequence[Sweep], subject: str) -> go.Figure | None:
    """One panel per sweep, below each other with one axis of γ; None without one."""
    found = [s for s in sweeps if len(s)]
    if not found:
        return None
    height = _PANEL_PX * len(found) + 40
    figure = make_subplots(
        rows=len(found), cols=1, shared_xaxes=True, vertical_spacing=min(0.12, 52 / height),
        subplot_titles=[style.text(s.name) for s in found],
    )  # fmt: skip
    for row, sweep in enumerate(found, start=1):
        for trace in _traces(sweep, first=row == 1):
            figure.add_trace(trace, row=row, col=1)
        best = int(sweep.gamma.tolist().index(sweep.best_measured))
        figure.add_annotation(
            x=sweep.best_measured, y=1e3 * float(sweep.limits_s[0][best]), text=f"best γ: {_best(sweep)}", showarrow=False,
            yanchor="top", yshift=-4, row=row, col=1,
        )  # fmt: skip
    figure.update_annotations(font={"size": 13})
    for note in figure.layout.annotations[: len(found)]:
        note.update(x=0, xanchor="left")
    figure.update_yaxes(title="ms per token")
    figure.update_xaxes(dtick=1)
    figure.update_xaxes(title="drafts per round γ (0: plain decoding)", row=len(found), col=1)
    told = "; ".join(
        f"{s.name} {s.held_out.mape:.1%} (worst {signed(s.held_out.worst_error)}, n = {len(s.held_out)})"
        for s in found if len(s.held_out)
    )  # fmt: skip
    tag = f"{subject} against measurements; filled: held out, hollow: fitted on; band: {LEVEL:.0%} interval"
    style.finish(
        figure, finding=f"Rows that were not fitted on are predicted within, on average: {told}", tag=tag, height=height
    )
    return style.legend_below(figure, offset=-64 / height)


def _best(sweep: Sweep) -> str:
    if sweep.best_measured == sweep.best_predicted:
        return f"{sweep.best_measured}, as predicted"
    return f"{sweep.best_measured}, predicted {sweep.best_predicted}"


def _traces(sweep: Sweep, *, first: bool) -> list[go.Scatter]:
    gamma = sweep.gamma.tolist()
    low, high = (1e3 * edge for edge in sweep.limits_s)
    band = go.Scatter(
        x=[*gamma, *gamma[::-1]], y=[*high, *low[::-1]], fill="toself", mode="lines", line={"width": 0}, fillcolor=style.BAND,
        name=f"{LEVEL:.0%} interval", legendgroup="band", showlegend=first, hoverinfo="skip",
    )  # fmt: skip
    line = go.Scatter(
        x=gamma, y=1e3 * sweep.predicted_s, mode="lines", line={"color": style.BLUE, "width": 2.5}, name="predicted",
        legendgroup="predicted", showlegend=first, hoverinfo="skip",
    )  # fmt: skip
    points = []
    for trained, name, symbol in (
        (False, "measured, held out", "circle"),
        (True, "measured, fitted on", "circle-open"),
    ):
        chosen = [i for i in range(len(sweep)) if bool(sweep.trained[i]) is trained]
        points.append(
            go.Scatter(
                x=[gamma[i] for i in chosen], y=[1e3 * float(sweep.measured_s[i]) for i in chosen], mode="markers", name=name,
                marker={"color": style.VERMILLION, "size": 10, "symbol": symbol, "line": {"width": 2, "color": style.VERMILLION}},
                legendgroup=name, showlegend=first, text=[_told(sweep, i) for i in chosen],
                hovertemplate="%{text}<extra></extra>",
            )
        )  # fmt: skip
    return [band, line, *points]


def _told(sweep: Sweep, i: int) -> str:
    measured, predicted = (units.show(float(t[i]), "s", digits=4) for t in (sweep.measured_s, sweep.predicted_s))
    off = signed(float(sweep.predicted_s[i] / sweep.measured_s[i] - 1.0))
    lines = [
        sweep.name, f"γ = {sweep.gamma[i]}, {sweep.tokens[i]:.2f} tokens per round", f"measured {measured}, predicted {predicted}: {off}"
    ]  # fmt: skip
    return "<br>".join(style.text(line) for line in lines)
