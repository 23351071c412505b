"""How many GPUs: cost per token against speed per user by GPU type, the cheapest plan on each, and what misses the objectives."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import plotly.graph_objects as go

from simulator.figures import style
from simulator.output.candidates_report import LIMITS, drafts_text, replicas_text, slo_text, usd_per_h
from simulator.output.rows import count
from simulator.planning.candidates import Candidate, Plans, Rejected
from simulator.planning.capacity import Limit
from simulator.units import show

DEAREST = 100.0
"""Plans that cost more than this many times the cheapest are in the tables alone."""
_LONGEST_BAR = 12.0
"""Likewise in bars, which cannot be read beside one that is longer still."""
_LIMIT_COLOURS: dict[Limit, str] = {
    "tpot": style.BLUE,
    "ttft": style.SKY,
    "both": style.PINK,
    "kv": style.ORANGE,
    "sequences": style.GREEN,
    "tokens": style.YELLOW,
    "saturation": style.VERMILLION,
}


def candidates_figure(plans: Plans) -> go.Figure:
    """Cost per million output tokens against tokens/s per user: the Pareto front of each GPU type, dominated plans in grey, the
    cheapest marked. Where nothing has a price GPUs stand for cost; where nothing meets the objectives, `missed_figure`."""
    best, chosen = plans.cheapest, plans.chosen
    if chosen is None:
        return missed_figure(plans)
    fronts = plans.fronts if best else _fronts_by_gpus(plans)
    least = min(_cost(front[0]) for front in fronts.values())
    shown = {name: [c for c in front if _cost(c) <= DEAREST * least] for name, front in fronts.items()}
    shown = {name: front for name, front in shown.items() if front}
    on_fronts = {id(c) for front in fronts.values() for c in front}
    pool = plans.by_cost if best else plans.candidates
    others = [c for c in pool if id(c) not in on_fronts and _cost(c) <= DEAREST * least]
    traces = [_others(others)] if others else []
    place = {gpu.name: index for index, gpu in enumerate(plans.gpus)}  # a GPU keeps its colour when costs change
    traces += [_points(front, name, style.series_style(place[name])) for name, front in shown.items()]
    traces.append(
        {
            "type": "scatter", "mode": "markers", "x": [chosen.tokens_per_s_per_user], "y": [_cost(chosen)],
            "name": "cheapest" if best else "fewest GPUs", "hoverinfo": "skip",
            "marker": {"size": 20, "symbol": "circle-open", "color": style.REFERENCE, "line": {"width": 3}},
        }
    )  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": "tokens/s per user"}, "rangemode": "tozero"},
        "yaxis": {
            "title": {"text": "USD per million output tokens (log)" if best else "GPUs (log)"}, "type": "log",
            **_log_ticks([_cost(c) for front in shown.values() for c in front] + [_cost(c) for c in others]),
        },
        "legend": style.LEGEND_AT_FOOT,
        **_objective_line(plans),
    }  # fmt: skip
    return style.drawn(
        traces, layout, finding=_finding(plans, chosen), tag=_tag(plans, len(pool), len(others) + sum(map(len, shown.values()))),
        height=560,
    )  # fmt: skip


def cheapest_figure(plans: Plans) -> go.Figure:
    """The cheapest plan on each GPU type as bars of USD per hour, coloured by what binds; those without a price at the foot."""
    priced = list(plans.cheapest_of.values())
    least = _usd_per_h(priced[0]) if priced else 0.0
    shown = [c for c in priced if _usd_per_h(c) <= _LONGEST_BAR * least]
    rows = [*shown, *plans.fewest_of.values()]
    most = max((_usd_per_h(c) for c in shown), default=1.0)
    traces = []
    for limit, colour in _LIMIT_COLOURS.items():
        these = [c for c in rows if c.limit == limit]
        if these:
            traces.append(
                {
                    "type": "bar", "orientation": "h", "x": [_usd_per_h(c) for c in these], "y": [style.text(c.gpu.name) for c in these],
                    "name": LIMITS[limit], "marker": {"color": colour}, "text": [_bar_text(c) for c in these],
                    "textposition": "outside", "textfont": {"size": 12}, "cliponaxis": False, "hovertext": [_hover(c, True) for c in these],
                    "hoverinfo": "text",
                }
            )  # fmt: skip
    layout = {
        "barmode": "overlay",
        "xaxis": {"title": {"text": "USD per hour"}, "range": [0, most * 1.6]},
        "yaxis": {
            "categoryorder": "array",
            "categoryarray": [style.text(c.gpu.name) for c in reversed(rows)],
            "type": "category",
        },
        "legend": {**style.LEGEND_AT_FOOT, "title": {"text": "binds: ", "font": {"size": 13}}},
        "showlegend": True,
    }
    left_out = [c for c in priced if c not in shown]
    tag = _basis(plans.candidates)
    if left_out:
        tag += f"; not shown: {', '.join(f'{c.gpu.name} for {usd_per_h(c)} USD/h' for c in left_out)}"
    finding = "No GPU that has a price meets the objectives"
    if priced:
        finding = f"{priced[0].gpus:,} × {priced[0].gpu.name} for {usd_per_h(priced[0])} USD/h is the cheapest"
        if len(priced) > 1:
            finding += f", then {priced[1].gpus:,} × {priced[1].gpu.name} for {usd_per_h(priced[1])}"
    return style.drawn(traces, layout, finding=finding, tag=tag, height=max(260, 150 + 30 * len(rows)))


def missed_figure(plans: Plans) -> go.Figure:
    """TTFT against TPOT of everything that fits, hardly loaded, and the objectives that it misses; an empty pair of axes where
    nothing fits."""
    missed = [r for r in plans.rejected if r.capacity is not None]
    traces: list[dict[str, Any]] = []
    for index, gpu in enumerate(plans.gpus):
        these = [r for r in missed if r.gpu.name == gpu.name]
        if these:
            look = style.series_style(index)
            traces.append(
                {
                    "type": "scatter", "mode": "markers", "name": style.text(gpu.name), "marker": look["marker"],
                    "x": [_unloaded(r, "tpot_s") for r in these], "y": [_unloaded(r, "ttft_s") for r in these],
                    "hovertext": [_missed_hover(r) for r in these], "hoverinfo": "text",
                }
            )  # fmt: skip
    slo = plans.asked.level.slo
    xs = [x for t in traces for x in t["x"]] + ([slo.tpot_s * 1e3] if slo.tpot_s else [])
    ys = [y for t in traces for y in t["y"]] + ([slo.ttft_s * 1e3] if slo.ttft_s else [])
    shapes, notes = [], []
    if slo.tpot_s:
        shapes.append(_line(x0=slo.tpot_s * 1e3, x1=slo.tpot_s * 1e3, y0=0, y1=1, yref="paper"))
        notes.append(
            _note(f"TPOT {show(slo.tpot_s, 's')}", x=math.log10(slo.tpot_s * 1e3), y=1, yref="paper", yanchor="bottom")
        )
    if slo.ttft_s:
        shapes.append(_line(y0=slo.ttft_s * 1e3, y1=slo.ttft_s * 1e3, x0=0, x1=1, xref="paper"))
        notes.append(
            _note(
                f"TTFT {show(slo.ttft_s, 's')}",
                y=math.log10(slo.ttft_s * 1e3),
                x=1,
                xref="paper",
                xanchor="right",
                yanchor="bottom",
            )
        )
    layout = {
        "xaxis": {"title": {"text": "TPOT hardly loaded, ms (log)"}, "type": "log", **_log_ticks(xs)},
        "yaxis": {"title": {"text": "TTFT hardly loaded, ms (log)"}, "type": "log", **_log_ticks(ys)},
        "legend": style.LEGEND_AT_FOOT, "shapes": shapes, "annotations": notes, "showlegend": True,
    }  # fmt: skip
    finding = f"Nothing meets {slo_text(slo)} for {plans.asked.level.share:.0%} of requests, even hardly loaded"
    if not missed:
        finding = f"{plans.decoder.name} can be served on none of these GPUs"
    return style.drawn(
        traces, layout, finding=finding, tag=_basis(r.capacity for r in missed if r.capacity), height=480
    )


# --- parts ---------------------------------------------------------------------------------------------------------------
def _points(front: list[Candidate], name: str, look: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "lines+markers", "name": style.text(name), "line": {**look["line"], "width": 1.5},
        "marker": {**look["marker"], "size": 10}, "x": [c.tokens_per_s_per_user for c in front], "y": [_cost(c) for c in front],
        "hovertext": [_hover(c, True) for c in front], "hoverinfo": "text",
    }  # fmt: skip


def _others(others: list[Candidate]) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "markers", "name": "no better in either", "marker": {"size": 5, "color": style.GREY, "opacity": 0.45},
        "x": [c.tokens_per_s_per_user for c in others], "y": [_cost(c) for c in others],
        "hovertext": [_hover(c, False) for c in others], "hoverinfo": "text",
    }  # fmt: skip


def _hover(one: Candidate, binds: bool) -> str:
    """Everything about a plan; what binds takes a moment to find out."""
    cost = one.usd_per_million_tokens
    lines = [
        f"<b>{one.gpus:,} × {style.text(one.gpu.name)}</b>, {replicas_text(one)}" + (f", {one.format}" if one.format != "model" else ""),
        style.text(drafts_text(one)),
        "no price" if cost is None else f"{usd_per_h(one)} USD/h, {cost:.3g} USD per million output tokens",
        f"{one.tokens_per_s_per_user:.3g} tokens/s per user (TPOT {show(one.tpot_s, 's')}), TTFT {show(one.ttft_s, 's')}",
        f"{one.share_met:.1%} of requests meet the objectives",
        f"{one.tokens_per_s_per_gpu:,.0f} tokens/s per GPU, {one.joules_per_token:.2g} J per token (TDP)",
        f"{one.busy:.0%} of the {one.capacity.rate_per_s:.3g} requests/s that a replica carries" + (f"; {LIMITS[one.limit]}" if binds else ""),
        style.text(style.tag_of(one.deployment)),
    ]  # fmt: skip
    return "<br>".join(lines)


def _missed_hover(one: Rejected) -> str:
    drafts = f"{one.drafter}, γ = {one.gamma}" if one.drafter else "plain decoding"
    return f"<b>{style.text(one.gpu.name)}</b>, TP {one.tp}<br>{style.text(drafts)}<br>{style.text(one.reason)}"


def _unloaded(one: Rejected, name: str) -> float:
    return 0.0 if one.capacity is None else float(getattr(one.capacity.unloaded, name)[0]) * 1e3


def _bar_text(one: Candidate) -> str:
    return f"{one.gpus:,} GPU{'s' * (one.gpus > 1)}, {usd_per_h(one)}"


def _cost(one: Candidate) -> float:
    """The vertical axis: USD per million tokens, or GPUs where there is no price."""
    usd = one.usd_per_million_tokens
    return float(one.gpus) if usd is None else usd


def _usd_per_h(one: Candidate) -> float:
    return 0.0 if one.usd_per_s is None else one.usd_per_s * 3600.0


def _fronts_by_gpus(plans: Plans) -> dict[str, tuple[Candidate, ...]]:
    found: dict[str, tuple[Candidate, ...]] = {}
    for name in plans.fewest_of:
        front: list[Candidate] = []
        for one in sorted((c for c in plans.candidates if c.gpu.name == name), key=lambda c: (c.gpus, c.tpot_s)):
            if not front or one.tpot_s < front[-1].tpot_s:
                front.append(one)
        found[name] = tuple(front)
    return found


def _objective_line(plans: Plans) -> dict[str, Any]:
    tpot_s = plans.asked.level.slo.tpot_s
    if tpot_s is None:
        return {}
    text = f"TPOT {show(tpot_s, 's')}"
    return {
        "shapes": [_line(x0=1.0 / tpot_s, x1=1.0 / tpot_s, y0=0, y1=1, yref="paper")],
        "annotations": [_note(text, x=1.0 / tpot_s, y=1, yref="paper", yanchor="bottom")],
    }


def _line(**place: Any) -> dict[str, Any]:
    return {"type": "line", "line": {"color": style.REFERENCE, "dash": "dash", "width": 1.5}, **place}


def _note(text: str, **place: Any) -> dict[str, Any]:
    return {"text": text, "showarrow": False, "font": {"size": 12}, **place}


def _log_ticks(values: list[float]) -> dict[str, Any]:
    """1, 2, 5, 10 … over `values`, with a range a little wider than theirs."""
    if not values:
        return {}
    low, high = min(values) / 1.25, max(values) * 1.25
    step = (1.0, 2.0, 5.0) if high / low < 500.0 else (1.0,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [m * 10.0**d for d in decades for m in step if low <= m * 10.0**d <= high]
    return {"range": [math.log10(low), math.log10(high)], "tickvals": ticks, "ticktext": [f"{t:,.10g}" for t in ticks]}


def _finding(plans: Plans, chosen: Candidate) -> str:
    usd = chosen.usd_per_million_tokens
    name = f"{chosen.gpus:,} × {chosen.gpu.name}"
    speed = f"{chosen.tokens_per_s_per_user:.3g} tokens/s per user"
    if usd is None:
        return f"{name} is the smallest plan, at {speed}; nothing that could serve has a price"
    fastest = plans.front[-1]
    said = f"{name} is the cheapest: {usd:.3g} USD per million tokens at {speed}"
    if fastest is not chosen and fastest.usd_per_million_tokens is not None:
        more = fastest.usd_per_million_tokens / usd
        said += f"; the fastest, {fastest.gpus:,} × {fastest.gpu.name}, is {fastest.tokens_per_s_per_user / chosen.tokens_per_s_per_user:.2g} × as fast for {more:.2g} × the cost"
    return said


def _tag(plans: Plans, all_: int, shown: int) -> str:
    tag = _basis(plans.candidates)
    if shown < all_:
        tag += f"; not shown: {count(all_ - shown, 'plan')} of more than {DEAREST:g} times the cheapest's cost"
    missing = len(plans.fewest_of)
    if missing and plans.cheapest is not None:
        tag += f"; no price, hence not here: {', '.join(plans.fewest_of)}"
    return tag


def _basis(found: Iterable[Any]) -> str:
    """What the figures rest on."""
    gpus = {c.deployment.gpu.name: c.deployment.target.efficiency.tag == "calibrated" for c in found}
    measured = [name for name, calibrated in gpus.items() if calibrated]
    if not gpus:
        return "analytic: closed form of a steady load"
    if not measured:
        return "analytic: closed form of a steady load, no GPU here is calibrated"
    which = "calibrated" if len(measured) == len(gpus) else f"calibrated for {', '.join(measured)} only"
    return f"analytic: closed form of a steady load, times {which}"
