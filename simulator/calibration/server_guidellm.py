"""GuideLLM's `benchmarks.json`: one run for each load of a sweep.

Two layouts, told apart by the place of the strategy: `args.strategy` (to 0.3: vllm-project/guidellm,
src/guidellm/benchmark/benchmark.py, src/guidellm/scheduler/strategy.py) and `config.strategy` (from 0.4:
src/guidellm/benchmark/schemas/{base,generative/benchmark,generative/metrics}.py, src/guidellm/scheduler/strategies.py,
src/guidellm/schemas/{request_stats,statistics}.py). What we take is in both.

Its inter-token latency is (last − first token)/(n − 1) of a request, our TPOT, and counts each request n − 1 times; its
percentiles are values that occurred. Its "time per output token" means two different things in the two layouts and is
left out. Its statistics leave out what fell into warm-up and cool-down, where the user asked for them.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np

from simulator.calibration.json_fields import Fields, is_number
from simulator.calibration.server_record import (
    FAILED,
    GUIDELLM,
    NO_FIRST_TOKEN,
    NO_OUTPUT,
    ServerRequests,
    ServerResult,
    Statistic,
)
from simulator.errors import InputError
from simulator.serving.lengths import ABSURD_TOKENS, Lengths, Quantiles

UNFINISHED = "unfinished when the run ended"
_TIMES = {
    "request_latency": ("e2e", 1.0),
    "time_to_first_token_ms": ("ttft", 1e3),
    "inter_token_latency_ms": ("tpot", 1e3),
}
"""Metric → ours, and units per second."""
_RATES = {
    "requests_per_second": "requests_per_s",
    "output_tokens_per_second": "output_tokens_per_s",
    "tokens_per_second": "total_tokens_per_s",
    "request_concurrency": "mean_in_flight",
}
_PERCENTILES = {
    "p001": 0.1, "p01": 1.0, "p05": 5.0, "p10": 10.0, "p25": 25.0, "p50": 50.0, "p75": 75.0, "p90": 90.0, "p95": 95.0,
    "p99": 99.0, "p999": 99.9,
}  # fmt: skip


def is_guidellm_report(document: Any) -> bool:
    """Whether `document` is a report of GuideLLM."""
    return isinstance(document, dict) and isinstance(document.get("benchmarks"), list)


def guidellm_results(document: dict[str, Any], where: str) -> list[ServerResult]:
    """The runs that answered a request. Raises InputError where none did."""
    runs = document["benchmarks"]
    results = [_run(Fields(run, f"{where}: benchmarks[{i}]"), Fields(document, where)) for i, run in enumerate(runs)]
    answered = [result for result in results if result is not None]
    if not answered:
        rule = "hold one that answered a request: a run without an answer tells no times"
        raise InputError("benchmarks", f"{len(runs)} runs", rule, where=where)
    return answered


def _run(run: Fields, report: Fields) -> ServerResult | None:
    config = run.within("config") if "config" in run.data else run.within("args")
    metrics = run.within("metrics")
    totals = (metrics if "request_totals" in metrics.data else run).within("request_totals")
    listed = run.within("requests").data.get("successful")
    if listed is not None and not isinstance(listed, list):
        raise run.refuse("requests.successful", type(listed).__name__, "be a list of requests")
    completed = totals.count("successful")
    completed = len(listed or []) if completed is None else completed
    if completed == 0:
        return None
    notes: list[str] = []
    dropped: Counter[str] = Counter()
    for reason, status in ((UNFINISHED, "incomplete"), (FAILED, "errored")):
        dropped[reason] += totals.count(status) or 0
    requests = _requests(run, listed or [], dropped)
    if requests is not None and listed is not None and len(listed) < completed:
        notes.append(f"{len(listed)} of {completed} requests are written down, a sample: arrivals are not known")
        requests = ServerRequests(requests.prompt_tokens, requests.output_tokens)
    if _trimmed(config):
        notes.append("GuideLLM's statistics leave out warm-up and cool-down; ours are of the whole run")
    rate_per_s, burstiness, most = _load(config.within("strategy"), notes)
    stated_models = (
        config.within("backend").text("model"), run.within("worker").text("backend_model"),
        report.within("args").text("model"), report.within("args").within("backend_kwargs").text("model"),
    )  # fmt: skip
    duration_s = run.number("duration", least=0.0)
    if duration_s is None and "start_time" in run.data:
        duration_s = run.needed("end_time") - run.needed("start_time")
    return ServerResult(
        tool=GUIDELLM, source=run.where, completed=completed, requests=requests,
        lengths=None if requests is not None else _lengths(metrics, notes),
        statistics=_statistics(metrics), rates=_rates(metrics),
        model=next(filter(None, stated_models), ""),
        backend=config.within("backend").text("type_", "kind") or run.within("worker").text("backend_type"),
        rate_per_s=rate_per_s, burstiness=burstiness, max_concurrency=most, duration_s=duration_s or None,
        dropped={reason: n for reason, n in dropped.items() if n}, notes=notes,
    )  # fmt: skip


def _trimmed(config: Fields) -> bool:
    """Whether the user asked for a warm-up or a cool-down."""
    stated = [config.data.get(f"{phase}_{unit}") for phase in ("warmup", "cooldown") for unit in ("number", "duration")]
    stated += [config.within(phase).data.get(size) for phase in ("warmup", "cooldown") for size in ("percent", "value")]
    return any(stated)


def _load(strategy: Fields, notes: list[str]) -> tuple[float | None, float, int | None]:
    """Requests per second, burstiness and most requests in flight."""
    kind = strategy.text("type_", "kind")
    if kind == "synchronous":
        return math.inf, 1.0, 1
    if kind == "concurrent":
        return math.inf, 1.0, strategy.count("streams") or strategy.count("max_concurrency")
    if kind == "throughput":
        return math.inf, 1.0, strategy.count("max_concurrency") or None
    if kind in ("constant", "poisson"):
        # Its default limit of 512 workers is no wish of the user's.
        return strategy.needed("rate", above=0.0), math.inf if kind == "constant" else 1.0, None
    notes.append(f"the load {kind!r} is not one that memwall can repeat" if kind else "the file states no load")
    return None, 1.0, None


def _statistics(metrics: Fields) -> list[Statistic]:
    found = []
    for name, (metric, per_s) in _TIMES.items():
        answered = metrics.within(name).within("successful")
        by_token = metric == "tpot"
        for kind, key in (("mean", "mean"), ("sd", "std_dev"), ("min", "min"), ("max", "max")):
            value = answered.number(key, least=0.0)
            if value:
                found.append(Statistic(metric, kind, value / per_s, f"{name}.{key}", None, by_token, stepped=True))
        percentiles = answered.within("percentiles")
        for key, share in _PERCENTILES.items():
            value = percentiles.number(key, least=0.0)
            if value:
                place = f"{name}.percentiles.{key}"
                found.append(Statistic(metric, "percentile", value / per_s, place, share, by_token, stepped=True))
    return found


def _rates(metrics: Fields) -> dict[str, float]:
    stated = {
        ours: metrics.within(name).within("successful").number("mean", least=0.0) for name, ours in _RATES.items()
    }
    return {name: value for name, value in stated.items() if value}


def _requests(run: Fields, listed: list[Any], dropped: Counter[str]) -> ServerRequests | None:
    rows = []
    for place, data in enumerate(listed):
        request = Fields(data, f"{run.where}: requests.successful[{place}]")
        prompt, output = request.count("prompt_tokens"), request.count("output_tokens")
        start = "start_time" if "start_time" in request.data else "request_start_time"
        sent_s, e2e_s = request.number(start), request.number("request_latency", least=0.0)
        ttft = request.number("time_to_first_token_ms", least=0.0)
        if not prompt or not output:
            dropped[NO_OUTPUT] += 1
        elif not ttft or not e2e_s or sent_s is None:
            dropped[NO_FIRST_TOKEN] += 1
        elif e2e_s < ttft / 1e3 * (1 - 1e-6):
            rule = f"be at least time_to_first_token_ms={ttft:g}"
            raise request.refuse("request_latency", f"{e2e_s:g} s", rule)
        else:
            rows.append((prompt, output, sent_s, ttft / 1e3, e2e_s))
    if not rows:
        return None
    prompt_tokens, output_tokens, sent, ttft_s, latency_s = np.array(sorted(rows, key=lambda row: row[2]), float).T
    counts = [column.astype(np.int64) for column in (prompt_tokens, output_tokens)]
    return ServerRequests(counts[0], counts[1], sent - sent[0], ttft_s, latency_s)


def _lengths(metrics: Fields, notes: list[str]) -> Lengths:
    notes.append("single requests are not written down: lengths are drawn from the percentiles of each, independently")
    prompt, output = (_quantiles(metrics, name) for name in ("prompt_token_count", "output_token_count"))
    return Lengths(prompt=prompt, output=output)


def _quantiles(metrics: Fields, name: str) -> Quantiles:
    answered = metrics.within(name).within("successful")
    percentiles = answered.within("percentiles").data
    points = [(0.0, answered.data.get("min"))]
    points += [(share / 100.0, percentiles.get(key)) for key, share in _PERCENTILES.items()]
    points += [(1.0, answered.data.get("max"))]
    given = [(share, max(1.0, float(value))) for share, value in points if is_number(value) and value <= ABSURD_TOKENS]
    values = [value for _, value in given]
    if len(given) < 2 or given[0][0] != 0 or given[-1][0] != 1:
        mean = answered.needed("mean", above=0.0)
        given, values = [(0.0, mean), (1.0, mean)], [max(1.0, mean)] * 2
    if values != sorted(values) or values[-1] > ABSURD_TOKENS:
        raise metrics.refuse(f"{name}.successful.percentiles", "(falling)", "rise from min to max, in tokens")
    return Quantiles(kind="quantiles", probabilities=tuple(share for share, _ in given), values=tuple(values))
