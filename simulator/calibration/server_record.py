"""ServerResult: what a benchmark of a real server measured, whichever tool wrote it down. SI units throughout."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError
from simulator.serving.lengths import FloatArray, IntArray, Lengths

VLLM, SGLANG, GUIDELLM, CSV = "vLLM bench serve", "SGLang bench_serving", "GuideLLM", "CSV of requests"
FAILED, NO_OUTPUT, NO_FIRST_TOKEN = "failed", "no output tokens", "no time to first token"
"""Why a request is left out, in whatever file."""
METRICS = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2e": "E2E"}
"""Times that the tools summarise, and their names for people."""
RATES = {
    "requests_per_s": "requests/s",
    "input_tokens_per_s": "tokens/s",
    "output_tokens_per_s": "tokens/s",
    "total_tokens_per_s": "tokens/s",
    "mean_in_flight": "requests",
}
"""Figures of a whole run, and the unit they are printed in."""
AGREEMENT = 0.01
"""Two statements of one figure that are further apart than this contradict each other (tools round to 0.01 at worst)."""


@dataclass(frozen=True)
class Statistic:
    """One figure that summarises a time over the run."""

    metric: str
    """A key of `METRICS`."""
    kind: str
    """mean, sd, min, max or percentile."""
    value_s: float
    name: str
    """The file's own name for it."""
    percentile: float | None = None
    """0 to 100 where `kind` is percentile; a median is 50."""
    by_token: bool = False
    """Every request counts as often as it has tokens after the first; otherwise once."""
    stepped: bool = False
    """The percentile is a value that occurred (inverse of the distribution), not interpolated between two."""

    @property
    def label(self) -> str:
        """For people, e.g. "TTFT, 99th percentile"."""
        what = {"sd": "standard deviation", "min": "least", "max": "largest"}.get(self.kind, self.kind)
        if self.percentile is not None:
            what = "median" if self.percentile == 50 else f"{self.percentile:g}th percentile"
        return f"{METRICS[self.metric]}, {what}" + (" over tokens" if self.by_token else "")

    def of(self, values: FloatArray, weights: FloatArray | None = None) -> float:
        """The same statistic of `values` [n], weighted by `weights` [n] where it counts by token; NaN of nothing."""
        weights = weights if self.by_token and weights is not None else np.ones(len(values))
        values, weights = values[weights > 0], weights[weights > 0]
        if len(values) == 0:
            return float("nan")
        mean = float(np.average(values, weights=weights))
        if self.kind == "mean":
            return mean
        if self.kind == "sd":
            return math.sqrt(float(np.average((values - mean) ** 2, weights=weights)))
        if self.percentile is None:
            return float(values.min() if self.kind == "min" else values.max())
        if not (self.stepped or self.by_token):
            return float(np.percentile(values, self.percentile))
        order = np.argsort(values, kind="stable")
        share = np.cumsum(weights[order]) / weights.sum()
        place = int(np.searchsorted(share, self.percentile / 100.0 - 1e-12))
        return float(values[order][min(place, len(values) - 1)])


@dataclass(frozen=True, eq=False)
class ServerRequests:
    """Requests that were answered, in the order of the file; arrays are [n], None where the file has no such column."""

    prompt_tokens: IntArray
    output_tokens: IntArray
    sent_s: FloatArray | None = None
    """When each was sent to the server, s after the first."""
    ttft_s: FloatArray | None = None
    e2e_s: FloatArray | None = None

    def __len__(self) -> int:
        """Requests."""
        return len(self.prompt_tokens)

    @property
    def tpot_s(self) -> FloatArray | None:
        """(E2E − TTFT)/(n − 1); NaN for a single token."""
        if self.ttft_s is None or self.e2e_s is None:
            return None
        n = self.output_tokens
        return np.where(n > 1, (self.e2e_s - self.ttft_s) / np.maximum(n - 1, 1), np.nan)

    def where(self, chosen: NDArray[np.bool_]) -> ServerRequests:
        """The requests of a mask [n]."""
        columns = (self.sent_s, self.ttft_s, self.e2e_s)
        kept = [None if column is None else column[chosen] for column in columns]
        return ServerRequests(self.prompt_tokens[chosen], self.output_tokens[chosen], *kept)


@dataclass(frozen=True, eq=False)
class ServerResult:
    """One run of a serving benchmark."""

    tool: str
    """`VLLM`, `SGLANG`, `GUIDELLM` or `CSV`."""
    source: str
    """File, and the run in it where it holds several."""
    completed: int
    """Requests that were answered."""
    requests: ServerRequests | None
    """As many as are written down: all that were answered, or a sample of them; None where only a summary is."""
    lengths: Lengths | None
    """Where single requests are not written down: how long they were."""
    statistics: Sequence[Statistic]
    rates: Mapping[str, float]
    """Those keys of `RATES` that the file states."""
    model: str = ""
    """As the file states it."""
    backend: str = ""
    rate_per_s: float | None = None
    """Requests per second that the client meant to send; infinite: all at once; None: not stated."""
    burstiness: float = 1.0
    """Shape of the gamma gaps; 1 is Poisson, infinite are even gaps."""
    max_concurrency: int | None = None
    """Most requests in flight that the client allowed."""
    duration_s: float | None = None
    """From the client's start to the last answer."""
    tokens_per_round: float | None = None
    """Acceptance length that the server reported: tokens per verification, the target's own included."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Reason → requests left out for it."""
    notes: Sequence[str] = ()
    """Sentences on what the file does not say or what was left out."""

    def statistic(self, metric: str, kind: str = "mean", percentile: float | None = None) -> Statistic | None:
        """The one of that metric and kind, None where the file has none."""
        wanted = (metric, kind, percentile)
        return next((s for s in self.statistics if (s.metric, s.kind, s.percentile) == wanted), None)


def check(result: ServerResult) -> ServerResult:
    """`result`, unless what it states contradicts itself: InputError names the field."""
    for metric in METRICS:
        stated = [s for s in result.statistics if s.metric == metric]
        rising = sorted((s for s in stated if s.percentile is not None), key=lambda s: s.percentile or 0.0)
        ends = {s.kind: s for s in stated if s.kind in ("min", "max")}
        rising = [*filter(None, [ends.get("min")]), *rising, *filter(None, [ends.get("max")])]
        for low, high in pairwise(rising):
            if low.value_s > high.value_s * (1 + 1e-9):
                rule = f"be at least {low.name}, {low.value_s:g} s"
                raise InputError(high.name, f"{high.value_s:g} s", rule, where=result.source)
        mean, largest = result.statistic(metric), ends.get("max")
        if mean and largest and mean.value_s > largest.value_s * (1 + 1e-9):
            rule = f"be at most {largest.name}, {largest.value_s:g} s"
            raise InputError(mean.name, f"{mean.value_s:g} s", rule, where=result.source)
    requests, mean = result.requests, result.statistic("ttft")
    # Requests that we left out and the tool did not are in its mean alone.
    same = requests is not None and len(requests) == result.completed and not result.dropped.keys() - {FAILED}
    if same and requests is not None and requests.ttft_s is not None and mean is not None:
        ours = float(requests.ttft_s.mean())
        if not agree(mean.value_s, ours):
            rule = f"be the mean over its requests, {ours:g} s"
            raise InputError(mean.name, f"{mean.value_s:g} s", rule, where=result.source)
    return result


def agree(stated: float, ours: float) -> bool:
    """Whether two statements of one positive figure are the same up to rounding."""
    return abs(stated - ours) <= AGREEMENT * max(abs(stated), abs(ours))
