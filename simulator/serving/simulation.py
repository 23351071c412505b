"""A scenario simulated: traffic → admission → cluster → records and summary, with speculation and without."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.deployment import Deployment
from simulator.errors import InputError, MemwallError
from simulator.memory import MemoryBudget
from simulator.scenario import Scenario
from simulator.serving import state
from simulator.serving.cluster import INTERRUPTED, ClusterRun, run_cluster
from simulator.serving.cluster_metrics import ClusterSummary, summarise_cluster
from simulator.serving.control import Happening
from simulator.serving.drafts import Drafts, drafts_of
from simulator.serving.fleets import Kind, Plan, plan
from simulator.serving.handover import Transfers
from simulator.serving.metrics import Summary, summarise
from simulator.serving.model import PlanTables
from simulator.serving.pool import Pool
from simulator.serving.requests import Requests
from simulator.serving.traffic import generate
from simulator.speculation.acceptance import Acceptance

Progress = Callable[[str, int, int], None]
"""Called with the variant's name, requests finished, requests in all."""


class Stopped(MemwallError):
    """A simulation was stopped before anything could be kept of it."""


@dataclass(frozen=True)
class Run:
    """One variant of a scenario, simulated to the end."""

    variant: str
    """``speculation`` or ``plain``."""
    gamma: int
    """Drafts in a row at most; 0: none."""
    drafts: Drafts | None
    summary: Summary
    budget: MemoryBudget
    total_blocks: int
    requests: Any = field(repr=False)
    """One record of `state.REQUEST` per request, by index."""
    rows: NDArray[np.int64] = field(repr=False)
    """Index of each request's row in the trace or generator."""
    series: NDArray[np.float64] = field(repr=False)
    """Sums by time bucket over all replicas [state.SERIES, buckets]."""
    bucket_s: float = 0.0
    """Width of one bucket of `series`, s."""
    plan: PlanTables | None = None
    """What the last kind of replica drafts when; None without drafts."""
    interrupted_s: float | None = None
    """Simulated time at which it was cut short; None: it ran to the end."""
    interrupted: str = ""
    """Why; empty: it ran to the end."""
    kinds: tuple[Kind, ...] = ()
    """Kinds of replicas, prefill before decode. `budget` and `total_blocks` are the last one's."""
    transfers: Transfers | None = None
    """KV caches sent from prefill to decode replicas."""
    happened: tuple[Happening, ...] = ()
    """Failures, recoveries, starts and stops of replicas, in order of time."""
    held_s: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    """How long each replica's GPUs were held, s [replicas]."""
    cluster: ClusterSummary | None = None
    """Kinds of replicas, transfers, outages and scaling in figures."""

    @property
    def fleet_blocks(self) -> int:
        """KV blocks of all replicas there may ever be."""
        return sum(kind.total_blocks * kind.pool.built for kind in self.kinds)


@dataclass(frozen=True)
class SimulationResult:
    """A scenario's outcome; `runs` holds the speculative variant first where there is one, then plain decoding."""

    scenario: Scenario
    deployment: Deployment
    traffic: Requests
    runs: tuple[Run, ...]

    @property
    def main(self) -> Run:
        """The variant the scenario asks for."""
        return self.runs[0]

    @property
    def interrupted_s(self) -> float | None:
        """Simulated time at which the last run was cut short; None: all ran to their ends."""
        return self.runs[-1].interrupted_s

    @property
    def plain(self) -> Run:
        """Speculation off, same requests, same luck."""
        return self.runs[-1]


def simulate(
    scenario: Scenario,
    progress: Progress | None = None,
    *,
    requests: Requests | None = None,
    deployment: Deployment | None = None,
    acceptance: Acceptance | None = None,
    partial: bool = False,
    stop: threading.Event | None = None,
) -> SimulationResult:
    """Simulates `scenario`; with speculation also without it, on the same requests and the same random numbers.

    `requests` take the place of the scenario's traffic (those of a recorded run, or of another simulation), `deployment`
    that of the deployment it names, `acceptance` that of the law it states. `partial`: on Ctrl-C what has been simulated by then
    is returned, and says so, instead of raising KeyboardInterrupt. `stop` ends it in the same way once another thread sets it,
    within some tenths of a second. It may run in any thread, several of them at once. Raises MemwallError where the deployment
    does not fit or no request can be served, and Stopped, which is one, where `stop` is set before any request comes.
    """
    deployment = deployment or scenario.deployment()
    limit = context_limit(scenario, deployment)
    traffic = requests or generate(scenario.traffic, scenario.seed, base=scenario.base, max_context_tokens=limit)
    if stop is not None and stop.is_set():
        raise Stopped("Stopped before the first request came.")
    runs: list[Run] = []
    for variant in variants_of(scenario, deployment, acceptance):
        runs.append(_run(scenario, traffic, variant, progress, partial, stop))
        if runs[-1].interrupted_s is not None:
            break
    return SimulationResult(scenario, deployment, traffic, tuple(runs))


class Variant(NamedTuple):
    """With speculation or without."""

    name: str
    """``speculation`` or ``plain``."""
    deployment: Deployment
    drafts: Drafts | None


def variants_of(scenario: Scenario, deployment: Deployment, acceptance: Acceptance | None = None) -> list[Variant]:
    """What is simulated, in order; `acceptance` takes the place of the law the scenario states."""
    variants = [Variant("plain", deployment.plain(), None)]
    if scenario.speculation is not None and deployment.drafter is not None:
        law = acceptance or acceptance_of(scenario, deployment)
        variants.insert(0, Variant("speculation", deployment, drafts_of(scenario, deployment.drafter, law)))
    return variants


def context_limit(scenario: Scenario, deployment: Deployment) -> int | None:
    """Longest prompt plus output that is admitted, tokens; None: any. Raises InputError where the model has no such context."""
    own, limit = deployment.target.decoder.max_context_tokens, scenario.max_context_tokens
    if own is not None and limit is not None and limit > own:
        rule = f"be at most the {own} tokens of {deployment.target.decoder.name}"
        raise InputError("max_context_tokens", limit, rule)
    return limit or own


def acceptance_of(scenario: Scenario, deployment: Deployment) -> Acceptance:
    """The scenario's acceptance, else the drafter's published one. Raises InputError where neither is known."""
    config = scenario.speculation.acceptance if scenario.speculation else None
    if config is None and deployment.drafter is not None:
        config = deployment.drafter.acceptance
    if config is None:
        name = deployment.drafter.name if deployment.drafter else "(none)"
        raise InputError("speculation.acceptance", "(absent)", f"be given, as none is known for the drafter {name}")
    return config.law(scenario.base, deployment.drafter.kind if deployment.drafter else None)


def _run(
    scenario: Scenario,
    traffic: Requests,
    variant: Variant,
    progress: Progress | None,
    partial: bool,
    stop: threading.Event | None,
) -> Run:
    planned = plan(scenario, traffic, variant.deployment, variant.drafts)
    tell = (lambda done, of: progress(variant.name, done, of)) if progress else None
    done = run_cluster(planned.fleets, planned.workload, planned.control, progress=tell, stop=stop)
    if done.interrupted == INTERRUPTED and not (partial or (stop is not None and stop.is_set())):
        raise KeyboardInterrupt
    requests = planned.workload.requests
    return judged(scenario, traffic, variant, planned, done, requests, requests=requests, rows=traffic.row)


def judged(
    scenario: Scenario,
    traffic: Requests,
    variant: Variant,
    planned: Plan,
    done: ClusterRun,
    outcomes: Any,
    *,
    requests: Any,
    rows: NDArray[np.int64],
) -> Run:
    """A run with its summary; `outcomes` are the records of all requests or the `Outcomes` that have seen them, `requests` and
    `rows` what the run keeps."""
    series, bucket_s = _merged_series(done.pools)
    interrupted_s = done.end_s if done.interrupted else None
    summary = summarise(
        outcomes,
        done.replicas,
        np.sum([pool.arrays.records.gaps.sum(axis=0) for pool in done.pools], axis=0),
        hardware=planned.hardware,
        series=series,
        bucket_s=bucket_s,
        slo=scenario.slo,
        classes=traffic.classes,
        dropped=traffic.dropped,
        held_s=done.held_s.tolist(),
        interrupted_s=interrupted_s,
        link_wait_s=done.transfers.mean_wait_s if done.transfers else 0.0,
    )
    return Run(
        variant=variant.name,
        gamma=variant.drafts.depth if variant.drafts else 0,
        drafts=variant.drafts,
        summary=summary,
        budget=planned.kinds[-1].budget,
        total_blocks=planned.kinds[-1].total_blocks,
        requests=requests,
        rows=rows,
        series=series,
        bucket_s=bucket_s,
        plan=planned.fleets[-1].models[-1].plan if variant.drafts else None,
        interrupted_s=interrupted_s,
        interrupted=done.interrupted,
        kinds=tuple(planned.kinds),
        transfers=done.transfers,
        happened=done.happened,
        held_s=done.held_s,
        cluster=summarise_cluster(
            planned.kinds, done, summary.makespan_s, fails=bool(scenario.cluster and scenario.cluster.failures)
        ),
    )


def _merged_series(pools: Sequence[Pool]) -> tuple[NDArray[np.float64], float]:
    """Sum over replicas at the widest replica's bucket width, empty tail cut off."""
    widths_s = np.concatenate([pool.replicas["bucket_s"] for pool in pools])
    all_series = np.concatenate([pool.arrays.records.series for pool in pools])
    widest = float(widths_s.max())
    total = np.zeros((len(state.SERIES), state.BUCKETS))
    for width_s, series in zip(widths_s.tolist(), all_series, strict=True):
        # Widths differ by powers of two, and by more than all buckets together where a replica stood idle for long.
        factor = round(widest / width_s)
        starts = np.arange(0, state.BUCKETS, factor)
        total[:, : len(starts)] += np.add.reduceat(series, starts, axis=1)
    used = np.nonzero(total[state.SERIES.index("steps")])[0]
    return total[:, : int(used[-1]) + 1 if len(used) else 0], widest
