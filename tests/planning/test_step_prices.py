"""Steps of the crossover map against rounds of `memwall speculate`: two closed forms of the same thing, for every kind of drafter."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.deployment import deploy
from simulator.engine_choice import EngineChoice
from simulator.planning.step_prices import DeploymentTables, Drafting, StepPrices
from simulator.planning.work import Work
from simulator.speculation.acceptance import Acceptance
from simulator.speculation.ranks import RankLaw
from simulator.speculation.round import round_cost
from simulator.speculation.tree import Tree
from simulator.speculation.tree_law import StaticYield, TreeAcceptance
from simulator.speculation.tree_size import passes_of

CONTEXT = 1024
LAW = Acceptance((0.7,))
TREE = Tree.from_branching((4, 2, 1))
CASES = {
    "model": ("llama-3.1-8b", "llama-3.2-1b", 4, {}),
    "eagle": ("llama-3.1-8b", "eagle-llama-3.1-8b", 4, {}),
    "eagle3": ("llama-3.1-8b", "eagle3-llama-3.1-8b", 8, {}),
    "ngram": ("llama-3.1-8b", "ngram", 4, {}),
    "parallel": ("llama-3.1-8b", "parallel-llama-3.2-1b", 8, {}),
    "sparse-kv": ("llama-3.1-8b", "sparse-kv-512", 4, {}),
    "early-exit": ("llama-2-7b", "early-exit-llama-2-7b", 4, {}),
    "lookahead": ("llama-2-7b", "lookahead", 4, {}),
    "medusa": ("vicuna-7b", "medusa-vicuna-7b", 5, {}),
    "mtp": ("deepseek-v3", "mtp-deepseek-v3", 1, {"tp": 8}),
    "pipeline": ("llama-3.1-70b", "eagle3-llama-3.1-70b", 4, {"tp": 2, "pp": 2}),
    "tree": ("llama-3.1-8b", "eagle-llama-3.1-8b", TREE, {}),
    "medusa tree": ("vicuna-7b", "medusa-vicuna-7b", TREE, {}),
}


def both(case, batch, engine="vllm", law=LAW):
    """Seconds of a step of the map, and of a round."""
    model, draft, drafts, more = CASES[case]
    served = deploy(model, "h200", draft=draft, engine=EngineChoice(name=engine, max_sequences=256), **more)
    if isinstance(drafts, Tree):
        shape = drafts.shape(passes_of(served.drafter))
        law = TreeAcceptance.of(law, StaticYield(drafts, RankLaw.typical(law.rates)))
    else:
        shape = served.drafter.shape(drafts)
    prices = StepPrices(
        DeploymentTables(served, 8192), Drafting(case, shape, law), Work(CONTEXT, 256, CONTEXT, 0.0), batch
    )
    step = prices.parts(np.array([float(batch)]), np.zeros(1), 0.0, 1)
    round_ = round_cost(
        served.target, served.engine, sequences=batch, context_tokens=CONTEXT, shape=shape, acceptance=law,
        draft=served.draft, drafter=served.drafter,
    )  # fmt: skip
    return step, round_


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("case", CASES)
def test_a_step_is_a_round(case, batch):
    step, round_ = both(case, batch)
    assert float(step.seconds[0]) == pytest.approx(round_.seconds, rel=0.015)  # graphs pad 5 tokens to 8, say
    assert float(step.draft_s[0]) == pytest.approx(round_.draft_s, rel=0.02, abs=2e-5)


@pytest.mark.parametrize("case", ["model", "eagle", "tree"])
def test_where_kernels_are_launched_one_by_one_too(case):
    step, round_ = both(case, 4, engine="hf-eager")
    assert float(step.seconds[0]) == pytest.approx(
        round_.seconds, rel=0.05
    )  # in a round attention runs while launches do
    layers = {"model": 4 * 16, "eagle": 4, "tree": 3}[case]
    assert round_.seconds > (32 + layers) * 1.2e-3


def test_the_mask_of_a_tree_is_paid_for_by_those_who_have_one():
    never, half, always = (both("lookahead", 8, law=Acceptance((0.7,), match_probability=p))[0] for p in (0, 0.5, 1))
    chain = both("ngram", 8)[0]
    assert float(never.verify_s[0]) < float(half.verify_s[0]) < float(always.verify_s[0])
    assert float(chain.seconds[0]) < float(always.seconds[0])
