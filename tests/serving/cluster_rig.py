"""Clusters on the test bench: `run_cluster` over step times given by hand."""

from __future__ import annotations

import numpy as np

from simulator.randomness import uniform_array
from simulator.serving.cluster import ClusterRun, run_cluster
from simulator.serving.control import Control
from simulator.serving.handover import Links, Wire
from tests.serving.plain import rig
from tests.serving.rig import fresh


def serve(work, control=None, *, replicas=1, decode=None, more=None, **settings) -> tuple[np.recarray, ClusterRun]:
    """(request records, run) of `work`, which stays as it is. `settings` are those of `rig.fleet`; with `decode`, a number of
    replicas, those are prefill replicas, and the decode replicas have the settings `more` beside them."""
    work = fresh(work)
    n = len(work.requests)
    fleets = [rig.fleet(n, replicas=replicas, **settings)]
    if decode:
        fleets = [
            rig.fleet(n, replicas=replicas, prefill_only=1, **settings),
            rig.fleet(n, replicas=decode, **{**settings, **(more or {})}),
        ]
    return work.requests, run_cluster(fleets, work, control)


def wire(seconds=1.0, latency_s=0.0, senders=1, *, shared=False) -> Control:
    """Links over which a token takes `seconds`; one for each of so many prefill replicas, or one for all."""
    count = 1 if shared else senders
    of = [0] * senders if shared else list(range(senders))
    return Control(links=Links([Wire(1.0, latency_s)] * count, of, bytes_per_token=seconds))


def poisson(n, rate_per_s, seed=1):
    """Arrival times, s."""
    return np.cumsum(-np.log1p(-uniform_array(seed, np.arange(n), 99, 0))) / rate_per_s


def geometric(n, mean, seed=3):
    """Whole numbers from 1 on."""
    drawn = np.log1p(-uniform_array(seed, np.arange(n), 98, 0)) / np.log1p(-1 / mean)
    return np.maximum(np.ceil(drawn).astype(int), 1)


def batch_means(values, batches=40):
    """Mean and half-width of its 99.9 % interval from means of consecutive batches (neighbours are correlated)."""
    means = np.array([chunk.mean() for chunk in np.array_split(values, batches)])
    return means.mean(), 3.55 * means.std(ddof=1) / batches**0.5


def pollaczek_khinchine_s(rate_per_s, mean_s, second_moment_s2):
    """Mean wait of M/G/1: λ·E[S²] / (2·(1 − λ·E[S]))."""
    return rate_per_s * second_moment_s2 / (2 * (1 - rate_per_s * mean_s))
