"""A deployment simulated on the traffic that a benchmark sent to a real server, and both side by side.

The same requests arrive as at the server:

    single requests with start times     at those times (an open loop: the server's slowness cannot hold them back)
    all at once, at most N in flight     a closed loop of N users who do not think
    all at once                          all at time 0
    a rate                               gaps drawn anew: exponential, gamma or even, as stated

Nothing of the result is fitted. Where something is drawn, several draws show how much of an error is luck.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simulator.calibration.comparison import Comparison, Quantity, Validation
from simulator.calibration.server_record import METRICS, RATES, SGLANG, VLLM, ServerResult, Statistic
from simulator.errors import InputError
from simulator.randomness import STREAM_OUTPUT_TOKENS, STREAM_PROMPT_TOKENS, uniform_array
from simulator.records import validate
from simulator.scenario import Scenario
from simulator.serving.fleets import gpus_of
from simulator.serving.lengths import Constant, FloatArray, IntArray
from simulator.serving.metrics import request_metrics
from simulator.serving.simulation import Progress, Run, simulate
from simulator.serving.traffic import Gamma, Requests, generate

BASIS = "not fitted on"
DRAWS = 5
"""Simulations where arrivals, lengths or acceptance are drawn; they tell luck from error, not more."""
MOST_REQUESTS = 10**6
"""More is no benchmark run; a million take some seconds a draw."""
BOUND = 0.9
"""A client whose mean number of requests in flight is this share of its limit is held back by the limit."""


@dataclass(frozen=True)
class _Plan:
    """How the requests arrive."""

    how: str
    """recorded, closed or drawn."""
    users: int
    """Of a closed loop."""
    says: str
    """For people."""
    random: bool
    """Whether another seed gives other traffic."""


@dataclass(frozen=True, eq=False)
class _Sent:
    """Requests as the client sent them, in the order of sending; arrays are [n]."""

    prompt_tokens: IntArray
    output_tokens: IntArray
    arrival_s: FloatArray | None
    """None in a closed loop, where the answers decide."""
    lead_s: float
    """From the client's start to its first request."""


def compare_server(
    result: ServerResult, scenario: Scenario, *, draws: int = DRAWS, progress: Progress | None = None
) -> Validation:
    """`result` held against the deployment of `scenario` (model, GPUs, engine, speculation, seed); its traffic, SLOs and
    warm-up play no part.

    Raises MemwallError where the deployment does not fit, or InputError where the result does not say how its requests
    arrived.
    """
    if draws < 1:
        raise InputError("draws", draws, "be at least 1")
    if result.completed > MOST_REQUESTS:
        raise InputError("completed", result.completed, f"be at most {MOST_REQUESTS}", where=result.source)
    notes = list(result.notes)
    plan = _plan(result, notes)
    drawn = plan.random or scenario.speculation is not None
    seeds = [(scenario.seed + i) % 2**63 for i in range(draws if drawn else 1)]
    sent = [_sent(result, plan, seed) for seed in seeds]
    runs = [_simulated(scenario, plan, s, seed, progress) for s, seed in zip(sent, seeds, strict=True)]
    notes += _remarks(result, scenario, runs)
    quantities = [q for s in _in_order(result.statistics) if (q := _quantity(s, result, scenario, runs)) is not None]
    for name, unit in RATES.items():
        if name in result.rates:
            values = [_rates(run, s.lead_s)[name] for run, s in zip(runs, sent, strict=True)]
            quantities.append(_row(_RATE_NAMES[name], unit, result.rates[name], values))
    if result.tokens_per_round is not None and result.tokens_per_round > 1:
        values = [run.summary.tokens_per_round for run in runs]
        note = "" if scenario.speculation else "the scenario does not speculate"
        quantities.append(_row("tokens per round", "tokens", result.tokens_per_round, values, note))
    return Validation(
        title=f"{result.tool} held against memwall",
        subject=f"{scenario.model} on " + " + ".join(f"{gpu} × {n}" for gpu, n in gpus_of(scenario).items()),
        conditions=_conditions(result, scenario, plan, len(seeds)),
        comparisons=_comparisons(result, runs[0]) if plan.how == "recorded" else (),
        quantities=quantities,
        notes=notes,
    )


def _plan(result: ServerResult, notes: list[str]) -> _Plan:
    rate, most = result.rate_per_s, result.max_concurrency
    every = result.requests is not None and len(result.requests) >= result.completed
    random = not every
    if result.lengths is not None:
        random = not all(isinstance(d, Constant) for d in (result.lengths.prompt, result.lengths.output))
    if rate == math.inf:
        users = min(most or result.completed, result.completed)
        says = _users(users) if most else f"all {result.completed} at time 0"
        return _Plan("closed", users, says, random)
    if every and result.requests is not None and result.requests.sent_s is not None:
        limit = f"; the client let at most {most} be in flight" if most else ""
        return _Plan("recorded", 0, f"at the recorded times{limit}", random)
    if rate is None:
        rule = "be given, or start times of all requests: otherwise nobody knows how they arrived"
        raise InputError("request_rate", "(absent)", rule, where=result.source)
    if most is not None:
        in_flight = _in_flight(result)
        if in_flight is not None and in_flight >= BOUND * most:
            notes.append(
                f"{in_flight:.3g} of at most {most} requests were in flight: the limit, not the rate, set the pace"
            )
            users = min(most, result.completed)
            return _Plan("closed", users, _users(users), random)
        notes.append(f"the client's limit of {most} requests in flight is not simulated")
    gaps = "even" if result.burstiness == math.inf else "exponential" if result.burstiness == 1 else "gamma"
    shape = f" of shape {result.burstiness:g}" if gaps == "gamma" else ""
    return _Plan("drawn", 0, f"{gaps} gaps{shape} at {rate:g} requests/s", random or gaps != "even")


def _users(n: int) -> str:
    return f"{n} users, each with one request in flight" if n > 1 else "one request at a time"


def _in_flight(result: ServerResult) -> float | None:
    """Mean number of requests in flight by Little's law, throughput times E2E; None where the file lacks either."""
    if "mean_in_flight" in result.rates:
        return result.rates["mean_in_flight"]
    per_s, e2e = result.rates.get("requests_per_s"), result.statistic("e2e")
    if per_s is None:
        return None
    if e2e is not None:
        return per_s * e2e.value_s
    ttft, tpot, tokens = result.statistic("ttft"), result.statistic("tpot"), result.rates.get("output_tokens_per_s")
    if ttft is None or tpot is None or tokens is None:
        return None
    return per_s * ttft.value_s + (tokens - per_s) * tpot.value_s


def _sent(result: ServerResult, plan: _Plan, seed: int) -> _Sent:
    """The requests and when they were sent; with `seed` where that has to be drawn."""
    n, requests = result.completed, result.requests
    index = np.arange(n, dtype=np.int64)
    u_prompt, u_output = (uniform_array(seed, index, s, 0) for s in (STREAM_PROMPT_TOKENS, STREAM_OUTPUT_TOKENS))
    if requests is None:
        if result.lengths is None:
            raise InputError("requests", "(absent)", "be given, or their lengths", where=result.source)
        prompt, output = result.lengths.draw(u_prompt, u_output)
    else:
        if len(requests) < n:  # a sample: whole rows, so that prompt and output stay together
            rows = (u_prompt * len(requests)).astype(np.int64)
        else:
            rows = np.arange(len(requests)) if requests.sent_s is None else np.argsort(requests.sent_s, kind="stable")
        prompt, output = requests.prompt_tokens[rows], requests.output_tokens[rows]
        if plan.how == "recorded" and requests.sent_s is not None:
            return _Sent(prompt, output, requests.sent_s[rows], _lead_s(result))
    if plan.how == "closed":
        return _Sent(prompt, output, None, 0.0)
    arrival_s = _arrivals(result, len(prompt), seed)
    return _Sent(prompt, output, arrival_s - arrival_s[0], float(arrival_s[0]))


def _lead_s(result: ServerResult) -> float:
    """vLLM's client waits one gap before its first request, and its duration begins before that."""
    requests = result.requests
    if result.tool != VLLM or requests is None or requests.sent_s is None or requests.e2e_s is None:
        return 0.0
    return max(0.0, (result.duration_s or 0.0) - float((requests.sent_s + requests.e2e_s).max()))


def _arrivals(result: ServerResult, n: int, seed: int) -> FloatArray:
    """Gaps as stated, stretched so that the last of n requests comes at n/rate, as vLLM's client does; s [n]."""
    rate = result.rate_per_s or 1.0
    if result.burstiness == math.inf:
        return np.arange(1, n + 1) / rate
    one = {"prompt": 1, "output": 1}
    stated = {"kind": "gamma", "rate_per_s": 1.0, "burstiness": result.burstiness, "requests": n, "lengths": one}
    gaps = validate(Gamma, stated, result.source)
    arrival_s = generate(gaps, seed).arrival_s
    return np.asarray(arrival_s * (n / rate / arrival_s[-1]))


def _simulated(scenario: Scenario, plan: _Plan, sent: _Sent, seed: int, progress: Progress | None) -> Run:
    n = len(sent.prompt_tokens)
    arrival_s, think_s = sent.arrival_s, None
    if arrival_s is None:
        arrival_s, think_s = np.where(np.arange(n) < plan.users, 0.0, np.nan), np.zeros(n)
    requests = Requests(
        arrival_s, sent.prompt_tokens, sent.output_tokens, np.arange(n), think_s, 0 if think_s is None else plan.users, n, {},
        "the benchmark's requests",
    )  # fmt: skip
    return simulate(scenario.model_copy(update={"seed": seed, "warmup": 0.0}), progress, requests=requests).main


def _in_order(statistics: Sequence[Statistic]) -> list[Statistic]:
    place = {"mean": -2.0, "sd": -1.0, "min": 0.0, "max": 100.0}
    metrics = list(METRICS)
    return sorted(
        statistics, key=lambda s: (metrics.index(s.metric), s.percentile if s.percentile else place.get(s.kind, 0.0))
    )


def _quantity(s: Statistic, result: ServerResult, scenario: Scenario, runs: Sequence[Run]) -> Quantity | None:
    """The statistic in the simulation; None where the server's is 0, to which nothing can be in proportion."""
    if s.value_s <= 0:
        return None
    if s.metric == "itl":
        if result.tool == SGLANG and scenario.speculation is not None:
            note = "its client spreads a gap over the tokens that came with it, ours counts gaps between chunks"
            return Quantity(s.label, "s", s.value_s, None, BASIS, note=note)
        return _row(s.label, "s", s.value_s, [_gap_s(s, run) for run in runs], "not kept by the simulation")
    values = []
    for run in runs:
        times_s = request_metrics(run.requests)[f"{s.metric}_s"]
        known = ~np.isnan(times_s)
        tokens = run.requests["output_tokens"][known] - 1.0
        values.append(s.of(times_s[known], tokens))
    return _row(s.label, "s", s.value_s, values, "no simulated request has one")


def _gap_s(s: Statistic, run: Run) -> float:
    """A statistic of the gaps between chunks, of which the simulation keeps a summary; NaN for any other."""
    gaps = run.summary.itl_s
    if s.percentile is not None:
        return {50.0: gaps.p50, 90.0: gaps.p90, 95.0: gaps.p95, 99.0: gaps.p99}.get(s.percentile, math.nan)
    return {"mean": gaps.mean, "sd": gaps.standard_deviation, "max": gaps.largest}.get(s.kind, math.nan)


_RATE_NAMES = {
    "requests_per_s": "requests answered",
    "input_tokens_per_s": "prompt tokens",
    "output_tokens_per_s": "output tokens",
    "total_tokens_per_s": "prompt and output tokens",
    "mean_in_flight": "requests in flight, mean",
}


def _rates(run: Run, lead_s: float) -> dict[str, float]:
    """`RATES` of a run, over the time from the client's start to the last answer."""
    e2e_s = request_metrics(run.requests)["e2e_s"]
    done = ~np.isnan(e2e_s)
    requests = run.requests[done]
    window_s = float(requests["finish_s"].max()) - float(run.requests["arrival_s"].min()) + lead_s
    prompt, output = float(requests["prompt_tokens"].sum()), float(requests["output_tokens"].sum())
    return {
        "requests_per_s": len(requests) / window_s,
        "input_tokens_per_s": prompt / window_s,
        "output_tokens_per_s": output / window_s,
        "total_tokens_per_s": (prompt + output) / window_s,
        "mean_in_flight": float(e2e_s[done].sum()) / window_s,
    }


def _row(name: str, unit: str, measured: float, values: Sequence[float], why_none: str = "") -> Quantity:
    """The mean over the draws, with their range; no prediction where a draw has none."""
    if any(math.isnan(value) for value in values):
        return Quantity(name, unit, measured, None, BASIS, note=why_none)
    note = f"mean of {len(values)} draws, {min(values):.4g} to {max(values):.4g}" if len(values) > 1 else ""
    return Quantity(name, unit, measured, float(np.mean(values)), BASIS, note=note)


def _comparisons(result: ServerResult, run: Run) -> list[Comparison]:
    """Request by request; the run's rows are the recorded requests in the order of sending."""
    requests = result.requests
    if requests is None or requests.sent_s is None:
        return []
    rows = np.argsort(requests.sent_s, kind="stable")[run.rows]
    simulated = request_metrics(run.requests)
    found = []
    for metric, measured_s in (("ttft", requests.ttft_s), ("e2e", requests.e2e_s)):
        if measured_s is None:
            continue
        predicted_s = simulated[f"{metric}_s"]
        keep = (predicted_s > 0) & (measured_s[rows] > 0)
        labels = {name: getattr(requests, name)[rows][keep] for name in ("prompt_tokens", "output_tokens")}
        name = f"{METRICS[metric]} by request"
        found.append(Comparison(name, measured_s[rows][keep], predicted_s[keep], BASIS, labels))
    return [comparison for comparison in found if len(comparison)]


def _remarks(result: ServerResult, scenario: Scenario, runs: Sequence[Run]) -> list[str]:
    """What was assumed or left out on our side."""
    remarks = ["the client's own time and the network are not simulated, and no two prompts are taken to begin alike"]
    for reason, n in runs[0].summary.requests.items():
        if reason != "finished" and n:
            remarks.append(f"{n} of the simulated requests are left out: {reason}")
    zeros = sum(s.value_s <= 0 for s in result.statistics)
    if zeros:
        remarks.append(f"{zeros} statistics of 0 s are not compared")
    if result.model and _letters(Path(scenario.model).stem) not in _letters(result.model):
        remarks.append(f"the file names the model {result.model}, simulated is {scenario.model}")
    return remarks


def _letters(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def _conditions(result: ServerResult, scenario: Scenario, plan: _Plan, draws: int) -> list[tuple[str, str]]:
    dropped = "".join(f", {n} {reason}" for reason, n in result.dropped.items())
    speculation = scenario.speculation
    rows = [
        ("result", f"{result.tool}: {result.source}"),
        ("model as stated", result.model),
        ("backend as stated", result.backend),
        ("requests", f"{result.completed} answered{dropped}"),
        ("arrivals", plan.says),
        ("draws", str(draws) if draws > 1 else ""),
        ("engine", scenario.engine.name),
        ("speculation", f"{speculation.draft}, γ = {speculation.gamma}" if speculation else "none"),
    ]
    return [(name, text) for name, text in rows if text]
