"""Experts spread over GPUs: chances that add up, who is touched, the busiest GPU, messages and FLOP by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.architecture import Moe, load_decoder
from simulator.errors import InputError
from simulator.experts import ExpertPlacement, chances_of
from simulator.operators import layer_operators, stored_weight_bytes
from simulator.quantization import Quantization, resolve

MIXTRAL, QWEN, V3 = (load_decoder(name) for name in ("mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v3"))
MOE = Moe(64, 6, 32, True, False, 0)


def layer(decoder, tokens, tp, experts, kind=-1):
    formats = resolve(Quantization(), decoder)
    points = np.array([float(tokens)])
    return {o.name: o for o in layer_operators(decoder, decoder.layer_kinds[kind], formats, tp, points, experts)}


# Routing


@given(st.integers(1, 64), st.integers(1, 64), st.floats(0.0, 4.0))
def test_chances_add_up_to_the_experts_of_a_token(experts, per_token, exponent):
    if per_token > experts:
        return
    chances = chances_of(experts, per_token, exponent)
    assert chances.sum() == pytest.approx(per_token)
    assert chances.max() <= 1.0 + 1e-12
    assert np.all(np.diff(chances) <= 1e-12)


def test_uniform_routing_is_zipf_s_limit():
    tokens = np.array([0.0, 1.0, 7.0, 300.0])
    almost = ExpertPlacement(exponent=1e-12).touched(tokens, MOE)
    assert almost == pytest.approx(ExpertPlacement().touched(tokens, MOE), rel=1e-9)


def test_zipf_chances_by_hand():
    # Two of three experts ∝ 1, 1/2, 1/3: 2·6/11 > 1, so the first is certain and the others share the second place 3 : 2.
    assert chances_of(3, 2, 1.0) == pytest.approx([1.0, 0.6, 0.4])
    touched = ExpertPlacement(exponent=1.0).touched(np.array([1.0, 2.0]), Moe(3, 2, 8, True, False, 0))
    assert touched == pytest.approx([2.0, 1.0 + (1 - 0.4**2) + (1 - 0.6**2)])


@given(st.floats(0.1, 3.0), st.integers(1, 500))
def test_popular_experts_leave_others_asleep(exponent, tokens):
    points = np.array([float(tokens)])
    skewed, uniform = (ExpertPlacement(exponent=e).touched(points, MOE)[0] for e in (exponent, 0.0))
    assert skewed <= uniform + 1e-9
    assert skewed >= MOE.experts_per_token - 1e-9


def test_zipf_against_sampling():
    # Weighted sampling without replacement is close to, and not the same as, chances ∝ weight capped at one.
    moe, exponent, tokens, n = Moe(32, 2, 8, True, False, 0), 1.0, 20, 2000
    chances = chances_of(32, 2, exponent)
    drawn = np.random.default_rng(0).random((n, tokens, 32)) < chances
    counts = drawn.any(axis=1).sum(axis=1)
    expected = ExpertPlacement(exponent=exponent).touched(np.array([float(tokens)]), moe)[0]
    assert abs(counts.mean() - expected) <= 4 * counts.std() / np.sqrt(n)


# One layer by hand


def test_one_layer_of_mixtral_on_eight_gpus_by_hand():
    tokens, ep = 64, 8
    found = layer(MIXTRAL, tokens, 8, ExpertPlacement(ep))
    assert list(found)[-7:] == [
        "router", "experts_all_to_all", "experts_gate_up", "experts_activation", "experts_down", "combine_all_to_all",
        "mlp_all_gather",
    ]  # fmt: skip
    # One expert of eight on each GPU, asleep with a chance of (1 − 2/8)^64; 64·2/8 rows.
    awake = 1 - 0.75**64
    assert found["experts_down"].weight_bytes[0] == pytest.approx(awake * 4096 * 14336 * 2)
    assert found["experts_gate_up"].flop[0] == 2 * 16 * 4096 * 2 * 14336
    assert found["experts_down"].m[0] == pytest.approx(16 / awake)
    # Each rank sends its eight tokens to two experts each, and gets as many back.
    for name in ("experts_all_to_all", "combine_all_to_all"):
        assert found[name].kind == "all_to_all"
        assert found[name].message_bytes[0] == 8 * 2 * 4096 * 2
    assert found["mlp_all_gather"].message_bytes[0] == 64 * 4096 * 2
    assert found["router"].flop[0] == 2 * 8 * 4096 * 8


def test_a_busy_gpu_by_hand():
    even, busy = (layer(MIXTRAL, 64, 8, ExpertPlacement(8, skew)) for skew in (1.0, 3.0))
    assert busy["experts_down"].flop[0] == 3 * even["experts_down"].flop[0]
    assert busy["combine_all_to_all"].message_bytes[0] == 3 * even["combine_all_to_all"].message_bytes[0]
    few = layer(MIXTRAL, 1, 8, ExpertPlacement(8, 3.0))["experts_down"]
    assert few.weight_bytes[0] == pytest.approx(3 * 2 / 8 * 4096 * 14336 * 2)  # one expert, three times as often
    # A GPU with all the tokens has its expert awake from the first one on.
    assert layer(MIXTRAL, 1, 8, ExpertPlacement(8, 8.0))["experts_down"].weight_bytes[0] == 4096 * 14336 * 2


def test_fp8_experts_are_sent_their_tokens_in_fp8():
    found = layer(V3, 8, 8, ExpertPlacement(8))
    assert found["experts_all_to_all"].message_bytes[0] == 8 * 7168 * 1
    assert found["combine_all_to_all"].message_bytes[0] == 8 * 7168 * 2
    # The shared expert is whole on every rank, for the rank's own tokens.
    assert found["shared_down_proj"].flop[0] == 2 * 1 * 2048 * 7168
    assert found["shared_down_proj"].weight_bytes[0] == pytest.approx(2048 * 7168 * (1 + 4 / 128**2))


def test_dense_layers_are_split_as_ever():
    spread, split = (layer(V3, 8, 8, ExpertPlacement(ep), kind=0) for ep in (8, 1))
    assert list(spread) == list(split)


@pytest.mark.parametrize("ep", [2, 4, 8])
@pytest.mark.parametrize("tokens", [8, 512, 4096])
def test_gpus_together_do_what_one_does(ep, tokens):
    for decoder in (MIXTRAL, QWEN):
        whole, rank = layer(decoder, tokens, 1, ExpertPlacement()), layer(decoder, tokens, ep, ExpertPlacement(ep))
        for name in ("experts_gate_up", "experts_down", "experts_activation"):
            for field in ("flop", "weight_bytes", "activation_bytes"):
                assert ep * getattr(rank[name], field)[0] == pytest.approx(getattr(whole[name], field)[0])


def test_wide_groups_bring_their_own_tokens():
    # 32 GPUs of which each attends to its own 16 tokens: 32 times the tokens wake up 8 experts per GPU.
    found = layer(V3, 16, 1, ExpertPlacement(32))
    assert found["experts_down"].flop[0] == 2 * 16 * 8 * 2048 * 7168
    assert found["experts_down"].matrices[0] == pytest.approx(8 * (1 - (1 - 8 / 256) ** 512))
    assert found["experts_all_to_all"].message_bytes[0] == 16 * 8 * 7168
    assert "mlp_all_gather" not in found


def test_experts_are_stored_once():
    formats = resolve(Quantization(), MIXTRAL)
    split, spread = (stored_weight_bytes(MIXTRAL, formats, 8, ExpertPlacement(ep)) for ep in (1, 8))
    assert spread == pytest.approx(split)  # no shared experts: an eighth either way
    v3 = resolve(Quantization(), V3)
    wide = stored_weight_bytes(V3, v3, 8, ExpertPlacement(64))
    experts = 58 * 256 * 3 * 7168 * 2048 * (1 + 4 / 128**2)
    shared = 58 * 3 * 7168 * 2048 * (1 + 4 / 128**2)
    assert stored_weight_bytes(V3, v3, 8) - wide == pytest.approx(experts / 8 - experts / 64 - shared * 7 / 8)
    # 61 of 64 experts' worth of GPUs: one of them has ⌈128/61⌉.
    assert ExpertPlacement(61).on_one(Moe(128, 8, 8, True, False, 0)) == 3


@pytest.mark.parametrize(
    ("model", "tp", "kwargs", "sentence"),
    [
        ("llama-3.1-8b", 1, {"ep": 2}, "ep=2 must be 1, for llama-3.1-8b has no experts; did you mean 1?"),
        ("mixtral-8x7b", 2, {"ep": 3}, "ep=3 must be 1 or a multiple of tp=2; did you mean 2?"),
        ("mixtral-8x7b", 1, {"ep": 16}, "ep=16 must be at most the 8 experts of mixtral-8x7b"),
        ("mixtral-8x7b", 1, {"ep": 0}, "ep=0 must be at least 1"),
        ("mixtral-8x7b", 2, {"ep": 2, "skew": 2.5}, "expert_skew=2.5 must be between 1 and ep=2"),
        ("mixtral-8x7b", 2, {"skew": 1.5}, "expert_skew=1.5 must be between 1 and ep=1"),
        ("mixtral-8x7b", 1, {"exponent": -1.0}, "expert_exponent=-1.0 must be between 0 and 10"),
    ],
)
def test_mistakes_are_sentences(model, tp, kwargs, sentence):
    with pytest.raises(InputError) as caught:
        ExpertPlacement(**kwargs).check(load_decoder(model), tp)
    assert sentence in str(caught.value)
