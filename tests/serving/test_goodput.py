"""The goodput policy: the best shape by closed form for every batch and context, and in simulations no worse than any fixed γ."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import load_scenario, simulate
from simulator.cost.tables import SECONDS
from simulator.serving import state
from simulator.serving.drafts import Drafts
from simulator.serving.goodput import goodput_plan
from simulator.speculation.acceptance import Acceptance
from simulator.speculation.draft_cost import DraftCost
from simulator.speculation.policies import by_table
from simulator.speculation.ranks import RankLaw
from simulator.speculation.round import round_cost
from simulator.speculation.shape import PLAIN, chain
from simulator.speculation.tree import Tree
from simulator.speculation.tree_law import StaticYield
from tests.serving.plain import rig
from tests.serving.rig import tables

LONGEST = 4
STEP_S, TOKEN_S, DRAFT_S, DRAFT_TOKEN_S = 1.0, 0.03, 0.1, 0.01


def chains(law, passes=None):
    """Chains up to the longest, with what `law` says."""
    shapes = [PLAIN, *(chain(gamma, passes) for gamma in range(1, LONGEST + 1))]
    return Drafts(by_table(shapes, [1], [0], [[LONGEST]]), law, (None,) * len(shapes), goodput=True)


def chosen(drafts, *, draft=None, target=None, longest=128, **more):
    """Plan for the bench, where attention is free."""
    target = target or tables(STEP_S, TOKEN_S)
    model = rig.step_model(1, target=target, draft=draft, plan=drafts.plan, **{"max_batched_tokens": 4_000, **more})
    return goodput_plan(model, drafts, longest)


def gammas(plan):
    """γ by batch and context."""
    return np.array([[plan.shapes[i].depth for i in row] for row in plan.choice])


# By arithmetic


@settings(max_examples=25, deadline=None)
@given(
    st.floats(0.05, 0.99), st.sampled_from(["after", "padded", "before", "none"]), st.floats(0.0, 1.0),
    st.integers(0, 1), st.booleans(),
)  # fmt: skip
def test_it_is_the_best_of_rates_worked_out_by_hand(alpha, reads, share, keeps_up, overlap):
    # T = h + B·s + max(V + wait(D), hidden), with V = 1 + 0.03·B·(γ + 1) and a drafter's pass 0.1 + 0.01 per token.
    host = {
        "host_step_s": 0.05,
        "host_per_sequence_s": 0.001,
        "host_speculative_round_s": 0.04,
        "host_draft_pass_s": 0.02,
    }
    plan = chosen(
        chains(Acceptance((alpha,))), draft=tables(DRAFT_S, DRAFT_TOKEN_S), draft_padded=int(reads == "padded"),
        draft_first=int(reads == "before"), draft_reads=int(reads != "none"), draft_share=share, max_sequences=64,
        draft_keeps_up=keeps_up, overlap=int(overlap), host_hidden_step_s=1.4, **host,
    )  # fmt: skip
    for batch, found in zip(plan.batches, gammas(plan), strict=True):
        rate = []
        for gamma in range(LONGEST + 1):
            tokens = sum(alpha**j for j in range(gamma + 1))
            verify_s = STEP_S + TOKEN_S * batch * (gamma + 1)
            new = {"after": tokens, "padded": gamma + 1, "before": 2, "none": 1}[reads]
            first_s, further_s = DRAFT_S + DRAFT_TOKEN_S * round(batch * new), DRAFT_S + DRAFT_TOKEN_S * batch
            passes = max(gamma, 1 if keeps_up and reads in ("after", "padded") else 0)
            draft_s = (first_s + (passes - 1) * further_s + passes * 0.02) if passes else 0.0
            waited_s = share * draft_s + (1 - share) * max(0.0, draft_s - verify_s)
            gpu_s = verify_s + waited_s
            host_s = 0.05 + 0.001 * batch + (0.04 if gamma else 0.0)
            rate.append(tokens / (host_s + (max(gpu_s, 1.4) if overlap else gpu_s + 1.4)))
        assert (found == found[0]).all()
        assert rate[found[0]] >= max(rate) * (1 - 1e-12)


def test_of_equals_the_one_with_fewer_drafts():
    # Nothing costs anything and nothing is kept: all are alike.
    plan = chosen(chains(Acceptance((0.0,)), 0), target=tables(1.0))
    assert (gammas(plan) == 0).all()


@pytest.mark.parametrize("passes", [None, 0])
def test_of_what_is_free_and_perfect_there_cannot_be_too_much(passes):
    plan = chosen(chains(Acceptance((1.0,)), passes), draft=tables(0.0) if passes is None else None, target=tables(1.0))
    assert (gammas(plan) == LONGEST).all()


@pytest.mark.parametrize("passes", [None, 0])
def test_what_is_never_kept_is_not_drafted(passes):
    plan = chosen(chains(Acceptance((0.0,)), passes), draft=tables(0.1) if passes is None else None)
    assert (gammas(plan) == 0).all()


def test_the_larger_the_batch_the_fewer_drafts():
    found = gammas(chosen(chains(Acceptance((0.8,))), draft=tables(DRAFT_S, DRAFT_TOKEN_S), max_sequences=512))[:, 0]
    assert (np.diff(found) <= 0).all()
    assert found[0] == LONGEST
    assert found[-1] == 0


@given(st.integers(1, 512), st.integers(2, 400))
@settings(max_examples=25, deadline=None)
def test_no_more_is_chosen_than_the_token_budget_holds(sequences, budget):
    free = chains(Acceptance((1.0,)), 0)
    plan = chosen(free, target=tables(1.0), max_sequences=512, max_batched_tokens=max(LONGEST + 1, budget))
    shape = plan.shape(sequences, 0.0)
    batch = plan.batches[plan.batches <= sequences][-1]
    assert shape is PLAIN or batch * (shape.nodes + 1) <= max(LONGEST + 1, budget)
    assert shape.depth == max((g for g in range(LONGEST + 1) if batch * (g + 1) <= max(LONGEST + 1, budget)), default=0)


def test_every_batch_and_context_has_an_entry():
    plan = chosen(chains(Acceptance((0.8,)), 0), max_sequences=100, longest=9_000)
    assert plan.batches[0] == 1
    assert plan.contexts[0] == 0
    assert (np.diff(plan.batches) > 0).all()
    assert (np.diff(plan.contexts) > 0).all()
    assert plan.choice.shape == (len(plan.batches), len(plan.contexts))
    # A quarter of a doubling apart, or a whole number.
    assert all(b <= max(a + 1, a * 2**0.25 + 1) for a, b in zip(plan.batches, plan.batches[1:], strict=False))
    assert plan.batches[-1] * 2**0.25 >= 100 - 1
    assert plan.contexts[-1] * 2**0.25 >= 9_000 - 1


def test_rounds_without_a_match_are_not_paid_for():
    # A match in a tenth of the rounds: 1 + 0.1·γ tokens for 0.03 s each.
    law = Acceptance((1.0,), match_probability=0.1)
    plan = chosen(chains(law, 0), max_sequences=64)
    for batch, found in zip(plan.batches, gammas(plan)[:, 0], strict=True):
        rate = [(1 + 0.1 * g) / (STEP_S + TOKEN_S * batch * (1 + 0.1 * g)) for g in range(LONGEST + 1)]
        assert found == np.argmax(rate) == LONGEST
    # Padded, all pay as soon as one finds something.
    padded = gammas(chosen(chains(law, 0), max_sequences=64, padded=1))[:, 0]
    for batch, found in zip(plan.batches, padded, strict=True):
        nobody = 0.9**batch
        rate = [
            (1 + 0.1 * g) / (STEP_S + TOKEN_S * batch * (1 + (1 - nobody) * g)) if g else 1 / (STEP_S + TOKEN_S * batch)
            for g in range(LONGEST + 1)
        ]
        assert rate[found] >= max(rate) * (1 - 1e-12)


def test_a_tree_shrinks_as_the_batch_grows():
    law = Acceptance((0.6,))
    trees = [StaticYield(Tree.from_branching(width), RankLaw.typical(law.rates)) for width in ((2,), (3, 2), (4, 3, 2))]
    shapes = [PLAIN, *(one.tree.shape(0) for one in trees)]
    drafts = Drafts(by_table(shapes, [1], [0], [[1]]), law, (None, *trees), goodput=True)
    plan = chosen(drafts, max_sequences=256)
    tokens = [1.0, *(drafts.law_of(i).live_tokens(shapes[i].depth) for i in (1, 2, 3))]
    for batch, row in zip(plan.batches, plan.choice, strict=True):
        rate = [t / (STEP_S + TOKEN_S * batch * (s.nodes + 1)) for t, s in zip(tokens, shapes, strict=True)]
        assert row[0] == np.argmax(rate)
    assert len(set(plan.choice[:, 0])) >= 3


# By the cost model


SERVED = {
    "model": ("llama-3.1-8b", "llama-3.2-1b"), "eagle3": ("llama-3.1-8b", "eagle3-llama-3.1-8b"),
    "medusa": ("vicuna-7b", "medusa-vicuna-7b"), "ngram": ("llama-3.1-8b", "ngram"),
    "apart": ("llama-3.1-8b", "parallel-llama-3.2-1b"),
}  # fmt: skip
RATES = {"medusa": 0.5, "ngram": {"alpha": 0.6, "match_probability": 0.4}}
MOST = 5


def scenario(kind, users, policy="goodput", gamma=MOST, answer=300, **more):
    target, draft = SERVED[kind]
    return load_scenario({
        "model": target, "gpu": "h100-sxm", "warmup": 0,
        "traffic": {
            "kind": "closed-loop", "users": users, "requests": 4 * users, "think_time_s": 0.0,
            "lengths": {"prompt": 64, "output": answer},
        },
        "speculation": {
            "draft": draft, "gamma": gamma, "acceptance": RATES.get(kind, 0.6), "policy": policy, **more,
        },
    })  # fmt: skip


@lru_cache
def simulated(*asked, **more):
    return simulate(scenario(*asked, **more))


def plain_s(served, batch, context):
    """A step of plain decoding, and the pass by which a drafter that keeps up reads on."""
    seconds = round_cost(served.target, served.engine, sequences=batch, context_tokens=context).seconds
    if served.drafter.catches_up == "each-step" and served.drafter.reads_prompts:
        tokens = np.array([float(batch)])
        seconds += float(served.draft.linear(tokens)[0]) + served.draft.attention((1,) * batch, (context,) * batch)
        if isinstance(served.draft, DraftCost):
            seconds += float(served.draft.intake(tokens)[SECONDS, 0])
        seconds += served.engine.host_draft_pass_s
    return seconds


@pytest.mark.parametrize("kind", SERVED)
def test_its_choice_is_the_closed_form_s(kind):
    result = simulated(kind, 2)
    served, drafts, plan = result.deployment, result.main.drafts, result.main.plan
    shapes = drafts.plan.shapes
    assert [shape.depth for shape in shapes] == list(range(MOST + 1))
    seen = set()
    for row in range(0, len(plan.batches), 5):
        for column in range(0, len(plan.contexts) - 1, 9):
            batch, context = int(plan.batches[row]), int(plan.contexts[column] + plan.contexts[column + 1]) // 2
            rate = [1.0 / plain_s(served, batch, context)]
            for i, shape in enumerate(shapes[1:], 1):
                cost = round_cost(
                    served.target, served.engine, sequences=batch, context_tokens=context, draft=served.draft,
                    drafter=served.drafter, shape=shape, acceptance=drafts.law_of(i),
                )  # fmt: skip
                rate.append(cost.tokens_per_sequence / cost.seconds)
            found = int(plan.choice[row, column])
            seen.add(found)
            # Two ways to interpolate attention differ by less than this.
            assert rate[found] >= max(rate) * 0.995, (batch, context, rate)
    assert len(seen) >= 3


NOISE = 0.01
"""Prompts share some steps, and batches are not always whole."""


@pytest.mark.parametrize("users", [2, 64, 200])
@pytest.mark.parametrize("kind", ["model", "eagle3", "medusa", "ngram"])
def test_no_fixed_gamma_serves_more(kind, users):
    def rate(run):
        requests = run.requests
        assert (requests["status"] == state.FINISHED).all()
        return 299 / (requests["finish_s"] - requests["first_token_s"]).mean()

    fixed = [rate(simulated(kind, users, "fixed", gamma).main) for gamma in range(1, MOST + 1)]
    best = rate(simulated(kind, users).main)
    assert best >= max(fixed) * (1 - NOISE)
    # No more than who knows what will be kept, at his best γ or plainly.
    known = [rate(simulated(kind, users, "oracle", gamma).main) for gamma in range(1, MOST + 1)]
    plain = rate(simulated(kind, users).plain)
    assert max(*known, plain) >= best * (1 - NOISE)
    for one, other in zip(known, fixed, strict=True):
        assert one >= other * (1 - NOISE)  # at the same γ knowing never hurts
    # A drafter that reads later pays for every change between drafting and not; one look-up or pass less is no loss.
    assert best >= plain * (1 - NOISE) or kind == "model"


def test_a_tree_is_sized_by_the_batch():
    tree = {"nodes": 48, "depth": 4}
    few = simulate(scenario("eagle3", 2, tree=tree))
    plan, shapes = few.main.plan, few.main.drafts.plan.shapes
    nodes = [shapes[i].nodes for i in plan.choice[:, 8]]
    assert nodes[0] > 8 > nodes[-1]
    assert nodes == sorted(nodes, reverse=True)
    many = simulate(scenario("eagle3", 128, tree=tree))
    fixed = simulate(scenario("eagle3", 128, "fixed", tree=tree))
    tpot_s = [(r.main.requests["finish_s"] - r.main.requests["first_token_s"]).mean() for r in (many, fixed)]
    assert tpot_s[0] < tpot_s[1]


def test_a_step_may_hold_fewer_tokens_than_the_batch_has_places():
    found = scenario("eagle3", 64)
    small = found.model_copy(update={"engine": found.engine.model_copy(update={"max_batched_tokens": 16})})
    result = simulate(small)
    assert (result.main.requests["status"] == state.FINISHED).all()
    assert result.main.plan.batches[-1] <= 16
