"""A scenario simulated: traffic → admission → cluster → records and summary, with speculation and without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.deployment import Deployment
from simulator.errors import InputError
from simulator.memory import MemoryBudget
from simulator.scenario import Scenario
from simulator.serving import cluster, state
from simulator.serving.metrics import Summary, request_metrics, summarise
from simulator.serving.traffic import Requests, generate
from simulator.speculation.acceptance import Acceptance, RecordedAcceptance
from simulator.speculation.recording import Recording

TOO_LARGE = "larger than the KV cache"
"""Why a request is rejected on arrival: prompt, output and look-ahead slots would not fit the pool even alone."""

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
) -> SimulationResult:
    """Simulates `scenario`; with speculation also without it, on the same requests and the same random numbers.

    `requests` take the place of the scenario's traffic (those of a recorded run, or of another simulation), `deployment`
    that of the deployment it names, `acceptance` that of the law it states. Raises MemwallError where the deployment does not fit or no request can be served.
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
    runs = [_run(scenario, traffic, *variant, progress) for variant in variants]
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
) -> Run:
    budget = deployment.fit(gamma=gamma)
    settings = deployment.engine.settings
    total_blocks = budget.kv_blocks(settings.block_tokens)
    if gamma + 1 > settings.max_batched_tokens:
        raise InputError(
            "max_batched_tokens", settings.max_batched_tokens, f"be at least γ + 1 = {gamma + 1}", where="engine"
        )
    requests = _records(traffic, scenario.warmup)
    largest = total_blocks * settings.block_tokens
    too_large = traffic.prompt_tokens + traffic.output_tokens + gamma + 1 > largest
    requests["status"][too_large] = state.REJECTED
    admitted = np.nonzero(~too_large)[0]
    if len(admitted) == 0:
        raise InputError(
            "traffic",
            f"shortest of {len(requests)} requests",
            f"fit the KV cache of {largest} tokens",
            where=traffic.source,
        )
    model = _step_model(scenario, deployment, gamma, law, total_blocks, len(requests))
    tell = (lambda done, of: progress(variant, done, of)) if progress else None
    pool = cluster.run(model, requests, traffic, scenario.replicas, admitted, tell)
    series, bucket_s = _merged_series(pool)
    dropped = dict(traffic.dropped)
    if too_large.any():
        dropped[TOO_LARGE] = int(too_large.sum())
    gpu, tp = deployment.gpu, deployment.target.tp
    summary = summarise(
        requests,
        [replica.state[0] for replica in pool],
        np.sum([replica.gaps for replica in pool], axis=0),
        slo=scenario.slo,
        total_blocks=total_blocks,
        gpus=tp * scenario.replicas,
        gpus_per_replica=tp,
        peak_bytes_per_s=gpu.hbm_bytes_per_s,
        peak_flop_per_s=gpu.peak_flop_per_s(deployment.target.formats.activations),
        usd_per_s=gpu.price_usd_per_s,
        dropped=dropped,
        block_seconds=float(series[state.SERIES.index("kv_block_s")].sum()),
        running_seconds=float(series[state.SERIES.index("running_s")].sum()),
    )
    return Run(variant, gamma, summary, budget, total_blocks, requests, traffic.row, series, bucket_s)


def _records(traffic: Requests, warmup: float) -> Any:
    requests = state.records(state.REQUEST, len(traffic))
    requests["arrival_s"] = traffic.arrival_s
    requests["prompt_tokens"] = traffic.prompt_tokens
    requests["output_tokens"] = traffic.output_tokens
    requests["replica"] = -1
    requests["measured"] = np.arange(len(requests)) >= int(warmup * len(requests))
    return requests


def _step_model(
    scenario: Scenario, deployment: Deployment, gamma: int, law: Acceptance | None, total_blocks: int, n: int
) -> cluster.StepModel:
    engine, settings = deployment.engine, deployment.engine.settings
    config = state.records(state.CONFIG, 1)
    row = config[0]
    for name in ("max_sequences", "max_batched_tokens", "block_tokens"):
        row[name] = getattr(settings, name)
    for name in (
        "host_step_s", "host_per_sequence_s", "host_speculative_round_s", "host_draft_pass_s", "host_ngram_per_sequence_s",
    ):  # fmt: skip
        row[name] = getattr(engine, name)
    row.seed = scenario.seed
    row.total_blocks = total_blocks
    row.watermark_blocks = int(settings.watermark * total_blocks)
    row.prefix_caching = int(settings.prefix_caching)
    row.prefill_first = int(settings.prefill == "first")
    row.prompts_per_pass = settings.prompts_per_pass or settings.max_sequences
    row.prefill_chunk_tokens = settings.prefill_chunk_tokens or settings.max_batched_tokens
    row.draft_first = int(settings.draft == "before")
    row.gamma = gamma
    row.match_probability = law.match_probability if law else 1.0
    if gamma:
        row.drafter = state.MODEL_DRAFTER if deployment.draft else state.NGRAM_DRAFTER
    rates, row_of = law.per_request(scenario.seed, n, gamma) if law else (np.ones((1, 1)), np.zeros(n, dtype=np.int64))
    most = settings.max_batched_tokens
    target = deployment.target.tables(most, most)
    draft = deployment.draft.tables(most, most) if deployment.draft and gamma else target
    model = cluster.StepModel(config, target, draft, np.ascontiguousarray(rates), row_of)
    return replayed(model, law.recording) if isinstance(law, RecordedAcceptance) else model


def replayed(model: cluster.StepModel, recording: Recording) -> cluster.StepModel:
    """`model` with the fate of every round as recorded instead of drawn."""
    model.config[0].replays = 1
    rounds = state.records(state.RECORDED, len(recording.rounds))
    rounds["drafted"], rounds["accepted"] = recording.rounds.T
    return replace(model, first_round=recording.first_round, rounds=rounds)


def _merged_series(pool: list[cluster.Replica]) -> tuple[NDArray[np.float64], float]:
    """Sum over replicas at the widest replica's bucket width, empty tail cut off."""
    widest = max(float(replica.state[0].bucket_s) for replica in pool)
    total = np.zeros((len(state.SERIES), state.BUCKETS))
    for replica in pool:
        # Widths differ by powers of two, and by more than all buckets together where a replica stood idle for long.
        factor = round(widest / float(replica.state[0].bucket_s))
        starts = np.arange(0, state.BUCKETS, factor)
        total[:, : len(starts)] += np.add.reduceat(replica.series, starts, axis=1)
    used = np.nonzero(total[state.SERIES.index("steps")])[0]
    return total[:, : int(used[-1]) + 1 if len(used) else 0], widest
