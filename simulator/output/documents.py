"""Results as strict JSON documents: keys sorted, NaN and infinity as null, a ``schema`` field that names the version.

Names end in their unit, as everywhere; nothing that changes from run to run (times of day, wall time) is in them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from simulator import __version__
from simulator.decoding import DecodeResult
from simulator.deployment import Deployment
from simulator.output.draft_rows import drafts_document
from simulator.output.rows import interruption
from simulator.output.simulation_report import statements
from simulator.planning.crossover import SpeculateResult
from simulator.serving.class_metrics import UNFINISHED
from simulator.serving.intervals import Intervals
from simulator.serving.replications import Replications
from simulator.serving.room import kv_room
from simulator.serving.simulation import Run, SimulationResult
from simulator.serving.timeline import timeline
from simulator.uncertainty import Interval

SCHEMA_VERSION = 1
"""Raised when a field changes its meaning or goes away; new fields do not raise it."""


def to_json(document: Mapping[str, Any]) -> str:
    """`document` as strict JSON with a final line break."""
    return json.dumps(_plain(document), allow_nan=False, sort_keys=True, indent=2, ensure_ascii=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):  # a numpy scalar
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def document_head(kind: str, deployment: Deployment) -> dict[str, Any]:
    """What every document begins with: its schema, and what it was computed for."""
    target, formats, drafter = deployment.target, deployment.target.formats, deployment.drafter
    return {
        "schema": f"memwall.{kind}/{SCHEMA_VERSION}",
        "memwall": __version__,
        "deployment": {
            "model": target.decoder.name,
            "gpu": target.gpu.name,
            "tp": target.tp,
            "pp": target.pp,
            "ep": target.experts.ep,
            "expert_skew": target.experts.skew,
            "expert_exponent": target.experts.exponent,
            "gpus": deployment.gpus,
            "link": target.link.name,
            "network": target.network.name,
            "engine": deployment.engine.name,
            "engine_settings": deployment.engine.settings.model_dump(),
            "formats": {"weights": formats.weights, "kv": formats.kv, "activations": formats.activations},
            "drafter": drafter.name if drafter else None,
            "calibration": {
                "name": target.efficiency.name,
                "tag": target.efficiency.tag,
                "typical_error": target.efficiency.typical_error,
                "spread": target.efficiency.spread,
            },
        },
    }


def _interval(found: Interval) -> dict[str, float]:
    return {"low": found.low, "high": found.high, "level": found.level}


def decode_document(result: DecodeResult) -> dict[str, Any]:
    """A decode step; operators carry the figures of one occurrence on one GPU and how often they occur."""
    operators = [
        {**asdict(o), "bytes": o.bytes_, "by_cause_s": o.by_cause()} for o in result.pass_cost.operators
    ]  # one entry per operator and kind of layer
    return {
        **document_head("decode", result.deployment),
        "batch": result.batch,
        "micro_batches": result.micro_batches,
        "context_tokens": result.context_tokens,
        "new_tokens": result.new_tokens,
        "verdict": result.verdict,
        "step_s": result.step_s,
        "step_interval_s": _interval(result.interval),
        "tokens_per_s": result.tokens_per_s,
        "tokens_per_s_per_user": result.new_tokens / result.step_s,
        "by_cause_s": result.by_cause,
        "binding": result.binding,
        "operators": operators,
        "bytes_per_s": result.bytes_per_s,
        "flop_per_s": result.flop_per_s,
        "bandwidth_share_of_datasheet": result.bandwidth_share,
        "flop_share_of_datasheet": result.flop_share,
        "sm_idle_share": 1.0 - result.sm_busy_share,
        "desk_bytes": result.deployment.gpu.desk_bytes,
        "desk_loads_per_step": result.desk_loads,
        "memory_budget": {
            **asdict(result.budget), "kv_bytes": result.budget.kv_bytes, "kv_tokens": result.budget.kv_tokens,
        },
    }  # fmt: skip


def speculate_document(result: SpeculateResult) -> dict[str, Any]:
    """The grid and what follows from it."""
    return {
        **document_head("speculate", result.deployment),
        "acceptance": {
            "conditional": result.acceptance.rates,
            "request_icc": result.acceptance.request_icc,
            "match_probability": result.acceptance.match_probability,
        },
        "context_tokens": result.context_tokens,
        "cells": speculate_cells(result),
        "speedup_interval_by_batch": {batch: _interval(found) for batch, found in result.intervals.items()},
        "best_gamma_by_batch": {batch: result.best_gamma(batch) for batch in result.batches},
        "pays_up_to_batch_by_gamma": {gamma: result.crossover(gamma) for gamma in result.gammas},
        "pays_up_to_batch": result.last_paying_batch,
    }


def speculate_cells(result: SpeculateResult) -> list[dict[str, Any]]:
    """One mapping per γ and batch, in the order of the columns of the CSV file."""
    return [
        {
            "gamma": gamma,
            "batch": batch,
            "speedup": cell.speedup,
            "best": gamma == result.best_gamma(batch),
            "kv_fits": cell.fits,
            "tokens_per_round": cell.round.tokens_per_sequence,
            "verify_ratio": cell.verify_ratio,
            "plain_tpot_s": cell.plain.tpot_s,
            "tpot_s": cell.round.tpot_s,
            "tokens_per_s": cell.round.tokens_per_s,
            "round_s": cell.round.seconds,
            "verify_s": cell.round.verify_s,
            "draft_s": cell.round.draft_s,
            "host_s": cell.round.host_s,
        }
        for (gamma, batch), cell in sorted(result.cells.items())
    ]


def simulation_document(
    result: SimulationResult, intervals: Intervals | None = None, replications: Replications | None = None
) -> dict[str, Any]:
    """Scenario, traffic, and the summary and timeline of each variant; intervals and replications by variant and figure."""
    runs = [
        {
            "variant": run.variant,
            "gamma": run.gamma,
            "drafts": drafts_document(run),
            "kv_blocks": run.total_blocks,
            "memory_budget": asdict(run.budget),
            "summary": asdict(run.summary),
            "timeline": _timeline(run),
            "cluster": _cluster(run),
        }
        for run in result.runs
    ]
    traffic, room = result.traffic, kv_room(result)
    return {
        **document_head("simulate", result.deployment),
        "scenario": result.scenario.model_dump(mode="json"),
        "complete": not any(run.summary.requests.get(UNFINISHED) for run in result.runs) and not interruption(result),
        "interrupted": interruption(result) or None,
        "statements": statements(result),
        "traffic": {
            "source": traffic.source, "rows_read": traffic.rows_read, "rows_used": len(traffic), "dropped": traffic.dropped,
        },
        "runs": runs,
        "kv_concurrency": None if room is None else asdict(room),
        "intervals": None if intervals is None else {
            f"{variant}.{figure}": _interval(found) for (variant, figure), found in intervals.of.items()
        },
        "replications": None if replications is None else {
            "n": replications.n,
            "of": {f"{variant}.{figure}": asdict(found) for (variant, figure), found in replications.of.items()},
        },
    }  # fmt: skip


def _timeline(run: Run) -> dict[str, Any]:
    """Means over stretches of equal width, to six digits."""
    replicas = sum(kind.pool.built for kind in run.kinds)
    found = timeline(run.series, run.bucket_s, total_blocks=run.fleet_blocks, replicas=replicas)
    columns = {name: [float(f"{v:.6g}") for v in values.tolist()] for name, values in found.columns().items()}
    return {"width_s": found.width_s, **columns}


def _cluster(run: Run) -> dict[str, Any]:
    """What `cluster_metrics` found, and every change of a replica's state: pools counted through, prefill first."""
    found = {} if run.cluster is None else asdict(run.cluster)
    happened = [
        {"time_s": h.time_s, "replica": h.replica, "state": h.state.value, "requests": h.requests} for h in run.happened
    ]
    return {**found, "held_s": run.held_s.tolist(), "happened": happened}
