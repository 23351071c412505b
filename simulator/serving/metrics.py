"""Service metrics from request records, and resource metrics from the replicas' counters. Definitions: DESIGN §5.

TTFT  first token − arrival.  TPOT  (E2E − TTFT)/(n − 1) for n ≥ 2 output tokens.  E2E  last token − arrival.
ITL   between two chunks of output; with speculation one chunk is several tokens, so ITL is not TPOT.
Goodput  requests per second that meet every SLO given.  Warm-up requests are in the simulation, not in the metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.scenario import Slo
from simulator.serving.state import FINISHED, gap_seconds

FloatArray = NDArray[np.float64]
PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class Distribution:
    """How a quantity is spread over requests (or gaps); all but `n` in the quantity's unit, NaN when n is 0."""

    n: int
    mean: float
    standard_deviation: float
    p50: float
    p90: float
    p95: float
    p99: float
    largest: float

    @classmethod
    def of(cls, values: FloatArray) -> Distribution:
        """Of one value per request."""
        if len(values) == 0:
            return EMPTY
        p50, p90, p95, p99 = (float(p) for p in np.percentile(values, PERCENTILES))
        return cls(len(values), float(values.mean()), float(values.std()), p50, p90, p95, p99, float(values.max()))

    @classmethod
    def of_counts(cls, values: FloatArray, counts: NDArray[np.int64]) -> Distribution:
        """Of a histogram: `counts` gaps near each of the ascending `values`."""
        n = int(counts.sum())
        if n == 0:
            return EMPTY
        mean = float((values * counts).sum() / n)
        variance = float((values**2 * counts).sum() / n) - mean**2
        cumulative = np.cumsum(counts)
        p50, p90, p95, p99 = (float(values[np.searchsorted(cumulative, np.ceil(p / 100 * n))]) for p in PERCENTILES)
        return cls(n, mean, max(variance, 0.0) ** 0.5, p50, p90, p95, p99, float(values[np.nonzero(counts)[0][-1]]))


_NAN = float("nan")
EMPTY = Distribution(0, _NAN, _NAN, _NAN, _NAN, _NAN, _NAN, _NAN)
"""Of nothing."""


@dataclass(frozen=True)
class Summary:
    """What one simulated run is judged by."""

    ttft_s: Distribution
    tpot_s: Distribution
    itl_s: Distribution
    e2e_s: Distribution
    queue_s: Distribution
    requests: Mapping[str, int]
    """finished, rejected, dropped by reason; they add up to the rows read."""
    measured: int
    """Finished requests outside warm-up: what the distributions are taken over."""
    window_s: float
    """First measured arrival to last measured finish."""
    makespan_s: float
    """First arrival to last finish."""
    output_tokens_per_s: float
    """Output tokens of measured requests over the window, all replicas."""
    requests_per_s: float
    goodput_per_s: float
    """Requests that meet every SLO, per second."""
    good_share: float
    tokens_per_s_per_gpu: float
    tokens_per_s_per_user: float
    """1 / mean TPOT."""
    gpu_busy_share: float
    """Share of the makespan in which a step was running, mean over replicas."""
    bandwidth_share: float
    """HBM bytes moved over the makespan, as a share of the datasheet's bandwidth."""
    flop_share: float
    """FLOP done over the makespan, as a share of the datasheet's dense peak."""
    mean_running: float
    most_running: int
    kv_occupancy_mean: float
    """Share of KV blocks in use, averaged over busy time."""
    kv_occupancy_most: float
    preemptions: int
    tokens_per_round: float
    """Acceptance length: tokens a verified sequence gains per round, accepted + 1; NaN without speculation."""
    acceptance_rate: float
    """Accepted / drafted, marginal over all positions, as engines log it."""
    drafted_tokens: int
    wasted_tokens: int
    """Drafted and not delivered."""
    wasted_flop_share: float
    """Of the target's and drafter's FLOP, those spent verifying drafts that were not delivered."""
    draft_time_share: float
    """Share of busy time spent in the drafter."""
    usd_per_million_tokens: float | None
    """GPUs' list price over the makespan by output tokens; None without a price."""


def request_metrics(requests: Any) -> dict[str, FloatArray]:
    """TTFT, TPOT, E2E and queueing time [requests] in seconds; NaN where a request has none."""
    finished = requests["status"] == FINISHED
    e2e_s = np.where(finished, requests["finish_s"] - requests["arrival_s"], np.nan)
    ttft_s = np.where(finished, requests["first_token_s"] - requests["arrival_s"], np.nan)
    n = requests["output_tokens"]
    tpot_s = np.where(finished & (n > 1), (e2e_s - ttft_s) / np.maximum(n - 1, 1), np.nan)
    queue_s = np.where(finished, requests["scheduled_s"] - requests["arrival_s"], np.nan)
    return {"ttft_s": ttft_s, "tpot_s": tpot_s, "e2e_s": e2e_s, "queue_s": queue_s}


def meets(slo: Slo, metrics: Mapping[str, FloatArray]) -> NDArray[np.bool_]:
    """Which requests meet every objective of `slo` [requests]; a request without a TPOT (one token) meets any."""
    good = ~np.isnan(metrics["e2e_s"])
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        limit = getattr(slo, name)
        if limit is not None:
            good &= (metrics[name] <= limit) | (np.isnan(metrics[name]) & good)
    return np.asarray(good)


def summarise(
    requests: Any,
    replicas: Sequence[Any],
    gaps: NDArray[np.int64],
    *,
    slo: Slo,
    total_blocks: int,
    gpus: int,
    gpus_per_replica: int,
    peak_bytes_per_s: float,
    peak_flop_per_s: float,
    usd_per_s: float | None,
    dropped: Mapping[str, int],
    block_seconds: float,
    running_seconds: float,
) -> Summary:
    """Everything at once; `replicas` are records of `state.REPLICA`, counters are of one rank per replica."""
    metrics = request_metrics(requests)
    finished = requests["status"] == FINISHED
    measured = finished & (requests["measured"] == 1)
    kept = {name: values[measured & ~np.isnan(values)] for name, values in metrics.items()}
    start_s = float(requests["arrival_s"][measured].min()) if measured.any() else 0.0
    end_s = float(requests["finish_s"][measured].max()) if measured.any() else 0.0
    window_s = max(end_s - start_s, np.finfo(float).tiny)
    makespan_s = float(requests["finish_s"][finished].max() - requests["arrival_s"][finished].min())
    makespan_s = max(makespan_s, np.finfo(float).tiny)
    good = int((meets(slo, metrics) & measured).sum())
    tokens = int(requests["output_tokens"][measured].sum())

    def total(field: str) -> float:
        return float(sum(float(r[field]) for r in replicas))

    busy_s, drafted, rounds = total("busy_s"), total("drafted_tokens"), total("sequence_rounds")
    accepted, n = total("accepted_tokens"), len(replicas)
    tpot = Distribution.of(kept["tpot_s"])
    all_tokens = int(requests["output_tokens"][finished].sum())
    return Summary(
        ttft_s=Distribution.of(kept["ttft_s"]),
        tpot_s=tpot,
        itl_s=Distribution.of_counts(gap_seconds(), gaps),
        e2e_s=Distribution.of(kept["e2e_s"]),
        queue_s=Distribution.of(kept["queue_s"]),
        requests={"finished": int(finished.sum()), **dropped},
        measured=int(measured.sum()),
        window_s=window_s,
        makespan_s=makespan_s,
        output_tokens_per_s=tokens / window_s,
        requests_per_s=int(measured.sum()) / window_s,
        goodput_per_s=good / window_s,
        good_share=good / max(1, int(measured.sum())),
        tokens_per_s_per_gpu=tokens / window_s / gpus,
        tokens_per_s_per_user=1.0 / tpot.mean if tpot.n and tpot.mean > 0 else float("nan"),
        gpu_busy_share=busy_s / (n * makespan_s),
        bandwidth_share=total("hbm_bytes") / (n * makespan_s * peak_bytes_per_s),
        flop_share=total("flop") / (n * makespan_s * peak_flop_per_s),
        mean_running=running_seconds / busy_s if busy_s else 0.0,
        most_running=int(max(r["most_running"] for r in replicas)),
        kv_occupancy_mean=block_seconds / busy_s / total_blocks if busy_s else 0.0,
        kv_occupancy_most=float(max(r["most_blocks"] for r in replicas)) / total_blocks,
        preemptions=int(total("preemptions")),
        tokens_per_round=1.0 + accepted / rounds if rounds else float("nan"),
        acceptance_rate=accepted / drafted if drafted else float("nan"),
        drafted_tokens=int(drafted),
        wasted_tokens=int(drafted - accepted),
        wasted_flop_share=total("wasted_flop") / total("flop") if total("flop") else 0.0,
        draft_time_share=total("draft_s") / busy_s if busy_s else 0.0,
        usd_per_million_tokens=None if usd_per_s is None else usd_per_s * gpus * makespan_s / max(all_tokens, 1) * 1e6,
    )
