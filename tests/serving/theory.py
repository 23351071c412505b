"""Arrivals of a Poisson process, and how far a mean of waits may lie from theory."""

from __future__ import annotations

import numpy as np

from simulator.randomness import uniform_array


def poisson(n, rate_per_s, seed=1):
    """Instants of `n` arrivals, s."""
    return np.cumsum(-np.log1p(-uniform_array(seed, np.arange(n), 99, 0))) / rate_per_s


def batch_means(values, batches=40):
    """Mean and half-width of its 99.9 % interval from means of consecutive batches (neighbours are correlated)."""
    means = np.array([chunk.mean() for chunk in np.array_split(values, batches)])
    return means.mean(), 3.55 * means.std(ddof=1) / batches**0.5


def waiting(requests, warmup):
    """Times from arrival to the first step, the first `warmup` requests left out, s."""
    return (requests["scheduled_s"] - requests["arrival_s"])[warmup:]
