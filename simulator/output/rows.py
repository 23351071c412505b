"""Result records as rows of text: one place where a number gets its digits and unit, whoever prints it afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from simulator import units
from simulator.decoding import DecodeResult
from simulator.deployment import Deployment
from simulator.experts import SPLIT_EVENLY, ExpertPlacement
from simulator.memory import MemoryBudget
from simulator.output.cluster_conditions import cluster_rows, gpus_of_all, kind_rows, replicas_text
from simulator.output.draft_rows import drafts_text
from simulator.planning.crossover import SpeculateResult
from simulator.serving.cluster import INTERRUPTED
from simulator.serving.metrics import Summary
from simulator.serving.simulation import SimulationResult
from simulator.serving.window import ARRIVALS
from simulator.speculation.acceptance import Acceptance, RecordedAcceptance
from simulator.uncertainty import Interval

CAUSES: Mapping[str, str] = {
    "weights": "reading weights",
    "kv_cache": "reading the KV cache",
    "activations": "moving activations",
    "compute": "arithmetic",
    "launch": "launching kernels",
    "communication": "waiting for other GPUs",
    "host": "engine on the host",
}
"""Causes of `cost.forward.CAUSES` in words."""
_SHOWN_RATES = 8


class Table(NamedTuple):
    """A header and rows of as many cells."""

    headers: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


# --- conditions: what has to be known before any number means something ------------------------------------------------
def deployment_rows(deployment: Deployment) -> list[tuple[str, str]]:
    """Model, GPUs, number formats, engine and calibration of `deployment`."""
    target, formats = deployment.target, deployment.target.formats
    rows = [
        ("model", target.decoder.name),
        ("GPU", gpus_text(deployment)),
        ("tensor parallel", str(target.tp)),
    ]
    if target.pp > 1:
        rows.append(("pipeline", f"{target.pp} stages"))
    if target.experts != SPLIT_EVENLY:
        rows.append(("experts", experts_text(target.experts)))
    rows += [
        ("number formats", f"weights {formats.weights}, KV cache {formats.kv}, activations {formats.activations}"),
        ("engine", deployment.engine.title),
    ]
    if deployment.drafter is not None:
        rows.append(("drafter", drafter_text(deployment)))
    return [*rows, ("times rest on", target.efficiency.label)]


def drafter_text(deployment: Deployment) -> str:
    """The drafter, and for which models it was made where the target is none of them."""
    drafter = deployment.drafter
    if drafter is None:
        return "–"
    if not drafter.targets or deployment.target.decoder.name in drafter.targets:
        return drafter.title
    return f"{drafter.title} (made for, or measured with, {', '.join(drafter.targets)})"


def gpus_text(deployment: Deployment) -> str:
    """The GPUs of one copy of the model."""
    n, title = deployment.gpus, deployment.gpu.title
    return title if n == 1 else f"{n} × {title}"


def experts_text(experts: ExpertPlacement) -> str:
    """Where the experts are and how tokens choose among them."""
    text = f"spread over {experts.ep} GPUs" if experts.ep > 1 else "split like every matrix"
    if experts.skew != 1.0:
        text += f", the busiest with {experts.skew:g} × the mean of their tokens"
    if experts.exponent:
        text += f", popularity ∝ 1/rank^{experts.exponent:g}"
    return text


def acceptance_text(law: Acceptance) -> str:
    """Conditional rates by depth, and what departs from independence."""
    rates = ", ".join(f"{rate:.3g}" for rate in law.rates[:_SHOWN_RATES]) + (
        ", …" if len(law.rates) > _SHOWN_RATES else ""
    )
    text = f"conditional acceptance {rates}" + (" by depth" if len(law.rates) > 1 else " at every depth")
    if isinstance(law, RecordedAcceptance):
        text = f"rounds of {len(law.recording.accepted):,} recorded requests, replayed: {text} over all of them"
    if law.request_icc:
        text += f", intraclass correlation {law.request_icc:.3g} within a request"
    if law.stretch_icc and law.mean_stretch_tokens is not None:
        text += f", {law.stretch_icc:.0%} of a request's own variance between stretches of {law.mean_stretch_tokens:.3g} tokens"
    if law.repetition is not None:
        loops = law.repetition
        text += f", {loops.conditional:.3g} in loops of {loops.tokens:,.0f} tokens that begin every {loops.every_tokens:,.0f}"
    if law.answer_length is not None:
        text += f", luck correlated {law.answer_length.correlation:.2g} with the length of the answer"
    if law.matches_in_stretches:
        text += (
            f", a draft found at {law.match_probability:.0%} of positions in stretches of {law.match_tokens:.3g} tokens"
        )
    elif law.match_probability < 1.0:
        text += f", a draft found in {law.match_probability:.0%} of rounds"
    return text


def decode_conditions(result: DecodeResult) -> list[tuple[str, str]]:
    """Conditions of a decode step."""
    return [
        *deployment_rows(result.deployment),
        ("batch", batch_text(result)),
        ("context", f"{result.context_tokens} tokens each"),
        ("new tokens", f"{result.new_tokens} each"),
    ]


def batch_text(result: DecodeResult) -> str:
    """ "16 sequences in 2 micro-batches"."""
    parts = result.micro_batches
    return count(result.batch, "sequence") + (f" in {parts} micro-batches" if parts > 1 else "")


def speculate_conditions(result: SpeculateResult) -> list[tuple[str, str]]:
    """Conditions of a speed-up grid."""
    return [
        *deployment_rows(result.deployment),
        ("acceptance", acceptance_text(result.acceptance)),
        ("output", "unchanged: verification keeps the target's own distribution (lossless)"),
        ("context", f"{result.context_tokens} tokens each"),
    ]


def simulation_conditions(result: SimulationResult) -> list[tuple[str, str]]:
    """Conditions of a simulation, the rows of its traffic accounted for."""
    scenario, traffic = result.scenario, result.traffic
    account = f"{traffic.rows_read:,} read = {len(traffic):,} used"
    account += "".join(f" + {n:,} dropped ({reason})" for reason, n in traffic.dropped.items())
    rows = [*_replica_rows(result), *cluster_rows(result), ("traffic", traffic.source)]
    drafts = result.main.drafts
    if drafts is not None:
        rows[-1:-1] = [("drafts", drafts_text(result)), ("acceptance", acceptance_text(drafts.law))]
    rows += [
        ("rows", account),
        ("seed", str(scenario.seed)),
        ("warm-up left out", f"first {scenario.warmup:.0%} of requests"),
        ("rates over", window_text(result.main.summary)),
    ]
    return rows


def _replica_rows(result: SimulationResult) -> list[tuple[str, str]]:
    """Model, formats and drafter, and what replicas run on: of all of them, or kind by kind."""
    kinds = result.main.kinds
    common = deployment_rows(kinds[-1].deployment)
    if len(kinds) == 1:
        return [*common, ("replicas", replicas_text(kinds[0]))]
    kept = dict(row for row in common if row[0] in ("model", "number formats", "drafter"))
    model, formats = kept.pop("model"), kept.pop("number formats")
    rows = [("model", model), ("GPUs", gpus_of_all(kinds)), *kind_rows(kinds), ("number formats", formats)]
    return [*rows, *kept.items(), ("times rest on", basis(result))]


def basis(result: SimulationResult) -> str:
    """What times rest on, of all kinds of replicas."""
    return "; ".join(dict.fromkeys(kind.deployment.target.efficiency.label for kind in result.main.kinds))


def window_text(summary: Summary) -> str:
    """The stretch that throughput and goodput are taken over."""
    start_s, end_s = summary.window_start_s, summary.window_start_s + summary.window_s
    if summary.window == ARRIVALS:
        return f"first measured to last arrival, {_clock(start_s)} to {_clock(end_s)} (no drain)"
    return f"the whole run, {_clock(start_s)} to {_clock(end_s)} (too short for less: ramp-up and drain count)"


def _clock(time_s: float) -> str:
    return f"{time_s:,.0f} s" if time_s >= 1000 else f"{time_s:.4g} s"


def interruption(result: SimulationResult) -> str:
    """Where the simulation was interrupted, variant by variant; empty where it was not."""
    said = [
        f"{run.variant} interrupted at t = {units.show(run.summary.interrupted_s, 's')} after "
        f"{run.summary.requests['finished']:,} of {len(result.traffic):,} requests"
        + (f" ({run.interrupted})" if run.interrupted not in ("", INTERRUPTED) else "")
        for run in result.runs
        if run.summary.interrupted_s is not None
    ]
    if said and result.scenario.speculation is not None and len(result.runs) == 1:
        said.append("plain decoding not simulated")
    return "; ".join(said)


def interval(found: Interval, dimension: str) -> str:
    """ "11.2 ms to 12.4 ms"."""
    return f"{units.show(found.low, dimension)} to {units.show(found.high, dimension)}"


def count(n: int, noun: str) -> str:
    """ "1 request", "2 requests"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


# --- memory -----------------------------------------------------------------------------------------------------------
def memory_parts(budget: MemoryBudget) -> list[tuple[str, float]]:
    """What fills the HBM of one GPU, bytes; the parts add up to `budget.hbm_bytes` where the model fits."""
    return [
        ("model weights", budget.weight_bytes),
        ("drafter weights", budget.draft_weight_bytes),
        ("activations", budget.activation_bytes),
        ("engine reserve", budget.reserved_bytes),
        ("room for the KV cache", max(0.0, budget.kv_bytes)),
        ("left to others", budget.hbm_bytes - budget.usable_bytes),
    ]


def memory_rows(budget: MemoryBudget) -> Table:
    """What fills the HBM of one GPU."""
    rows = [(name, units.show(size, "bytes")) for name, size in memory_parts(budget) if size > 0]
    rows += [("one token of KV cache", units.show(budget.kv_bytes_per_token, "bytes"))]
    rows += [("tokens that fit", f"{budget.kv_tokens:,}")]
    return Table(("memory of one GPU", ""), rows)


def share(text: str, of_peak: float) -> str:
    """A rate with its share of the datasheet's peak."""
    return f"{text} ({of_peak:.1%} of the datasheet's peak)"
