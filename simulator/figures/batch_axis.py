"""Axes over batches, which double from tick to tick, and the line at which speculation is as fast as plain decoding."""

from __future__ import annotations

import math
from typing import Any

from simulator.figures import style

_MOST_TICKS = 10
"""Where a phone still has room for one beside the other; of more every second is named."""
TITLE = "sequences in a batch (log₂)"


def batch_axis(low: int, high: int) -> dict[str, Any]:
    """A logarithmic axis from `low` to `high` sequences."""
    first, last = math.floor(math.log2(low)), math.ceil(math.log2(max(high, 2 * low)))
    ticks = [2**i for i in range(first, last + 1)]
    every = 1 + (len(ticks) > _MOST_TICKS)
    return {
        "type": "log", "title": {"text": TITLE}, "tickvals": ticks, "tickangle": 0,
        "ticktext": [f"{tick:,}" if i % every == 0 else "" for i, tick in enumerate(ticks)],
        "range": [math.log10(low) - 0.05, math.log10(max(high, 2 * low)) + 0.08],
    }  # fmt: skip


def speedup_layout(low: int, high: int, top: float) -> dict[str, Any]:
    """Layout of speed-up up to `top` over batches from `low` to `high`, with the line at 1.0."""
    return {
        "xaxis": batch_axis(low, high),
        "yaxis": {"title": {"text": "speed-up, ×"}, "range": [0, top]},
        "shapes": [break_even()],
        "annotations": [
            {"x": math.log10(low), "y": 1.0, "xanchor": "left", "yanchor": "top", "showarrow": False,
             "text": "1.0 = as fast as plain decoding", "font": {"size": 12}}
        ],
    }  # fmt: skip


def break_even(y: float = 1.0) -> dict[str, Any]:
    """A dashed line over the whole width at `y`."""
    return {
        "type": "line", "xref": "x domain", "x0": 0, "x1": 1, "y0": y, "y1": y,
        "line": {"color": style.REFERENCE, "dash": "dash", "width": 1.5},
    }  # fmt: skip


def doublings(batches: list[int]) -> list[str]:
    """Names of batches that stand side by side at equal distances: every one, or where they are many every second."""
    every = 1 + (len(batches) > _MOST_TICKS)
    return [f"{batch:,}" if i % every == 0 else "" for i, batch in enumerate(batches)]
