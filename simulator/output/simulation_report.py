"""What ``memwall simulate`` prints: the table of figures, their intervals, and what speculation bought."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from simulator import units
from simulator.output import rows
from simulator.output.cluster_conditions import kind_names
from simulator.output.cluster_report import cluster_remarks, cluster_sections
from simulator.output.draft_rows import drafts_label
from simulator.output.report import NONE, Block, calibration_line
from simulator.output.rows import Table, interruption
from simulator.output.tables import Section, properties
from simulator.serving.class_metrics import END_NAMES, TOO_LARGE, UNFINISHED
from simulator.serving.confidence import MOST_CORRELATION
from simulator.serving.intervals import FIGURES, RATIO, Intervals
from simulator.serving.metrics import Distribution, Summary
from simulator.serving.replications import Replications
from simulator.serving.room import kv_room
from simulator.serving.simulation import Run, SimulationResult

COST_DIFFERS = 0.02
"""Costs per token that differ by less are not set against each other in a sentence."""


def simulation_report(
    result: SimulationResult,
    wall_s: float,
    intervals: Intervals | None = None,
    replications: Replications | None = None,
) -> list[Block]:
    """Conditions, the table, what speculation bought, how sure that is, and how fast the simulation itself was."""
    scenario = result.scenario
    heading = scenario.title or scenario.name
    conditions = [*rows.simulation_conditions(result), ("typical error", _typical(result))]
    blocks: list[Block] = [
        properties(heading, conditions),
        simulation_section(result),
    ]
    blocks += cluster_sections(result)
    if len(result.main.summary.classes) > 1:
        blocks += class_sections(result)
    confidence = confidence_section(result)
    if confidence is not None:
        blocks.append(confidence)
    if replications is not None:
        blocks.append(replication_section(result, replications))
    if intervals is not None:
        blocks.append(interval_section(result, intervals))
    blocks += statements(result)
    if len(result.runs) > 1 and not interruption(result):
        blocks.append(simulation_sentence(result))
    n = sum(sum(run.summary.requests.values()) - sum(result.traffic.dropped.values()) for run in result.runs)
    n -= sum(run.summary.requests.get(UNFINISHED, 0) for run in result.runs)
    blocks.append(
        f"Simulated {n:,} requests ({_variants(result)}) in {wall_s:.2f} s of wall time: {n / wall_s:,.0f} requests/s."
    )
    return blocks


def statements(result: SimulationResult) -> list[str]:
    """What has to be said about how the run went, all of it."""
    return [*warnings(result), *remarks(result)]


def warnings(result: SimulationResult) -> list[str]:
    """What puts figures in question: interrupted, requests without an answer, saturated."""
    found = []
    if sentence := interruption(result):
        found.append(f"{sentence[0].upper()}{sentence[1:]}. Figures are of what had finished by then.")
    found += _by_variant(result, lambda run: _ends(run.summary))
    found += _by_variant(result, lambda run: _stranded(run.summary))
    found += _by_variant(
        result, lambda run: "" if run.summary.stability.stable is not False else run.summary.stability.sentence
    )
    return found


def remarks(result: SimulationResult) -> list[str]:
    """What else is worth a sentence: prefixes found, KV room given to speculation."""
    found = []
    if any(run.summary.cached_tokens for run in result.runs):
        found += _by_variant(
            result, lambda run: f"{run.summary.cached_share:.1%} of the prompt tokens were found in the KV cache."
        )
    if sentence := room_sentence(result):
        found.append(sentence)
    return found + _by_variant(result, cluster_remarks)


def _by_variant(result: SimulationResult, say: Callable[[Run], str]) -> list[str]:
    """What is to be said of each variant, once where it is the same of all."""
    said = {run.variant: say(run) for run in result.runs}
    if len(set(said.values())) == 1:
        return [sentence for sentence in list(said.values())[:1] if sentence]
    lead = {"speculation": "With speculation", "plain": "Without"}
    return [f"{lead.get(variant, variant)}: {sentence}" for variant, sentence in said.items() if sentence]


def room_sentence(result: SimulationResult) -> str:
    """What speculation takes of the KV cache; empty without speculation."""
    room = kv_room(result)
    if room is None:
        return ""
    ours, plain = result.main.total_blocks, result.main.total_blocks
    if len(result.runs) > 1:
        plain = result.plain.total_blocks
    blocks = f"{ours:,} KV blocks per replica instead of {plain:,}, " if ours != plain else ""
    kinds = result.main.kinds
    where = f" on {kind_names(kinds)[-1].partition(' on ')[2]}" if len(kinds) > 1 else ""
    return (
        f"Speculation costs KV room{where}: {blocks}{room.speculative:,} requests of {room.context_tokens:,} tokens at once "
        f"instead of {room.plain:,} ({-room.lost_share:+.1%})."
    )


def _stranded(summary: Summary) -> str:
    """Of requests without an end in a run that was not interrupted; empty where there are none."""
    n = summary.requests.get(UNFINISHED, 0)
    if not n or summary.interrupted_s is not None:
        return ""
    return f"The run is incomplete: nothing was left that could serve {n:,} of the requests."


def _ends(summary: Summary) -> str:
    """How many requests ended without their answer; empty where all have it."""
    named = {name: n for name, n in summary.requests.items() if name in END_NAMES and name != "finished" and n}
    if not named:
        return ""
    parts = ", ".join(f"{n:,} {'rejected as ' if name == TOO_LARGE else ''}{name}" for name, n in named.items())
    return f"{summary.requests['finished']:,} requests finished, {parts}."


def class_sections(result: SimulationResult) -> list[Section]:
    """Of each variant its classes."""
    if len(result.runs) == 1:
        return [_class_section(result.main, f"classes, {_alone(result)}")]
    return [
        _class_section(run, f"classes, speculation {'off' if run.variant == 'plain' else 'on'}") for run in result.runs
    ]


def _class_section(run: Run, title: str) -> Section:
    """One line per class: its latencies, and its goodput against its own objectives."""
    body = []
    for c in run.summary.classes:
        limits = ", ".join(f"{k.removesuffix('_s').upper()} ≤ {units.show(v, 's')}" for k, v in c.slo.items())
        body.append((
            c.name, f"{c.measured:,}", _seconds(c.ttft_s.p50), _seconds(c.ttft_s.p99), _seconds(c.tpot_s.p50),
            _seconds(c.tpot_s.p99), _seconds(c.e2e_s.p50), _share(c.good_share), limits or NONE,
        ))  # fmt: skip
    headers = ("class", "n", "TTFT p50", "p99 ", "TPOT p50", "p99", "E2E p50", "good", "objectives")
    return Section(title, Table(headers, body), "good: share that met its own objectives")


def confidence_section(result: SimulationResult) -> Section | None:
    """How well the run determines its means and percentiles; None where it is too short for any."""
    several = len(result.runs) > 1
    body = []
    for name, figure in CONFIDENCE_NAMES.items():
        if not any(figure in run.summary.confidence for run in result.runs):
            continue
        cells = []
        for run in result.runs:
            field, _, point = figure.partition(".")
            width, value = run.summary.confidence.get(figure), getattr(getattr(run.summary, field), point)
            cells.append(NONE if width is None else f"{_seconds(value)} ± {_seconds(width.half_width)}")
        width = result.main.summary.confidence.get(figure)
        said = (
            (NONE,) * 3 if width is None else (f"{width.batches}", f"{width.batch_size:,}", f"{width.correlation:.2f}")
        )
        body.append((name, *cells, *said))
    if not body:
        return None
    names = [_variant(run.variant) for run in result.runs] if several else [_alone(result)]
    headers = ("", *names, "batches", "of", "correlation")
    shown = [run.summary.confidence.get(figure) for run in result.runs for figure in CONFIDENCE_NAMES.values()]
    alike = any(width is not None and width.correlation > MOST_CORRELATION for width in shown)
    note = "90 % of repetitions lie within: batch means in order of arrival"
    note += " (batches: those with speculation)" if several else ""
    note += "; batches still alike: the run is too short, true errors are larger" if alike else ""
    return Section("How well this one run determines its figures", Table(headers, body), note)


CONFIDENCE_NAMES = {
    f"{field.upper()} {point}": f"{field}_s.{point}"
    for field, points in (("ttft", ("mean", "p50", "p99")), ("tpot", ("mean", "p99")), ("e2e", ("mean", "p99")))
    for point in points
}
"""What the table of half-widths shows; the JSON document has all."""


def replication_section(result: SimulationResult, replications: Replications) -> Section:
    """Means over replications, and their ratio from pairs."""
    variants = [run.variant for run in result.runs] + ([RATIO] if len(result.runs) > 1 else [])
    body = []
    for figure in FIGURES:
        cells = []
        for variant in variants:
            found = replications.get(variant, figure)
            show = (lambda v: f"{v:.3f}") if variant == RATIO else _rate if figure.endswith("per_s") else _seconds
            cells.append(NONE if found is None else f"{show(found.mean)} ± {show(found.half_width)}")
        body.append((INTERVAL_NAMES[figure], *cells))
    headers = ("", *("ratio" if v == RATIO else _variant(v) for v in variants))
    note = "mean ± 90 % half-width over the seeds; the ratio from pairs with the same requests and luck"
    return Section(f"Over {replications.n} replications", Table(headers, body), note)


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
    headers = _headers(result)
    note = "as far as times are uncertain: what the calibration missed on rows it never saw; traffic and acceptance as given"
    return Section("90 % prediction intervals", Table(headers, body), note)


INTERVAL_NAMES = {
    **{f"{field}_s.{point}": f"{field.upper()} {point}" for field in ("ttft", "tpot", "e2e") for point in ("mean", "p50", "p99")},
    "output_tokens_per_s": "output tokens/s", "goodput_per_s": "goodput, requests/s",
}  # fmt: skip
"""Figures of `serving.intervals.FIGURES` in words."""


def _typical(result: SimulationResult) -> str:
    """Of each kind of replica what its calibration missed."""
    efficiencies = [kind.deployment.target.efficiency for kind in result.main.kinds]
    lines = {e.name: calibration_line(e).partition("typical error ")[2].rstrip(".") for e in efficiencies}
    if len(set(lines.values())) == 1:
        return next(iter(lines.values()))
    return "; ".join(f"{name}: {line}" for name, line in lines.items())


def _variants(result: SimulationResult) -> str:
    return "with speculation and without" if len(result.runs) > 1 else _alone(result)


def simulation_section(result: SimulationResult) -> Section:
    """The table of figures, and what its goodput counts."""
    return Section("", simulation_table(result), _simulation_note(result))


def _simulation_note(result: SimulationResult) -> str:
    if any(c.slo is not None for c in result.traffic.classes):
        return "goodput: requests that met the objectives of their class"
    slo = {k: v for k, v in result.scenario.slo.model_dump().items() if v is not None}
    if not slo:
        return "goodput counts every request: the scenario names no objective (slo)"
    named = ", ".join(f"{k.removesuffix('_s').upper()} ≤ {units.show(v, 's')}" for k, v in slo.items())
    return f"goodput: requests with {named}"


def simulation_table(result: SimulationResult) -> Table:
    """metric | speculation | off | speculation/off, or metric | value without speculation."""
    body: list[tuple[str, ...]] = []
    summaries = [run.summary for run in result.runs]
    for name, values, show in _metrics(summaries, speculates=any(run.gamma for run in result.runs)):
        if not name:
            body.append(("",) * (len(summaries) + (2 if len(summaries) > 1 else 1)))
            continue
        ratio = () if len(summaries) == 1 else (NONE if name.endswith(" n") else _ratio(*values),)
        body.append((name, *(show(v) for v in values), *ratio))
    return Table(_headers(result), body)


def _headers(result: SimulationResult) -> tuple[str, ...]:
    return ("", _alone(result)) if len(result.runs) == 1 else ("", "speculation", "off", "ratio")


def _alone(result: SimulationResult) -> str:
    return "plain decoding" if result.main.variant == "plain" else result.main.variant


def _variant(variant: str) -> str:
    return "off" if variant == "plain" else variant


Show = Callable[[float], str]


def _metrics(summaries: Sequence[Summary], *, speculates: bool) -> list[tuple[str, list[float], Show]]:
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
    add("good, share of requests", "good_share", _share)
    add("GPU busy", "gpu_busy_share", _share)
    add("HBM bandwidth, of datasheet's peak", "bandwidth_share", _share)
    add("FLOP/s, of datasheet's peak", "flop_share", _share)
    add("running per replica, mean", "mean_running", lambda v: _finite(v, ".1f"))
    add("running per replica, most", "most_running", _count)
    add("KV cache filled while busy, mean", "kv_occupancy_mean", _share)
    add("KV cache filled, most", "kv_occupancy_most", _share)
    add("waiting per replica, most", "most_waiting", _count)
    add("prompt tokens found in the cache", "cached_share", _share)
    add("preemptions", "preemptions", _count)
    if any(s.swaps for s in summaries):
        add("of these by swap", "swaps", _count)
    if any(s.retries for s in summaries):
        add("retries after a failure", "retries", _count)
    if speculates:
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
    who = (
        f"Speculation with {drafter.name} ({drafts_label(result.main.drafts)})"
        if drafter and result.main.drafts
        else "Speculation"
    )
    gain = off.tpot_s.mean / run.tpot_s.mean if run.tpot_s.n and run.tpot_s.mean else math.nan
    if math.isnan(gain):
        return f"{who}: no request has a second token, so there is no TPOT to compare."
    times = f"{max(gain, 1 / gain):.2f} × {'faster' if gain >= 1 else 'slower'}"
    e2e = off.e2e_s.mean / run.e2e_s.mean
    price = goodput = ""
    usd, usd_off = (s.usd_per_million_tokens or 0.0 for s in (run, off))
    # At a given load the same GPUs deliver the same tokens: what is left then is how long the last answers of a run take.
    if usd and usd_off and abs(usd / usd_off - 1.0) > COST_DIFFERS:
        price = f", and a million tokens cost {usd:.3g} instead of {usd_off:.3g} USD"
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
    return _finite(value, ",.1f" if abs(value) >= 99.95 else "#.3g")


def _share(value: float) -> str:
    return _finite(value, ".1%")
