"""Intervals of simulated figures: theory where a figure follows from step times, and what must cancel."""

from __future__ import annotations

import math
import threading

import pytest

from simulator import load_scenario
from simulator.serving.intervals import RATIO, simulation_intervals
from simulator.serving.simulation import Stopped, simulate
from simulator.uncertainty import interval_factor, log_sds, slowed, spreads

SCENARIO = {
    "model": "llama-3.2-1b", "gpu": "h100-sxm", "engine": {"name": "ideal", "max_sequences": 1}, "warmup": 0,
    "traffic": {"kind": "poisson", "rate_per_s": 0.01, "requests": 30, "lengths": {"prompt": 64, "output": 40}},
}  # fmt: skip
SPECULATION = {"draft": "llama-3.2-1b", "gamma": 2, "acceptance": 0.7}


def test_alone_a_request_is_as_uncertain_as_its_steps():
    """One at a time nobody queues: TPOT is a mean of steps, each between the first's and the last's uncertainty."""
    result = simulate(load_scenario(SCENARIO))
    found = simulation_intervals(result).get("plain", "tpot_s.mean")
    value = result.main.summary.tpot_s.mean
    assert math.sqrt(found.low * found.high) == pytest.approx(value, rel=1e-9)
    sds = []
    for context in (64, 104):
        step = log_sds(result.deployment, lambda d, c=context: {"step": d.target.seconds(_decode(c))})["step"]
        sds.append(interval_factor(step))
    assert min(sds) * 0.999 <= found.high / value <= max(sds) * 1.001


def _decode(context):
    from simulator.cost.forward import Batch

    return Batch.decode(1, context)


def test_a_drafter_like_its_target_shares_all_its_errors():
    """Drafter and target alike, one request at a time: every source slows both variants by nearly the same factor."""
    result = simulate(load_scenario(SCENARIO | {"speculation": SPECULATION}))
    intervals = simulation_intervals(result)
    ratio = intervals.get(RATIO, "tpot_s.mean")
    alone = intervals.get("plain", "tpot_s.mean")
    assert math.log(ratio.high / ratio.low) < 0.35 * math.log(alone.high / alone.low)


def test_what_the_arrivals_decide_is_certain():
    """Far below capacity the throughput is the arrivals', whatever a step takes."""
    found = simulation_intervals(simulate(load_scenario(SCENARIO))).get("plain", "output_tokens_per_s")
    assert found.high / found.low < 1.01


def test_every_source_slows_what_it_names():
    deployment = load_scenario(SCENARIO | {"engine": "vllm"}).deployment()
    batch = _decode(64)
    base = deployment.target.seconds(batch) + deployment.engine.host_s(1)
    moved = {}
    for source in spreads(deployment):
        other = slowed(deployment, source, math.log(2.0))
        moved[source] = other.target.seconds(batch) + other.engine.host_s(1) - base
    assert moved["host"] == pytest.approx(deployment.engine.host_s(1), rel=1e-9)
    assert moved["prefill_attention"] == 0.0
    assert sum(moved.values()) == pytest.approx(base, rel=1e-9)  # together they are the step


def test_a_measured_step_is_the_only_source(monkeypatch):
    deployment = load_scenario(SCENARIO).deployment()
    from dataclasses import replace

    target = deployment.target
    measured = replace(target.efficiency, spread={**target.efficiency.spread, "step": 0.05})
    deployment = replace(deployment, target=target.on(measured))
    assert spreads(deployment) == {"step": 0.05}
    found = log_sds(deployment, lambda d: {"step": d.target.seconds(_decode(64)) + d.engine.host_s(1)})
    assert found["step"] == pytest.approx(0.05, rel=1e-9)


def test_they_can_be_stopped():
    result, stop, told = simulate(load_scenario(SCENARIO)), threading.Event(), []

    def tell(what, done, of):
        told.append(done)
        stop.set()

    with pytest.raises(Stopped):
        simulation_intervals(result, tell, stop=stop)
    assert told == [1]
