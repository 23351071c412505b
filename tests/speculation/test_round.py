"""One draft-verify round: by hand from its passes, equal to plain decoding at γ = 0, and in its limits."""

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.architecture import load_decoder
from simulator.cost.forward import Batch, ForwardCost
from simulator.decoding import decode
from simulator.deployment import deploy
from simulator.engine import load_engine
from simulator.hardware import load_gpu
from simulator.speculation.acceptance import Acceptance
from simulator.speculation.round import RoundCost, round_cost

GPU = load_gpu("h100-sxm")
TARGET = ForwardCost(load_decoder("llama-3.1-8b"), GPU)
DRAFT = ForwardCost(load_decoder("llama-3.2-1b"), GPU, back_to_back=True)
VLLM, IDEAL = load_engine("vllm"), load_engine("ideal")


def speculative(
    gamma: int, acceptance: Acceptance, sequences: int = 4, draft: ForwardCost | None = DRAFT, **kwargs
) -> RoundCost:
    target, engine = kwargs.get("target", TARGET), kwargs.get("engine", VLLM)
    return round_cost(
        target, engine, sequences=sequences, context_tokens=1000, gamma=gamma, acceptance=acceptance, draft=draft
    )


def speedup(cost: RoundCost, plain: RoundCost) -> float:
    return plain.tpot_s / cost.tpot_s


@pytest.mark.parametrize("batch", [1, 7, 64])
@pytest.mark.parametrize("pp", [1, 2])
def test_no_drafts_is_plain_decoding_exactly(batch, pp):
    deployment = deploy("llama-3.1-8b", "h100", pp=pp)
    cost = speculative(0, Acceptance((0.8,)), batch, target=deployment.target)
    step = decode(deployment, batch=batch, context_tokens=1000)
    assert cost.seconds == pytest.approx(step.step_s, rel=1e-12)
    assert (cost.tokens_per_sequence, cost.draft_s, cost.wasted_tokens_per_sequence) == (1.0, 0.0, 0.0)
    assert cost.tokens_per_s == pytest.approx(step.tokens_per_s)


def test_a_round_by_hand():
    gamma, batch, acceptance = 3, 4, Acceptance((0.8,))
    cost = speculative(gamma, acceptance, batch)
    tau = 1 + 0.8 + 0.64 + 0.512
    assert cost.tokens_per_sequence == pytest.approx(tau)
    assert cost.verify_s == TARGET.seconds(Batch.decode(batch, 1000, gamma + 1))
    # vLLM's first draft pass takes in γ + 1 tokens of the last round, accepted or not, the others one token per sequence.
    linear = DRAFT.linear(np.array([batch * (gamma + 1.0), batch]))
    head = DRAFT.head(np.array([float(batch)]))[0]
    attention = [DRAFT.attention((new,) * batch, (context,) * batch) for new, context in ((gamma + 1, 1000), (1, 1001))]
    assert cost.draft_s == pytest.approx(linear[0] + head + attention[0] + 2 * (linear[1] + head + attention[1]))
    assert cost.host_s == VLLM.host_s(batch, gamma, speculating=True)
    assert cost.seconds == cost.verify_s + cost.draft_s + cost.host_s
    assert cost.tpot_s == pytest.approx(cost.seconds / tau)
    assert cost.wasted_tokens_per_sequence == pytest.approx(gamma + 1 - tau)


def test_a_ragged_drafter_reads_what_was_accepted():
    gamma, batch, tau = 3, 4, 1 + 0.8 + 0.64 + 0.512
    ragged = replace(VLLM, settings=VLLM.settings.model_copy(update={"draft_batch": "ragged"}))
    given = {
        "sequences": batch,
        "context_tokens": 1000,
        "gamma": gamma,
        "acceptance": Acceptance((0.8,)),
        "draft": DRAFT,
    }
    padded_s, ragged_s = (round_cost(TARGET, engine, **given).draft_s for engine in (VLLM, ragged))
    saved_s = np.diff(DRAFT.linear(np.array([batch * tau, batch * (gamma + 1.0)])))[0]
    saved_s += np.diff([DRAFT.attention((new,) * batch, (1000,) * batch) for new in (round(tau), gamma + 1)])[0]
    assert padded_s - ragged_s == pytest.approx(saved_s)


def test_looked_up_drafts_cost_host_time_only():
    cost = speculative(4, Acceptance((0.8,)), 8, draft=None)
    assert cost.draft_s == 0.0
    assert cost.host_s == VLLM.host_s(8, 0, speculating=True, ngram=True)


def test_rounds_without_a_match_verify_one_token():
    acceptance = Acceptance((0.8,), match_probability=0.25)
    cost = speculative(4, acceptance, 8, draft=None)
    assert cost.verify_s == TARGET.seconds(Batch((5,) * 2 + (1,) * 6, (1000,) * 8, 16))
    assert cost.wasted_tokens_per_sequence == pytest.approx(0.25 * 4 - (cost.tokens_per_sequence - 1))


@pytest.mark.parametrize("match", [0.1, 0.5, 0.9])
def test_one_sequence_pays_for_its_share_of_matches(match):
    # Rounded to a whole sequence, a match in half of all rounds would verify for nothing.
    cost = speculative(8, Acceptance((0.8,), match_probability=match), 1, draft=None)
    one, nine = (TARGET.seconds(Batch.decode(1, 1000, n)) for n in (1, 9))
    assert cost.verify_s == pytest.approx((1 - match) * one + match * nine)


# Limits


@settings(max_examples=20)
@given(st.integers(1, 15), st.integers(1, 128), st.sampled_from([VLLM, IDEAL]), st.sampled_from([DRAFT, None]))
def test_drafts_that_are_never_accepted_never_pay(gamma, batch, engine, draft):
    plain = speculative(0, Acceptance((0.0,)), batch, engine=engine)
    assert speedup(speculative(gamma, Acceptance((0.0,)), batch, draft, engine=engine), plain) <= 1.0


@settings(max_examples=20)
@given(st.floats(0.0, 1.0), st.integers(1, 15), st.integers(1, 128))
def test_no_round_is_faster_than_its_tokens(alpha, gamma, batch):
    acceptance = Acceptance((alpha,))
    plain = speculative(0, acceptance, batch)
    tau = acceptance.expected_tokens(gamma)
    assert speedup(speculative(gamma, acceptance, batch), plain) <= tau * (1 + 1e-12)


def arithmetic_for_free(factor: float) -> ForwardCost:
    """The target on a GPU with `factor` times the FLOP/s, and none of the fixed times that hide behind them."""
    gpu = dataclasses.replace(GPU, dense_flop_per_s={k: v * factor for k, v in GPU.dense_flop_per_s.items()})
    e = TARGET.efficiency
    no_wait = {"wave_s": 0.0, "kv_step_s": 0.0, "t0_s": 0.0}
    efficiency = dataclasses.replace(
        e,
        matmul=e.matmul._replace(k_step_s=0.0, t0_s=0.0),
        decode_attention=e.decode_attention._replace(**no_wait),
    )
    return ForwardCost(load_decoder("llama-3-70b"), gpu, efficiency=efficiency)


def test_with_free_drafts_and_endless_arithmetic_the_speedup_is_tau():
    acceptance, target = Acceptance((0.8,)), arithmetic_for_free(1e9)
    gained = [
        speedup(
            speculative(gamma, acceptance, 1, None, target=target, engine=IDEAL),
            speculative(0, acceptance, 1, None, target=target, engine=IDEAL),
        )
        for gamma in (1, 4, 8)
    ]
    # What is left are the activations of γ more tokens beside 140 GB of weights.
    assert gained == pytest.approx([acceptance.expected_tokens(g) for g in (1, 4, 8)], rel=5e-3)


def test_more_arithmetic_brings_verification_closer_to_one_token():
    def ratio(factor: float, batch: int) -> float:
        target = arithmetic_for_free(factor)
        return target.seconds(Batch.decode(batch, 1000, 5)) / target.seconds(Batch.decode(batch, 1000, 1))

    assert ratio(1.0, 64) > ratio(10.0, 64) > ratio(1e6, 64) > 1.0
    assert ratio(1e6, 1) == pytest.approx(1.0, abs=2e-3)


def test_host_time_of_draft_passes_on_gpus_of_their_own_runs_beside_verification():
    # D + H beside V, as the serving loop has it: e·(D + H) + (1 − e)·max(0, D + H − V).
    served = deploy("llama-3.1-8b", "h100-sxm", draft="parallel-llama-3.2-1b")
    for gamma in (2, 8):
        cost = round_cost(
            served.target, served.engine, sequences=1, context_tokens=1000, gamma=gamma, acceptance=Acceptance((0.8,)),
            draft=served.draft, drafter=served.drafter,
        )  # fmt: skip
        busy_s = cost.draft_busy_s + gamma * VLLM.host_draft_pass_s
        assert (busy_s > cost.verify_s) == (gamma == 8)
        waited_s = 0.5 * busy_s + 0.5 * max(0.0, busy_s - cost.verify_s)
        assert cost.seconds == pytest.approx(cost.verify_s + waited_s + VLLM.host_s(1, 0, speculating=True, gpu_s=1.0))


def test_each_draft_pass_without_a_graph_waits_for_its_launches():
    # 2 sequences of γ + 1 tokens are beyond a graph of 4 tokens, one token of each is not.
    settings = VLLM.settings.model_copy(update={"graph_capture_sizes": (4,)})
    engines = [replace(VLLM, host_eager_layer_s=layer_s, settings=settings) for layer_s in (0.0, 1.0)]
    smooth, eager = (
        round_cost(
            TARGET, engine, sequences=2, context_tokens=1000, gamma=3, acceptance=Acceptance((0.8,)), draft=DRAFT
        )
        for engine in engines
    )
    first = DRAFT.linear(np.array([8.0]))[0] + DRAFT.head(np.array([2.0]))[0] + DRAFT.attention((4, 4), (1000, 1000))
    layers = TARGET.decoder.layers + DRAFT.decoder.layers
    assert eager.host_s - smooth.host_s == pytest.approx(layers - smooth.verify_s - first)
