"""What ``memwall simulate`` prints: the table of figures, their intervals, and what speculation bought."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from simulator import units
from simulator.cost.efficiency import Efficiency
from simulator.output import rows
from simulator.output.report import NONE, Block, calibration_line
from simulator.output.rows import Table
from simulator.output.tables import Section, properties
from simulator.serving.intervals import FIGURES, RATIO, Intervals
from simulator.serving.metrics import Distribution, Summary
from simulator.serving.simulation import SimulationResult


def simulation_report(result: SimulationResult, wall_s: float, intervals: Intervals | None = None) -> list[Block]:
    """Conditions, the table, what speculation bought, how sure that is, and how fast the simulation itself was."""
    scenario = result.scenario
    heading = scenario.title or scenario.name
    conditions = [*rows.simulation_conditions(result), ("typical error", _typical(result.deployment.target.efficiency))]
    blocks: list[Block] = [
        properties(heading, conditions),
        Section("", simulation_table(result), _simulation_note(result)),
    ]
    if intervals is not None:
        blocks.append(interval_section(result, intervals))
    if len(result.runs) > 1:
        blocks.append(simulation_sentence(result))
    n = len(result.traffic) * len(result.runs)
    blocks.append(
        f"Simulated {n:,} requests ({_variants(result)}) in {wall_s:.2f} s of wall time: {n / wall_s:,.0f} requests/s."
    )
    return blocks


def interval_section(result: SimulationResult, intervals: Intervals) -> Section:
    """Where the main figures lie with 90 %, by variant, and their ratio."""
    shows = {"output_tokens_per_s": _rate, "goodput_per_s": _rate}
    body = []
    for figure in FIGURES:
        show = shows.get(figure, _seconds)
        cells = [(intervals.get(run.variant, figure), show) for run in result.runs]
        if len(result.runs) > 1:
            cells.append((intervals.get(RATIO, figure), lambda value: f"{value:.2f}"))
        body.append((INTERVAL_NAMES[figure], *(NONE if i is None else f"{s(i.low)} to {s(i.high)}" for i, s in cells)))
    headers = ("", "plain decoding") if len(result.runs) == 1 else ("", "speculation", "off", "ratio")
    note = "as far as times are uncertain: what the calibration missed on rows it never saw; traffic and acceptance as given"
    return Section("90 % prediction intervals", Table(headers, body), note)


INTERVAL_NAMES = {
    **{f"{field}_s.{point}": f"{field.upper()} {point}" for field in ("ttft", "tpot", "e2e") for point in ("mean", "p50", "p99")},
    "output_tokens_per_s": "output tokens/s", "goodput_per_s": "goodput, requests/s",
}  # fmt: skip
"""Figures of `serving.intervals.FIGURES` in words."""


def _typical(efficiency: Efficiency) -> str:
    return calibration_line(efficiency).partition("typical error ")[2].rstrip(".")


def _variants(result: SimulationResult) -> str:
    return "with speculation and without" if len(result.runs) > 1 else "plain decoding"


def _simulation_note(result: SimulationResult) -> str:
    slo = {k: v for k, v in result.scenario.slo.model_dump().items() if v is not None}
    if not slo:
        return "goodput counts every request: the scenario names no objective (slo)"
    named = ", ".join(f"{k.removesuffix('_s').upper()} ≤ {units.show(v, 's')}" for k, v in slo.items())
    return f"goodput: requests with {named}"


def simulation_table(result: SimulationResult) -> Table:
    """metric | speculation | off | speculation/off, or metric | value without speculation."""
    body: list[tuple[str, ...]] = []
    summaries = [run.summary for run in result.runs]
    for name, values, show in _metrics(summaries):
        if not name:
            body.append(("",) * (len(summaries) + (2 if len(summaries) > 1 else 1)))
            continue
        ratio = () if len(summaries) == 1 else (NONE if name.endswith(" n") else _ratio(*values),)
        body.append((name, *(show(v) for v in values), *ratio))
    headers = ("", "plain decoding") if len(summaries) == 1 else ("", "speculation", "off", "ratio")
    return Table(headers, body)


Show = Callable[[float], str]


def _metrics(summaries: Sequence[Summary]) -> list[tuple[str, list[float], Show]]:
    found: list[tuple[str, list[float], Show]] = []

    def add(name: str, field: str, show: Show) -> None:
        values = [getattr(s, field) for s in summaries]
        found.append((name, [math.nan if v is None else float(v) for v in values], show))

    for name, field in (("TTFT", "ttft_s"), ("TPOT", "tpot_s"), ("ITL", "itl_s"), ("E2E", "e2e_s")):
        spread: list[Distribution] = [getattr(s, field) for s in summaries]
        for point in ("mean", "p50", "p90", "p95", "p99"):
            lead = name if point == "mean" else " " * len(name)
            found.append((f"{lead} {point}", [float(getattr(d, point)) for d in spread], _seconds))
        found.append((f"{' ' * len(name)} n", [float(d.n) for d in spread], _count))
        found.append(("", [], _count))  # a gap between groups
    add("output tokens/s", "output_tokens_per_s", _rate)
    add("output tokens/s per GPU", "tokens_per_s_per_gpu", _rate)
    add("requests/s", "requests_per_s", _rate)
    add("goodput, requests/s", "goodput_per_s", _rate)
    add("goodput, share of finished", "good_share", _share)
    add("GPU busy", "gpu_busy_share", _share)
    add("HBM bandwidth, of datasheet's peak", "bandwidth_share", _share)
    add("FLOP/s, of datasheet's peak", "flop_share", _share)
    add("running per replica, mean", "mean_running", lambda v: _finite(v, ".1f"))
    add("running per replica, most", "most_running", _count)
    add("KV cache filled while busy, mean", "kv_occupancy_mean", _share)
    add("KV cache filled, most", "kv_occupancy_most", _share)
    add("preemptions", "preemptions", _count)
    add("acceptance length, tokens/round", "tokens_per_round", lambda v: _finite(v, ".2f"))
    add("acceptance rate, accepted/drafted", "acceptance_rate", _share)
    add("drafted tokens", "drafted_tokens", _count)
    add("wasted tokens", "wasted_tokens", _count)
    add("wasted FLOP", "wasted_flop_share", _share)
    add("USD per million tokens", "usd_per_million_tokens", lambda v: _finite(v, ".3f"))
    return found


def simulation_sentence(result: SimulationResult) -> str:
    """What speculation bought, or cost."""
    run, off = result.main.summary, result.plain.summary
    drafter = result.deployment.drafter
    who = f"Speculation with {drafter.name} (γ = {result.main.gamma})" if drafter else "Speculation"
    gain = off.tpot_s.mean / run.tpot_s.mean if run.tpot_s.n and run.tpot_s.mean else math.nan
    if math.isnan(gain):
        return f"{who}: no request has a second token, so there is no TPOT to compare."
    times = f"{max(gain, 1 / gain):.2f} × {'faster' if gain >= 1 else 'slower'}"
    e2e = off.e2e_s.mean / run.e2e_s.mean
    price = goodput = ""
    usd, usd_off = (f"{s.usd_per_million_tokens or 0.0:.3g}" for s in (run, off))
    if usd != usd_off:
        price = f", and a million tokens cost {usd} instead of {usd_off} USD"
    if abs(run.goodput_per_s - off.goodput_per_s) > 0.01 * off.goodput_per_s:
        goodput = f", goodput {run.goodput_per_s:.3g} instead of {off.goodput_per_s:.3g} requests/s"
    drafts = ""
    if not math.isnan(run.tokens_per_round):
        wasted = run.wasted_tokens / run.drafted_tokens if run.drafted_tokens else 0.0
        drafts = f"; {run.tokens_per_round:.2f} tokens per round, {wasted:.0%} of the drafted tokens wasted"
    return (
        f"{who} makes tokens {times}: mean TPOT {_seconds(run.tpot_s.mean)} instead of "
        f"{_seconds(off.tpot_s.mean)}, mean E2E {_seconds(run.e2e_s.mean)} instead of "
        f"{_seconds(off.e2e_s.mean)} ({e2e:.2f} ×){goodput}{price}{drafts}."
    )


def _ratio(ours: float, plain: float) -> str:
    return f"{ours / plain:.2f}" if plain and math.isfinite(ours) and math.isfinite(plain) else NONE


def _seconds(value: float) -> str:
    """Three digits, zeros at the end kept, so that a column of them reads evenly."""
    if not math.isfinite(value):
        return NONE
    scaled, unit = (value, "s") if value >= 0.9995 else (value * 1e3, "ms")
    decimals = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
    return f"{scaled:,.{decimals}f} {unit}"


def _finite(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else NONE


def _count(value: float) -> str:
    return _finite(value, ",.0f")


def _rate(value: float) -> str:
    return _finite(value, ",.1f" if abs(value) >= 100 else ",.3g")


def _share(value: float) -> str:
    return _finite(value, ".1%")
