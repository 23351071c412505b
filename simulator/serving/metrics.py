"""Service metrics from request records, and resource metrics from the replicas' counters and time series. After DESIGN §5.

A request's times, of finished requests only:
  TTFT   first token − arrival.
  TPOT   (E2E − TTFT)/(n − 1) of n ≥ 2 output tokens; a request of one token has none.
  E2E    last token − arrival.
  queue  first time in a batch − arrival.
  ITL    between two chunks of output; with speculation one chunk is several tokens, so ITL is not TPOT. A histogram.
A request counts as good when it finished and met every objective of its class (`RequestClass.slo`, else the scenario's).

Distributions are over the *measured* requests: those outside warm-up (the first `Scenario.warmup` of all) that finished,
whenever they finished.

Rates (output tokens/s, requests/s, goodput) are what came out within a *window*, divided by its length: from the first measured
arrival to the last arrival (`window`). Tokens are those of the time series, requests those that finished in it, whenever
they arrived. So the drain at the end does not count as low throughput, in a steady state as many requests leave
as arrive, and a saturated system shows its capacity. `window` in the summary says where that is not possible: where
all requests come within less than the mean time that one spends in the batch, rates are over the whole run.

`good_share` is over the measured requests that ended in any way (refused, timed out or cancelled ones are not good), by
arrival, so it needs no window.

Resource figures (GPU busy, bandwidth, FLOP, mean batch, KV cache, price) are over the whole run: counters of the
replicas over the time they were held, which is the makespan (first arrival to last end) unless `held_s` says otherwise.

Every request read is accounted for: `Summary.requests` counts them by end, together with the rows dropped while reading.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.serving import state, timeline
from simulator.serving.class_metrics import (
    TOO_LARGE,
    ClassSummary,
    by_end,
    share,
    slos_of,
    summarise_classes,
    total_of,
)
from simulator.serving.classes import EVERYTHING, RequestClass
from simulator.serving.confidence import HalfWidth, describe
from simulator.serving.distribution import Distribution
from simulator.serving.outcomes import TIMES, Outcomes
from simulator.serving.stability import STRETCHES, Stability, assess
from simulator.serving.window import ARRIVALS, WHOLE_RUN, in_system, run_of, tally, window_of
from simulator.slo import Slo

__all__ = ["TOO_LARGE", "Distribution", "ReplicaHardware", "Summary", "request_metrics", "summarise"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class ReplicaHardware:
    """What a replica runs on."""

    gpus: int
    """GPUs that share it."""
    total_blocks: int
    """KV blocks of its pool."""
    peak_bytes_per_s: float
    """Datasheet HBM bandwidth of one GPU; of two where a drafter has GPUs of its own, whose bytes count too."""
    peak_flop_per_s: float
    """Datasheet dense peak of one GPU at the format of the activations; of two likewise."""
    usd_per_s: float | None
    """List price of one GPU; None: not known."""


@dataclass(frozen=True)
class Summary:
    """What one simulated run is judged by."""

    ttft_s: Distribution
    tpot_s: Distribution
    itl_s: Distribution
    e2e_s: Distribution
    queue_s: Distribution
    confidence: Mapping[str, HalfWidth]
    """How well this run determines a mean or percentile, by ``ttft_s.mean``, ``ttft_s.p50``, …; what is too short for it is
    missing."""
    classes: tuple[ClassSummary, ...]
    """By class of request; a single one where the traffic has none."""
    requests: Mapping[str, int]
    """finished, other ends, and rows dropped while reading by reason; they add up to the rows read."""
    measured: int
    """Finished requests outside warm-up: what the distributions are taken over."""
    window: str
    """What rates are taken over, `window.ARRIVALS` or `window.WHOLE_RUN`."""
    window_start_s: float
    window_s: float
    """Length of that window."""
    makespan_s: float
    """First arrival to last end."""
    output_tokens_per_s: float
    """All replicas together."""
    prompt_tokens_per_s: float
    """Prompt tokens computed, those found in the cache not included."""
    requests_per_s: float
    goodput_per_s: float
    """Requests that met every objective, per second."""
    good_share: float
    """Of the measured requests, however they ended."""
    stability: Stability
    tokens_per_s_per_gpu: float
    """By GPUs held, averaged over the run."""
    tokens_per_s_per_user: float
    """1 / mean TPOT."""
    gpu_busy_share: float
    """Share of the time in which a step was running, mean over replicas."""
    bandwidth_share: float
    """HBM bytes moved, as a share of what the datasheet's bandwidth would have moved."""
    flop_share: float
    """FLOP done, as a share of the datasheet's dense peak."""
    mean_running: float
    """Requests in a replica's batch, averaged over its busy time."""
    most_running: int
    most_waiting: int
    kv_occupancy_mean: float
    """Share of KV blocks in use, averaged over busy time."""
    kv_occupancy_most: float
    cached_tokens: int
    """Prompt tokens of finished requests that were found in the KV cache."""
    cached_share: float
    """Of all their prompt tokens: the prefix hit rate."""
    preemptions: int
    swaps: int
    """Preemptions that moved the KV cache to the host instead of giving it up."""
    recomputed_tokens: int
    """Of finished requests, computed again after a preemption."""
    retries: int
    """Times that a replica failed under a request that then finished elsewhere."""
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
    """GPUs' list price over the time they were held, by all output tokens delivered, also to requests that did not finish;
    None without a price or without a token."""
    interrupted_s: float | None
    """Simulated time at which the simulation itself was interrupted; None: it was not. Requests without an end are then
    ``unfinished``, and those that finished are the short ones among the last."""


def request_metrics(requests: Any) -> dict[str, FloatArray]:
    """TTFT, TPOT, E2E and queueing time [requests] in seconds; NaN where a request has none."""
    found = Outcomes.of(requests)
    finished = found.finished
    e2e_s = np.where(finished, found.stay_s, np.nan)
    tpot_s = np.where(finished & (found.output_tokens > 1), found.tpot_s(slice(None)), np.nan)
    return {"ttft_s": found.ttft_s, "tpot_s": tpot_s, "e2e_s": e2e_s, "queue_s": found.queue_s}


def summarise(
    requests: Any,
    replicas: Sequence[Any],
    gaps: NDArray[np.int64],
    *,
    hardware: Sequence[ReplicaHardware],
    series: FloatArray,
    bucket_s: float,
    slo: Slo,
    classes: Sequence[RequestClass] = EVERYTHING,
    dropped: Mapping[str, int] | None = None,
    held_s: Sequence[float] | None = None,
    interrupted_s: float | None = None,
    link_wait_s: float = 0.0,
) -> Summary:
    """Everything at once.

    `requests` are records of `state.REQUEST` or the `Outcomes` that have seen them, `replicas` records of `state.REPLICA`
    whose counters are of one rank, with their `hardware` in the same order; `gaps` is the sum of their histograms; `series` the sum of
    their time series in buckets of `bucket_s`; `dropped` the rows left out while reading, by reason; `held_s` how long each replica was
    held, if not for the whole run; `link_wait_s` the mean wait for a link between prefill and decode, which is no time in a batch.
    """
    outcomes = requests if isinstance(requests, Outcomes) else Outcomes.of(requests)
    slos = slos_of(classes, slo)
    which = outcomes.finished & outcomes.measured
    times: dict[str, Distribution] = {}
    confidence: dict[str, HalfWidth] = {}
    for name in TIMES:
        times[name], widths = describe(outcomes.time_s(name, which))
        confidence |= {f"{name}.{point}": width for point, width in widths.items()}
    whole = run_of(outcomes)
    until_s = math.inf if interrupted_s is None else interrupted_s
    service_s = times["e2e_s"].mean - times["queue_s"].mean - link_wait_s
    window = window_of(outcomes, whole, service_s=service_s, bucket_s=bucket_s, until_s=until_s)
    counts = tally(outcomes, window, slos)

    def per_s(name: str) -> float:
        row = series[state.SERIES.index(name)]
        if window.kind == WHOLE_RUN:  # may be shorter than a bucket, whose width grows with absolute time
            return float(row.sum()) / window.seconds
        return timeline.total_between(row, bucket_s, window.start_s, window.end_s) / window.seconds

    def total(field: str) -> float:
        return float(sum(float(r[field]) for r in replicas))

    held = [whole.seconds] * len(replicas) if held_s is None else list(held_s)
    busy_s, drafted, rounds = total("busy_s"), total("drafted_tokens"), total("sequence_rounds")
    accepted, measured = total("accepted_tokens"), times["e2e_s"].n
    tokens_per_s = per_s("output_tokens")
    return Summary(
        **times,
        itl_s=Distribution.of_counts(state.gap_seconds(), gaps),
        confidence=confidence,
        classes=summarise_classes(outcomes, which, classes, slos, counts, window, times),
        requests={**(dropped or {}), **by_end(counts.ends.sum(axis=0).tolist())},
        measured=measured,
        window=window.kind,
        window_start_s=window.start_s,
        window_s=window.seconds,
        makespan_s=whole.seconds,
        output_tokens_per_s=tokens_per_s,
        prompt_tokens_per_s=per_s("prompt_tokens"),
        requests_per_s=int(counts.served.sum()) / window.seconds,
        goodput_per_s=int(counts.good.sum()) / window.seconds,
        good_share=share(int(counts.measured_good.sum()), int(counts.measured_ended.sum())),
        stability=assess(
            in_system(outcomes, window, STRETCHES),
            offered=counts.arrived,
            left=counts.left,
            finished=int(counts.served.sum()),
            window_s=window.seconds,
            end_s=window.end_s,
            service_s=0.0 if math.isnan(service_s) else service_s,
            steady=window.kind == ARRIVALS,
        ),
        tokens_per_s_per_gpu=share(
            tokens_per_s * whole.seconds, sum(h.gpus * s for h, s in zip(hardware, held, strict=True))
        ),
        tokens_per_s_per_user=share(1.0, times["tpot_s"].mean),
        gpu_busy_share=share(busy_s, sum(held)),
        bandwidth_share=_of_peak(replicas, "hbm_bytes", held, [h.peak_bytes_per_s for h in hardware]),
        flop_share=_of_peak(replicas, "flop", held, [h.peak_flop_per_s for h in hardware]),
        mean_running=float(series[state.SERIES.index("running_s")].sum()) / busy_s if busy_s else 0.0,
        most_running=max((int(r["most_running"]) for r in replicas), default=0),
        most_waiting=max((int(r["most_waiting"]) for r in replicas), default=0),
        kv_occupancy_mean=_kv_share(replicas, hardware, float(series[state.SERIES.index("kv_block_s")].sum())),
        kv_occupancy_most=max(
            (float(r["most_blocks"]) / max(1, h.total_blocks) for r, h in zip(replicas, hardware, strict=True)),
            default=0.0,
        ),
        cached_tokens=total_of(outcomes, "cached_tokens"),
        cached_share=share(total_of(outcomes, "cached_tokens"), total_of(outcomes, "prompt_tokens")),
        preemptions=int(total("preemptions")),
        swaps=int(total("swaps")),
        recomputed_tokens=total_of(outcomes, "recomputed_tokens"),
        retries=total_of(outcomes, "retries"),
        tokens_per_round=1.0 + accepted / rounds if rounds else math.nan,
        acceptance_rate=share(accepted, drafted),
        drafted_tokens=int(drafted),
        wasted_tokens=int(drafted - accepted),
        wasted_flop_share=total("wasted_flop") / total("flop") if total("flop") else 0.0,
        draft_time_share=total("draft_s") / busy_s if busy_s else 0.0,
        usd_per_million_tokens=_usd_per_million(
            hardware, held, float(series[state.SERIES.index("output_tokens")].sum())
        ),
        interrupted_s=interrupted_s,
    )


def _of_peak(replicas: Sequence[Any], field: str, held_s: Sequence[float], peaks: Sequence[float]) -> float:
    """A counter of all replicas over what their datasheets' peaks would have done in the time they were held."""
    return share(sum(float(r[field]) for r in replicas), sum(s * peak for s, peak in zip(held_s, peaks, strict=True)))


def _kv_share(replicas: Sequence[Any], hardware: Sequence[ReplicaHardware], block_seconds: float) -> float:
    there = sum(float(r["busy_s"]) * h.total_blocks for r, h in zip(replicas, hardware, strict=True))
    return block_seconds / there if there else 0.0


def _usd_per_million(hardware: Sequence[ReplicaHardware], held_s: Sequence[float], tokens: float) -> float | None:
    usd = 0.0
    for h, seconds in zip(hardware, held_s, strict=True):
        if h.usd_per_s is None:
            return None
        usd += h.usd_per_s * h.gpus * seconds
    return usd / tokens * 1e6 if tokens else None
