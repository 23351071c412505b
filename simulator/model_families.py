"""Model families: what transformers' code for a ``model_type`` fixes, beyond what a config.json says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """What transformers' code for a ``model_type`` fixes, beyond what its config.json says."""

    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values of the config class that matter here and that published config.json files may leave out."""
    gated: bool = True
    output_bias: bool = True
    """Whether a biased attention has a bias on its output projection too."""
    qk_norm: bool = False
    moe: bool = False
    mla: bool = False
    tied: bool = False
    layer_norms: int = 2
    norm_vectors: int = 1
    """RMSNorm has one weight vector, LayerNorm a weight and a bias."""
    learned_positions: int | None = None
    """Rows of the position table beyond the maximum context; None: rotary positions, no table."""
    attention_sinks: bool = False
    shared_gate: bool = False


_BIASED = {"attention_bias": True, "mlp_bias": True}
_QWEN_WINDOW = {"use_sliding_window": False, "max_window_layers": 28}
_QWEN2 = Family({"attention_bias": True, **_QWEN_WINDOW}, output_bias=False)
_QWEN3 = {"head_dim": 128, **_QWEN_WINDOW}
_GEMMA2 = {"head_dim": 256, "vocab_size": 256000, "max_position_embeddings": 8192,
           "sliding_window": 4096, "sliding_window_pattern": 2}  # fmt: skip
_GEMMA3 = {"head_dim": 256, "vocab_size": 262208, "max_position_embeddings": 131072,
           "sliding_window": 4096, "sliding_window_pattern": 6}  # fmt: skip

# Defaults as in transformers' configuration_<family>.py; the rest as in its modeling_<family>.py.
FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "granite": Family(),
    "mistral": Family({"sliding_window": 4096}),
    "mixtral": Family(moe=True),
    "smollm3": Family(tied=True),
    "phi3": Family(),
    "qwen2": _QWEN2,
    "qwen2_vl": _QWEN2,
    "qwen2_5_vl": _QWEN2,
    "qwen2_moe": Family(_QWEN2.defaults, output_bias=False, moe=True, shared_gate=True),
    "qwen3": Family(_QWEN3, qk_norm=True),
    "qwen3_moe": Family(_QWEN3, qk_norm=True, moe=True),
    "deepseek_v2": Family(moe=True, mla=True),
    "deepseek_v3": Family({"first_k_dense_replace": 3}, moe=True, mla=True),
    "kimi_k2": Family(moe=True, mla=True),
    "glm4_moe": Family({"first_k_dense_replace": 1}, output_bias=False, moe=True),
    "gpt_oss": Family(
        {**_BIASED, "head_dim": 64, "sliding_window": 128, "sliding_window_pattern": 2}, moe=True, attention_sinks=True
    ),
    "gemma": Family({"head_dim": 256}, tied=True),
    "gemma2": Family(_GEMMA2, tied=True, layer_norms=4),
    "gemma3_text": Family(_GEMMA3, tied=True, layer_norms=4, qk_norm=True),
    "cohere": Family(tied=True, layer_norms=1),
    "cohere2": Family({"sliding_window": 4096, "sliding_window_pattern": 4}, tied=True, layer_norms=1),
    "gpt_neox": Family(_BIASED, gated=False, norm_vectors=2),
    "phi": Family(_BIASED, gated=False, layer_norms=1, norm_vectors=2),
    "nemotron": Family(gated=False, norm_vectors=2),
    "starcoder2": Family(_BIASED, gated=False, tied=True, norm_vectors=2),
    "opt": Family(_BIASED, gated=False, tied=True, norm_vectors=2, learned_positions=2),
    "gpt2": Family(_BIASED, gated=False, tied=True, norm_vectors=2, learned_positions=0),
}
NO_DECODERS = {"albert", "bart", "bert", "blip", "clip", "deberta", "deberta-v2", "distilbert", "electra", "longt5", "mamba",
                "mamba2", "marian", "mbart", "modernbert", "mt5", "pegasus", "roberta", "rwkv", "siglip", "t5", "umt5", "vit",
                "wav2vec2", "whisper", "xlm-roberta"}  # fmt: skip
