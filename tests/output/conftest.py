"""Small results of each kind, computed once."""

from __future__ import annotations

import pytest

from simulator import AcceptanceConfig, decode, deploy, load_scenario, simulate, speculate
from simulator.decoding import DecodeResult
from simulator.planning.crossover import SpeculateResult
from simulator.serving.simulation import SimulationResult


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
