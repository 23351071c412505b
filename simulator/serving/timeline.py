"""What happened when: a run's time series in a number of points that can be drawn, and sums over a part of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.serving import state

FloatArray = NDArray[np.float64]

MOST_POINTS = 240


@dataclass(frozen=True)
class Timeline:
    """Means over consecutive stretches of `width_s`, all replicas together; the last stretch may have seen only a part of itself."""

    width_s: float
    time_s: FloatArray
    """Middle of each stretch [points]."""
    running: FloatArray
    """Requests in the batch."""
    waiting: FloatArray
    """Requests in the queue."""
    kv_share: FloatArray
    """Share of all replicas' KV blocks in use."""
    output_tokens_per_s: FloatArray
    prompt_tokens_per_s: FloatArray
    """Prompt tokens computed, those computed again after a preemption included."""
    busy_share: FloatArray
    """Share of the time in which a step was running, mean over replicas."""
    steps_per_s: FloatArray

    def columns(self) -> dict[str, FloatArray]:
        """By name, in the order above."""
        return {name: value for name, value in vars(self).items() if name != "width_s"}


def timeline(
    series: FloatArray, bucket_s: float, *, total_blocks: int, replicas: int, points: int = MOST_POINTS
) -> Timeline:
    """`series` (sums by bucket, [state.SERIES, buckets]) in at most `points` stretches; `total_blocks` of all replicas."""
    sums, width_s = folded(series, bucket_s, points)
    sums = _carried_on(sums, replicas * width_s)
    per_s = {name: row / width_s for name, row in zip(state.SERIES, sums, strict=True)}
    return Timeline(
        width_s=width_s,
        time_s=np.asarray((np.arange(sums.shape[1]) + 0.5) * width_s),
        running=per_s["running_s"],
        waiting=per_s["waiting_s"],
        kv_share=per_s["kv_block_s"] / max(total_blocks, 1),
        output_tokens_per_s=per_s["output_tokens"],
        prompt_tokens_per_s=per_s["prompt_tokens"],
        busy_share=per_s["busy_s"] / replicas,
        steps_per_s=per_s["steps"],
    )


def _carried_on(sums: FloatArray, most_s: float) -> FloatArray:
    """A step counts where it began: what a stretch has of them beyond its own `most_s` of replica time belongs to the next."""
    sums, busy = sums.copy(), state.SERIES.index("busy_s")
    for i in range(sums.shape[1] - 1):
        if sums[busy, i] > most_s:
            over = sums[:, i] * (1.0 - most_s / sums[busy, i])
            sums[:, i] -= over
            sums[:, i + 1] += over
    return sums


def folded(series: FloatArray, bucket_s: float, points: int = MOST_POINTS) -> tuple[FloatArray, float]:
    """`series` summed into at most `points` wider buckets, and their width in s."""
    buckets = series.shape[1]
    factor = max(1, -(-buckets // points))
    starts = np.arange(0, buckets, factor)
    return (np.add.reduceat(series, starts, axis=1) if buckets else series), bucket_s * factor


def total_between(row: FloatArray, bucket_s: float, start_s: float, end_s: float) -> float:
    """Sum of a series over start_s … end_s; of a bucket that is partly inside, that part."""
    edges_s = np.arange(len(row) + 1) * bucket_s
    sums = np.concatenate(([0.0], np.cumsum(row)))
    low, high = np.interp((start_s, end_s), edges_s, sums)
    return float(high - low)
