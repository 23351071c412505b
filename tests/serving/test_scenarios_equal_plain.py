"""Bundled scenarios, their own engines and step times, by the specification: the same records to the last bit, invariants at every step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simulator import load_scenario, simulate
from simulator.serving import plain, state
from simulator.serving.pool import Pool
from tests.serving import kept, rig

REQUESTS = 16
LONGEST_AT_ONCE = 2
"""The KV cache holds so many of the longest request, so that blocks are short; whole ones take minutes to check at every step."""


@pytest.fixture(scope="module", params=kept.LASTING)
def variants(request):
    """What the runs of a scenario are made of: each one's fleet and workload, as they were before it ran, and its records after."""
    scenario = load_scenario(request.param, load={"requests": REQUESTS})
    with kept.pools() as made:
        result = simulate(scenario)
    return [(pool.fleet, before, run.requests) for (pool, before), run in zip(made, result.runs, strict=True)]


def assert_equal(records, others):
    for name in records.dtype.names:
        np.testing.assert_array_equal(records[name], others[name], err_msg=name)


def test_the_records_are_those_of_the_specification(variants):
    for fleet, workload, records in variants:
        assert_equal(records, plain.simulate(fleet, rig.fresh(workload), invariants=False).requests)


def test_with_few_blocks_too_and_all_invariants_hold(variants):
    for fleet, workload, _ in variants:
        model = fleet.models[0]
        config = model.config.copy()
        asked = workload.requests
        longest = int(
            (asked["prompt_tokens"] + asked["output_tokens"]).max() + model.plan.shapes[:, state.NODES].max() + 1
        )
        config[0].total_blocks = LONGEST_AT_ONCE * -(-longest // config[0].block_tokens)
        # So that everybody is there at once.
        crowd = rig.fresh(workload)
        crowd.requests["ready_s"] = crowd.requests["arrival_s"] = np.minimum(asked["arrival_s"], 1.0)
        crowded = replace(fleet, models=[replace(model, config=config)], model_of=np.zeros(1, dtype=np.int64))
        slow = plain.simulate(crowded, rig.fresh(crowd))
        pool = Pool(crowded, crowd)
        pool.serve()
        assert_equal(crowd.requests, slow.requests)
        assert pool.replicas[0].steps == slow.replicas[0].counters.steps
