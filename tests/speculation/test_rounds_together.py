"""Rounds priced together are the rounds priced one by one, whatever stands beside them."""

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.deployment import Deployment, deploy
from simulator.engine import load_engine
from simulator.speculation.acceptance import Acceptance
from simulator.speculation.round import Ask, RoundCost, expected, round_cost, round_costs, with_work
from simulator.speculation.shape import DraftShape

KINDS = {
    "model": ("llama-3.1-8b", "llama-3.2-1b", {}), "eagle": ("llama-3.1-8b", "eagle-llama-3.1-8b", {}),
    "eagle3": ("gpt-oss-20b", "eagle3-gpt-oss-20b", {}), "medusa": ("vicuna-7b", "medusa-vicuna-7b", {}),
    "mtp": ("deepseek-v3", "mtp-deepseek-v3", {"tp": 8}), "spread mtp": ("deepseek-v3", "mtp", {"tp": 8, "ep": 16}),
    "ngram": ("llama-3.1-8b", "ngram", {}), "suffix": ("llama-3.1-8b", "suffix", {"pp": 2}),
    "early-exit": ("llama-2-7b", "early-exit-llama-2-7b", {}), "lookahead": ("llama-2-7b", "lookahead", {}),
    "sparse-kv": ("llama-3.1-8b", "sparse-kv-512", {}), "apart": ("llama-3.1-8b", "parallel-llama-3.2-1b", {}),
    "pipeline": ("llama-3.1-70b", "llama-3.2-1b", {"tp": 2, "pp": 4}),
}  # fmt: skip
ENGINES = ("vllm", "sglang", "tensorrt-llm", "reference", "ideal")
FIGURES = (
    "verify_s", "draft_s", "host_s", "tokens_per_sequence", "drafted_per_sequence", "draft_busy_s", "bytes_per_token",
    "wasted_flop_per_token", "wasted_bytes_per_token", "joules_per_token", "wasted_joules_per_token",
)  # fmt: skip


@cache
def served(kind: str, engine: str) -> Deployment:
    target, draft, layout = KINDS[kind]
    return deploy(target, "h200", draft=draft, engine=engine, **layout)


def figures(cost: RoundCost) -> list[float]:
    return [getattr(cost, name) for name in FIGURES]


rounds = st.lists(
    st.tuples(st.integers(0, 5), st.integers(1, 300), st.integers(1, 4000)), min_size=1, max_size=6
)  # γ, batch, context
laws = st.builds(Acceptance, st.tuples(st.floats(0.0, 1.0)), st.sampled_from([0.0, 0.2]), st.sampled_from([1.0, 0.3]))


@settings(max_examples=60)
@given(st.sampled_from(list(KINDS)), st.sampled_from(ENGINES), st.booleans(), laws, rounds)
def test_together_and_one_by_one(kind, engine, padded, law, listed):
    on = served(kind, engine)
    rules = on.engine.settings.model_copy(update={"verify": "padded" if padded else "ragged"})
    on = replace(on, engine=replace(on.engine, settings=rules))
    asks = [Ask(b, c, (s := on.drafter.shape(g)), *expected(law, s.depth)) for g, b, c in listed]
    plain = [Ask(b, c, drafter=False) for _, b, c in listed]
    together = with_work(round_costs(on.target, on.engine, [*plain, *asks], draft=on.draft, drafter=on.drafter))
    for (gamma, batch, context), cost in zip(listed, together[len(listed) :], strict=True):
        alone = round_cost(
            on.target, on.engine, sequences=batch, context_tokens=context, gamma=gamma, acceptance=law,
            draft=on.draft, drafter=on.drafter,
        )  # fmt: skip
        assert (cost.sequences, cost.gamma) == (alone.sequences, alone.gamma) == (batch, gamma)
        assert figures(cost) == pytest.approx(figures(alone), rel=1e-12, abs=1e-300)
    for (_, batch, context), cost in zip(listed, together, strict=False):
        alone = round_cost(on.target, on.engine, sequences=batch, context_tokens=context)
        assert figures(cost) == pytest.approx(figures(alone), rel=1e-12, abs=1e-300)


def test_a_tree_beside_chains():
    on, law = served("eagle", "vllm"), Acceptance((0.7,))
    tree = DraftShape(12, 3, (1, 4, 4))
    asks = [Ask(b, 1000, shape, *expected(law, 3)) for b in (1, 16) for shape in (tree, on.drafter.shape(3))]
    together = round_costs(on.target, on.engine, asks, draft=on.draft, drafter=on.drafter)
    for ask, cost in zip(asks, together, strict=True):
        alone = round_cost(
            on.target, on.engine, sequences=ask.sequences, context_tokens=1000, shape=ask.shape, acceptance=law,
            draft=on.draft, drafter=on.drafter,
        )  # fmt: skip
        assert figures(cost) == pytest.approx(figures(alone), rel=1e-12)
    assert together[0].verify_s > together[1].verify_s


def test_nothing_to_price():
    on = served("model", "vllm")
    assert round_costs(on.target, load_engine("vllm"), [], draft=on.draft) == []
    assert with_work([]) == []
