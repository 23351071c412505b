"""A config.json small enough to count by hand, for the tests that read one."""

import pytest

from simulator.architecture import Decoder, parse_config
from simulator.errors import InputError

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
