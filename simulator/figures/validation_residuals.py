"""Errors by batch, context, model: where a calibration is off, and whether its intervals know it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from simulator.calibration.comparison import LEVEL, Comparison, interval_factor
from simulator.figures import style
from simulator.figures.validation import colour, drawn_points, hover, marker, ratio_ticks, tag_of, thinned
from simulator.output.validation_report import label_name, points, signed, value_text

MOST_NUMBERS = 24
"""Values of a numeric label that stand apart on its axis; more are gathered in bins."""
BINS = 8
MOST_NAMES = 12
"""Values of any other label that stand apart; of more, those with the largest median error are drawn."""
FEW = 5
"""Points below which the median of a slot is not worth a sentence, if other slots have more."""
AXES = ("batch", "sequences", "tokens", "new_tokens", "query_tokens", "context_tokens", "keys", "model")
"""Labels in the order of their figures; others follow in their own order."""

CLAIM = "rgba(128,128,128,0.25)"

GOLDEN = 0.6180339887
"""Multiples of it, less their whole part, fill an interval evenly however many there are."""

BoolArray = NDArray[np.bool_]
Place = tuple[float, BoolArray]
"""Where a comparison's points with one value of a label stand on the axis, and which they are [points]."""


def residual_figures(comparisons: Sequence[Comparison], subject: str) -> list[go.Figure]:
    """One figure per label that has more than one value; comparisons have at least one point each."""
    present = dict.fromkeys(label for c in comparisons for label in c.labels)
    ordered = [a for a in AXES if a in present] + [a for a in present if a not in AXES]
    found = [residual_figure(comparisons, label, subject) for label in ordered]
    return [figure for figure in found if figure is not None]


class Slot(NamedTuple):
    """A place on the axis of a label: its text, and the points of each comparison that stand there."""

    text: str
    members: Mapping[int, BoolArray]
    """By index of the comparison; masks are [points]."""


def residual_figure(comparisons: Sequence[Comparison], label: str, subject: str) -> go.Figure | None:
    """predicted/measured by the values of `label`, with medians and claimed intervals; None where all values are the same.

    Names stand one below the other, numbers side by side.
    """
    slots, numeric, left_out = _slots(comparisons, label)
    if len(slots) < 2:
        return None
    figure = go.Figure()
    having = sorted({index for slot in slots for index in slot.members})
    claiming = [i for i in having if comparisons[i].log_sd is not None]
    # Comparisons stand side by side in a slot.
    width = 0.8 / len(having)
    places = {
        index: [
            (p + (k - (len(having) - 1) / 2) * width, s.members[index])
            for p, s in enumerate(slots)
            if index in s.members
        ]
        for k, index in enumerate(having)
    }
    for index in claiming:
        _add_claims(figure, comparisons[index], places[index], numeric, width=width, named=index == claiming[0])
    reach = _reach(comparisons, slots)
    drawn = beyond = 0
    for index, chosen in zip(having, drawn_points([comparisons[i] for i in having]), strict=True):
        c = comparisons[index]
        shown = _add_points(
            figure, c, index, places[index], chosen, numeric, reach, width=0.7 * width, named=len(having) > 1
        )
        _add_medians(figure, c, index, places[index], numeric, size=max(10, 36 // len(having)))
        drawn, beyond = drawn + shown[0], beyond + shown[1]
    _residual_axes(figure, slots, label, numeric, reach)
    n = sum(int(m.sum()) for slot in slots for m in slot.members.values())
    tag = tag_of([comparisons[i] for i in having], subject) + "; dashes: medians" + thinned(drawn, n)
    if beyond:
        tag += f"; {points(beyond)} further off {'stand' if beyond > 1 else 'stands'} at the edge"
    if left_out:
        tag += f"; {left_out:,} more {label_name(label)} values with smaller errors are not drawn"
    slot_px = max(20 + 9 * len(having), 12 + 7 * max(len(slot.text) for slot in slots))
    all_px = len(slots) * (16 + 11 * len(having))
    style.finish(
        figure, finding=_residual_finding(comparisons, slots, label, n), tag=tag, height=330 if numeric else 110 + all_px,
        least_width=90 + slot_px * len(slots) if numeric else 480,
    )  # fmt: skip
    return style.legend_below(figure, offset=-0.24 if numeric else -70 / all_px)


def _reach(comparisons: Sequence[Comparison], slots: Sequence[Slot]) -> float:
    """|ln(predicted/measured)| at the ends of the axis: a few misses must not press all other points together."""
    claimed = 0.0
    apart = []
    for slot in slots:
        for i, members in slot.members.items():
            c = comparisons[i]
            apart.append(np.abs(np.log(c.predicted_s[members] / c.measured_s[members])))
            if c.log_sd is not None:
                factors = np.broadcast_to(interval_factor(c.log_sd), len(c))
                claimed = max(claimed, float(np.log(np.median(factors[members]))))
    every = np.concatenate(apart)
    return max(0.05, 1.1 * claimed, min(1.05 * float(every.max()), 1.5 * float(np.quantile(every, 0.98))))


def _slots(comparisons: Sequence[Comparison], label: str) -> tuple[list[Slot], bool, int]:
    """Places of the values of `label`, whether they are numbers, and how many values are left out."""
    columns = {i: c.labels[label] for i, c in enumerate(comparisons) if label in c.labels}
    numeric = all(np.asarray(column).dtype.kind in "iuf" for column in columns.values())
    if numeric:
        values = np.unique(
            np.concatenate([np.asarray(c, float)[~np.isnan(np.asarray(c, float))] for c in columns.values()])
        )
        bins = [(v, v) for v in values]
        if len(values) > MOST_NUMBERS:
            parts = [part for part in np.array_split(values, BINS) if len(part)]
            bins = [(part[0], part[-1]) for part in parts]
        slots = []
        for low, high in bins:
            text = value_text(low) if low == high else f"{value_text(low)}–{value_text(high)}"
            slots.append(_slot(text, {i: (np.asarray(c) >= low) & (np.asarray(c) <= high) for i, c in columns.items()}))
        return slots, True, 0
    texts = {i: np.array([value_text(v) for v in column], dtype=object) for i, column in columns.items()}
    names = [name for name in dict.fromkeys(name for column in texts.values() for name in column) if name]
    slots = [_slot(name, {i: column == name for i, column in texts.items()}) for name in names]
    if len(slots) <= MOST_NAMES:
        return slots, False, 0

    def off(slot: Slot) -> float:
        return -max(float(np.median(np.abs(comparisons[i].errors[m]))) for i, m in slot.members.items())

    chosen = {id(slot) for slot in sorted(slots, key=off)[:MOST_NAMES]}
    return [slot for slot in slots if id(slot) in chosen], False, len(slots) - MOST_NAMES


def _slot(text: str, members: Mapping[int, BoolArray]) -> Slot:
    return Slot(text, {i: np.asarray(m, bool) for i, m in members.items() if np.any(m)})


def _add_claims(
    figure: go.Figure, c: Comparison, places: Sequence[Place], numeric: bool, *, width: float, named: bool
) -> None:
    """The claimed interval of each slot as a pale box around no error."""
    if c.log_sd is None:
        return
    at: list[float | None] = []
    ratio: list[float | None] = []
    factors = np.broadcast_to(interval_factor(c.log_sd), len(c))
    for centre, members in places:
        factor = float(np.median(factors[members]))
        left, right = centre - width / 2, centre + width / 2
        at += [left, right, right, left, left, None]
        ratio += [1 / factor, 1 / factor, factor, factor, 1 / factor, None]
    figure.add_scatter(
        **_oriented(at, ratio, numeric), mode="lines", line={"width": 0}, fill="toself", fillcolor=CLAIM, hoverinfo="skip",
        name=f"{LEVEL:.0%} interval claimed", legendgroup="claim", showlegend=named,
    )  # fmt: skip


def _add_points(
    figure: go.Figure, c: Comparison, index: int, places: Sequence[Place], chosen: NDArray[np.intp], numeric: bool,
    reach: float, *, width: float, named: bool,
) -> tuple[int, int]:  # fmt: skip
    """The `chosen` points, scattered across their place so that they can be told apart: how many, and how many of them are
    further off than `reach` and drawn there."""
    keep = np.zeros(len(c), bool)
    keep[chosen] = True
    at, ratio, text, beyond = [], [], [], 0
    for centre, members in places:
        here = np.flatnonzero(members & keep)
        scattered = (np.arange(len(here)) * GOLDEN % 1.0 - 0.5) * (width if len(here) > FEW else 0.0)
        at += (centre + scattered).tolist()
        apart = np.log(c.predicted_s[here] / c.measured_s[here])
        beyond += int((np.abs(apart) > reach).sum())
        ratio += np.exp(np.clip(apart, -reach, reach)).tolist()
        text += hover(c, here)
    figure.add_scatter(
        **_oriented(at, ratio, numeric), mode="markers", name=style.text(c.name), legendgroup=str(index), showlegend=named,
        marker={**marker(index), "size": 5, "opacity": 0.5}, text=text, hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip
    return len(at), beyond


def _add_medians(
    figure: go.Figure, c: Comparison, index: int, places: Sequence[Place], numeric: bool, *, size: int
) -> None:
    medians = [float(np.median(c.predicted_s[members] / c.measured_s[members])) for _, members in places]
    text = [
        f"{style.text(c.name)}: median {signed(ratio - 1)} of {points(int(members.sum()))}"
        for ratio, (_, members) in zip(medians, places, strict=True)
    ]
    figure.add_scatter(
        **_oriented([centre for centre, _ in places], medians, numeric), mode="markers", legendgroup=str(index), showlegend=False,
        marker={"symbol": "line-ew" if numeric else "line-ns", "size": size, "line": {"color": colour(index), "width": 4}},
        text=text, hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip


def _residual_axes(figure: go.Figure, slots: Sequence[Slot], label: str, numeric: bool, reach: float) -> None:
    errors = {**ratio_ticks(np.exp(-reach), np.exp(reach)), "title": "predicted/measured − 1", "type": "log"}
    places = {
        "tickvals": list(range(len(slots))), "ticktext": [style.text(slot.text) for slot in slots], "showgrid": False,
        "range": [-0.6, len(slots) - 0.4] if numeric else [len(slots) - 0.4, -0.6], "zeroline": False, "tickangle": 0,
    }  # fmt: skip
    line = {"color": style.REFERENCE, "width": 1.5}
    if numeric:
        figure.update_layout(xaxis={**places, "title": label_name(label)}, yaxis=errors).add_hline(1.0, line=line)
    else:
        figure.update_layout(xaxis=errors, yaxis=places).add_vline(1.0, line=line)


def _residual_finding(comparisons: Sequence[Comparison], slots: Sequence[Slot], label: str, n: int) -> str:
    found = [
        (float(np.median(comparisons[i].errors[m])), int(m.sum()), i, slot.text)
        for slot in slots
        for i, m in slot.members.items()
    ]
    well_known = [f for f in found if f[1] >= FEW] or found
    ends = []
    for median, count, i, text in (min(well_known), max(well_known)):
        who = f"{comparisons[i].name} at " if len({f[2] for f in found}) > 1 else ""
        ends.append(f"{signed(median)} ({who}{text}, n = {count:,})")
    every = np.concatenate([comparisons[i].errors[m] for slot in slots for i, m in slot.members.items()])
    nine = f"nine in ten of {points(n)} within {np.quantile(np.abs(every), 0.9):.0%}"
    return f"By {label_name(label)} the median error runs from {ends[0]} to {ends[1]}; {nine}"


def _oriented(at: Sequence[Any], ratio: Sequence[Any], numeric: bool) -> dict[str, Sequence[Any]]:
    return {"x": at, "y": ratio} if numeric else {"x": ratio, "y": at}
