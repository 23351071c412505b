"""config.json → Decoder: published parameter counts, counts by hand, every trap, every refusal."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import catalog
from simulator.architecture import Decoder, LayerKind, Mlp, Moe, load_decoder, parse_config
from simulator.errors import InputError, MemwallError, UnknownName

TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT = {"kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6, "q_lora_rank": 24}


def parse(**changes) -> Decoder:
    config = {k: v for k, v in {**TINY, **changes}.items() if v is not ...}
    return parse_config(config, name="tiny", where="tiny.json")


def sentence(**changes) -> str:
    with pytest.raises(InputError) as caught:
        parse(**changes)
    return str(caught.value)


def windows(decoder: Decoder) -> list[tuple[int, int | None]]:
    return [(kind.count, kind.window_tokens) for kind in decoder.layer_kinds]


# Published sizes


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("llama-3.1-8b", 8.03),
        ("llama-3.1-70b", 70.55),
        ("llama-3.1-405b", 405.85),
        ("llama-3-70b", 70.55),
        ("llama-3.2-1b", 1.2358),
        ("llama-2-7b", 6.74),
        ("llama-2-13b", 13.02),
        ("llama-2-70b", 68.98),
        ("qwen3-8b", 8.19),
        ("qwen3-32b", 32.76),
        ("qwen3-30b-a3b", 30.53),
        ("qwen3-235b-a22b", 235.09),
        ("mixtral-8x7b", 46.70),
        ("deepseek-v3", 671.03),
        ("gpt-oss-20b", 20.91),
        ("gpt-oss-120b", 116.79),
    ],
)
def test_parameters_meet_the_published_count(name, billions):
    assert load_decoder(name).parameters == pytest.approx(billions * 1e9, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # Totals of the published checkpoints (safetensors metadata); Pythia: arXiv:2304.01373, table 1.
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.1-70b", 70_553_706_496),
        ("llama-3.1-405b", 405_853_388_800),
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-2-7b", 6_738_415_616),
        ("mistral-7b", 7_241_732_096),
        ("mixtral-8x7b", 46_702_792_704),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen3-8b", 8_190_735_360),
        ("pythia-70m", 70_426_624),
        ("pythia-160m", 162_322_944),
        ("pythia-1.4b", 1_414_647_808),
        ("pythia-6.9b", 6_857_302_016),
        ("pythia-12b", 11_846_072_320),
    ],
)
def test_parameters_to_the_last_one(name, count):
    assert load_decoder(name).parameters == count


@pytest.mark.parametrize(
    ("name", "billions"),
    [("mixtral-8x7b", 12.9), ("qwen3-30b-a3b", 3.35), ("qwen3-235b-a22b", 22.2), ("deepseek-v3", 37.55)],
)
def test_active_parameters(name, billions):
    assert load_decoder(name).active_parameters == pytest.approx(billions * 1e9, rel=2e-3)


@pytest.mark.parametrize(("name", "total", "active"), [("gpt-oss-20b", 20.91, 3.61), ("gpt-oss-120b", 116.83, 5.13)])
def test_gpt_oss_model_card(name, total, active):
    # arXiv:2508.10925, table 1; its active count leaves the embedding out.
    decoder = load_decoder(name)
    assert round(decoder.parameters / 1e9, 2) == total
    assert round((decoder.active_parameters - decoder.embedding_parameters) / 1e9, 2) == active


def test_dense_model_is_active_as_a_whole():
    decoder = load_decoder("llama-3.1-8b")
    assert decoder.active_parameters == decoder.parameters


@pytest.mark.parametrize(
    ("name", "billions"), [("eagle-vicuna-7b", 0.24), ("eagle-vicuna-13b", 0.37), ("eagle-llama-3.1-70b", 0.99)]
)
def test_eagle_head_has_the_paper_s_own_weights(name, billions):
    # arXiv:2401.15077 §4: trainable parameters of the heads for 7B, 13B and 70B; embedding and LM head are the target's.
    head = load_decoder(name)
    own = head.parameters - head.embedding_parameters - head.head_parameters
    assert own == pytest.approx(billions * 1e9, rel=0.02)
    assert head.extra_input_size == 2 * head.hidden_size


def test_eagle3_head():
    head = load_decoder("eagle3-llama-3.1-8b")
    assert (head.layers, head.vocab_size, head.extra_input_size) == (1, 32000, 3 * 4096)


@pytest.mark.parametrize("name", catalog.names("model"))
def test_every_bundled_config_loads_and_says_where_it_is_from(name):
    decoder = load_decoder(name)
    assert decoder.name == name == name.lower()
    assert 0 < decoder.active_parameters <= decoder.parameters
    assert decoder.max_context_tokens
    assert json.loads(catalog.locate("model", name).read_text())["memwall_source"]


def test_at_least_twenty_four_models_are_bundled():
    assert len(catalog.names("model")) >= 24


# By hand


def test_tiny_llama_counted_by_hand():
    # attention: q 64·64, k and v 64·(2·8) each, o 64·64 = 4096 + 2·1024 + 4096 = 10240
    # MLP: 3·64·96 = 18432; norms 2·64 = 128; layer 28800
    # embedding 100·64 = 6400, head the same, final norm 64
    assert parse().parameters == 4 * 28800 + 2 * 6400 + 64
    assert parse(tie_word_embeddings=True).parameters == 4 * 28800 + 6400 + 64
    assert parse(memwall_extra_input_size=128).parameters == 4 * 28800 + 2 * 6400 + 64 + 128 * 64


def test_tiny_experts_counted_by_hand():
    # expert 3·64·32 = 6144; router 64·8 = 512; q and k norms 2·8; attention 10240; norms 128
    decoder = parse(model_type="qwen3_moe", head_dim=8, **EXPERTS)
    layer = 10240 + 16 + 128 + 512
    assert decoder.parameters == 4 * (layer + 8 * 6144) + 2 * 6400 + 64
    assert decoder.active_parameters == 4 * (layer + 2 * 6144) + 2 * 6400 + 64


def test_tiny_latent_attention_counted_by_hand():
    # q: 64·24 + 24 (norm) + 24·8·(8+4) = 1536 + 24 + 2304; latent: 64·(16+4) + 16 (norm) = 1296
    # up: 16·8·(8+6) = 1792; o: 8·6·64 = 3072; dense layer's MLP 18432; norms 128
    # experts: 8·6144 + router 512 + shared 2·6144
    decoder = parse(
        model_type="deepseek_v3", first_k_dense_replace=1, n_shared_experts=2, n_routed_experts=8,
        num_experts_per_tok=2, moe_intermediate_size=32, **LATENT,
    )  # fmt: skip
    attention = 3864 + 1296 + 1792 + 3072 + 128
    assert decoder.parameters == 4 * attention + 18432 + 3 * (8 * 6144 + 512 + 2 * 6144) + 2 * 6400 + 64
    full_query = parse(model_type="deepseek_v2", n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=32,
                       **{**LATENT, "q_lora_rank": None})  # fmt: skip
    attention = 64 * 8 * 12 + 1296 + 1792 + 3072 + 128
    assert full_query.parameters == 4 * (attention + 8 * 6144 + 512) + 2 * 6400 + 64


def test_biases_and_layer_norms_counted_by_hand():
    # pythia-like layer: attention 4·64·64 + 4·64; MLP 2·64·96 + 96 + 64; two LayerNorms of 2·64
    decoder = parse(model_type="gpt_neox", num_key_value_heads=...)
    layer = 4 * 64 * 64 + 4 * 64 + 2 * 64 * 96 + 96 + 64 + 4 * 64
    assert decoder.parameters == 4 * layer + 2 * 6400 + 2 * 64


def test_opt_counts_its_position_table():
    # tied head; 32 + 2 rows of positions
    decoder = parse(
        model_type="opt", intermediate_size=..., ffn_dim=96, num_key_value_heads=..., max_position_embeddings=32
    )
    layer = 4 * 64 * 64 + 4 * 64 + 2 * 64 * 96 + 96 + 64 + 4 * 64
    assert decoder.parameters == 4 * layer + (100 + 34) * 64 + 2 * 64


# KV cache


def test_kv_values_of_grouped_heads():
    assert load_decoder("llama-3.1-8b").kv_values_per_token == 32 * 2 * 8 * 128
    assert load_decoder("llama-3-70b").kv_values_per_token == 80 * 2 * 8 * 128
    assert load_decoder("qwen3-32b").attention.kv_values_per_token == 2 * 8 * 128


def test_kv_values_of_latent_attention():
    decoder = load_decoder("deepseek-v3")
    assert decoder.attention.kv_values_per_token == 512 + 64 == 576
    assert decoder.kv_values_per_token == 61 * 576


def test_kv_heads_default_to_all_heads():
    assert parse(num_key_value_heads=...).attention.kv_heads == 8
    assert parse(num_key_value_heads=None).kv_values_per_token == 4 * 2 * 64


def test_windows_of_published_models():
    assert windows(load_decoder("gpt-oss-20b")) == [(12, 128), (12, None)]
    assert windows(load_decoder("gemma-2-27b")) == [(23, 4096), (23, None)]
    # every sixth of 62 layers is global: 6, 12, ..., 60
    assert windows(load_decoder("gemma-3-27b")) == [(52, 1024), (10, None)]
    assert windows(load_decoder("mistral-7b")) == [(32, 4096)]
    assert windows(load_decoder("mistral-nemo-12b")) == [(40, None)]
    assert windows(load_decoder("qwen2.5-7b")) == [(28, None)]


# Traps of config.json


def test_explicit_head_dim_wins():
    assert parse(head_dim=16).attention.head_dim == 16
    assert parse(head_dim=None).attention.head_dim == 8
    assert load_decoder("qwen3-32b").attention.head_dim == 128  # 5120 / 64 would be 80


@pytest.mark.parametrize("key", ["num_experts", "num_local_experts", "n_routed_experts"])
def test_names_of_the_expert_count(key):
    decoder = parse(model_type="qwen3_moe", head_dim=8, num_experts_per_tok=2, moe_intermediate_size=32, **{key: 8})
    assert decoder.layer_kinds == (LayerKind(4, None, Moe(8, 2, 32, True, False, 0)),)


def test_expert_width_falls_back_to_the_mlp_s():
    assert parse(model_type="mixtral", num_local_experts=4, num_experts_per_tok=2).layer_kinds[0].mlp.width == 96


def test_shared_experts_by_number_or_by_width():
    deepseek = {"model_type": "deepseek_v2", **LATENT, **EXPERTS}
    assert parse(**deepseek, n_shared_experts=2).layer_kinds[0].mlp.shared_width == 64
    assert parse(**deepseek, n_shared_experts=None).layer_kinds[0].mlp.shared_width == 0
    qwen = parse(model_type="qwen2_moe", **EXPERTS, shared_expert_intermediate_size=48)
    assert qwen.layer_kinds[0].mlp.shared_width == 48


def dense_layers(**changes) -> tuple[int, int]:
    """(dense layers, expert layers)"""
    kinds = parse(model_type="qwen3_moe", head_dim=8, num_hidden_layers=6, **EXPERTS, **changes).layer_kinds
    dense = sum(k.count for k in kinds if isinstance(k.mlp, Mlp))
    return dense, sum(k.count for k in kinds) - dense


def test_which_layers_have_experts():
    assert dense_layers() == (0, 6)
    assert dense_layers(first_k_dense_replace=2) == (2, 4)
    assert dense_layers(moe_layer_freq=2) == (3, 3)
    assert dense_layers(decoder_sparse_step=3) == (4, 2)  # layers 2 and 5
    assert dense_layers(mlp_only_layers=[0, 5]) == (2, 4)
    assert dense_layers(decoder_sparse_step=3, mlp_only_layers=[5]) == (5, 1)


def test_deepseek_v3_starts_with_three_dense_layers():
    kinds = load_decoder("deepseek-v3").layer_kinds
    assert kinds == (
        LayerKind(3, None, Mlp(18432, True, False)),
        LayerKind(58, None, Moe(256, 8, 2048, True, False, 2048)),
    )


def test_qwen_window_is_off_unless_switched_on():
    assert windows(parse(model_type="qwen2", sliding_window=32)) == [(4, None)]
    assert windows(parse(model_type="qwen2", sliding_window=32, use_sliding_window=False)) == [(4, None)]
    on = parse(model_type="qwen2", sliding_window=32, use_sliding_window=True, max_window_layers=3)
    assert windows(on) == [(3, None), (1, 32)]


def test_window_by_layer_types():
    types = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]
    assert windows(parse(sliding_window=32, layer_types=types)) == [(3, 32), (1, None)]
    counted = parse(sliding_window=32, layer_types_counts={"full_attention": 1, "sliding_attention": 3})
    assert windows(counted) == [(1, None), (3, 32)]


def test_window_by_pattern():
    assert windows(parse(sliding_window=32, sliding_window_pattern=4)) == [(3, 32), (1, None)]
    assert windows(parse(sliding_window=32, _sliding_window_pattern=2)) == [(2, 32), (2, None)]
    assert windows(parse(model_type="gemma2", head_dim=8)) == [(2, 4096), (2, None)]
    assert windows(parse(model_type="mistral")) == [(4, 4096)]
    assert windows(parse(model_type="mistral", sliding_window=None)) == [(4, None)]


def test_text_config_is_looked_into():
    text = {**TINY, "model_type": "mistral", "sliding_window": None}
    outer = {"model_type": "mistral3", "torch_dtype": "float16", "tie_word_embeddings": True, "text_config": text}
    decoder = parse_config(outer, name="m", where="m")
    assert (decoder.model_type, decoder.dtype, decoder.tied_head) == ("mistral", "fp16", True)
    text = {k: v for k, v in TINY.items() if k not in ("model_type", "vocab_size")}
    gemma = parse_config({"model_type": "gemma3", "text_config": text}, name="g", where="g")
    assert (gemma.model_type, gemma.vocab_size, gemma.attention.head_dim) == ("gemma3_text", 262208, 256)


@pytest.mark.parametrize(
    ("given_as", "dtype"),
    [
        ({"torch_dtype": "bfloat16"}, "bf16"),
        ({"dtype": "float16"}, "fp16"),
        ({"dtype": "float32", "torch_dtype": "torch.float32"}, "fp32"),
        ({}, "bf16"),
    ],
)
def test_dtype_or_torch_dtype(given_as, dtype):
    assert parse(**given_as).dtype == dtype


def test_biases_norms_and_gates_that_only_the_family_knows():
    assert parse(model_type="qwen2").attention.bias
    assert not parse().attention.bias
    assert parse(attention_bias=True).attention.bias
    assert parse(model_type="qwen3").attention.qk_norm
    oss = load_decoder("gpt-oss-20b")
    assert oss.attention.bias
    assert oss.layer_kinds[0].mlp.bias
    phi = parse(model_type="phi", num_key_value_heads=...)
    assert (phi.layer_kinds[0].mlp, phi.attention.bias) == (Mlp(96, gated=False, bias=True), True)
    assert not load_decoder("pythia-70m").layer_kinds[0].mlp.gated


def test_tied_head_by_family():
    assert not parse().tied_head
    assert parse(model_type="gemma", head_dim=8).tied_head
    assert not parse(model_type="gemma", head_dim=8, tie_word_embeddings=False).tied_head
    assert parse(model_type="opt", max_position_embeddings=32).tied_head


def test_gpt2_names():
    config = {
        "model_type": "gpt2",
        "n_embd": 64,
        "n_head": 8,
        "n_layer": 2,
        "n_positions": 32,
        "n_inner": None,
        "vocab_size": 9,
    }
    decoder = parse_config(config, name="g", where="g")
    assert (decoder.hidden_size, decoder.layers, decoder.max_context_tokens) == (64, 2, 32)
    assert decoder.layer_kinds[0].mlp == Mlp(256, gated=False, bias=True)


# Quantised checkpoints


def test_deepseek_fp8_blocks():
    q = load_decoder("deepseek-v3").quantization
    assert (q.dtype, q.block, q.scale_bytes) == ("fp8", 128 * 128, 4.0)
    assert q.unquantized == {"embedding", "lm_head", "router"}


def test_gpt_oss_packs_only_its_experts():
    q = load_decoder("gpt-oss-120b").quantization
    assert (q.dtype, q.block, q.scale_bytes) == ("mxfp4", 32, 1.0)
    assert q.unquantized == {"attention", "embedding", "lm_head", "router"}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"quant_method": "fp8", "activation_scheme": "static"}, ("fp8", 64 * 64, 4.0)),
        ({"quant_method": "fbgemm_fp8"}, ("fp8", 64, 4.0)),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, ("int4", 128, 2.5)),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, ("int8", 64, 3.0)),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64}, ("int4", 64, 2.5)),
    ],
)
def test_quantization_methods(config, expected):
    q = parse(quantization_config=config).quantization
    assert (q.dtype, q.block, q.scale_bytes) == expected
    assert "attention" not in q.unquantized


def compressed(**weights) -> dict:
    return {
        "quant_method": "compressed-tensors",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"weights": weights}},
    }


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"num_bits": 8, "type": "float", "strategy": "channel"}, ("fp8", 64, 2.0)),
        ({"num_bits": 8, "type": "float", "strategy": "tensor"}, ("fp8", 64 * 64, 2.0)),
        ({"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128]}, ("fp8", 16384, 2.0)),
        ({"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}, ("int8", 64, 2.0)),
        ({"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}, ("int4", 128, 2.0)),
        ({"num_bits": 4, "type": "int", "group_size": 32, "symmetric": False}, ("int4", 32, 2.5)),
        ({"num_bits": 4, "type": "float", "group_size": 32}, ("mxfp4", 32, 1.0)),
    ],
)
def test_compressed_tensors(weights, expected):
    q = parse(quantization_config=compressed(**weights)).quantization
    assert (q.dtype, q.block, q.scale_bytes) == expected


@pytest.mark.parametrize(
    ("excluded", "attention_kept"),
    [
        (["model.layers.*.self_attn"], True),
        (["re:.*self_attn.*"], True),
        ([f"model.layers.{i}.self_attn.q_proj" for i in range(4)], True),
        (["model.layers.0.self_attn", "lm_head"], False),  # one layer of four does not speak for the model
        (["model.layers.0.mlp.gate"], False),
    ],
)
def test_attention_left_out_by_name(excluded, attention_kept):
    q = parse(quantization_config={"quant_method": "fp8", "modules_to_not_convert": excluded}).quantization
    assert ("attention" in q.unquantized) is attention_kept


def test_quantised_lm_head():
    config = {"quant_method": "gptq", "bits": 4, "group_size": 128, "lm_head": True}
    assert "lm_head" not in parse(quantization_config=config).quantization.unquantized


# Refusals


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": ...}, "tiny.json: hidden_size='(absent)' must be given"),
        ({"hidden_size": 66}, "hidden_size=66 must be a multiple of num_attention_heads=8, or head_dim given"),
        ({"hidden_size": 64.0}, "hidden_size=64.0 must be a whole number"),
        ({"hidden_size": math.nan}, "hidden_size=nan must be a whole number"),
        ({"hidden_size": "64"}, "hidden_size='64' must be a whole number"),
        ({"vocab_size": True}, "vocab_size=True must be a whole number"),
        ({"vocab_size": 0}, "vocab_size=0 must be between 1 and 1000000000"),
        ({"vocab_size": -5}, "vocab_size=-5 must be between"),
        ({"vocab_size": 10**5000}, "vocab_size='(huge)' must be between"),
        ({"num_hidden_layers": 2_000_000}, "num_hidden_layers=2000000 must be between 1 and 1000000"),
        ({"intermediate_size": ...}, "intermediate_size='(absent)' must be given"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3 must divide num_attention_heads=8"),
        ({"num_key_value_heads": 16}, "num_key_value_heads=16 must divide num_attention_heads=8"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings='no' must be true or false"),
        ({"torch_dtype": "float8"}, "torch_dtype='float8' must be bfloat16, float16 or float32"),
        ({"torch_dtype": "float16", "dtype": "bfloat16"}, "torch_dtype='float16' must equal dtype=bfloat16"),
        ({"model_type": ...}, "model_type='(absent)' must be given"),
        ({"model_type": 3}, "model_type=3 must be a text"),
        ({"model_type": "bert"}, "model_type='bert' must be a decoder-only transformer language model"),
        ({"model_type": "t5"}, "model_type='t5' must be a decoder-only"),
        ({"is_encoder_decoder": True}, "must be a decoder-only"),
        ({"model_type": "lama"}, "did you mean llama?"),
        ({"text_config": [1]}, "text_config=[1] must be a mapping"),
        ({"layer_types": ["full_attention"]}, "layer_types='1 entries' must have num_hidden_layers=4 entries"),
        ({"layer_types": "full"}, "layer_types='full' must be a list"),
        ({"layer_types": ["linear_attention"] * 4}, "must be full_attention or sliding_attention"),
        ({"layer_types": ["sliding_attention"] * 4}, "sliding_window=None must be given"),
        ({"layer_types_counts": {"full_attention": 3}}, "layer_types_counts=3 must add up to num_hidden_layers=4"),
        ({"sliding_window": 0}, "sliding_window=0 must be between"),
        ({"model_type": "mixtral"}, "num_experts='(absent)' must be given"),
        ({"model_type": "mixtral", "num_local_experts": 0}, "num_local_experts=0 must be between"),
        ({"num_experts": 4}, "num_experts_per_tok='(absent)' must be given"),
        ({"num_experts": 4, "num_experts_per_tok": 5}, "num_experts_per_tok=5 must be at most the 4 experts"),
        ({"num_experts": 4, "num_local_experts": 8}, "num_local_experts=8 must equal num_experts=4"),
        ({**EXPERTS, "mlp_only_layers": [4]}, "mlp_only_layers=4 must name layers between 0 and 3"),
        ({**EXPERTS, "decoder_sparse_step": 0}, "decoder_sparse_step=0 must be between"),
        (
            {**EXPERTS, "first_k_dense_replace": 1, "intermediate_size": ...},
            "must be given for the layers without experts",
        ),
        ({"model_type": "deepseek_v3", **EXPERTS}, "kv_lora_rank='(absent)' must be given"),
        ({"model_type": "deepseek_v3", **EXPERTS, "kv_lora_rank": 16}, "qk_nope_head_dim='(absent)' must be given"),
        ({"model_type": "opt"}, "max_position_embeddings='(absent)' must be given"),
        ({"word_embed_proj_dim": 32}, "word_embed_proj_dim=32 must equal hidden_size=64"),
        ({"memwall_extra_input_size": -1}, "memwall_extra_input_size=-1 must be between 0"),
        ({"quantization_config": "fp8"}, "quantization_config='fp8' must be a mapping"),
        ({"quantization_config": {}}, "quantization_config.quant_method='None' must be a known method"),
        ({"quantization_config": {"quant_method": "gptk"}}, "did you mean gptq?"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 3}}, "quantization_config.bits=3 must be 4 or 8"),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 0}},
            "group_size=0 must be at least 1",
        ),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [0, 1]}}, "must be two whole numbers"),
        ({"quantization_config": {"quant_method": "fp8", "ignore": [1]}}, "ignore=1 must be a list of module names"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "must describe exactly one weight format"),
        (
            {"quantization_config": compressed(num_bits=4, type="float", group_size=16)},
            "num_bits=4 must be 8 for float",
        ),
        ({"quantization_config": compressed(num_bits=8, type="complex")}, "type='complex' must be int or float"),
    ],
)
def test_refusals_name_field_value_and_rule(changes, said):
    assert said in sentence(**changes)


def test_content_that_is_no_mapping():
    with pytest.raises(InputError, match="content='list' must be a mapping"):
        parse_config([], name="x", where="x")  # type: ignore[arg-type]


def test_unknown_model_name_suggests_the_nearest():
    with pytest.raises(UnknownName, match=r"did you mean llama-3\.1-70b"):
        load_decoder("lama-3.1-70b")


def test_own_file_by_path_and_by_folder(tmp_path):
    folder = tmp_path / "My-Model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY))
    assert load_decoder(str(folder)).name == "My-Model"
    assert load_decoder("My-Model/config.json", base=tmp_path).parameters == parse().parameters


def test_unknown_keys_are_ignored():
    assert parse(rope_scaling={"factor": 8}, bos_token_id=[1, 2], memwall_source="here") == parse()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)
SMALL = st.integers(-2, 300)
MODEL_TYPES = st.sampled_from(["llama", "qwen2", "mixtral", "deepseek_v3", "gemma2", "gpt_oss", "opt", "gpt2", "bert"])
KEYS = st.sampled_from([
    *TINY, *EXPERTS, *LATENT, "head_dim", "text_config", "layer_types", "layer_types_counts", "sliding_window",
    "sliding_window_pattern", "use_sliding_window", "max_window_layers", "first_k_dense_replace", "moe_layer_freq",
    "decoder_sparse_step", "mlp_only_layers", "n_shared_experts", "quantization_config", "dtype", "torch_dtype",
    "tie_word_embeddings", "attention_bias", "memwall_extra_input_size", "max_position_embeddings",
])  # fmt: skip
QUANTIZATION_KEYS = st.sampled_from(
    ["bits", "group_size", "weight_block_size", "modules_to_not_convert", "ignore", "config_groups", "lm_head"]
)
QUANTIZATION = st.builds(
    lambda method, rest: {**rest, "quant_method": method},
    st.sampled_from(["fp8", "mxfp4", "gptq", "awq", "compressed-tensors"]),
    st.dictionaries(QUANTIZATION_KEYS, SMALL | JSON, max_size=4),
)


def outcome(config) -> Decoder | str:
    try:
        return parse_config(config, name="x", where="x.json")
    except MemwallError as error:
        return str(error)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=20) | KEYS, JSON, max_size=8))
def test_arbitrary_json_gives_a_decoder_or_a_sentence(config):
    assert outcome(config)


@settings(deadline=None)
@given(MODEL_TYPES, st.dictionaries(KEYS, SMALL | JSON | QUANTIZATION, max_size=4))
def test_damaged_config_gives_a_decoder_or_a_sentence(model_type, damage):
    config = {**TINY, **LATENT, **EXPERTS, "max_position_embeddings": 64, "model_type": model_type, **damage}
    result = outcome(config)
    if isinstance(result, Decoder):
        assert 0 < result.active_parameters <= result.parameters
        assert result.layers == config["num_hidden_layers"]
        assert result.kv_values_per_token > 0
    else:
        assert result
