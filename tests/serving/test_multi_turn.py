"""Conversations and system prompts through a whole simulation: what each turn finds in the cache is known from lengths alone.

A later turn's prompt begins with the prompt and answer of the turn before, whose last token was never computed: it finds
⌊(prompt + answer − 1)/16⌋ blocks of those. A first turn finds its system prompt's full blocks once somebody else began with them.
"""

from __future__ import annotations

import numpy as np
import pytest

from simulator.scenario import load_scenario
from simulator.serving import state
from simulator.serving.simulation import simulate

BLOCK = 16
AGENTS = {
    "model": "llama-3.1-8b",
    "gpu": "h200",
    "traffic": "agents-multi-turn",
    "load": {"requests": 400},
    "warmup": 0,
}


def simulated(**changes):
    """The bundled workload of agents on a GPU whose cache holds all of its 400 requests."""
    return simulate(load_scenario({**AGENTS, **changes}))


@pytest.fixture(scope="module")
def agents():
    result = simulated()
    requests = result.main.requests
    assert (requests["status"] == state.FINISHED).all()
    assert requests["preemptions"].sum() == 0
    # Blocks are taken first in, first out: while fewer were taken than there are, none has been overwritten.
    taken = -(-(requests["prompt_tokens"] + requests["output_tokens"]) // BLOCK) - requests["cached_tokens"] // BLOCK
    assert taken.sum() <= result.main.total_blocks
    return result


def first_turns(traffic):
    return np.flatnonzero(traffic.follows < 0)


def test_a_later_turn_finds_what_the_one_before_left(agents):
    requests, follows = agents.main.requests, agents.traffic.follows
    later = np.flatnonzero(follows >= 0)
    before = requests[follows[later]]
    left = (before["prompt_tokens"] + before["output_tokens"] - 1) // BLOCK
    most = (requests["prompt_tokens"][later] - 1) // BLOCK
    assert len(later) > 300
    assert requests["cached_tokens"][later].tolist() == (np.minimum(left, most) * BLOCK).tolist()


def system_tokens(traffic, index):
    """Tokens and source of the system prompt of a request."""
    shared = traffic.shared
    first, end = shared.first_piece[index : index + 2]
    assert end == first + 1
    return int(shared.end_tokens[first]), int(shared.source[first])


def test_a_first_turn_finds_its_system_prompt_if_somebody_began_with_it(agents):
    requests, traffic = agents.main.requests, agents.traffic
    order = np.lexsort((np.arange(len(requests)), requests["arrival_s"], requests["scheduled_s"]))
    seen, expected = set(), np.zeros(len(requests), dtype=np.int64)
    for index in order:
        tokens, source = system_tokens(traffic, index)
        if source in seen:
            expected[index] = min(tokens // BLOCK, (requests["prompt_tokens"][index] - 1) // BLOCK) * BLOCK
        seen.add(source)
    first = first_turns(traffic)
    assert len(seen) == 6
    assert requests["cached_tokens"][first].tolist() == expected[first].tolist()
    assert np.count_nonzero(expected[first] == 0) == 6


def test_without_prefix_caching_everything_is_computed(agents):
    without = simulated(engine={"name": "vllm", "prefix_caching": False})
    requests = without.main.requests
    assert not requests["cached_tokens"].any()
    assert requests["preemptions"].sum() == 0
    assert computed_tokens(without) == requests["prompt_tokens"].sum()
    # The same conversations: lengths do not depend on what the engine does.
    assert requests["prompt_tokens"].tolist() == agents.main.requests["prompt_tokens"].tolist()


def test_what_is_found_is_not_computed(agents):
    requests = agents.main.requests
    assert computed_tokens(agents) == (requests["prompt_tokens"] - requests["cached_tokens"]).sum()


def computed_tokens(result):
    """Prompt tokens that went through the model."""
    return dict(zip(state.SERIES, result.main.series, strict=True))["prompt_tokens"].sum()


def test_a_small_cache_forgets_and_never_invents(agents):
    """On a 24 GB card turns find at most what they would in a cache that holds everything, and some find less."""
    large, small = (
        agents.main.requests,
        simulated(gpu="rtx-4090", load={"requests": 400, "rate_per_s": 0.05}).main.requests,
    )
    later = np.flatnonzero(agents.traffic.follows >= 0)
    assert (small["cached_tokens"][later] <= large["cached_tokens"][later]).all()
    assert small["cached_tokens"].sum() < large["cached_tokens"].sum()
