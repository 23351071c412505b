"""Decoder: published parameter counts, counts by hand, KV values, models by name, path and folder."""

import json

import pytest

from simulator import catalog
from simulator.architecture import load_decoder
from simulator.errors import InputError, UnknownName
from tests.tiny_config import EXPERTS, LATENT, TINY, parse

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


def test_eagle3_head_by_hand():
    head = load_decoder("eagle3-llama-3.1-8b")
    assert (head.layers, head.vocab_size, head.head_vocab_size, head.extra_input_size) == (1, 128_256, 32_000, 0)
    # q, k and v read embedding and feature, o writes hidden; SwiGLU of 14336; three features into one; its own LM head.
    attention = 2 * 4096 * (4096 + 2 * 1024) + 4096 * 4096
    own = attention + 3 * 4096 * 14_336 + 3 * 4096 * 4096 + 32_000 * 4096
    assert head.parameters - head.embedding_parameters == pytest.approx(own, rel=1e-4)


def test_a_draft_vocabulary_is_part_of_the_vocabulary():
    assert parse(draft_vocab_size=40).head_vocab_size == 40
    assert parse(draft_vocab_size=40).parameters == parse().parameters - 60 * 64
    with pytest.raises(InputError, match="draft_vocab_size"):
        parse(draft_vocab_size=101)


def test_prediction_modules_are_counted_apart():
    assert load_decoder("deepseek-v3").mtp_modules == 1
    assert load_decoder("llama-3.1-8b").mtp_modules == 0


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


# Names and paths


def test_unknown_model_name_suggests_the_nearest():
    with pytest.raises(UnknownName, match=r"did you mean llama-3\.1-70b"):
        load_decoder("lama-3.1-70b")


def test_own_file_by_path_and_by_folder(tmp_path):
    folder = tmp_path / "My-Model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY))
    assert load_decoder(str(folder)).name == "My-Model"
    assert load_decoder("My-Model/config.json", base=tmp_path).parameters == parse().parameters
