"""A fitted log drawn: tokens per step, requests, correlation along the text, and every rung's misses against the bars."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from simulator.figures import style
from simulator.figures.html_page import HtmlPart, html_page
from simulator.output.acceptance_report import (
    NAMES,
    acceptance_sections,
    acceptance_sentence,
    acceptance_yaml,
    best_fitted,
    length_groups,
    log_rows,
    recorded_rates,
)
from simulator.speculation.ladder.held_out import BARS, HeldOut, relative
from simulator.speculation.ladder.result import LogFit
from simulator.speculation.ladder.rounds import Rounds
from simulator.speculation.ladder.statistics import autocorrelation, token_shares

_LAGS = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64])
_LINES = ("dot", "dash", "dashdot", "solid", "longdash", "longdashdot")
_RECORDED = style.GREY


def acceptance_page(fit: LogFit, reproduce: str) -> str:
    """A fitted log as HTML."""
    figures = [rates_figure(fit)]
    if fit.judged is not None:
        judged = fit.judged
        figures = [
            misses_figure(judged),
            requests_figure(judged),
            tokens_figure(judged),
            correlation_figure(judged),
            *figures,
        ]
    part = HtmlPart(
        title="What do these logs say of acceptance?",
        verdict=acceptance_sentence(fit),
        conditions=log_rows(fit),
        tables=acceptance_sections(fit)[1:],
        figures=figures,
        notes=[f"For a scenario's speculation ({fit.chosen.name}):\n{acceptance_yaml(fit).rstrip()}"],
    )
    footer = (
        "memwall: recorded acceptance, and laws fitted to it. Predictions are of requests that the law did not see."
    )
    return html_page([part], reproduce, footer=footer)


def _tag(judged: HeldOut) -> str:
    return f"recorded, and predicted for held-out requests ({len(judged.actual.sums.steps):,} requests, {len(judged.folds)} folds)"


def misses_figure(judged: HeldOut) -> go.Figure:
    """Each rung's relative misses, folds as small marks, the bars as bands."""
    figure = go.Figure()
    names = list(BARS)
    for place, name in enumerate(names):
        figure.add_shape(
            type="rect", y0=place - 0.42, y1=place + 0.42, x0=-BARS[name], x1=BARS[name], fillcolor=style.BAND, line_width=0,
            layer="below",
        )  # fmt: skip
    shown = best_fitted(judged)
    for index, prediction in enumerate(shown):
        colour = style.SERIES_COLOURS[index % len(style.SERIES_COLOURS)]
        symbol = style.SERIES_SYMBOLS[index % len(style.SERIES_SYMBOLS)]
        offset = 0.32 - 0.64 * index / max(1, len(shown) - 1)
        heights, together, folds, fold_heights = [], [], [], []
        for place, name in enumerate(names):
            heights.append(place + offset)
            together.append(judged.misses(prediction, name)[0])
            for p, a in zip(prediction.by_fold, judged.actual_by_fold, strict=True):
                folds.append(relative(getattr(p, name), getattr(a, name)))
                fold_heights.append(place + offset)
        figure.add_scatter(
            x=folds, y=fold_heights, mode="markers", marker={"color": colour, "size": 4, "opacity": 0.45}, showlegend=False,
            hovertemplate="one fold: %{x:+.1%}<extra></extra>",
        )  # fmt: skip
        figure.add_scatter(
            x=together, y=heights, mode="markers", name=prediction.kind.name, marker={"color": colour, "size": 12, "symbol": symbol},
            hovertemplate="%{x:+.1%}<extra>" + prediction.kind.name + "</extra>",
        )  # fmt: skip
    figure.add_vline(x=0, line={"color": style.REFERENCE, "width": 1})
    labels = [NAMES[name] for name in names]
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=labels, autorange="reversed", showgrid=False)
    figure.update_xaxes(tickformat="+.0%", title="predicted / recorded − 1")
    good = [p.kind.name for p in shown if judged.meets_bars(p)]
    finding = (
        f"Within all bars on held-out requests: {', '.join(good)}"
        if good
        else "No rung is within all bars on held-out requests"
    )
    tag = f"{_tag(judged)}; small marks are single folds, grey bands the bars"
    return style.legend_below(style.finish(figure, finding=finding, tag=tag, height=430, least_width=520))


def requests_figure(judged: HeldOut) -> go.Figure:
    """Distribution of requests' tokens per step."""
    figure = go.Figure()
    recorded = np.sort(judged.actual.by_request)
    share = (np.arange(len(recorded)) + 0.5) / len(recorded)
    figure.add_scatter(x=recorded, y=share, mode="lines", name="recorded", line={"color": _RECORDED, "width": 6})
    levels = np.linspace(0.002, 0.998, 250)
    for index, prediction in enumerate(best_fitted(judged)):
        figure.add_scatter(
            x=np.quantile(prediction.together.by_request, levels), y=levels, mode="lines", name=prediction.kind.name,
            line={"color": style.SERIES_COLOURS[index % len(style.SERIES_COLOURS)], "width": 2, "dash": _LINES[index % len(_LINES)]},
        )  # fmt: skip
    figure.update_yaxes(tickformat=".0%", title="share of requests below", range=[0, 1])
    figure.update_xaxes(title="tokens per step of a request", range=[1, float(np.quantile(recorded, 0.995)) * 1.05])
    a = judged.actual
    finding = f"A tenth of the requests get fewer than {a.p10:.2f} tokens per step, a tenth more than {a.p90:.2f}"
    return style.legend_below(style.finish(figure, finding=finding, tag=_tag(judged), height=420))


def tokens_figure(judged: HeldOut) -> go.Figure:
    """Distribution of a step's tokens."""
    gamma = judged.recording.gamma
    groups = length_groups(gamma)
    labels = [label for label, _ in groups]

    def shares(folds: tuple[Rounds, ...]) -> list[float]:
        found = token_shares(Rounds.joined(folds), gamma)
        return [float(found[part].sum()) for _, part in groups]

    figure = go.Figure(
        go.Bar(x=labels, y=shares(judged.folds), name="recorded", marker={"color": _RECORDED, "opacity": 0.6})
    )
    for index, prediction in enumerate(best_fitted(judged)):
        figure.add_scatter(
            x=labels, y=shares(prediction.folds), mode="lines+markers", name=prediction.kind.name,
            line={"color": style.SERIES_COLOURS[index % len(style.SERIES_COLOURS)], "width": 2, "dash": _LINES[index % len(_LINES)]},
            marker={"size": 8, "symbol": style.SERIES_SYMBOLS[index % len(style.SERIES_SYMBOLS)]},
        )  # fmt: skip
    figure.update_yaxes(tickformat=".0%", title="share of steps", rangemode="tozero")
    figure.update_xaxes(title="tokens of a step", type="category")
    finding = f"Steps yield {judged.actual.mean:.2f} tokens on average, of {gamma + 1} at most"
    return style.legend_below(style.finish(figure, finding=finding, tag=_tag(judged), height=420))


def correlation_figure(judged: HeldOut) -> go.Figure:
    """How long luck lasts: correlation of two steps of one request by the steps between them."""
    figure = go.Figure()
    longest = int(judged.actual.sums.steps.max())
    lags = np.array([lag for lag in _LAGS if lag < longest])
    recorded = autocorrelation(Rounds.joined(judged.folds), lags, within=False)
    figure.add_scatter(x=lags, y=recorded, mode="lines+markers", name="recorded", line={"color": _RECORDED, "width": 6})
    for index, prediction in enumerate(best_fitted(judged)):
        figure.add_scatter(
            x=lags, y=autocorrelation(Rounds.joined(prediction.folds), lags, within=False), mode="lines+markers",
            name=prediction.kind.name, marker={"size": 7, "symbol": style.SERIES_SYMBOLS[index % len(style.SERIES_SYMBOLS)]},
            line={"color": style.SERIES_COLOURS[index % len(style.SERIES_COLOURS)], "width": 2, "dash": _LINES[index % len(_LINES)]},
        )  # fmt: skip
    figure.add_hline(y=0, line={"color": style.REFERENCE, "width": 1})
    ticks = [int(lag) for lag in lags if lag & (lag - 1) == 0]
    figure.update_xaxes(type="log", title="steps apart", tickvals=ticks, ticktext=[str(t) for t in ticks])
    figure.update_yaxes(title="correlation")
    ratio = judged.actual.block_variance_ratio
    text = f"; 32 steps' sum varies {ratio:.1f} times as much as if they were independent" if np.isfinite(ratio) else ""
    finding = f"Neighbouring steps of a request correlate by {judged.actual.lag_1:.2f}{text}"
    return style.legend_below(style.finish(figure, finding=finding, tag=_tag(judged), height=420))


def rates_figure(fit: LogFit) -> go.Figure:
    """Conditional and marginal rates by depth."""
    conditional, marginal = recorded_rates(fit)
    depths = np.arange(1, fit.log.gamma + 1)
    figure = go.Figure()
    for values, name, colour, dash in (
        (conditional, "conditional, recorded", style.BLUE, "solid"),
        (marginal, "marginal, recorded", style.ORANGE, "solid"),
        (fit.chosen.law().conditional(fit.log.gamma), f"conditional, {fit.chosen.name}", style.GREEN, "dash"),
    ):
        figure.add_scatter(
            x=depths, y=[v if np.isfinite(v) else None for v in values.tolist()], mode="lines+markers", name=name,
            line={"color": colour, "width": 2.5, "dash": dash},
        )  # fmt: skip
    figure.update_yaxes(tickformat=".0%", range=[0, 1.02], title="share kept")
    figure.update_xaxes(title="depth of the draft", dtick=1 if len(depths) <= 12 else None)
    finding = f"The first draft is kept in {conditional[0]:.0%} of the steps, all {fit.log.gamma} in {marginal[-1]:.1%}"
    return style.legend_below(
        style.finish(figure, finding=finding, tag="recorded; the law's are those of an average request", height=400)
    )
