"""A drafter's passes wait for their launches where no captured graph covers them, as the target's do."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.scenario import load_scenario
from simulator.serving.simulation import simulate, variants_of
from simulator.speculation.policies import always
from simulator.speculation.round import round_cost
from simulator.speculation.shape import DraftShape
from tests.serving.rig import LOOPS, run, tables, traffic

TREE = DraftShape(8, 2, (1, 4))


def launches(*, largest, of_sequences=0, loop="plain", share=1.0):
    """Seconds of drafting over the life of one request of 3 prompt and 4 answer tokens, two drafts in a row accepted each time:
    passes of 0.25 s, 1 s of launches for passes of more than `largest` tokens, and for those with prompts."""
    tokens = np.arange(4097)
    waits_s = np.stack([np.where(tokens > largest, 1.0, 0.0), np.where(tokens > 0, 1.0, 0.0)])
    draft = tables(0.25, extra_host_s=waits_s)
    _, (replica,) = run(
        traffic([0.0], [3], [4]), loop=loop, target=tables(1.0), draft=draft, plan=always(TREE), rates=[1.0, 1.0],
        graphs_of_sequences=of_sequences, draft_share=share,
    )  # fmt: skip
    return replica.draft_s


@pytest.mark.parametrize("loop", LOOPS)
def test_every_pass_without_a_graph_waits(loop):
    # The prompt's step reads 3 tokens in a pass with prompts and then drafts four nodes; the round after it ends the answer.
    assert launches(largest=4096, loop=loop) == (0.25 + 1.0) + 0.25
    assert launches(largest=3, loop=loop) == (0.25 + 1.0) + (0.25 + 1.0)


@pytest.mark.parametrize("loop", LOOPS)
def test_graphs_may_count_sequences(loop):
    assert launches(largest=3, of_sequences=1, loop=loop) == (0.25 + 1.0) + 0.25
    assert launches(largest=0, of_sequences=1, loop=loop) == (0.25 + 1.0) + (0.25 + 1.0)


@pytest.mark.parametrize("loop", LOOPS)
def test_on_gpus_of_its_own_launches_run_ahead_too(loop):
    # D = 2.5 s beside V = 1 s of the target, half of which can be used: D/2 + (D − V)/2.
    assert launches(largest=3, loop=loop, share=0.5) == 0.5 * 2.5 + 0.5 * 1.5


@pytest.mark.parametrize("draft", ["llama-3.2-1b", "eagle-llama-3.1-8b"])
def test_eager_passes_cost_the_same_simulated_and_in_closed_form(draft):
    """Without graphs each pass takes at least 1.2 ms for each of its layers."""
    scenario = load_scenario({
        "model": "llama-3.1-8b", "gpu": "h100-sxm", "engine": {"name": "hf-eager"},
        "speculation": {"draft": draft, "gamma": 4, "acceptance": {"alpha": 0.0}},
        "traffic": {"kind": "closed-loop", "users": 1, "think_time_s": 0.0, "requests": 1, "lengths": {"prompt": 500, "output": 41}},
    })  # fmt: skip
    deployment = scenario.deployment()
    done = simulate(scenario).main.requests[0]
    simulated_s = (done.finish_s - done.first_token_s) / done.decode_rounds
    drafts = variants_of(scenario, deployment)[0].drafts
    closed = round_cost(
        deployment.target, deployment.engine, sequences=1, context_tokens=520, gamma=4, acceptance=drafts.law,
        draft=deployment.draft, drafter=deployment.drafter,
    )  # fmt: skip
    layers = deployment.draft.decoder.layers
    assert simulated_s > 4 * layers * 1.2e-3 + 32 * 1.2e-3
    assert simulated_s == pytest.approx(closed.seconds, rel=0.04)
