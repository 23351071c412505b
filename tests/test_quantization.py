"""Bytes per value of every tensor class, scales counted by hand; what may not be asked of a checkpoint."""

import pytest

from simulator.architecture import load_decoder
from simulator.errors import InputError
from simulator.quantization import Formats, Quantization, resolve
from tests.tiny_config import parse


def formats(name: str = "llama-3.1-8b", **changes) -> Formats:
    return resolve(Quantization(**changes), load_decoder(name))


@pytest.mark.parametrize(
    ("weights", "bytes_"),
    [
        ("model", 2.0),
        ("fp32", 4.0),
        ("fp16", 2.0),
        ("fp8", 1 + 4 / (128 * 128)),
        ("int8", 1 + 4 / 4096),
        ("int4", 0.5 + 2.5 / 128),  # 4.156 bits: fp16 scale and 4-bit zero point per 128
        ("mxfp4", 0.5 + 1 / 32),  # 4.25 bits
    ],
)
def test_weights_with_their_scales(weights, bytes_):
    f = formats(weights=weights)
    assert (f.weight_bytes, f.attention_weight_bytes) == (bytes_, bytes_)
    # What no engine quantises.
    assert (f.router_weight_bytes, f.head_bytes, f.embedding_bytes, f.model_bytes) == (2.0, 2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("kv", "bytes_"), [("model", 2.0), ("fp8", 1.0), ("int8", 1 + 2 / 128), ("int4", 0.5 + 2.5 / 64), ("fp32", 4.0)]
)
def test_kv_with_its_scales(kv, bytes_):
    assert formats(kv=kv).kv_bytes == bytes_


@pytest.mark.parametrize(
    ("weights", "activations"), [("fp8", "fp8"), ("int8", "int8"), ("int4", "bf16"), ("mxfp4", "bf16")]
)
def test_activations_follow_the_weights(weights, activations):
    assert formats(weights=weights).activations == activations
    assert formats(weights=weights, activations="fp16").activations == "fp16"


def test_lm_head_is_quantised_when_asked():
    assert formats(lm_head="fp8").head_bytes == 1 + 4 / 128**2
    assert formats(lm_head="int4").embedding_bytes == 2.0


def test_fp32_model_stays_wide():
    f = resolve(Quantization(), parse(torch_dtype="float32"))
    assert (f.weight_bytes, f.kv_bytes, f.activations, f.model_bytes) == (4.0, 4.0, "fp32", 4.0)


# Checkpoints that are quantised already


def test_deepseek_is_fp8_as_published():
    f = formats("deepseek-v3")
    assert (f.weights, f.activations, f.kv) == ("fp8", "fp8", "bf16")
    assert f.weight_bytes == f.attention_weight_bytes == 1 + 4 / 128**2
    assert f.router_weight_bytes == f.head_bytes == 2.0


def test_gpt_oss_packs_its_experts_only():
    f = formats("gpt-oss-20b")
    assert (f.weight_bytes, f.attention_weight_bytes, f.activations) == (0.5 + 1 / 32, 2.0, "bf16")


@pytest.mark.parametrize(("name", "stored"), [("deepseek-v3", "fp8"), ("gpt-oss-20b", "mxfp4")])
def test_naming_the_stored_format_changes_nothing(name, stored):
    assert formats(name, weights=stored) == formats(name)


def test_lm_head_quantised_in_the_checkpoint():
    config = {"quant_method": "gptq", "bits": 4, "group_size": 128, "lm_head": True}
    decoder = parse(quantization_config=config)
    assert resolve(Quantization(), decoder).head_bytes == 0.5 + 2.5 / 128
    assert resolve(Quantization(lm_head="bf16"), decoder).head_bytes == 2.0


@pytest.mark.parametrize(
    ("name", "weights"), [("deepseek-v3", "bf16"), ("deepseek-v3", "fp32"), ("gpt-oss-20b", "fp8")]
)
def test_widening_a_stored_checkpoint_is_refused(name, weights):
    with pytest.raises(InputError, match=f"quantization.weights='{weights}' must not be wider than the checkpoint"):
        formats(name, weights=weights)


def test_narrowing_a_stored_checkpoint_is_allowed():
    assert formats("deepseek-v3", weights="int4").weight_bytes == 0.5 + 2.5 / 128
