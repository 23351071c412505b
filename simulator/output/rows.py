"""Result records as rows of text: one place where a number gets its digits and unit, whoever prints it afterwards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from simulator import units
from simulator.decoding import DecodeResult
from simulator.deployment import Deployment
from simulator.memory import MemoryBudget
from simulator.planning.crossover import SpeculateResult
from simulator.serving.metrics import Distribution
from simulator.serving.simulation import Run, SimulationResult
from simulator.speculation.acceptance import Acceptance

CAUSES: Mapping[str, str] = {
    "weights": "reading weights",
    "kv_cache": "reading the KV cache",
    "activations": "moving activations",
    "compute": "arithmetic",
    "launch": "launching kernels",
    "communication": "all-reduces",
    "host": "engine on the host",
}
"""Causes of `cost.forward.CAUSES` in words."""


class Table(NamedTuple):
    """A header and rows of as many cells."""

    headers: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


# --- conditions: what has to be known before any number means something ------------------------------------------------
def deployment_rows(deployment: Deployment) -> list[tuple[str, str]]:
    """Model, GPUs, number formats, engine and calibration of `deployment`."""
    target, formats = deployment.target, deployment.target.formats
    gpus = f"{target.tp} × {target.gpu.title}" if target.tp > 1 else target.gpu.title
    rows = [
        ("model", target.decoder.name),
        ("GPU", gpus),
        ("tensor parallel", str(target.tp)),
        ("number formats", f"weights {formats.weights}, KV cache {formats.kv}, activations {formats.activations}"),
        ("engine", deployment.engine.title),
    ]
    if deployment.drafter is not None:
        rows.append(("drafter", deployment.drafter.title))
    return [*rows, ("times rest on", target.efficiency.label)]


def acceptance_text(law: Acceptance) -> str:
    """Conditional rates by depth, and what departs from independence."""
    rates = ", ".join(f"{rate:.3g}" for rate in law.rates)
    text = f"conditional acceptance {rates}" + (" by depth" if len(law.rates) > 1 else " at every depth")
    if law.request_icc:
        text += f", intraclass correlation {law.request_icc:g} within a request"
    if law.match_probability < 1.0:
        text += f", a draft found in {law.match_probability:.0%} of rounds"
    return text


def decode_conditions(result: DecodeResult) -> list[tuple[str, str]]:
    """Conditions of a decode step."""
    return [
        *deployment_rows(result.deployment),
        ("batch", count(result.batch, "sequence")),
        ("context", f"{result.context_tokens} tokens each"),
        ("new tokens", f"{result.new_tokens} each"),
    ]


def speculate_conditions(result: SpeculateResult) -> list[tuple[str, str]]:
    """Conditions of a speed-up grid."""
    return [
        *deployment_rows(result.deployment),
        ("acceptance", acceptance_text(result.acceptance)),
        ("context", f"{result.context_tokens} tokens each"),
    ]


def simulation_conditions(result: SimulationResult) -> list[tuple[str, str]]:
    """Conditions of a simulation, the rows of its traffic accounted for."""
    scenario, traffic = result.scenario, result.traffic
    dropped = dict(result.main.summary.requests)
    used = dropped.pop("finished")
    account = f"{traffic.rows_read} read = {used} used"
    account += "".join(f" + {n} dropped ({reason})" for reason, n in dropped.items())
    rows = [*deployment_rows(result.deployment), ("replicas", str(scenario.replicas)), ("traffic", traffic.source)]
    rows += [
        ("rows", account),
        ("seed", str(scenario.seed)),
        ("warm-up left out", f"first {scenario.warmup:.0%} of requests"),
    ]
    return rows


def count(n: int, noun: str) -> str:
    """ "1 request", "2 requests"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


# --- results ----------------------------------------------------------------------------------------------------------
def decode_rows(result: DecodeResult) -> Table:
    """A decode step: time, causes, rates, memory."""
    gpu = result.deployment.gpu
    rows = [
        ("time per step", units.show(result.step_s, "s")),
        ("output of all sequences", f"{result.tokens_per_s:,.0f} tokens/s"),
    ]
    for cause, seconds in sorted(result.by_cause.items(), key=lambda item: -item[1]):
        if seconds > 0:
            rows.append((f"  {CAUSES[cause]}", f"{units.show(seconds, 's')} ({seconds / result.step_s:.1%})"))
    rows += [
        ("HBM traffic", share(units.show(result.bytes_per_s, "bytes_per_s"), result.bandwidth_share)),
        ("arithmetic done", share(units.show(result.flop_per_s, "flop_per_s"), result.flop_share)),
        (
            "desk (shared memory of all SMs)",
            f"{units.show(gpu.desk_bytes, 'bytes')}, filled {result.desk_loads:,.0f} times a step",
        ),
    ]
    return Table(("one decode step", ""), rows)


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


def speculate_rows(result: SpeculateResult) -> Table:
    """Speed-up by batch (rows) and γ (columns); a dash where the KV cache does not fit."""
    rows = []
    for batch in result.batches:
        cells = [result.cells[gamma, batch] for gamma in result.gammas]
        best = result.best_gamma(batch)
        shown = [f"{cell.speedup:.2f} ×" if cell.fits else "—" for cell in cells]
        verdict = "no room" if not any(c.fits for c in cells) else f"γ = {best}" if best else "plain decoding"
        rows.append((str(batch), *shown, verdict))
    return Table(("batch", *(f"γ = {gamma}" for gamma in result.gammas), "best"), rows)


def simulation_rows(result: SimulationResult) -> Table:
    """Service and resources, one column per variant."""
    headers = ("", *(f"speculation, γ = {run.gamma}" if run.gamma else "plain decoding" for run in result.runs))
    columns = [_run_rows(run) for run in result.runs]
    return Table(headers, [(first[0], *(c[i][1] for c in columns)) for i, first in enumerate(columns[0])])


def _run_rows(run: Run) -> list[tuple[str, str]]:
    s = run.summary
    no_rounds = math.isnan(s.tokens_per_round)
    return [
        ("TTFT, mean ± s.d.", _spread(s.ttft_s)),
        ("TTFT, p50 / p95 / p99", _tail(s.ttft_s)),
        ("TPOT, mean ± s.d.", _spread(s.tpot_s)),
        ("TPOT, p50 / p95 / p99", _tail(s.tpot_s)),
        ("gap between chunks, p50 / p95 / p99", _tail(s.itl_s)),
        ("E2E, mean ± s.d.", _spread(s.e2e_s)),
        ("E2E, p50 / p95 / p99", _tail(s.e2e_s)),
        ("wait for a place, p50 / p95 / p99", _tail(s.queue_s)),
        ("requests measured", f"{s.measured:,}"),
        ("output", f"{s.output_tokens_per_s:,.0f} tokens/s ({s.tokens_per_s_per_gpu:,.0f} per GPU)"),
        ("speed seen by one user", _finite(s.tokens_per_s_per_user, "{:.1f} tokens/s")),
        ("goodput", f"{s.goodput_per_s:.3g} requests/s ({s.good_share:.1%} meet every objective)"),
        ("GPU busy", f"{s.gpu_busy_share:.1%} of the time"),
        ("HBM traffic", f"{s.bandwidth_share:.1%} of the datasheet's peak"),
        ("arithmetic", f"{s.flop_share:.1%} of the datasheet's dense peak"),
        ("requests in a batch", f"{s.mean_running:.1f} on average, {s.most_running} at most"),
        ("KV cache filled", f"{s.kv_occupancy_mean:.1%} on average, {s.kv_occupancy_most:.1%} at most"),
        ("preemptions", f"{s.preemptions:,}"),
        ("tokens per round", _finite(s.tokens_per_round, "{:.2f}")),
        ("drafts accepted / drafted", _finite(s.acceptance_rate, "{:.1%}")),
        ("drafted in vain", "—" if no_rounds else f"{s.wasted_tokens:,} tokens, {s.wasted_flop_share:.1%} of all FLOP"),
        ("time in the drafter", "—" if no_rounds else f"{s.draft_time_share:.1%} of busy time"),
        (
            "price",
            "—" if s.usd_per_million_tokens is None else f"{s.usd_per_million_tokens:.3g} USD per million tokens",
        ),
    ]


def share(text: str, of_peak: float) -> str:
    """A rate with its share of the datasheet's peak."""
    return f"{text} ({of_peak:.1%} of the datasheet's peak)"


def _spread(d: Distribution) -> str:
    if d.n == 0:
        return "—"
    return f"{units.show(d.mean, 's')} ± {units.show(d.standard_deviation, 's')} (n = {d.n:,})"


def _tail(d: Distribution) -> str:
    return "—" if d.n == 0 else " / ".join(units.show(v, "s") for v in (d.p50, d.p95, d.p99))


def _finite(value: float, form: str) -> str:
    return form.format(value) if math.isfinite(value) else "—"
