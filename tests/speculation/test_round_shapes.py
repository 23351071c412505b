"""Rounds of every kind of drafter and of trees: equal to their passes, to each other where they should be, and to plain decoding
at γ = 0."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import catalog
from simulator.cost.forward import Batch
from simulator.deployment import Deployment, deploy
from simulator.engine import load_engine
from simulator.speculation.acceptance import Acceptance
from simulator.speculation.drafters import load_drafter
from simulator.speculation.round import RoundCost, round_cost, waited_draft_s
from simulator.speculation.shape import DraftShape
from simulator.speculation.tree_cost import tree_extra_s

VLLM = load_engine("vllm")
LAW = Acceptance((0.8,))
KINDS = {
    "model": ("llama-3.1-8b", "llama-3.2-1b"), "eagle": ("llama-3.1-8b", "eagle-llama-3.1-8b"),
    "eagle3": ("llama-3.1-8b", "eagle3-llama-3.1-8b"), "medusa": ("vicuna-7b", "medusa-vicuna-7b"),
    "mtp": ("deepseek-v3", "mtp-deepseek-v3"), "ngram": ("llama-3.1-8b", "ngram"), "suffix": ("llama-3.1-8b", "suffix"),
    "early-exit": ("llama-2-7b", "early-exit-llama-2-7b"), "lookahead": ("llama-2-7b", "lookahead"),
    "sparse-kv": ("llama-3.1-8b", "sparse-kv-512"), "apart": ("llama-3.1-8b", "parallel-llama-3.2-1b"),
}  # fmt: skip


def deployment_of(kind: str) -> Deployment:
    target, draft = KINDS[kind]
    return deploy(target, "b200", tp=8 if target == "deepseek-v3" else 1, draft=draft)


def round_of(served: Deployment, law: Acceptance = LAW, sequences: int = 4, context: int = 1000, **ask) -> RoundCost:
    return round_cost(
        served.target, ask.pop("engine", served.engine), sequences=sequences, context_tokens=context, acceptance=law,
        draft=served.draft, drafter=served.drafter, **ask,
    )  # fmt: skip


def test_every_kind_is_here():
    kinds = {load_drafter(name).kind for name in catalog.names("drafter")}
    assert kinds | {"apart"} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_no_drafts_are_plain_decoding_exactly(kind):
    served = deployment_of(kind)
    plain = round_cost(served.target, served.engine, sequences=4, context_tokens=1000)
    cost = round_of(served, gamma=0)
    assert (cost.verify_s, cost.draft_s, cost.host_s) == (plain.verify_s, 0.0, plain.host_s)
    assert (cost.tokens_per_sequence, cost.wasted_tokens_per_sequence) == (1.0, 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_verifies_its_nodes_and_one(kind):
    served = deployment_of(kind)
    nodes = served.drafter.shape(3).nodes
    assert nodes == (90 if kind == "lookahead" else 3)
    cost = round_of(served, gamma=3)
    masked_s = tree_extra_s(served.target, served.drafter.shape(3), 4, 1000, cost.tokens_per_sequence - 1.0)
    assert (masked_s > 0.0) == (kind == "lookahead")
    assert cost.verify_s == pytest.approx(served.target.seconds(Batch.decode(4, 1000, nodes + 1)) + masked_s, rel=1e-12)
    assert cost.tokens_per_sequence == pytest.approx(1 + 0.8 + 0.64 + 0.512)
    assert cost.drafted_per_sequence == nodes


@pytest.mark.parametrize("kind", ["early-exit", "sparse-kv", "medusa"])
def test_a_drafter_in_the_target_s_cache_reads_one_token(kind):
    # Whatever was accepted, verification has left its keys and values in the cache.
    served = deployment_of(kind)
    draft, passes = served.draft, served.drafter.shape(3).passes
    first = draft.linear(np.array([4.0]))[0] + draft.head(np.array([4.0]))[0]
    expected = passes * first + draft.attention((1,) * 4, (1000,) * 4)
    expected += (passes - 1) * draft.attention((1,) * 4, (1000 + passes // 2,) * 4)
    assert round_of(served, gamma=3).draft_s == pytest.approx(expected, rel=1e-12)
    assert round_of(served, gamma=3).host_s == pytest.approx(VLLM.host_s(4, passes, speculating=True), rel=1e-12)


def test_medusa_passes_all_heads_once_whatever_it_drafts():
    served = deployment_of("medusa")
    assert round_of(served, gamma=1).draft_s == round_of(served, gamma=5).draft_s


def test_eagle3_takes_the_features_of_new_tokens_in_once():
    served = deployment_of("eagle3")
    draft, tokens = served.draft, np.array([4 * 4.0])  # vLLM pads to γ + 1 of each
    bare = draft.linear(np.array([16.0, 4.0, 4.0])).sum() + 3 * draft.head(np.array([4.0]))[0]
    bare += draft.attention((4,) * 4, (1000,) * 4) + 2 * draft.attention((1,) * 4, (1001,) * 4)
    assert round_of(served, gamma=3).draft_s == pytest.approx(bare + draft.intake(tokens)[0, 0], rel=1e-12)


def test_a_padded_engine_verifies_for_all_what_one_has_found():
    served = deployment_of("ngram")
    padded = replace(VLLM, settings=VLLM.settings.model_copy(update={"verify": "padded"}))
    law = Acceptance((0.8,), match_probability=0.3)
    one, five = (served.target.seconds(Batch.decode(4, 1000, n)) for n in (1, 5))
    cost = round_of(served, law, gamma=4, engine=padded)
    nobody = 0.7**4
    assert cost.verify_s == pytest.approx(nobody * one + (1 - nobody) * five)
    assert cost.drafted_per_sequence == pytest.approx(4 * 0.3)
    # Padding is work for nobody; with a match for everybody there is none.
    ragged = round_of(served, law, gamma=4)
    assert cost.wasted_flop_per_token > ragged.wasted_flop_per_token
    assert round_of(served, gamma=4, engine=padded) == round_of(served, gamma=4)


# Trees


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gamma", [1, 4])
def test_a_chain_is_a_chain_however_it_is_named(kind, gamma):
    served = deployment_of(kind)
    assert round_of(served, shape=served.drafter.shape(gamma)) == round_of(served, gamma=gamma)


def test_a_tree_by_its_passes():
    served = deployment_of("eagle3")
    shape, draft = DraftShape(14, 3, (1, 2, 4)), served.draft
    cost = round_of(served, Acceptance((0.9, 0.8, 0.7)), shape=shape)
    verify_s = served.target.seconds(Batch.decode(4, 1000, 15)) + tree_extra_s(served.target, shape, 4, 1000, 2.124)
    assert cost.verify_s == pytest.approx(verify_s, rel=1e-12)
    new = 4 * 4.0  # the deepest path and one more, of each
    expected = draft.linear(np.array([new, 8.0, 16.0])).sum() + draft.head(np.array([4.0, 8.0, 16.0])).sum()
    expected += draft.intake(np.array([new]))[0, 0] + draft.attention((4,) * 4, (1000,) * 4)
    expected += sum(draft.attention((width,) * 4, (1003,) * 4) for width in (2, 4))
    assert cost.draft_s == pytest.approx(expected, rel=1e-12)
    assert cost.tokens_per_sequence == pytest.approx(1 + 0.9 + 0.72 + 0.504)
    assert cost.wasted_tokens_per_sequence == pytest.approx(14 - (0.9 + 0.72 + 0.504))


# On GPUs of its own


def apart(tmp_path: Path, hit: float | None, draft: str = "llama-3.2-1b") -> Deployment:
    fields = {"tp": 1} if hit is None else {"parallel": {"gpus": 1, "hit": hit}}
    path = tmp_path / f"apart-{hit}.yaml"
    path.write_text(yaml.safe_dump({"name": path.stem, "title": "A", "kind": "model", "model": draft, **fields}))
    return deploy("llama-3.1-8b", "h100", draft=str(path))


@pytest.mark.parametrize("gamma", [1, 4, 8])
def test_what_never_hits_is_serial(tmp_path, gamma):
    serial, never = (round_of(apart(tmp_path, hit), gamma=gamma) for hit in (None, 0.0))
    assert never == serial
    assert never.seconds == serial.seconds


@settings(max_examples=30)
@given(hit=st.floats(0.0, 1.0), gamma=st.integers(1, 4), batch=st.integers(1, 32))
def test_the_hit_rate_hides_its_share_of_drafting(tmp_path_factory, hit, gamma, batch):
    # DESIGN §4: T_verify + (1 − hit)·T_draft, as long as drafting is not the longer of the two.
    folder = tmp_path_factory.mktemp("apart")
    serial = round_of(apart(folder, None), gamma=gamma, sequences=batch)
    cost = round_of(apart(folder, hit), gamma=gamma, sequences=batch)
    assert cost.draft_busy_s == serial.draft_s < cost.verify_s
    assert cost.draft_s == pytest.approx((1 - hit) * serial.draft_s)
    drafting_s = serial.draft_s + gamma * VLLM.host_draft_pass_s
    # Scheduling is hidden beside the GPU as before: the passes are far longer than it.
    assert cost.seconds == pytest.approx(serial.seconds - hit * drafting_s)


def test_a_round_waits_for_a_drafter_that_is_slower_than_verification(tmp_path):
    cost = round_of(apart(tmp_path, 1.0, "llama-3.1-8b"), gamma=4)
    assert cost.verify_s + cost.draft_s == pytest.approx(cost.draft_busy_s)  # max(D, V)


def test_waiting_is_the_mean_over_hits_and_misses():
    rng = np.random.default_rng(1)
    hits = rng.random(20_000) < 0.6
    for draft_s, verify_s in ((2.0, 3.0), (5.0, 3.0)):
        round_s = np.where(hits, max(draft_s, verify_s), draft_s + verify_s)
        found = verify_s + waited_draft_s(draft_s, verify_s, 0.4)
        assert found == pytest.approx(round_s.mean(), abs=4 * round_s.std() / len(hits) ** 0.5)


# Waste


@pytest.mark.parametrize("kind", KINDS)
def test_rejected_work_and_drafting_are_waste(kind):
    served = deployment_of(kind)
    none, all_ = (round_of(served, Acceptance((alpha,)), gamma=3) for alpha in (0.0, 1.0))
    nodes = none.drafted_per_sequence
    work = none.work
    assert none.wasted_flop_per_token == pytest.approx(
        (work.draft.flop + nodes / (nodes + 1) * work.verify.flop) / 4, rel=1e-9
    )
    if kind not in ("lookahead", "ngram", "suffix"):
        assert work.draft.flop > 0.0
        # All drafts delivered: only what the drafter did is for nothing.
        assert all_.wasted_flop_per_token == pytest.approx(all_.work.draft.flop / 16, rel=1e-9)
    assert none.wasted_bytes_per_token > all_.wasted_bytes_per_token >= 0.0
    assert none.wasted_joules_per_token > 0.0
    assert none.joules_per_token > all_.joules_per_token


def test_bytes_and_flop_of_a_round_by_hand():
    served = deployment_of("ngram")
    work = round_of(served, gamma=4, sequences=2, context=0).work
    # Without a context what counts are 8.03 billion weights less the embedding, read once and multiplied for each token.
    weights = 8_030_261_248 - 128_256 * 4096
    assert work.verify.flop == pytest.approx(2 * 5 * 2 * weights, rel=1e-3)
    assert work.plain.flop == pytest.approx(2 * 2 * weights, rel=1e-3)
    assert work.plain.bytes_ == pytest.approx(2 * weights, rel=1e-2)
    assert work.draft == (0.0, 0.0)


def test_half_of_the_rounds_matching_does_half_of_the_work():
    served = deployment_of("ngram")
    half, all_ = (round_of(served, Acceptance((0.8,), match_probability=m), gamma=4).work for m in (0.5, 1.0))
    assert half.verify.flop == pytest.approx((all_.verify.flop + all_.plain.flop) / 2)
    assert half.extra_bytes == pytest.approx(all_.extra_bytes / 2)


def test_gpus_that_only_draft_are_powered_too(tmp_path):
    alone, pair = (round_of(apart(tmp_path, hit), gamma=4) for hit in (None, 0.0))
    assert pair.joules_per_token == pytest.approx(2 * alone.joules_per_token)
    assert pair.wasted_joules_per_token == pytest.approx(alone.wasted_joules_per_token)


def test_plain_decoding_wastes_nothing():
    plain = round_of(deployment_of("ngram"), gamma=0)
    assert (plain.wasted_flop_per_token, plain.wasted_bytes_per_token, plain.wasted_joules_per_token) == (0.0, 0.0, 0.0)
    assert plain.bytes_per_token == plain.work.plain.bytes_ / 4


def test_tensor_parallel_ranks_add_up():
    one, four = (
        round_cost(
            served.target, VLLM, sequences=4, context_tokens=1000, gamma=3, acceptance=LAW, draft=served.draft
        ).work
        for served in (deploy("llama-3-70b", "h200", tp=tp, draft="eagle-llama-3.1-70b") for tp in (1, 4))
    )
    assert four.verify.flop == pytest.approx(one.verify.flop, rel=1e-3)
    assert one.draft.flop < four.draft.flop < 1.8 * one.draft.flop  # every rank has the whole input matrix


def test_a_pipeline_does_the_same_work():
    one, two = (
        round_cost(deploy("llama-3-70b", "h200", tp=2, pp=pp).target, VLLM, sequences=4, context_tokens=1000).work
        for pp in (1, 2)
    )
    assert two.plain.flop == pytest.approx(one.plain.flop, rel=1e-6)
