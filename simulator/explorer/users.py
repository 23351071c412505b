"""Many users: a scenario simulated, with speculation and without."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from simulator import catalog, units
from simulator.explorer.answer import ROOM_BYTES, Answer, Better, Download, Grid, Number, Plot, Tell, Uploads
from simulator.explorer.asked import AS_IS, GENERATED, PLAIN, SOME_USERS, UPLOADED, Asked, Users, asked
from simulator.explorer.controls import Controls
from simulator.explorer.page import Question
from simulator.figures import breakdown, classes, page, serving, style
from simulator.figures.gains import difference_figure
from simulator.output import rows
from simulator.output.cluster_report import cluster_sections
from simulator.output.columns import request_bytes
from simulator.output.request_table import request_grid, slowest_section
from simulator.output.simulation_report import (
    class_sections,
    confidence_section,
    interval_section,
    remarks,
    simulation_section,
    simulation_sentence,
    warnings,
)
from simulator.output.tables import Section
from simulator.scenario import Scenario, load_scenario
from simulator.serving.compiled import is_cold
from simulator.serving.first_call import compile_step_loop
from simulator.serving.gains import gains
from simulator.serving.intervals import Intervals, simulation_intervals
from simulator.serving.simulation import SimulationResult, Stopped, simulate
from simulator.serving.trace_upload import UploadedTrace, uploaded_trace
from simulator.serving.traffic import ClosedLoop, load_traffic

REQUESTS = (100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
POLICIES = ("fixed", "goodput", "per-request", "oracle")
FILE_KINDS = ("csv", "jsonl", "json", "txt")
_REQUEST_BYTES = 450
"""What a request's rows and its share of the steps take, with speculation and without."""
_KINDS = {
    "poisson": "Poisson arrivals",
    "gamma": "gamma arrivals",
    "closed-loop": "users who wait",
    UPLOADED: "your trace",
}


class ManyUsers(Question[Users]):
    """The page."""

    path = "many-users"
    title = "Many users"
    settings = Users
    slow = True

    def controls(self, draw: Controls) -> Users:
        """A scenario, and what may be changed of it."""
        name = draw.choice("scenario", "Scenario", catalog.names("scenario"))
        own = load_scenario(name)
        chosen = {"scenario": name, **_traffic_controls(draw, own), **_speculation_controls(draw, own)}
        chosen |= _service_controls(draw, own)
        chosen["seed"] = _whole(draw.maybe("seed", "Seed", 0, 2**31, 1, otherwise=f"{own.seed}"))
        chosen["intervals"] = draw.toggle(
            "intervals",
            "Prediction intervals",
            help="How far figures may be off because times are: six simulations more.",
        )
        return Users(**chosen)

    def answer(self, settings: Users, uploads: Uploads, tell: Tell) -> Answer:
        """The simulation; where `tell.stop` is set, what was reached of it by then."""
        if is_cold():
            tell("Compiling the step loop, which is done once", 0, 0)
        compile_step_loop()
        trace = None
        if settings.traffic == UPLOADED and "trace" in uploads:
            tell("Reading the trace", 0, 0)
            trace = uploaded_trace(uploads["trace"].name, uploads["trace"].content)
        wanted = asked(settings, trace)
        if trace is None:
            return _simulated(settings, wanted, None, tell)
        with trace.named():
            return _simulated(settings, wanted, trace, tell)


# --- controls ---------------------------------------------------------------------------------------------------------
def _traffic_controls(draw: Controls, own: Scenario) -> dict[str, object]:
    known = [AS_IS, *GENERATED, *catalog.names("traffic"), UPLOADED]
    kind = draw.choice("traffic", f"Traffic (scenario: {own.traffic.kind})", known)
    found: dict[str, object] = {"traffic": kind}
    if kind == UPLOADED:
        draw.upload(
            "trace", "Trace file", FILE_KINDS, most_mb=32,
            help="CSV or JSON lines with arrivals, prompt and output lengths: Azure, Mooncake, Bailian, BurstGPT or your own.",
        )  # fmt: skip
    shown = own.traffic if kind == AS_IS else load_traffic(kind) if kind in catalog.names("traffic") else None
    if kind == "closed-loop" or isinstance(shown, ClosedLoop):
        found["users"] = _whole(
            draw.maybe("users", "Users", 1, 10_000, 1, otherwise=f"{getattr(shown, 'users', SOME_USERS)}")
        )
        if kind == "closed-loop":
            found["think_time_s"] = draw.number("think_time_s", "Seconds each thinks", 0.0, 3600.0, 1.0)
    else:
        rate = getattr(own.traffic if kind in GENERATED else shown, "rate_per_s", None)
        own_rate = "its own" if rate is None else f"{rate:g}"
        found["rate_per_s"] = draw.maybe("rate_per_s", "Requests per second", 0.01, 10_000.0, 0.5, otherwise=own_rate)
    if kind == "gamma":
        found["burstiness"] = draw.number(
            "burstiness", "Burstiness of gaps (1 is Poisson, less is burstier)", 0.01, 100.0, 0.1
        )
    found["requests"] = draw.steps("requests", "Requests", REQUESTS)
    if kind in GENERATED or getattr(shown, "lengths", None) is not None:
        for name, label in (("prompt", "Tokens of every prompt"), ("output", "Tokens of every answer")):
            found[name] = _whole(draw.maybe(name, label, 1, 1_000_000, 1, otherwise="as the traffic has them"))
    return found


def _speculation_controls(draw: Controls, own: Scenario) -> dict[str, object]:
    speculates = own.speculation
    own_draft = speculates.draft if speculates else PLAIN
    draft = draw.choice("draft", f"Drafter (scenario: {own_draft})", [AS_IS, PLAIN, *catalog.names("drafter")])
    found: dict[str, object] = {"draft": draft}
    if draft == PLAIN or (draft == AS_IS and speculates is None):
        return found
    gamma = (
        "its tree" if speculates and speculates.tree and draft == AS_IS else f"{speculates.gamma if speculates else 4}"
    )
    found["gamma"] = _whole(draw.maybe("gamma", "γ, tokens drafted per round", 1, 16, 1, otherwise=gamma))
    found["acceptance"] = draw.maybe(
        "acceptance", "Conditional acceptance rate", 0.0, 1.0, 0.05, otherwise="as published"
    )
    own_policy = speculates.policy.kind if speculates and draft == AS_IS else "fixed"
    found["policy"] = draw.choice("policy", f"Policy (scenario: {own_policy})", [AS_IS, *POLICIES])
    return found


def _service_controls(draw: Controls, own: Scenario) -> dict[str, object]:
    def named(label: str, field: str, kind: str, mine: str) -> None:
        found[field] = draw.choice(field, f"{label} (scenario: {mine})", [AS_IS, *catalog.names(kind)])

    found: dict[str, object] = {}
    named("Model", "model", "model", own.model)
    named("GPU", "gpu", "gpu", own.gpu)
    found["tp"] = _whole(
        draw.maybe("tp", "GPUs that share the model (tensor parallel)", 1, 16, 1, otherwise=f"{own.tp}")
    )
    found["replicas"] = _whole(draw.maybe("replicas", "Replicas", 1, 64, 1, otherwise=f"{own.replicas}"))
    named("Engine", "engine", "engine", own.engine.name)
    for field, label, least, most in (
        ("max_sequences", "Sequences in a batch at most", 1, 4096),
        ("max_batched_tokens", "Tokens of a step at most", 16, 131_072),
    ):
        mine = getattr(own.engine, field)
        found[field] = _whole(draw.maybe(field, label, least, most, 1, otherwise=f"{mine or 'as the engine has it'}"))
    for field, label, limit_s in (
        ("ttft_ms", "Objective: TTFT at most, ms", own.slo.ttft_s), ("tpot_ms", "Objective: TPOT at most, ms", own.slo.tpot_s),
    ):  # fmt: skip
        mine = "none" if limit_s is None else f"{limit_s * 1e3:g}"
        found[field] = draw.maybe(field, label, 0.1, 1e6, 5.0, otherwise=mine)
    return found


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


# --- the answer -------------------------------------------------------------------------------------------------------
def _simulated(settings: Users, wanted: Asked, trace: UploadedTrace | None, tell: Tell) -> Answer:
    def told(variant: str, done: int, of: int) -> None:
        tell(f"Simulating {style.VARIANT_NAMES.get(variant, variant)}", done, of)

    result = simulate(wanted.scenario, told, stop=tell.stop)
    intervals = None
    stopped = result.interrupted_s is not None
    if settings.intervals and not stopped:
        try:
            intervals = simulation_intervals(
                result, lambda _, done, of: tell("Prediction intervals", done, of), stop=tell.stop
            )
        except Stopped:
            stopped = True
    whole = len(result.runs) > 1 and not rows.interruption(result)
    notes = [*wanted.notes, *warnings(result)]
    if stopped and result.interrupted_s is None:
        notes.append("Stopped before the prediction intervals were there; the simulation itself is complete.")
    conditions = rows.simulation_conditions(result)
    if trace is not None:
        conditions.append(("your trace", trace.sentence))
    text = page.scenario_yaml(result.scenario)
    return Answer(
        verdict=" ".join([simulation_sentence(result) if whole else page.plain_sentence(result), *remarks(result)]),
        conditions=conditions,
        numbers=_numbers(result),
        plots=_plots(result, intervals),
        sections=_sections(result, intervals),
        grids=[Grid("All requests as a table", partial(request_grid, result))],
        downloads=[
            Download("Requests as Parquet", "requests.parquet", "application/vnd.apache.parquet",
                     partial(request_bytes, result, "parquet")),
            Download("Requests as CSV", "requests.csv", "text/csv", partial(request_bytes, result, "csv")),
            Download("Scenario as YAML", "scenario.yaml", "application/yaml", lambda: text),
            Download("Report as HTML", "simulate.html", "text/html",
                     partial(page.simulation_page, result, intervals, wanted.notes)),
        ],
        notes=notes,
        code={"Scenario as YAML": text, "On the command line": "memwall simulate scenario.yaml --rows requests.parquet\n"},
        complete=not stopped,
        room=1 + len(result.traffic) * _REQUEST_BYTES // ROOM_BYTES,
    )  # fmt: skip


def _numbers(result: SimulationResult) -> list[Number]:
    found = result.main.summary
    note = f"{found.measured:,} requests measured"

    def number(label: str, value: float | None, dimension: str, better: Better, said: str = note) -> Number:
        known = None if value is None or not math.isfinite(value) else float(value)
        return Number(label, known, dimension, better, said)

    def time(label: str, field: str, point: str) -> Number:
        width = found.confidence.get(f"{field}.{point}")
        said = note
        if width is not None:
            said += f"; other draws: ± {units.show(width.half_width, 's')} with 90 %"
        return number(label, getattr(getattr(found, field), point), "s", "lower", said)

    numbers = [
        time("TTFT, median", "ttft_s", "p50"), time("TTFT, p99", "ttft_s", "p99"), time("TPOT, mean", "tpot_s", "mean"),
        time("E2E, mean", "e2e_s", "mean"), number("Output tokens/s", found.output_tokens_per_s, "", "higher"),
        number("Goodput, requests/s", found.goodput_per_s, "", "higher"), number("Within objectives", found.good_share, "%", "higher"),
        number("KV cache filled, most", found.kv_occupancy_most, "%", ""),
        number("Per million tokens", found.usd_per_million_tokens, "usd", "lower", "at list price, output tokens; from the start to the last answer"),
    ]  # fmt: skip
    for gain in gains(result):
        if gain.field == "tpot_s" and "mean" in gain.speedup:
            ratio = gain.speedup["mean"]
            said = f"mean TPOT without over with speculation, {gain.n:,} requests"
            if ratio.width is not None:
                said += f"; ± {ratio.width.half_width:.2g} with 90 % over other draws"
            numbers.insert(0, number("Speed-up of tokens", ratio.ratio, "x", "higher", said))
    return numbers


def _plots(result: SimulationResult, intervals: Intervals | None) -> list[Plot]:
    found: list[Plot] = []

    def offer(key: str, build: Callable[[], Any], *, wide: bool = True) -> None:
        found.append(Plot(key, build, wide))

    compared = gains(result)
    if compared:
        offer("gains", partial(difference_figure, result, compared))
    for latency in serving.LATENCIES:
        offer(latency.field, partial(serving.latency_figure, result, latency), wide=False)
    if compared and result.main.gamma and serving.tokens_per_round_figure(result) is not None:
        offer("rounds", partial(serving.tokens_per_round_figure, result), wide=False)
    if len(result.main.summary.classes) > 1:
        for latency in serving.LATENCIES:
            offer(f"classes-{latency.field}", partial(classes.classes_figure, result, latency), wide=False)
    offer("load", partial(serving.load_figure, result))
    offer("arrivals", partial(serving.arrivals_figure, result, serving.LATENCIES[2]))
    if serving.ends_figure(result) is not None:
        offer("ends", partial(serving.ends_figure, result), wide=False)
    if intervals is not None:
        offer("intervals", partial(serving.interval_figure, result, intervals), wide=False)
    kind = result.main.kinds[-1]
    offer("memory", partial(breakdown.memory_figure, kind.budget, style.tag_of(kind.deployment)), wide=False)
    return found


def _sections(result: SimulationResult, intervals: Intervals | None) -> list[Section]:
    all_figures = simulation_section(result)._replace(title="All figures")
    found: list[Section | None] = [all_figures, *cluster_sections(result)]
    if len(result.main.summary.classes) > 1:
        found += class_sections(result)
    found.append(confidence_section(result))
    if intervals is not None:
        found.append(interval_section(result, intervals))
    found.append(slowest_section(result))
    return [section for section in found if section is not None]
