"""How every figure looks: one template, colours that colour-blind readers can tell apart, and the tag of what it rests on.

A figure's title is its finding. `finding` and `tag` are kept in ``layout.meta`` as well, so that a page can set them as
text, which wraps on a narrow screen where a figure's own title does not.
"""

from __future__ import annotations

import html
import math
import textwrap
from typing import Any

import plotly.graph_objects as go

from simulator.deployment import Deployment

# Okabe and Ito, "Color Universal Design" (2008); black is left out, as it vanishes on a dark page.
BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PINK, YELLOW, GREY = "#56B4E9", "#CC79A7", "#F0E442", "#8C8C8C"

CAUSE_COLOURS = {
    "weights": BLUE,
    "kv_cache": SKY,
    "activations": GREEN,
    "compute": VERMILLION,
    "launch": GREY,
    "communication": PINK,
    "host": ORANGE,
}
VARIANT_COLOURS = {"speculation": BLUE, "plain": ORANGE}
VARIANT_DASH = {"speculation": "solid", "plain": "dash"}
VARIANT_NAMES = {"speculation": "with speculation", "plain": "plain decoding"}
TRACK_COLOURS = {"HBM load": BLUE, "SM compute": VERMILLION}
SERIES_COLOURS = (BLUE, ORANGE, GREEN, VERMILLION, SKY, PINK, GREY)
SERIES_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon", "hourglass")
SERIES_DASHES = ("solid", "dash", "dot")

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
INK, DARK_INK = "#24292f", "#e3e6ea"
PAPER, DARK_PAPER = "#ffffff", "#14171b"
GRID = "rgba(128,128,128,0.25)"
BAND = "rgba(128,128,128,0.28)"
"""Prediction intervals."""
REFERENCE = "rgba(128,128,128,0.9)"
"""Lines that mark a limit or break-even; seen on light and dark alike."""

TEMPLATE: dict[str, Any] = {
    "layout": {
        "autotypenumbers": "strict",
        "colorway": SERIES_COLOURS,
        "hovermode": "closest",
        "hoverlabel": {"align": "left", "font": {"family": FONT, "size": 13}},
        "plot_bgcolor": "rgba(0,0,0,0)",
        "bargap": 0.25,
        "annotationdefaults": {"arrowhead": 0, "arrowwidth": 1, "arrowcolor": REFERENCE},
        "shapedefaults": {"line": {"color": REFERENCE}},
        **{
            axis: {"gridcolor": GRID, "zerolinecolor": GRID, "zerolinewidth": 2, "linecolor": GRID, "ticks": "",
                   "automargin": True, "title": {"standoff": 8}}
            for axis in ("xaxis", "yaxis")
        },
    },
    "data": {
        "bar": [{"marker": {"line": {"width": 0}}, "error_x": {"color": REFERENCE}, "error_y": {"color": REFERENCE}}],
        "heatmap": [{"colorbar": {"outlinewidth": 0, "ticks": ""}}],
    },
}  # fmt: skip
"""What all figures share. Plotly's own template is twenty times as large, and is checked anew by whoever copies a figure."""

_TITLE_COLUMNS, _TAG_COLUMNS = 72, 118


def operator_colour(name: str) -> str:
    """Operators of one family share a colour, whatever the model calls its matrices."""
    families = (
        (("all_reduce", "all_gather", "all_to_all", "stage_send", "bubble"), PINK),
        (("attention",), SKY),
        (("lm_head", "embedding", "sampler", "input_fc"), GREEN),
        (("norm", "rotary", "activation", "router"), GREY),
        (("qkv", "o_proj", "q_", "kv_", "k_proj", "v_proj"), ORANGE),
    )
    for parts, colour in families:
        if any(part in name for part in parts):
            return colour
    return BLUE


def series_style(index: int) -> dict[str, object]:
    """Colour, marker and dash of the `index`-th of several lines; no two of the first twenty-one are alike."""
    colour = SERIES_COLOURS[index % len(SERIES_COLOURS)]
    return {
        "line": {
            "color": colour,
            "width": 2.5,
            "dash": SERIES_DASHES[index // len(SERIES_COLOURS) % len(SERIES_DASHES)],
        },
        "marker": {"color": colour, "size": 8, "symbol": SERIES_SYMBOLS[index % len(SERIES_SYMBOLS)]},
    }


def text(value: object) -> str:
    """A user's text as it may stand in a figure, where plotly would read tags as markup."""
    return html.escape(str(value), quote=False)


def tag_of(deployment: Deployment) -> str:
    """What the times rest on, e.g. "calibrated (h100-sxm)"."""
    wish, label = deployment.gpu.what_if, deployment.target.efficiency.label
    return label if wish is None else f"what if: {wish}; {label}"


def finish(figure: go.Figure, *, finding: str, tag: str, height: int = 420, least_width: int = 0) -> go.Figure:
    """Title, tag, fonts and colours. `least_width` in px is what the figure needs to stay readable on a narrow screen.

    `finding` is plain text and is escaped here.
    """
    # Set at once, as plotly's updates check the whole layout again for each part.
    figure.layout = {**figure.layout.to_plotly_json(), **_frame(finding, tag, height, least_width)}
    return figure


def drawn(
    traces: list[dict[str, Any]], layout: dict[str, Any], *, finding: str, tag: str, height: int = 420, least_width: int = 0
) -> go.Figure:  # fmt: skip
    """A figure of plain dictionaries, finished: a tenth of the time that adding part by part takes."""
    return go.Figure(data=traces, layout={**layout, **_frame(finding, tag, height, least_width)})


def _frame(finding: str, tag: str, height: int, least_width: int) -> dict[str, Any]:
    title = "<br>".join(text(line) for line in textwrap.wrap(finding, _TITLE_COLUMNS))
    basis = "<br>".join(text(line) for line in textwrap.wrap(tag, _TAG_COLUMNS)) or text(tag)
    lines = title.count("<br>") + basis.count("<br>") + 1
    return {
        "template": TEMPLATE,
        "title": {"text": f"{title}<br><span style='font-size:12px'>{basis}</span>", "x": 0.0, "xanchor": "left",
                  "xref": "container", "y": 0.95, "yanchor": "top", "yref": "container", "pad": {"l": 12},
                  "font": {"size": 17}},
        "meta": {"finding": finding, "tag": tag, "least_width": least_width},
        "font": {"family": FONT, "size": 13, "color": INK},
        "paper_bgcolor": PAPER,
        "height": height + 22 * (lines + 1),
        "margin": {"l": 12, "r": 16, "t": 30 + 24 * (lines + 1), "b": 12},
    }  # fmt: skip


def speedup_over_batches(figure: go.Figure, low: int, high: int, *, top: float) -> None:
    """Axes of speed-up up to `top` against batches from `low` to `high`, and the line at which both ways are equally fast."""
    figure.add_hline(1.0, line={"color": REFERENCE, "dash": "dash", "width": 1.5})
    figure.add_annotation(
        x=math.log10(low), y=1.0, xanchor="left", yanchor="top", showarrow=False, text="1.0 = as fast as plain decoding",
        font={"size": 12},
    )  # fmt: skip
    ticks = [2**i for i in range(int(math.log2(low)), math.ceil(math.log2(high)) + 1)]
    figure.update_xaxes(
        type="log", title="sequences in a batch (log₂)", tickvals=ticks, ticktext=[f"{t:,}" for t in ticks], tickangle=0,
        range=[math.log10(low) - 0.05, math.log10(max(high, 2 * low)) + 0.08],
    )  # fmt: skip
    figure.update_yaxes(title="speed-up, ×", range=[0, top])


def legend_below(figure: go.Figure, *, offset: float = -0.22) -> go.Figure:
    """The legend under the x axis, in rows, where a narrow screen still has room for it."""
    figure.layout.legend = {"orientation": "h", "x": 0, "xanchor": "left", "y": offset, "yanchor": "top"}
    return figure


LEGEND_AT_FOOT = {
    "orientation": "h", "x": 0, "xanchor": "left", "yref": "container", "y": 0.01, "yanchor": "bottom", "traceorder": "normal",
}  # fmt: skip
"""A legend at the foot of the figure, whose plot leaves it the room it needs at any width: up to half of the height."""


def without_title(figure: go.Figure) -> go.Figure:
    """A copy without title, for a page that prints `layout.meta` itself."""
    lines = figure.layout.title.text.count("<br>") if figure.layout.title.text else 0
    return _copy(figure, title=None, height=figure.layout.height - 22 * (lines + 1), margin={"t": 30})


def dark(figure: go.Figure) -> go.Figure:
    """A copy for a dark page."""
    return _copy(figure, font={"color": DARK_INK}, paper_bgcolor=DARK_PAPER)


def _copy(figure: go.Figure, **changes: object) -> go.Figure:
    """A copy with other properties of the layout. It is not checked once more: that would take four times as long."""
    spec = figure.to_dict()
    layout = spec["layout"]
    for name, value in changes.items():
        layout[name] = {**layout.get(name, {}), **value} if isinstance(value, dict) else value
    spec["layout"] = {name: value for name, value in layout.items() if value is not None}
    return go.Figure(spec, _validate=False)
