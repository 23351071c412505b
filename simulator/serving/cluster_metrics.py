"""What a cluster is judged by beyond its requests: each kind of replica, KV transfers, outages, and what an autoscaler saved.

Times are those of the whole run, first arrival to last end, as for all resource figures (`metrics`). Replicas' states are
followed by `Happening`s: all replicas serve from the start but those that an autoscaler has yet to start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.serving import state
from simulator.serving.class_metrics import share
from simulator.serving.cluster import ClusterRun
from simulator.serving.control import Happening, State
from simulator.serving.distribution import Distribution
from simulator.serving.fleets import Kind
from simulator.serving.handover import Transfers

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class KindSummary:
    """What replicas of one kind did; shares are of the time they were held."""

    role: str
    """``both``, ``prefill`` or ``decode``."""
    gpu: str
    """Name of its profile."""
    tp: int
    pp: int
    engine: str
    replicas: int
    """That there may ever be."""
    gpus: int
    """Of all of them."""
    kv_blocks: int
    """Of each replica."""
    held_s: float
    """Time for which GPUs were held, summed over replicas."""
    gpu_busy_share: float
    mean_running: float
    """Requests in a replica's batch, averaged over its busy time."""
    most_running: int
    kv_occupancy_mean: float
    """Share of KV blocks in use, averaged over busy time."""
    kv_occupancy_most: float
    prompt_tokens: int
    """Computed, those found in the cache not included."""
    output_tokens: int
    """Sent to users."""
    preemptions: int
    usd: float | None
    """List price of its GPUs over the time they were held; None: not known."""


@dataclass(frozen=True)
class TransferSummary:
    """KV caches sent from prefill to decode replicas."""

    n: int
    sent_bytes: float
    wait_s: Distribution
    """For a link that others had taken."""
    transfer_s: Distribution
    links: int
    link_busy_share: float
    """Share of the run in which a link was taken, mean over links."""
    busiest_link_share: float


@dataclass(frozen=True)
class Outages:
    """Failures of replicas."""

    n: int
    lost_requests: int
    """Thrown out and sent to the router again."""
    down_s: float
    """Summed over replicas."""
    down_share: float
    """Of the time in which replicas were held or down."""


@dataclass(frozen=True)
class Scaling:
    """What an autoscaler did to the replicas it may start and stop."""

    gpu_hours: float
    """Held."""
    most_gpu_hours: float
    """If all the replicas it may start had been held all the time."""
    mean_serving: float
    """Replicas that took requests, averaged over time."""
    fewest_serving: int
    most_serving: int
    starts: int
    stops: int


@dataclass(frozen=True)
class ClusterSummary:
    """See the module."""

    kinds: tuple[KindSummary, ...]
    transfers: TransferSummary | None
    outages: Outages | None
    """None where nothing was to fail."""
    scaling: Scaling | None
    """None where nothing scales."""
    start_s: float
    """First arrival."""
    end_s: float
    """Last end."""


def summarise_cluster(kinds: Sequence[Kind], done: ClusterRun, makespan_s: float, *, fails: bool) -> ClusterSummary:
    """Of a run that took `makespan_s`; `fails`: whether replicas were to fail."""
    end_s = done.end_s
    start_s = max(0.0, end_s - makespan_s)
    scaled = any(kind.pool.autoscaler is not None for kind in kinds)
    return ClusterSummary(
        kinds=_by_kind(kinds, done),
        transfers=None if done.transfers is None else _transfers(done.transfers, makespan_s),
        outages=_outages(done, start_s, end_s) if fails else None,
        scaling=_scaling(kinds, done, start_s, end_s) if scaled else None,
        start_s=start_s,
        end_s=end_s,
    )


def kind_of(kinds: Sequence[Kind]) -> NDArray[np.int64]:
    """Which kind each replica is [replicas]."""
    return np.repeat(np.arange(len(kinds)), [kind.pool.built for kind in kinds])


def serving_over_time(
    kinds: Sequence[Kind], happened: Sequence[Happening], which: Sequence[int] | None = None
) -> tuple[FloatArray, NDArray[np.int64]]:
    """(times, replicas that serve from then on), from time 0; only of the kinds `which`, if given."""
    wanted = range(len(kinds)) if which is None else which
    of = kind_of(kinds)
    states = [
        State.SERVING if kind.pool.autoscaler is None or i < (kind.pool.replicas or 1) else State.OFF
        for kind in kinds
        for i in range(kind.pool.built)
    ]
    count = sum(s == State.SERVING and of[r] in wanted for r, s in enumerate(states))
    times, counts = [0.0], [count]
    for change in happened:
        if of[change.replica] in wanted:
            count += int(change.state == State.SERVING) - int(states[change.replica] == State.SERVING)
            times.append(change.time_s)
            counts.append(count)
        states[change.replica] = change.state
    return np.array(times), np.array(counts, dtype=np.int64)


def down_s(happened: Sequence[Happening], start_s: float, end_s: float) -> float:
    """How long replicas were down between two times, summed over them."""
    since: dict[int, float] = {}
    total = 0.0
    for change in happened:
        began = since.pop(change.replica, None)
        if began is not None:
            total += _overlap(began, change.time_s, start_s, end_s)
        if change.state == State.FAILED:
            since[change.replica] = change.time_s
    return total + sum(_overlap(began, end_s, start_s, end_s) for began in since.values())


def _overlap(began_s: float, ended_s: float, start_s: float, end_s: float) -> float:
    return max(0.0, min(ended_s, end_s) - max(began_s, start_s))


def _by_kind(kinds: Sequence[Kind], done: ClusterRun) -> tuple[KindSummary, ...]:
    sums = np.concatenate([pool.arrays.records.series.sum(axis=2) for pool in done.pools])  # [replicas, SERIES]
    seconds: Mapping[str, FloatArray] = {name: sums[:, i] for i, name in enumerate(state.SERIES)}
    of = kind_of(kinds)
    found = []
    for number, kind in enumerate(kinds):
        mine = np.flatnonzero(of == number)
        replicas: list[Any] = [done.replicas[r] for r in mine.tolist()]
        busy_s = sum(float(r["busy_s"]) for r in replicas)
        held_s = float(done.held_s[mine].sum())
        blocks = max(1, kind.total_blocks)
        hardware = kind.hardware
        found.append(
            KindSummary(
                role=kind.pool.role,
                gpu=kind.deployment.gpu.name,
                tp=kind.deployment.target.tp,
                pp=kind.deployment.target.pp,
                engine=kind.deployment.engine.name,
                replicas=len(replicas),
                gpus=hardware.gpus * len(replicas),
                kv_blocks=kind.total_blocks,
                held_s=held_s,
                gpu_busy_share=share(busy_s, held_s),
                mean_running=share(float(seconds["running_s"][mine].sum()), busy_s),
                most_running=max(int(r["most_running"]) for r in replicas),
                kv_occupancy_mean=share(float(seconds["kv_block_s"][mine].sum()), busy_s * blocks),
                kv_occupancy_most=max(int(r["most_blocks"]) for r in replicas) / blocks,
                prompt_tokens=sum(int(r["prefill_tokens"]) for r in replicas),
                output_tokens=sum(int(r["emitted_tokens"]) for r in replicas),
                preemptions=sum(int(r["preemptions"]) for r in replicas),
                usd=None if hardware.usd_per_s is None else hardware.usd_per_s * hardware.gpus * held_s,
            )
        )
    return tuple(found)


def _transfers(transfers: Transfers, makespan_s: float) -> TransferSummary:
    had = ~np.isnan(transfers.transfer_s)
    busy = transfers.busy_s / makespan_s if makespan_s else np.zeros(len(transfers.busy_s))
    return TransferSummary(
        n=int(had.sum()),
        sent_bytes=transfers.sent_bytes,
        wait_s=Distribution.of(transfers.wait_s[had]),
        transfer_s=Distribution.of(transfers.transfer_s[had]),
        links=len(busy),
        link_busy_share=float(busy.mean()),
        busiest_link_share=float(busy.max()),
    )


def _outages(done: ClusterRun, start_s: float, end_s: float) -> Outages:
    failures = [change for change in done.happened if change.state == State.FAILED]
    down = down_s(done.happened, start_s, end_s)
    return Outages(
        n=len(failures),
        lost_requests=sum(change.requests for change in failures),
        down_s=down,
        down_share=share(down, down + float(done.held_s.sum())),
    )


def _scaling(kinds: Sequence[Kind], done: ClusterRun, start_s: float, end_s: float) -> Scaling:
    which = [i for i, kind in enumerate(kinds) if kind.pool.autoscaler is not None]
    of = kind_of(kinds)
    held_s = sum(float(done.held_s[of == i].sum()) * kinds[i].deployment.gpus for i in which)
    built = sum(kinds[i].pool.built * kinds[i].deployment.gpus for i in which)
    times_s, counts = serving_over_time(kinds, done.happened, which)
    edges_s = np.clip(np.append(times_s, end_s), start_s, end_s)
    lengths_s = np.diff(edges_s)
    seen = counts[lengths_s > 0] if (lengths_s > 0).any() else counts
    mine = [change for change in done.happened if of[change.replica] in which]
    return Scaling(
        gpu_hours=held_s / 3600,
        most_gpu_hours=built * (end_s - start_s) / 3600,
        mean_serving=share(float((counts * lengths_s).sum()), float(lengths_s.sum())),
        fewest_serving=int(seen.min()),
        most_serving=int(seen.max()),
        starts=sum(change.state == State.STARTING for change in mine),
        stops=sum(change.state == State.DRAINING for change in mine),
    )
