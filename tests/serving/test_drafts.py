"""From a scenario's speculation to plan, rates and laws of its rounds."""

from __future__ import annotations

import numpy as np
import pytest

from simulator import load_scenario, simulate
from simulator.errors import InputError, MemwallError
from simulator.serving.drafts import Drafts, drafts_of
from simulator.serving.model import plan_tables
from simulator.serving.simulation import variants_of
from simulator.speculation.acceptance import Acceptance, RecordedAcceptance
from simulator.speculation.drafters import load_drafter
from simulator.speculation.policies import BY_ORACLE, BY_PAST, BY_TABLE, always, by_table
from simulator.speculation.ranks import RankLaw
from simulator.speculation.shape import PLAIN, DraftShape, chain
from simulator.speculation.tree import Tree
from simulator.speculation.tree_law import StaticYield
from tests.serving.rig import recording

LAW = Acceptance((0.8, 0.6), request_icc=0.2)
TABLE = {"batches": [1, 9, 33], "contexts": [0, 1_000], "gamma": [[5, 3], [3, 1], [0, 0]]}


def scenario(draft="llama-3.2-1b", model="llama-3.1-8b", engine="vllm", gamma=4, **speculation):
    return load_scenario({
        "model": model, "gpu": "h100-sxm", "engine": engine,
        "traffic": {"kind": "poisson", "rate_per_s": 4, "requests": 30, "lengths": {"prompt": 200, "output": 40}},
        "speculation": {"draft": draft, "gamma": gamma, "acceptance": 0.7, **speculation},
    })  # fmt: skip


def drafts(law=LAW, **more):
    asked = scenario(**more)
    return drafts_of(asked, load_drafter(asked.speculation.draft), law)


def refusal(law=LAW, **more):
    with pytest.raises(InputError) as caught:
        drafts(law, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Plans


@pytest.mark.parametrize(("policy", "mode"), [("fixed", BY_TABLE), ("per-request", BY_PAST), ("oracle", BY_ORACLE)])
def test_a_name_is_one_shape_read_one_way(policy, mode):
    found = drafts(policy=policy)
    assert found.plan.shapes == (PLAIN, chain(4))
    assert found.plan.choice.tolist() == [[1]]
    assert (found.plan.mode, found.depth, found.nodes, found.is_tree, found.goodput) == (mode, 4, 4, False, False)


def test_off_above_has_two_rows():
    plan = drafts(policy={"off_above": 16}).plan
    assert (plan.shape(16, 0), plan.shape(17, 0)) == (chain(4), PLAIN)


def test_a_table_s_gammas_are_its_shapes_whatever_the_scenario_s_gamma():
    found = drafts(policy={"table": TABLE})
    assert found.plan.shapes == (PLAIN, chain(1), chain(3), chain(5))
    assert found.depth == 5
    for batch, row in zip(TABLE["batches"], TABLE["gamma"], strict=True):
        for context, gamma in zip(TABLE["contexts"], row, strict=True):
            assert found.plan.shape(batch, context).depth == gamma


def test_goodput_may_choose_among_all_up_to_gamma():
    found = drafts(policy="goodput")
    assert found.goodput
    assert found.plan.shapes == (PLAIN, *(chain(gamma) for gamma in range(1, 5)))


def test_shapes_are_those_of_the_drafter():
    assert drafts(draft="medusa-vicuna-7b", model="vicuna-7b", gamma=3).plan.shapes[1] == chain(3, 1)
    assert drafts(draft="ngram").plan.shapes[1] == chain(4, 0)
    assert drafts(draft="lookahead", gamma=3).plan.shapes[1] == DraftShape(90, 3, ())


def test_goodput_chooses_among_trees_of_up_to_as_many_nodes():
    found = drafts(policy="goodput", tree={"nodes": 16, "depth": 4})
    assert [shape.nodes for shape in found.plan.shapes] == [0, 16, 2, 4, 8, 12]
    assert found.plan.shapes[2].depth <= 2
    assert found.is_tree
    given = drafts(policy="goodput", tree=[[0], [1]])
    assert [shape.nodes for shape in given.plan.shapes] == [0, 2]


def test_the_oracle_of_a_tree_drafts_its_path_alone():
    found = drafts(policy="oracle", tree={"branching": [3, 2, 2]})
    assert found.plan.shapes[1] == chain(3)
    assert found.law_of(1).conditional(3) == pytest.approx(
        drafts(tree={"branching": [3, 2, 2]}).law_of(1).conditional(3)
    )


# Rates


def test_chains_share_their_rates():
    found = drafts(policy={"table": TABLE})
    assert found.columns == [0, 0, 0, 0]
    rates, row_of = found.rates(LAW, 7, np.full(50, 100), 10)
    expected, rows = LAW.stretch_rates(7, 50, 5, 10)
    assert (rates == expected).all()
    assert (row_of == rows).all()


def test_each_tree_has_columns_of_its_own():
    chained = StaticYield(Tree.from_branching((2, 1)), RankLaw.typical(LAW.rates))
    wide = StaticYield(Tree.from_branching((4, 2, 2)), RankLaw.typical(LAW.rates))
    shapes = [PLAIN, chain(3), chained.tree.shape(None), wide.tree.shape(None)]
    found = Drafts(by_table(shapes, [1], [0], [[1]]), LAW, (None, None, chained, wide))
    assert found.columns == [0, 0, 3, 5]
    rates, row_of = found.rates(LAW, 3, np.full(200, 50), 0)
    assert rates.shape[2] == 3 + 2 + 3
    for index, column in zip((1, 2, 3), (0, 3, 5), strict=True):
        depth = shapes[index].depth
        expected, rows = found.law_of(index).stretch_rates(3, 200, depth)
        assert (rates[:, :, column : column + depth] == expected).all()
        assert (row_of == rows).all()
    # Whoever is lucky with one shape is lucky with all: the first candidate is the same.
    order = np.argsort(rates[row_of, 0, 0])
    assert (np.diff(rates[row_of, 0, 3][order]) >= -1e-12).all()
    assert plan_tables(found.plan, found.columns).shapes.tolist() == [
        [0, 0, 0, 0], [3, 3, 3, 0], [4, 2, 2, 3], [28, 3, 3, 5],
    ]  # fmt: skip


def test_nothing_but_zeros_still_has_rates():
    found = drafts(policy={"table": {"batches": [1], "gamma": [0]}})
    assert (found.depth, found.nodes, found.plan.shapes) == (0, 0, (PLAIN,))
    rates, row_of = found.rates(LAW, 0, np.full(5, 10), 0)
    assert (rates.shape, len(row_of)) == ((5, 1, 1), 5)
    assert found.tokens().tolist() == [1.0]


def test_tokens_and_matches_of_each_shape():
    law = Acceptance((0.8,), match_probability=0.5, match_tokens=20.0)
    found = drafts(law, draft="ngram", policy="goodput")
    assert found.tokens().tolist() == [1.0, *(law.live_tokens(gamma) for gamma in range(1, 5))]
    assert found.match_shares().tolist() == [1.0, *(law.match_share(gamma) for gamma in range(1, 5))]
    # Rounds without a match yield one token, and there are more of those rounds than of those positions.
    assert 0.0 < found.match_shares()[4] < found.match_shares()[1] < 0.5


# What does not go together


@pytest.mark.parametrize("policy", ["oracle", "per-request"])
def test_a_shape_that_is_no_chain_has_no_policy_of_chains(policy):
    assert refusal(draft="lookahead", policy=policy) == (
        f"policy='{policy}' must draft a chain, which lookahead does not verify"
    )


def test_no_more_than_the_drafter_has_heads_for():
    medusa = {"draft": "medusa-vicuna-7b", "model": "vicuna-7b"}
    assert "gamma=6 must be at most the 5 heads" in refusal(gamma=6, **medusa)
    assert "gamma=7 must be at most the 5 heads" in refusal(policy={"table": {"batches": [1], "gamma": [7]}}, **medusa)
    said = refusal(tree={"branching": [2, 1, 1, 1, 1, 1]}, **medusa)
    assert said == "tree.depth=6 must be at most the 5 drafts in a row that medusa-vicuna-7b makes"


@pytest.mark.parametrize(
    "policy", ["fixed", "goodput", "oracle", {"off_above": 4}, {"table": {"batches": [1, 2], "gamma": [4, 1]}}]
)
def test_no_more_than_was_recorded(policy):
    law = RecordedAcceptance.of(recording([[2, 0, 3]], 3))
    with pytest.raises(InputError, match="must be at most the 3 drafts per round that were recorded"):
        simulate(scenario(policy=policy), acceptance=law)


@pytest.mark.parametrize("policy", ["fixed", "goodput", "oracle", "per-request", {"off_above": 4}])
def test_a_recording_goes_with_every_policy(policy):
    law = RecordedAcceptance.of(recording([[2, 0, 3], [1, 1]], 3))
    requests = simulate(scenario(policy=policy, gamma=3), acceptance=law).main.requests
    assert (requests["generated_tokens"] == requests["output_tokens"]).all()
    assert 0 < requests["accepted_tokens"].sum() <= requests["drafted_tokens"].sum()


def test_a_recording_has_no_trees():
    law = RecordedAcceptance.of(recording([[2, 0, 3]], 3))
    assert "recorded rounds are of one shape" in refusal(law, tree=[[0], [1]])


def test_a_round_fits_the_token_budget():
    engine = {"name": "vllm", "max_batched_tokens": 16, "max_sequences": 8}
    with pytest.raises(MemwallError, match="max_batched_tokens=16 must be at least the 17 tokens of a round"):
        simulate(scenario(engine=engine, tree={"nodes": 16, "depth": 4}))
    with pytest.raises(MemwallError, match="be at least the 33 tokens of a round"):
        simulate(scenario(engine=engine, policy={"table": {"batches": [1, 4], "gamma": [2, 32]}}))


# In a scenario


def test_a_scenario_with_speculation_has_two_variants():
    asked = scenario(policy="goodput")
    one, other = variants_of(asked, asked.deployment())
    assert (one.name, other.name) == ("speculation", "plain")
    assert one.drafts.goodput
    assert other.drafts is None
    assert other.deployment.drafter is None


@pytest.mark.parametrize(
    "speculation",
    [
        {"policy": "oracle"}, {"policy": "per-request"}, {"policy": "goodput"}, {"policy": {"off_above": 2}},
        {"policy": {"table": TABLE}}, {"tree": {"nodes": 12, "depth": 4}}, {"draft": "eagle3-llama-3.1-8b", "policy": "goodput"},
        {"tree": {"nodes": 12, "depth": 4, "kind": "dynamic"}, "policy": "goodput"}, {"draft": "ngram", "policy": "oracle"},
        {"draft": "lookahead", "policy": "goodput", "gamma": 2}, {"draft": "sparse-kv-512", "policy": "per-request"},
        {"draft": "parallel-llama-3.2-1b", "policy": {"off_above": 2}},
    ],
)  # fmt: skip
def test_policies_serve_the_same_answers(speculation):
    result = simulate(scenario(**speculation))
    for run in result.runs:
        assert (run.requests["generated_tokens"] == run.requests["output_tokens"]).all()
    requests, plan = result.main.requests, result.main.plan
    assert (requests["accepted_tokens"] <= requests["drafted_tokens"]).all()
    assert plan.choice.max() < len(result.main.drafts.plan.shapes)
    if speculation.get("policy") == "oracle":
        assert (requests["accepted_tokens"] == requests["drafted_tokens"]).all()
        assert requests["accepted_tokens"].sum() > 0


def test_always_is_what_fixed_means():
    found = drafts().plan
    assert found.choice.tolist() == always(chain(4)).choice.tolist()
