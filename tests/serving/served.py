"""Request records written down by hand, and a cluster that served them."""

from __future__ import annotations

import numpy as np

from simulator.serving import state
from simulator.serving.metrics import ReplicaHardware, Summary, summarise
from simulator.slo import Slo


def records(*rows):
    """(arrival, scheduled, first token, finish, output tokens) of finished and measured requests."""
    requests = state.records(state.REQUEST, len(rows))
    for request, (arrival, scheduled, first, finish, tokens) in zip(requests, rows, strict=True):
        request.arrival_s, request.scheduled_s, request.first_token_s = arrival, scheduled, first
        request.finish_s = finish
        request.output_tokens = tokens
    requests["status"] = state.FINISHED
    requests["measured"] = 1
    return requests


def random_records(n, seed=0, classes=1):
    """`n` Poisson arrivals, some of which end in every way there is."""
    draw = np.random.default_rng(seed)
    requests = state.records(state.REQUEST, n)
    requests["arrival_s"] = np.cumsum(draw.exponential(0.1, n))
    requests["scheduled_s"] = requests["arrival_s"] + draw.exponential(1.0, n)
    requests["first_token_s"] = requests["scheduled_s"] + 0.1
    requests["output_tokens"] = draw.integers(1, 100, n)
    requests["finish_s"] = requests["first_token_s"] + (requests["output_tokens"] - 1) * draw.uniform(0.01, 0.02, n)
    requests["prompt_tokens"] = draw.integers(1, 500, n)
    requests["cached_tokens"] = requests["prompt_tokens"] // 3
    requests["class_of"] = draw.integers(0, classes, n)
    requests["measured"] = np.arange(n) >= n // 20
    ends = (state.FINISHED, state.REJECTED, state.REFUSED, state.TIMED_OUT, state.CANCELLED, state.ABANDONED)
    requests["status"] = draw.choice(ends, n, p=(0.9, 0.02, 0.02, 0.02, 0.02, 0.02))
    requests["arrival_s"][requests["status"] == state.ABANDONED] = np.nan
    return requests


def summary(requests, *, series=None, bucket_s=1.0, slo=None, replicas=1, **more) -> Summary:
    """Of replicas that count for nothing."""
    if series is None:
        series = np.zeros((len(state.SERIES), 1000))
    blank = [state.records(state.REPLICA, 1)[0] for _ in range(replicas)]
    hardware = [ReplicaHardware(1, 1000, 1e12, 1e15, None)] * replicas
    gaps = np.zeros(state.GAP_BINS, dtype=np.int64)
    more = {"hardware": hardware, "slo": slo or Slo(), **more}
    return summarise(requests, blank, gaps, series=series, bucket_s=bucket_s, **more)
