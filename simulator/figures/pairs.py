"""Two figures of one kind side by side: on the same axes, so that lengths and heights can be compared by eye."""

from __future__ import annotations

import plotly.graph_objects as go


def on_same_axes(a: go.Figure, b: go.Figure) -> tuple[go.Figure, go.Figure]:
    """Copies of both whose axes of equal name, kind and direction reach over what either shows, where both say how far they do."""
    left, right = go.Figure(a), go.Figure(b)
    for name in left.layout:
        if not name.startswith(("xaxis", "yaxis")) or name not in right.layout:
            continue
        one, other = left.layout[name], right.layout[name]
        if one.range is None or other.range is None or one.type != other.type or _title(one) != _title(other):
            continue
        (low, high), (other_low, other_high) = one.range, other.range
        if not all(isinstance(end, int | float) for end in (low, high, other_low, other_high)):
            continue
        if (low <= high) != (other_low <= other_high):
            continue
        rising = low <= high
        pick = (min, max) if rising else (max, min)
        shared = [pick[0](low, other_low), pick[1](high, other_high)]
        one.range = other.range = shared
    return left, right


def _title(axis: go.layout.XAxis) -> str:
    return str(axis.title.text)
