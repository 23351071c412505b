"""A scenario simulated: traffic → admission → cluster → records and summary, with speculation and without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.deployment import Deployment
from simulator.errors import InputError
from simulator.memory import MemoryBudget
from simulator.scenario import Scenario
from simulator.serving import state
from simulator.serving.metrics import ReplicaHardware, Summary, request_metrics, summarise
from simulator.serving.model import ROUTERS, Fleet
from simulator.serving.pool import Pool
from simulator.serving.requests import Requests
from simulator.serving.step_model import most_tokens, step_model
from simulator.serving.traffic import generate
from simulator.serving.workload import fates_of, shares_blocks, workload_of
from simulator.speculation.acceptance import Acceptance

Progress = Callable[[str, int, int], None]
"""Called with the variant's name, requests finished, requests in all."""


@dataclass(frozen=True)
class Run:
    """One variant of a scenario, simulated to the end."""

    variant: str
    """``speculation`` or ``plain``."""
    gamma: int
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
    interrupted_s: float | None = None
    """Simulated time at which it was cut short; None: it ran to the end."""

    def columns(self) -> dict[str, NDArray[Any]]:
        """Per-request results by column, for a table or file: the record's fields, TTFT, TPOT, E2E and queueing time."""
        records = {name: self.requests[name].copy() for name in state.REQUEST.names or () if name != "status"}
        status = np.array(state.STATUS)[self.requests["status"]]
        variant = np.full(len(status), self.variant)
        return {"variant": variant, "row": self.rows, "status": status, **records, **request_metrics(self.requests)}


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
) -> SimulationResult:
    """Simulates `scenario`; with speculation also without it, on the same requests and the same random numbers.

    `requests` take the place of the scenario's traffic (those of a recorded run, or of another simulation), `deployment`
    that of the deployment it names, `acceptance` that of the law it states. `partial`: on Ctrl-C what has been simulated by then is returned, and says so, instead of raising
    KeyboardInterrupt. Raises MemwallError where the deployment does not fit or no request can be served.
    """
    deployment = deployment or scenario.deployment()
    own, limit = deployment.target.decoder.max_context_tokens, scenario.max_context_tokens
    if own is not None and limit is not None and limit > own:
        raise InputError(
            "max_context_tokens", limit, f"be at most the {own} tokens of {deployment.target.decoder.name}"
        )
    limit = limit or own
    traffic = requests or generate(scenario.traffic, scenario.seed, base=scenario.base, max_context_tokens=limit)
    variants: list[tuple[str, Deployment, int, Acceptance | None]] = [("plain", deployment.plain(), 0, None)]
    if scenario.speculation is not None:
        law = acceptance or acceptance_of(scenario, deployment)
        variants.insert(0, ("speculation", deployment, scenario.speculation.gamma, law))
    runs: list[Run] = []
    for variant in variants:
        runs.append(_run(scenario, traffic, *variant, progress, partial))
        if runs[-1].interrupted_s is not None:
            break
    return SimulationResult(scenario, deployment, traffic, tuple(runs))


def acceptance_of(scenario: Scenario, deployment: Deployment) -> Acceptance:
    """The scenario's acceptance, else the drafter's published one. Raises InputError where neither is known."""
    config = scenario.speculation.acceptance if scenario.speculation else None
    if config is None and deployment.drafter is not None:
        config = deployment.drafter.acceptance
    if config is None:
        name = deployment.drafter.name if deployment.drafter else "(none)"
        raise InputError("speculation.acceptance", "(absent)", f"be given, as none is known for the drafter {name}")
    return config.law(scenario.base)


def _run(
    scenario: Scenario,
    traffic: Requests,
    variant: str,
    deployment: Deployment,
    gamma: int,
    law: Acceptance | None,
    progress: Progress | None,
    partial: bool,
) -> Run:
    budget = deployment.fit(gamma=gamma)
    settings = deployment.engine.settings
    total_blocks = budget.kv_blocks(settings.block_tokens)
    workload = workload_of(traffic, settings, scenario.warmup, most_tokens(deployment, budget, gamma))
    fates = np.ones((1, 1)), np.zeros(len(traffic), dtype=np.int64)
    if law is not None:
        fates = fates_of(traffic, law, scenario, gamma)
    model = step_model(
        deployment,
        budget,
        gamma=gamma,
        law=law,
        fates=fates,
        seed=scenario.seed,
        shares=shares_blocks(traffic, settings),
    )
    fleet = Fleet(
        [model], np.zeros(scenario.replicas, dtype=np.int64), ROUTERS.index("least-outstanding"), seed=scenario.seed
    )
    pool = Pool(fleet, workload)
    interrupted_s = None
    try:
        _to_the_end(pool, len(traffic), (lambda done, of: progress(variant, done, of)) if progress else None)
    except KeyboardInterrupt:
        if not partial:
            raise
        pool.store_running()
        interrupted_s = float(pool.replicas["clock_s"].max())
    series, bucket_s = _merged_series(pool)
    gpu = deployment.gpu
    hardware = ReplicaHardware(
        deployment.gpus, total_blocks, gpu.hbm_bytes_per_s, gpu.peak_flop_per_s(deployment.target.formats.activations),
        gpu.price_usd_per_s,
    )  # fmt: skip
    summary = summarise(
        workload.requests,
        list(pool.replicas),
        pool.arrays.records.gaps.sum(axis=0),
        hardware=[hardware] * scenario.replicas,
        series=series,
        bucket_s=bucket_s,
        slo=scenario.slo,
        classes=traffic.classes,
        dropped=traffic.dropped,
        interrupted_s=interrupted_s,
    )
    return Run(
        variant, gamma, summary, budget, total_blocks, workload.requests, traffic.row, series, bucket_s, interrupted_s
    )


_SLICE_STEPS = 500_000
"""Steps between two looks at the keyboard, some tenths of a second."""


def _to_the_end(pool: Pool, requests: int, tell: Callable[[int, int], None] | None) -> None:
    while not pool.serve(most_steps=_SLICE_STEPS):
        if tell:
            tell(pool.ended, requests)
    if tell:
        tell(requests, requests)


def _merged_series(pool: Pool) -> tuple[NDArray[np.float64], float]:
    """Sum over replicas at the widest replica's bucket width, empty tail cut off."""
    widths_s = pool.replicas["bucket_s"]
    widest = float(widths_s.max())
    total = np.zeros((len(state.SERIES), state.BUCKETS))
    for width_s, series in zip(widths_s.tolist(), pool.arrays.records.series, strict=True):
        # Widths differ by powers of two, and by more than all buckets together where a replica stood idle for long.
        factor = round(widest / width_s)
        starts = np.arange(0, state.BUCKETS, factor)
        total[:, : len(starts)] += np.add.reduceat(series, starts, axis=1)
    used = np.nonzero(total[state.SERIES.index("steps")])[0]
    return total[:, : int(used[-1]) + 1 if len(used) else 0], widest
