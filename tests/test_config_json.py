"""config.json → Decoder: every trap of published files, every refusal, arbitrary JSON."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.architecture import Decoder, LayerKind, Mlp, Moe, load_decoder, parse_config
from simulator.errors import InputError, MemwallError
from tests.tiny_config import EXPERTS, LATENT, TINY, parse, sentence


def windows(decoder: Decoder) -> list[tuple[int, int | None]]:
    return [(kind.count, kind.window_tokens) for kind in decoder.layer_kinds]


# Traps of config.json


def test_windows_of_published_models():
    assert windows(load_decoder("gpt-oss-20b")) == [(12, 128), (12, None)]
    assert windows(load_decoder("gemma-2-27b")) == [(23, 4096), (23, None)]
    # every sixth of 62 layers is global: 6, 12, ..., 60
    assert windows(load_decoder("gemma-3-27b")) == [(52, 1024), (10, None)]
    assert windows(load_decoder("mistral-7b")) == [(32, 4096)]
    assert windows(load_decoder("mistral-nemo-12b")) == [(40, None)]
    assert windows(load_decoder("qwen2.5-7b")) == [(28, None)]


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
    ],
)
def test_refusals_name_field_value_and_rule(changes, said):
    assert said in sentence(**changes)


def test_content_that_is_no_mapping():
    with pytest.raises(InputError, match="content='list' must be a mapping"):
        parse_config([], name="x", where="x")  # type: ignore[arg-type]


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
