"""Laws that every simulation obeys, on every bundled scenario and on some that overload their KV cache.

Nobody and no token is lost, Little's law, work conservation, equal bytes for equal seeds.
"""

from __future__ import annotations

import numpy as np
import pytest

from simulator import load_scenario, simulate
from simulator.serving import state
from simulator.serving.plain import balance
from tests.serving import kept

LOAD = {"requests": 1000}
CROWDED = {
    "model": "llama-3.1-8b", "gpu": "l4", "load": {"requests": 400},
    "traffic": {"kind": "poisson", "rate_per_s": 20, "requests": 1, "lengths": {"prompt": 300, "output": 400}},
    "quantization": {"weights": "int4"},
}  # fmt: skip
TIGHT = {"name": "vllm", "memory_utilization": 0.4}
SCENARIOS = {name: name for name in kept.LASTING} | {
    "recomputed": CROWDED | {"engine": TIGHT},
    "swapped": CROWDED | {"engine": TIGHT | {"preemption": "swap", "swap_space_bytes": 1e9}},
    "found again": CROWDED | {"engine": TIGHT | {"prefix_caching": True}},
    "refused": CROWDED | {"engine": TIGHT | {"max_waiting": 20, "queue_timeout_s": 3.0}},
    "speculating": CROWDED
    | {
        "engine": {"name": "vllm", "memory_utilization": 0.52}, "replicas": 2,
        "speculation": {"draft": "llama-3.2-1b", "gamma": 3, "acceptance": 0.7},
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=SCENARIOS)
def served(request):
    """A scenario's result, and the replicas and time series of each of its runs."""
    source = SCENARIOS[request.param]
    scenario = load_scenario(source, load=LOAD) if isinstance(source, str) else load_scenario(source)
    with kept.pools() as made:
        result = simulate(scenario)
    pools = [pool for pool, _ in made]
    assert len(pools) == len(result.runs)
    if not isinstance(source, str):
        assert pools[-1].replicas["preemptions"].sum() > 10
        assert (pools[-1].replicas["swaps"].sum() > 10) == (request.param == "swapped")
    return result, pools


def test_every_request_has_an_end_and_a_past(served):
    result, _ = served
    for run in result.runs:
        assert not balance.every_request_has_an_end(run.requests)
        assert not [numbers for numbers in map(balance.causality, run.requests) if numbers]
        assert sum(run.summary.requests.values()) == result.traffic.rows_read


def test_tokens_balance(served):
    result, pools = served
    for run, pool in zip(result.runs, pools, strict=True):
        assert not balance.token_balance(run.requests, pool.replicas)
        emitted = run.series[state.SERIES.index("output_tokens")].sum()
        assert emitted == run.requests["generated_tokens"].sum() > 0
        if run.gamma == 0 and (run.requests["status"] == state.FINISHED).all():
            assert not balance.computed_balance(run.requests, pool.replicas)


def test_littles_law(served):
    result, pools = served
    for run, pool in zip(result.runs, pools, strict=True):
        requests = run.requests
        started = requests["generated_tokens"] > 0
        # A step lies between two tokens of somebody, or within somebody's prompt.
        longest_s = max(
            (requests["first_token_s"] - requests["scheduled_s"])[started].max(), requests["longest_gap_s"].max()
        )
        overlap = result.deployment.engine.settings.overlap
        rows = pool.arrays.records.series[:, [state.SERIES.index(name) for name in ("running_s", "waiting_s")]]
        assert not balance.littles_law(requests, float(rows.sum()), unheard_s=(2 if overlap else 1) * longest_s)


def test_work_is_conserved(served):
    result, pools = served
    for run, pool in zip(result.runs, pools, strict=True):
        for number, replica in enumerate(pool.replicas):
            ours = run.requests[run.requests["replica"] == number]
            assert not balance.work_conservation(ours, replica.busy_s, replica.clock_s)


def test_blocks_come_back_and_limits_hold(served):
    _, pools = served
    for pool in pools:
        assert_whole(pool)


def assert_whole(pool):
    """All blocks are back, and no replica had more than it has."""
    configs = pool.arrays.configs[pool.replicas["model"]]
    assert not pool.replicas["used_blocks"].any()
    assert not pool.replicas["swapped_blocks"].any()
    assert (pool.replicas["most_blocks"] <= configs["total_blocks"]).all()
    assert (pool.replicas["most_running"] <= configs["max_sequences"]).all()


def test_equal_seeds_give_equal_bytes(served):
    result, _ = served
    assert_repeats(result)


def assert_repeats(result):
    again = simulate(result.scenario)
    for run, other in zip(result.runs, again.runs, strict=True):
        assert run.requests.tobytes() == other.requests.tobytes()
        assert run.series.tobytes() == other.series.tobytes()
        assert np.array_equal(run.rows, other.rows)


@pytest.mark.parametrize("name", sorted(set(kept.BUNDLED) - set(kept.LASTING)))
def test_nobody_is_lost_where_replicas_come_and_go(name):
    """Hand-overs, failures and autoscaling: whoever is moved finishes elsewhere, and luck repeats itself."""
    scenario = load_scenario(name, load=LOAD)
    with kept.pools() as made:
        result = simulate(scenario)
    for run in result.runs:
        assert not balance.every_request_has_an_end(run.requests)
        assert not [numbers for numbers in map(balance.causality, run.requests) if numbers]
        assert sum(run.summary.requests.values()) == result.traffic.rows_read
        finished = run.requests["status"] == state.FINISHED
        assert (run.requests["generated_tokens"] == run.requests["output_tokens"])[finished].all()
    for pool, _ in made:
        assert_whole(pool)
    assert_repeats(result)
