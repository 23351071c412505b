"""Small results of each kind, computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from simulator import AcceptanceConfig, decode, deploy, load_scenario, simulate, speculate
from simulator.decoding import DecodeResult
from simulator.planning.crossover import SpeculateResult
from simulator.serving.classes import RequestClass
from simulator.serving.simulation import Run, SimulationResult
from simulator.slo import Slo
from tests.serving.served import random_records, summary


@pytest.fixture(scope="session")
def step() -> DecodeResult:
    return decode(deploy("llama-3.2-1b", "h100-sxm"), batch=2, context_tokens=100)


@pytest.fixture(scope="session")
def grid() -> SpeculateResult:
    deployment = deploy("llama-3.1-8b", "h100-sxm", draft="llama-3.2-1b")
    return speculate(deployment, AcceptanceConfig(alpha=0.7).law(), gammas=[1, 3], batches=[1, 64], context_tokens=512)


def small_simulation(**changes: object) -> SimulationResult:
    scenario = {
        "name": "small",
        "model": "llama-3.1-8b",
        "gpu": "h100-sxm",
        "traffic": {"kind": "poisson", "rate_per_s": 5, "requests": 20, "lengths": {"prompt": 100, "output": 12}},
        "speculation": {"draft": "llama-3.2-1b", "gamma": 3, "acceptance": 0.7},
        **changes,
    }
    return simulate(load_scenario(scenario))


@pytest.fixture(scope="session")
def simulation() -> SimulationResult:
    return small_simulation()


def made_up(change: Callable[[Run], Run], n: int = 3000, classes: int = 1, **changes: object) -> SimulationResult:
    """A small simulation whose runs have `n` invented request records in place of their own, and are then changed."""
    result = small_simulation(**changes)
    kinds = tuple(RequestClass(name=f"kind {c}", slo=Slo(tpot_s=0.015) if c else None) for c in range(classes))
    traffic = replace(result.traffic, classes=kinds, arrival_s=np.zeros(n), rows_read=n)
    runs = []
    for run in result.runs:
        requests = random_records(n, classes=classes)
        series = np.ones((run.series.shape[0], 600))
        found = summary(requests, series=series, bucket_s=0.5, classes=kinds, slo=Slo(ttft_s=1.0))
        whole = replace(run, requests=requests, rows=np.arange(n), series=series, bucket_s=0.5, summary=found)
        runs.append(change(whole))
    return replace(result, traffic=traffic, runs=tuple(runs))


@pytest.fixture(scope="session")
def with_classes() -> SimulationResult:
    """Three classes, requests that end in every way."""
    return made_up(lambda run: run, classes=3)


@pytest.fixture(scope="session")
def growing() -> SimulationResult:
    """A queue that only grows, without speculation."""
    from simulator.serving.stability import assess

    verdict = assess(np.arange(17) * 50.625, offered=3600, left=2790, finished=2790, window_s=300.0, end_s=300.0)

    def change(run: Run) -> Run:
        return replace(run, summary=replace(run.summary, stability=verdict)) if run.variant == "plain" else run

    return made_up(change)


@pytest.fixture(scope="session")
def cut_short() -> SimulationResult:
    """Interrupted at 150 s in its first variant."""

    def change(run: Run) -> Run:
        requests = run.requests.copy()
        requests["status"][requests["finish_s"] > 150.0] = 0
        found = summary(requests, series=run.series, bucket_s=run.bucket_s, interrupted_s=150.0)
        return replace(run, requests=requests, summary=found, interrupted_s=150.0)

    result = made_up(change)
    return replace(result, runs=result.runs[:1])
