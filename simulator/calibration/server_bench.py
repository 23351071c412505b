"""Results of vLLM's `bench serve` and of SGLang's `bench_serving`, whose client descends from vLLM's: they share names.

Times in milliseconds; `ttfts`, `itls`, `latencies` and `start_times` in seconds. Looked up in vllm-project/vllm,
vllm/benchmarks/serve.py (before: benchmarks/benchmark_serving.py) and sgl-project/sglang, python/sglang/bench_serving.py
(now python/sglang/benchmark/serving.py).
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from simulator.calibration.json_fields import Fields
from simulator.calibration.server_record import (
    FAILED,
    NO_FIRST_TOKEN,
    NO_OUTPUT,
    SGLANG,
    VLLM,
    ServerRequests,
    ServerResult,
    Statistic,
    agree,
)
from simulator.serving.lengths import Constant, FloatArray, Lengths, Uniform

_STATISTIC = re.compile(r"(mean|median|std|min|max|p(\d{1,2}(?:\.\d{1,6})?))_(ttft|tpot|itl|e2el|e2e_latency)_ms")
_KINDS = {"std": "sd", "mean": "mean", "min": "min", "max": "max"}
_LISTS = ("input_lens", "output_lens", "ttfts", "itls", "latencies", "start_times", "errors")


def is_bench_result(document: Any) -> bool:
    """Whether `document` is one run of either client."""
    return isinstance(document, dict) and {"completed", "duration"} <= document.keys()


def bench_result(document: dict[str, Any], where: str) -> ServerResult:
    """One run. Raises InputError."""
    fields, notes = Fields(document, where), list[str]()
    completed, failed = _answered(fields)
    dropped = {FAILED: failed} if failed else {}
    rates, duration_s = _rates(fields, completed)
    statistics = _statistics(fields)
    lists = _lists(fields)
    requests = None
    if {"input_lens", "output_lens"} <= lists.keys():
        requests, dropped = _requests(fields, lists, notes)
        most = len(requests) + sum(n for reason, n in dropped.items() if reason != FAILED)
        if not len(requests) <= completed <= most:
            raise fields.refuse("completed", completed, f"be the {most} requests in its lists that did not fail")
    if _in_one_piece(statistics):
        notes.append("the endpoint did not stream: TTFT, TPOT and ITL were not measured")
        statistics = [s for s in statistics if s.metric == "e2e"]
    if "ramp_up_strategy" in document:
        notes.append("the client raised its rate during the run, which only start times of single requests would show")
    burstiness = document.get("burstiness")
    return ServerResult(
        tool=VLLM if document.keys() & {"model_id", "num_prompts"} else SGLANG,
        source=where, completed=completed if requests is None else len(requests), requests=requests,
        lengths=None if requests is not None else _lengths(fields, completed, notes),
        statistics=statistics, rates=rates,
        model=fields.text("model_id") or fields.within("server_info").text("model_path"),
        backend=fields.text("backend", "endpoint_type"), rate_per_s=_rate(fields, notes),
        burstiness=math.inf if burstiness == math.inf else fields.number("burstiness", above=0.0) or 1.0,
        max_concurrency=fields.count("max_concurrency") or None, duration_s=duration_s,
        tokens_per_round=fields.number("spec_decode_acceptance_length", least=1.0)
        or fields.number("accept_length", least=0.0) or None,
        dropped=dropped, notes=notes,
    )  # fmt: skip


def _answered(fields: Fields) -> tuple[int, int]:
    """Requests that were answered, and that failed."""
    completed, sent, failed = fields.count("completed") or 0, fields.count("num_prompts"), fields.count("failed")
    if completed < 1:
        raise fields.refuse("completed", completed, "be at least 1: a run without an answer tells no times")
    if sent is not None and completed > sent:
        raise fields.refuse("completed", completed, f"be at most num_prompts={sent}")
    if sent is not None and failed is not None and completed + failed > sent:
        raise fields.refuse("failed", failed, f"be at most num_prompts - completed = {sent - completed}")
    return completed, (sent or completed) - completed if failed is None else failed


def _rate(fields: Fields, notes: list[str]) -> float | None:
    value = fields.data.get("request_rate")
    if value in ("inf", math.inf):
        return math.inf
    if value == "trace":
        notes.append("the client replayed the times of a trace, which the file does not hold")
        return None
    return fields.number("request_rate", above=0.0)


def _rates(fields: Fields, completed: int) -> tuple[dict[str, float], float]:
    """Throughputs, each held against what was counted over the duration; and the duration."""
    duration_s = fields.needed("duration", above=0.0)
    output = fields.number("total_output_tokens", least=0.0)
    if output is None:
        raise fields.refuse("total_output_tokens", "(absent)", "be given: embedding models decode nothing")
    prompt = fields.number("total_input_tokens", least=0.0)
    both = None if prompt is None else prompt + output
    rates: dict[str, float] = {}
    for name, ours, amount in (
        ("request_throughput", "requests_per_s", completed),
        ("input_throughput", "input_tokens_per_s", prompt),
        ("output_throughput", "output_tokens_per_s", output),
        ("total_token_throughput", "total_tokens_per_s", both),
        ("total_throughput", "total_tokens_per_s", both),
        ("concurrency", "mean_in_flight", None),
    ):
        stated = fields.number(name, least=0.0)
        if stated is not None and amount is not None and not agree(stated, amount / duration_s):
            rule = f"be what was counted over duration={duration_s:g} s, {amount / duration_s:g}"
            raise fields.refuse(name, stated, rule)
        if stated:
            rates[ours] = stated
    return rates, duration_s


def _statistics(fields: Fields) -> list[Statistic]:
    found: dict[tuple[str, str, float | None], Statistic] = {}
    for name, value in fields.data.items():
        match = _STATISTIC.fullmatch(name)
        if match is None or value is None:
            continue
        kind, percentile, metric = match.groups()
        share = 50.0 if kind == "median" else float(percentile) if percentile else None
        kind = _KINDS.get(kind, "percentile")
        metric = "e2e" if metric.startswith("e2e") else metric
        value_s = fields.needed(name, least=0.0) / 1e3
        found.setdefault((metric, kind, share), Statistic(metric, kind, value_s, name, share))
    return list(found.values())


def _in_one_piece(statistics: list[Statistic]) -> bool:
    """Whether answers came whole: then vLLM's client writes no time to the first token, SGLang's the time of it all."""
    return any(s.value_s == 0 and s.kind == "mean" and s.metric in ("ttft", "tpot") for s in statistics)


def _lists(fields: Fields) -> dict[str, list[Any]]:
    """The lists with a value for each request, where the run was saved in detail; all of one length."""
    lists = {name: fields.data[name] for name in _LISTS if fields.data.get(name) is not None}
    lengths = {}
    for name, values in lists.items():
        if not isinstance(values, list):
            raise fields.refuse(name, type(values).__name__, "be a list with a value for each request")
        lengths[name] = len(values)
        first = next(iter(lengths))
        if lengths[name] != lengths[first]:
            rule = f"have as many values as {first}, {lengths[first]}"
            raise fields.refuse(name, f"{lengths[name]} values", rule)
    return lists


def _requests(fields: Fields, lists: dict[str, list[Any]], notes: list[str]) -> tuple[ServerRequests, dict[str, int]]:
    """The answered requests, and how many are left out for which reason."""
    n = len(lists["input_lens"])
    prompt, output = (fields.tokens(name, lists[name]) for name in ("input_lens", "output_lens"))
    failed = np.array([bool(error) for error in lists.get("errors", [None] * n)], bool)
    ttft_s, e2e_s, sent_s = (
        fields.column(name, lists[name]) if name in lists else None for name in ("ttfts", "latencies", "start_times")
    )
    if ttft_s is not None and not ttft_s[~failed].any():  # answers in one piece
        ttft_s = None
    if e2e_s is None and ttft_s is not None and "itls" in lists:
        # The clients' own latency ends with the last chunk, or with the end of the stream right behind it.
        gaps_s = _sums(fields, lists["itls"])
        e2e_s = ttft_s + gaps_s if gaps_s.any() or not (output > 1).any() else None
    if sent_s is not None and not sent_s.any():  # some backends of the clients never set it
        sent_s = None
    empty = ~failed & ((output < 1) | (prompt < 1))
    silent = ~failed & ~empty & (np.zeros(n, bool) if ttft_s is None else ttft_s == 0)
    reasons = {FAILED: failed, NO_OUTPUT: empty, NO_FIRST_TOKEN: silent}
    keep = ~(failed | empty | silent)
    if not keep.any():
        raise fields.refuse("output_lens", f"{n} values", "hold at least one request that was answered")
    if ttft_s is not None and e2e_s is not None:
        early = np.nonzero(keep & (e2e_s < ttft_s * (1 - 1e-6)))[0]
        if len(early):
            place = int(early[0])
            rule = f"be at least its TTFT, {ttft_s[place]:g} s"
            raise fields.refuse(f"latencies[{place}]", f"{e2e_s[place]:g}", rule)
    if sent_s is None:
        notes.append("when each request was sent is not written down")
    else:
        sent_s = sent_s - sent_s[keep].min()
    requests = ServerRequests(prompt.astype(np.int64), output.astype(np.int64), sent_s, ttft_s, e2e_s)
    return requests.where(keep), {reason: int(rows.sum()) for reason, rows in reasons.items() if rows.any()}


def _sums(fields: Fields, lists: list[Any]) -> FloatArray:
    """Sum of each request's gaps between chunks, s [requests]."""
    sums = []
    for place, gaps in enumerate(lists):
        if not isinstance(gaps, list):
            raise fields.refuse(f"itls[{place}]", type(gaps).__name__, "be a list of seconds")
        sums.append(float(fields.column(f"itls[{place}]", gaps).sum()))
    return np.array(sums, float)


def _lengths(fields: Fields, completed: int, notes: list[str]) -> Lengths:
    """How long requests were, from the summary alone. SGLang states how its random data set was drawn: uniform, see
    compute_random_lens in python/sglang/benchmark/datasets/common.py; otherwise only the mean is known."""
    if fields.text("dataset_name").startswith("random"):
        prompt, output = fields.count("random_input_len"), fields.count("random_output_len")
        share = fields.number("random_range_ratio", least=0.0)
        if prompt and output and share is not None and share <= 1:
            notes.append(
                f"lengths are drawn as the client did, uniform from {share:g} to 1 times {prompt} and {output}"
            )
            low = [max(1, int(n * share)) for n in (prompt, output)]
            return Lengths(
                prompt=Uniform(kind="uniform", low=low[0], high=prompt),
                output=Uniform(kind="uniform", low=low[1], high=output),
            )
    means = [_mean(fields, name, completed) for name in ("total_input_tokens", "total_output_tokens")]
    notes.append(
        f"single requests are not written down: each is given the mean lengths, {means[0]} and {means[1]} tokens"
    )
    prompt_tokens, output_tokens = (Constant(kind="constant", tokens=mean) for mean in means)
    return Lengths(prompt=prompt_tokens, output=output_tokens)


def _mean(fields: Fields, name: str, completed: int) -> int:
    mean = fields.needed(name, above=0.0) / completed
    if not 0.5 <= mean <= 1e8:
        raise fields.refuse(name, fields.data[name], f"be at least one token for each of {completed} requests")
    return max(1, round(mean))
