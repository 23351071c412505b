"""What the loop keeps instead of steps and gaps: sums over buckets of time, and a histogram."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from simulator.serving import state


@dataclass(frozen=True)
class Step:
    """One step as it went."""

    start_s: float
    seconds: float
    running: int
    """Sequences that hold blocks."""
    waiting: int
    used_blocks: int
    tokens: int
    """Scheduled in all."""
    prompt_tokens: int
    emitted_tokens: int

    def figures(self) -> list[float]:
        """What it adds to each row of `state.SERIES`."""
        seconds = self.seconds
        integrals = [seconds, self.running * seconds, self.waiting * seconds, self.used_blocks * seconds]
        return [*integrals, float(self.emitted_tokens), float(self.prompt_tokens), 1.0]


def time_series(steps: Sequence[Step]) -> tuple[list[list[float]], float]:
    """Sums by the bucket in which steps began [state.SERIES][BUCKETS], and the width of a bucket, s.

    When time outgrows the buckets, each takes in its neighbour and they double in width.
    """
    rows = [[0.0] * state.BUCKETS for _ in state.SERIES]
    bucket_s = state.FIRST_BUCKET_S
    for step in steps:
        while step.start_s >= bucket_s * state.BUCKETS:
            for row in rows:
                row[:] = [row[2 * b] + row[2 * b + 1] for b in range(state.BUCKETS // 2)] + [0.0] * (state.BUCKETS // 2)
            bucket_s *= 2.0
        for row, figure in zip(rows, step.figures(), strict=True):
            row[int(step.start_s / bucket_s)] += figure
    return rows, bucket_s


def gap_counts(gaps_s: Sequence[float]) -> list[int]:
    """How many of the gaps lie in each bin of the histogram [GAP_BINS]; shorter ones than all in the first."""
    edges_s = state.gap_edges_s().tolist()
    counts = [0] * state.GAP_BINS
    for gap_s in gaps_s:
        counts[max(0, bisect_right(edges_s, gap_s) - 1)] += 1
    return counts
