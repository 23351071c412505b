"""quantization_config of published checkpoints → format, block and scale; every refusal."""

import pytest

from simulator.architecture import load_decoder
from tests.tiny_config import parse, sentence


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


@pytest.mark.parametrize(
    ("changes", "said"),
    [
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
