"""Bytes and FLOP of a pass: by hand for Llama-3.1-8B, closed forms against loops, tensor parallel, experts, MLA."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.architecture import Decoder, Moe, load_decoder
from simulator.errors import InputError
from simulator.experts import SPLIT_EVENLY
from simulator.operators import (
    attention_load,
    attention_pairs,
    attention_shape,
    check_tensor_parallel,
    edge_operators,
    head_operators,
    kv_tokens_read,
    layer_operators,
    stored_weight_bytes,
)
from simulator.quantization import Quantization, resolve
from tests.tiny_config import EXPERTS, parse

LLAMA = load_decoder("llama-3.1-8b")
MATRICES = 32 * (4096 * (32 + 2 * 8) * 128 + 4096 * 4096 + 3 * 4096 * 14336)


def operators(decoder: Decoder, tokens: float = 1.0, tp: int = 1, kind: int = 0) -> dict:
    formats = resolve(Quantization(), decoder)
    layer = layer_operators(decoder, decoder.layer_kinds[kind], formats, tp, np.array([float(tokens)]))
    return {o.name: o for o in layer}


def total(decoder: Decoder, field: str, tokens: float = 1.0, tp: int = 1) -> float:
    """Over the whole pass, attention left out, with logits for every token."""
    formats, points = resolve(Quantization(), decoder), np.array([float(tokens)])
    layers = sum(
        kind.count * getattr(o, field)[0]
        for kind in decoder.layer_kinds
        for o in layer_operators(decoder, kind, formats, tp, points)
    )
    rest = [*edge_operators(decoder, formats, points), *head_operators(decoder, formats, tp, points)]
    return float(layers + sum(getattr(o, field)[0] for o in rest))


# Llama-3.1-8B by hand


def test_one_layer_by_hand():
    layer = operators(LLAMA, tokens=3)
    assert list(layer) == [
        "input_norm", "qkv_proj", "rotary", "o_proj", "post_norm", "gate_up_proj", "activation", "down_proj",
    ]  # fmt: skip
    qkv = layer["qkv_proj"]
    assert qkv.weight_bytes[0] == 4096 * (32 + 16) * 128 * 2
    assert qkv.flop[0] == 2 * 3 * 4096 * (32 + 16) * 128
    assert qkv.activation_bytes[0] == 3 * (4096 + 48 * 128) * 2
    assert layer["gate_up_proj"].weight_bytes[0] == 4096 * 2 * 14336 * 2
    assert layer["down_proj"].flop[0] == 2 * 3 * 14336 * 4096
    # A norm reads and writes the residual and writes the normalised copy beside the addend: four vectors.
    assert layer["input_norm"].activation_bytes[0] == 3 * 4 * 4096 * 2


def test_a_token_costs_two_flop_per_parameter_in_a_matrix():
    assert total(LLAMA, "flop") == 2 * (MATRICES + 4096 * 128256)
    assert total(LLAMA, "weight_bytes") == 2 * (MATRICES + 4096 * 128256)


@given(st.integers(0, 10_000))
def test_weights_are_read_once_however_many_tokens_pass(tokens):
    read = 2 * (MATRICES + 4096 * 128256) if tokens else 0
    assert total(LLAMA, "weight_bytes", tokens) == read
    assert total(LLAMA, "flop", tokens) == tokens * total(LLAMA, "flop")
    assert total(LLAMA, "activation_bytes", tokens) == pytest.approx(tokens * total(LLAMA, "activation_bytes"))


def test_arrays_of_token_counts_are_their_elements():
    points = np.array([0.0, 1.0, 7.0, 300.0])
    formats = resolve(Quantization(), LLAMA)
    for o in layer_operators(LLAMA, LLAMA.layer_kinds[0], formats, 1, points):
        for i, tokens in enumerate(points):
            assert o.flop[i] == operators(LLAMA, tokens)[o.name].flop[0]
            assert o.weight_bytes[i] == operators(LLAMA, tokens)[o.name].weight_bytes[0]


def test_attention_shape_by_hand():
    shape = attention_shape(LLAMA, resolve(Quantization(), LLAMA), 1)
    assert shape.kv_bytes_per_token == 2 * 8 * 128 * 2
    assert shape.decode_flop_per_pair == shape.prefill_flop_per_pair == 4 * 32 * 128


def test_eagle_head_has_a_matrix_in_front():
    head = load_decoder("eagle-llama-3.1-8b")
    formats = resolve(Quantization(), head)
    names = [o.name for o in edge_operators(head, formats, np.ones(1))]
    assert names == ["embedding", "input_fc", "final_norm"]
    assert edge_operators(head, formats, np.ones(1))[1].weight_bytes[0] == 8192 * 4096 * 2


# Attention: closed forms against loops over queries


def brute(query: int, cached: int, window: float) -> tuple[int, int]:
    """(pairs, keys that any query attends to), query by query."""
    seen = [range(max(0, int(cached + t + 1 - min(window, 10**9))), cached + t + 1) for t in range(query)]
    return sum(len(r) for r in seen), len({key for r in seen for key in r})


@given(st.integers(1, 60), st.integers(0, 100), st.integers(1, 80) | st.just(float("inf")))
def test_pairs_and_keys_read_against_a_loop(query, cached, window):
    pairs, keys = brute(query, cached, window)
    assert attention_pairs(query, cached, window) == pairs
    assert kv_tokens_read(query, cached, window) == keys


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50)), min_size=1, max_size=6), st.integers(1, 60))
def test_a_group_s_load_is_the_sum_of_its_sequences(sequences, window):
    load = attention_load([q for q, _ in sequences], [c for _, c in sequences], window)
    assert load.sequences == len(sequences)
    assert load.query_tokens == sum(q for q, _ in sequences)
    assert load.pairs == sum(brute(q, c, window)[0] for q, c in sequences)
    assert load.kv_tokens == sum(brute(q, c, window)[1] for q, c in sequences)


def test_keys_are_read_once_however_many_queries_share_them():
    assert kv_tokens_read(8, 1000, float("inf")) == 1008
    assert attention_pairs(8, 1000, float("inf")) == 8 * 1000 + 36


# Experts


def test_experts_touched_limits():
    touched = SPLIT_EVENLY.touched(np.array([0.0, 1.0, 2.0, 1e6]), Moe(64, 6, 32, True, False, 0))
    assert touched[:2] == pytest.approx([0.0, 6.0])
    assert touched[2] == pytest.approx(12 - 6 * 6 / 64)  # inclusion and exclusion
    assert touched[3] == 64


@pytest.mark.parametrize(("tokens", "per_token"), [(1, 3), (4, 1), (5, 4), (20, 2)])
def test_experts_touched_against_sampling(tokens, per_token):
    n = 4000
    chosen = np.random.default_rng(1).random((n, tokens, 16)).argsort(axis=2)[:, :, :per_token]
    drawn = [len(np.unique(round_)) for round_ in chosen]
    expected = SPLIT_EVENLY.touched(np.array([float(tokens)]), Moe(16, per_token, 32, True, False, 0))[0]
    assert abs(np.mean(drawn) - expected) <= 4 * np.std(drawn) / np.sqrt(n) + 1e-9


def test_experts_by_hand():
    decoder = load_decoder("mixtral-8x7b")
    layer = operators(decoder, tokens=1)
    # Two of eight experts at one token; gate and up together hold 2·4096·14336 values.
    assert layer["experts_gate_up"].weight_bytes[0] == pytest.approx(2 * 2 * 4096 * 14336 * 2)
    assert layer["experts_gate_up"].flop[0] == 2 * 2 * 4096 * 2 * 14336
    assert layer["experts_gate_up"].m[0] == pytest.approx(1)
    crowd = operators(decoder, tokens=10_000)["experts_down"]
    assert crowd.weight_bytes[0] == pytest.approx(8 * 4096 * 14336 * 2)
    assert crowd.m[0] == pytest.approx(10_000 * 2 / 8)


def test_every_active_matrix_parameter_is_multiplied_once():
    for name in ("mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v2-lite", "gpt-oss-20b"):
        decoder = load_decoder(name)
        assert total(decoder, "flop") == pytest.approx(
            2 * (decoder.active_parameters - decoder.embedding_parameters), rel=2e-3
        )


# Multi-head latent attention


def test_latent_attention_by_hand():
    decoder = load_decoder("deepseek-v3")
    layer = operators(decoder)
    fp8 = 1 + 4 / 128**2
    sizes = {
        "kv_down_proj": 7168 * (512 + 64), "q_down_proj": 7168 * 1536, "q_up_proj": 1536 * 128 * 192,
        "k_up_proj": 512 * 128 * 128, "v_up_proj": 512 * 128 * 128, "o_proj": 128 * 128 * 7168,
    }  # fmt: skip
    for name, values in sizes.items():
        assert layer[name].weight_bytes[0] == pytest.approx(values * fp8)
        assert layer[name].flop[0] == 2 * values
    shape = attention_shape(decoder, resolve(Quantization(), decoder), 1)
    assert shape.kv_bytes_per_token == 576 * 2
    # Absorbed: scores over latent and rotary part, values over the latent. Expanded: 128 + 64 for scores, 128 for values.
    assert shape.decode_flop_per_pair == 128 * (2 * 576 + 2 * 512)
    assert shape.prefill_flop_per_pair == 128 * (2 * 192 + 2 * 128)
    assert 4 * shape.heads * shape.prefill_head_dim == shape.prefill_flop_per_pair


def test_every_rank_keeps_the_whole_latent():
    decoder = load_decoder("deepseek-v3")
    formats = resolve(Quantization(), decoder)
    whole, rank = attention_shape(decoder, formats, 1), attention_shape(decoder, formats, 8)
    assert rank.kv_bytes_per_token == whole.kv_bytes_per_token
    assert rank.decode_flop_per_pair == whole.decode_flop_per_pair / 8


# Tensor parallel


@pytest.mark.parametrize("name", ["llama-3.1-8b", "mixtral-8x7b", "gemma-3-27b", "qwen3-32b"])
@pytest.mark.parametrize("tp", [2, 4, 8])
def test_ranks_add_up_to_the_whole(name, tp):
    decoder = load_decoder(name)
    for field in ("weight_bytes", "flop"):
        # Routers are on every rank; the rest is cut.
        router = operators(decoder).get("router")
        copies = (tp - 1) * decoder.layers * getattr(router, field)[0] if router else 0.0
        assert tp * total(decoder, field, tp=tp) - copies == pytest.approx(total(decoder, field))
    formats = resolve(Quantization(), decoder)
    whole, rank = attention_shape(decoder, formats, 1), attention_shape(decoder, formats, tp)
    assert tp * rank.kv_bytes_per_token == whole.kv_bytes_per_token
    assert tp * rank.decode_flop_per_pair == whole.decode_flop_per_pair


def test_fewer_kv_heads_than_ranks_are_copied():
    decoder = parse()  # 8 heads, 2 KV heads of 8
    formats = resolve(Quantization(), decoder)
    assert attention_shape(decoder, formats, 2).kv_bytes_per_token == 2 * 8 * 2
    assert attention_shape(decoder, formats, 8).kv_bytes_per_token == 2 * 8 * 2
    # One query head, and one key and one value head on each of eight ranks.
    assert operators(decoder, tp=8)["qkv_proj"].n == 3 * 8


def test_two_all_reduces_per_layer_of_the_residual():
    layer = operators(LLAMA, tokens=5, tp=4)
    messages = [o.message_bytes[0] for o in layer.values() if o.kind == "all_reduce"]
    assert messages == [5 * 4096 * 2] * 2
    assert not [o for o in operators(LLAMA, tokens=5).values() if o.kind == "all_reduce"]


@pytest.mark.parametrize(
    ("changes", "tp", "said"),
    [
        ({}, 0, "tp=0 must be at least 1"),
        ({}, 3, "tp=3 must divide the 8 attention heads of tiny; did you mean 2?"),
        ({"intermediate_size": 98}, 4, "tp=4 must divide the MLP width 98"),
        (
            {"num_attention_heads": 12, "num_key_value_heads": 6, "hidden_size": 96},
            4,
            "tp=4 must divide the 6 KV heads",
        ),
        ({"num_attention_heads": 12, "num_key_value_heads": 4, "hidden_size": 96}, 6, "or be a multiple of them"),
        ({"model_type": "qwen2_moe", **EXPERTS, "shared_expert_intermediate_size": 30}, 4, "the MLP width 30"),
    ],
)
def test_uneven_shares_are_refused(changes, tp, said):
    with pytest.raises(InputError) as caught:
        check_tensor_parallel(parse(**changes), tp)
    assert said in str(caught.value)


# What a rank keeps


@pytest.mark.parametrize(
    "name", ["llama-3.1-8b", "llama-3.2-1b", "mixtral-8x7b", "qwen2.5-7b", "gemma-2-27b", "opt-13b"]
)
def test_stored_bytes_are_two_per_parameter(name):
    decoder = load_decoder(name)
    assert stored_weight_bytes(decoder, resolve(Quantization(), decoder), 1) == pytest.approx(
        2 * decoder.parameters, rel=1e-3
    )


def test_stored_bytes_of_tied_and_untied_heads():
    sizes = [stored_weight_bytes(d, resolve(Quantization(), d), 1) for d in (parse(tie_word_embeddings=True), parse())]
    assert sizes[1] - sizes[0] == 100 * 64 * 2


def test_stored_bytes_count_sleeping_experts():
    decoder = load_decoder("mixtral-8x7b")
    moe = decoder.layer_kinds[0].mlp
    assert isinstance(moe, Moe)
    stored, read = stored_weight_bytes(decoder, resolve(Quantization(), decoder), 1), total(decoder, "weight_bytes")
    embedding = 2 * decoder.embedding_parameters
    assert stored - embedding - read == pytest.approx(32 * 6 * 3 * 4096 * moe.width * 2)


def test_stored_bytes_of_published_quantised_checkpoints():
    # DeepSeek-V3 in fp8: 671 GB and the 16-bit embedding, head and scales; gpt-oss-120b is a download of about 61 GiB.
    for name, gigabytes in (("deepseek-v3", 673), ("gpt-oss-120b", 65.3)):
        decoder = load_decoder(name)
        stored = stored_weight_bytes(decoder, resolve(Quantization(), decoder), 1)
        assert stored == pytest.approx(gigabytes * 1e9, rel=0.01)
