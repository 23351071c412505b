"""Formulas of speculation against the simulated loop, within the confidence interval: tokens per round of every law in a batch that
is kept full, and the time of a round of every drafter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simulator import load_scenario, simulate
from simulator.serving import model, state
from simulator.serving.drafts import Drafts
from simulator.serving.pool import Pool
from simulator.serving.simulation import acceptance_of
from simulator.speculation.acceptance import Acceptance, Repetition
from simulator.speculation.policies import BY_ORACLE, BY_PAST, always, off_above
from simulator.speculation.ranks import RankLaw
from simulator.speculation.round import round_cost, waited_draft_s
from simulator.speculation.shape import chain
from simulator.speculation.tree import Tree
from simulator.speculation.tree_config import TreeConfig
from simulator.speculation.tree_law import StaticYield
from tests.serving.plain import rig
from tests.serving.rig import fresh, tables, traffic

SURE = 4.0
"""Standard errors of a confidence interval; seeds are fixed."""
USERS, REQUESTS, ANSWER = 8, 300, 6_000
BY_DEPTH = (0.9, 0.7, 0.5)
LAWS = {
    "by depth": Acceptance(BY_DEPTH),
    "certain": Acceptance((1.0,)),
    "hopeless": Acceptance((0.0,)),
    "requests differ": Acceptance(BY_DEPTH, request_icc=0.2),
    "stretches": Acceptance(BY_DEPTH, stretch_icc=0.4, mean_stretch_tokens=20.0),
    "long stretches": Acceptance((0.7,), stretch_icc=0.3, mean_stretch_tokens=200.0),
    "requests and stretches": Acceptance(BY_DEPTH, request_icc=0.1, stretch_icc=0.3, mean_stretch_tokens=8.0),
    "matches": Acceptance((0.8,), match_probability=0.4),
    "runs of matches": Acceptance((0.8,), match_probability=0.4, match_tokens=30.0),
    "short runs, requests differ": Acceptance((0.8,), match_probability=0.3, match_tokens=3.0, request_icc=0.1),
    "loops": Acceptance((0.5,), repetition=Repetition(every_tokens=300, tokens=60, conditional=0.98)),
    "loops and stretches": Acceptance(
        (0.6,), stretch_icc=0.2, mean_stretch_tokens=6.0, repetition=Repetition(every_tokens=400, tokens=100, conditional=1.0)
    ),
}  # fmt: skip
APPROXIMATE = {"loops": 0.01, "loops and stretches": 0.01}
"""Of loops the closed form says that they are much longer than rounds."""


def full_batch(drafts: Drafts, *, seed=0, answer=ANSWER, requests=REQUESTS, events=0, **more):
    """(records, pool) of users who always ask again, so that the batch stays as it is."""
    work = traffic(
        [0.0] * USERS + [np.nan] * (requests - USERS), [4] * requests, [answer] * requests, users=USERS, think_s=0.0
    )
    rates, row_of = drafts.rates(drafts.law, seed, np.full(requests, answer), 0)
    law = drafts.law
    one = rig.step_model(
        requests, plan=drafts.plan, columns=drafts.columns, seed=seed, total_blocks=1 << 20,
        match_probability=1.0 if law.matches_in_stretches else law.match_probability, **more,
    )  # fmt: skip
    one = replace(
        one, acceptance=np.ascontiguousarray(rates), row_of=row_of, stretch_bounds=np.cumsum(law.stretch_weights),
        stretch_renewal=1.0 / law.stretch_tokens, proposes=law.stretch_proposes.astype(np.int64),
    )  # fmt: skip
    work = fresh(work)
    pool = Pool(model.Fleet([one], np.zeros(1, dtype=np.int64)), work, events=events)
    pool.serve()
    return work.requests, pool


def assert_tokens_per_round(requests, expected, depth, rel=0.0):
    """Tokens over rounds are `expected`: of n requests a ratio of means, whose error is that of N_r − τ·R_r; the last round of an
    answer may be cut by `depth` tokens."""
    tokens, rounds = requests["output_tokens"] - 1.0, requests["decode_rounds"].astype(float)
    ratio = tokens.sum() / rounds.sum()
    error = (tokens - ratio * rounds).std(ddof=1) * np.sqrt(len(requests)) / rounds.sum()
    cut = depth / ANSWER * expected
    assert ratio == pytest.approx(expected, abs=SURE * error + cut + rel * expected)
    assert error < 0.02 * expected  # else it says nothing


# Tokens per round


@pytest.mark.parametrize("name", LAWS)
def test_a_chain_yields_what_its_law_says(name):
    law, gamma = LAWS[name], 4
    requests, _ = full_batch(Drafts(always(chain(gamma, 0)), law, (None, None)))
    assert (requests["generated_tokens"] == ANSWER).all()
    assert_tokens_per_round(requests, law.live_tokens(gamma), gamma, APPROXIMATE.get(name, 0.0))


@pytest.mark.parametrize("gamma", [1, 2, 8])
def test_at_every_depth(gamma):
    law = LAWS["requests and stretches"]
    requests, _ = full_batch(Drafts(always(chain(gamma, 0)), law, (None, None)), seed=gamma)
    assert_tokens_per_round(requests, law.live_tokens(gamma), gamma)


@pytest.mark.parametrize("name", ["by depth", "requests differ", "stretches", "requests and stretches", "matches"])
@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_a_tree_yields_what_its_law_says(name, kind):
    config = TreeConfig(branching=(3, 2, 1)) if kind == "static" else TreeConfig(nodes=12, depth=4, kind="dynamic")
    found = config.resolve(LAWS[name], passes=0)
    drafts = Drafts(always(found.shape), found.law.base, (None, found.law.through))
    requests, _ = full_batch(drafts)
    assert drafts.tokens()[1] == found.law.live_tokens(found.shape.depth) > LAWS[name].live_tokens(found.shape.depth)
    assert_tokens_per_round(requests, drafts.tokens()[1], found.shape.depth)


def test_a_tree_of_one_path_is_the_chain():
    law = LAWS["requests and stretches"]
    tree = StaticYield(Tree.chain(3), RankLaw.typical(law.rates))
    path, _ = full_batch(Drafts(always(chain(3, 0)), law, (None, tree)), requests=40)
    plain, _ = full_batch(Drafts(always(chain(3, 0)), law, (None, None)), requests=40)
    assert (path["decode_rounds"] == plain["decode_rounds"]).all()


@pytest.mark.parametrize("name", ["by depth", "stretches", "requests differ"])
def test_accepted_lengths_are_distributed_as_the_law_says(name):
    law, gamma, answer = LAWS[name], 3, 3_000
    requests, pool = full_batch(
        Drafts(always(chain(gamma, 0)), law, (None, None)), answer=answer, events=1 << 20, seed=3
    )
    events = pool.arrays.records.events[0, : pool.replicas[0].events]
    emitted = events[events["kind"] == state.EMITTED]
    by_request = np.zeros((len(requests), gamma + 2))
    np.add.at(by_request, (emitted["request"], emitted["value"]), 1.0)
    by_request[:, 1] -= 1.0  # of the prompt
    assert by_request[:, 1:].sum() == requests["decode_rounds"].sum()
    # In a batch that is kept full a request counts as often as it has rounds.
    rounds = by_request[:, 1:].sum(axis=1)
    tau = (answer - 1.0) / rounds
    shares = by_request[:, 1:] / rounds[:, None]
    error = shares.std(axis=0, ddof=1) / np.sqrt(len(requests))
    by_mean_request = law.length_distribution(gamma)
    assert shares.mean(axis=0) == pytest.approx(by_mean_request, abs=SURE * error.max() + 3.0 * gamma / answer)
    assert tau.mean() == pytest.approx(law.expected_tokens(gamma), rel=0.02)


# Seconds per round


@pytest.mark.parametrize("share", [1.0, 0.6, 0.0])
@pytest.mark.parametrize("draft_s", [0.1, 0.5])
def test_a_round_beside_a_drafter_of_its_own(share, draft_s):
    # Three passes beside a verification of 1 s, 2,000 tokens by 8 users without end; prompts have steps too.
    requests, _ = full_batch(
        Drafts(always(chain(3)), Acceptance((1.0,)), (None, None)), requests=USERS, answer=2_001,
        draft=tables(draft_s), draft_share=share, host_draft_pass_s=0.05,
    )  # fmt: skip
    drafting_s = 3 * (draft_s + 0.05)
    round_s = 1.0 + waited_draft_s(drafting_s, 1.0, share)
    lasted_s = requests["finish_s"] - requests["first_token_s"]
    assert lasted_s == pytest.approx(
        np.full(USERS, 499 * round_s + 1.0), rel=1e-12
    )  # nothing is drafted after the last
    assert share * drafting_s <= waited_draft_s(drafting_s, 1.0, share) <= drafting_s


SERVED = {
    "model": ("llama-3.1-8b", "llama-3.2-1b"), "eagle": ("llama-3.1-8b", "eagle-llama-3.1-8b"),
    "eagle3": ("llama-3.1-8b", "eagle3-llama-3.1-8b"), "medusa": ("vicuna-7b", "medusa-vicuna-7b"),
    "mtp": ("deepseek-v3", "mtp-deepseek-v3"), "ngram": ("llama-3.1-8b", "ngram"), "suffix": ("llama-3.1-8b", "suffix"),
    "early-exit": ("llama-2-7b", "early-exit-llama-2-7b"), "lookahead": ("llama-2-7b", "lookahead"),
    "sparse-kv": ("llama-3.1-8b", "sparse-kv-512"), "apart": ("llama-3.1-8b", "parallel-llama-3.2-1b"),
}  # fmt: skip
ROUND = 0.015
"""Relative difference between the round of the mean context and the mean of all rounds; prompts share 4 in some hundred steps."""


def steady(kind, users, gamma=3, acceptance=0.7, answer=1_000, prompt=64, **more):
    """(TPOT simulated, its round by the closed form, tokens per round simulated), of users who ask four times, one after the other."""
    target, draft = SERVED[kind]
    scenario = load_scenario({
        "model": target, "gpu": "h200-sxm", "tp": 8 if target == "deepseek-v3" else 1, "warmup": 0,
        "traffic": {
            "kind": "closed-loop", "users": users, "requests": 4 * users, "think_time_s": 0.0,
            "lengths": {"prompt": prompt, "output": answer},
        },
        "speculation": {"draft": draft, "gamma": gamma, "acceptance": acceptance, **more},
    })  # fmt: skip
    result = simulate(scenario)
    served, requests, drafts = result.deployment, result.main.requests, result.main.drafts
    tpot_s = ((requests["finish_s"] - requests["first_token_s"]) / (answer - 1)).mean()
    tokens = (answer - 1) * len(requests) / requests["decode_rounds"].sum()
    cost = round_cost(
        served.target, served.engine, sequences=users, context_tokens=prompt + answer // 2, draft=served.draft,
        drafter=served.drafter, shape=drafts.plan.shapes[-1], acceptance=drafts.law_of(1),
    )  # fmt: skip
    assert acceptance_of(scenario, served) == drafts.law
    return tpot_s, cost, tokens


@pytest.mark.parametrize("kind", SERVED)
def test_a_steady_batch_has_the_closed_form_s_tpot(kind):
    tpot_s, cost, tokens = steady(kind, 8)
    # Luck apart: seconds per round.
    assert tpot_s * tokens == pytest.approx(cost.seconds, rel=ROUND)
    assert tokens == pytest.approx(cost.tokens_per_sequence, rel=0.02)


@pytest.mark.parametrize("kind", ["model", "eagle3", "ngram", "apart"])
def test_a_large_steady_batch_too(kind):
    tpot_s, cost, tokens = steady(kind, 64, answer=2_000)
    assert tpot_s * tokens == pytest.approx(cost.seconds, rel=ROUND)


@pytest.mark.parametrize("users", [1, 4, 32])
@pytest.mark.parametrize(
    "law", [{"alpha": 0.7, "match_probability": 0.4}, {"alpha": 0.7, "match_probability": 0.4, "match_tokens": 40}]
)
def test_a_steady_batch_that_finds_something_now_and_then(users, law):
    tpot_s, cost, tokens = steady("ngram", users, acceptance=law, answer=4_000 if users < 32 else 2_000)
    assert tpot_s * tokens == pytest.approx(cost.seconds, rel=0.02)


@pytest.mark.parametrize(
    "tree", [[[0], [1], [0, 0], [0, 1], [1, 0], [0, 0, 0]], {"nodes": 24, "depth": 4, "kind": "dynamic", "top_k": 4}]
)
@pytest.mark.parametrize("kind", ["eagle", "model"])
def test_a_steady_batch_of_trees(kind, tree):
    tpot_s, cost, tokens = steady(kind, 8, tree=tree)
    assert tpot_s * tokens == pytest.approx(cost.seconds, rel=ROUND)
    assert tokens == pytest.approx(cost.tokens_per_sequence, rel=0.03)


# The oracle


def test_the_oracle_needs_the_fewest_rounds():
    # As many as the deepest chain always. Shorter rounds begin at other positions, where luck is other, so that one request may
    # be luckier with them, but not many together.
    law = LAWS["requests differ"]
    rounds = {
        name: full_batch(Drafts(plan, law, (None,) * len(plan.shapes)), answer=1_000)[0]["decode_rounds"]
        for name, plan in {
            "oracle": always(chain(4, 0), BY_ORACLE), "chain": always(chain(4, 0)), "past": always(chain(4, 0), BY_PAST),
            "shorter": always(chain(3, 0)), "off": off_above(chain(4, 0), USERS - 1),
        }.items()
    }  # fmt: skip
    assert (rounds["oracle"] == rounds["chain"]).all()
    for name in ("past", "shorter", "off"):
        more = (rounds[name] - rounds["oracle"]).astype(float)
        assert more.mean() > SURE * more.std(ddof=1) / np.sqrt(len(more)), name
