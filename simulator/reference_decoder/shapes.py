"""Shape: what the decoder needs to know of a config.json; and the built-in models that are measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Values of `model_type` whose layers are RMSNorm, rotary, grouped-query attention and SwiGLU, and nothing more."""


class ConfigError(ValueError):
    """A config.json that the reference decoder cannot build: `<field>=<value> must <rule>`."""


@dataclass(frozen=True)
class Llama3Rope:
    """How Llama 3.1 and later stretch the slow rotary frequencies (config.json: rope_scaling, rope_type llama3)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class Shape:
    """A dense Llama-style decoder. Sizes are counts."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    width: int
    """Of the MLP between its matrices."""
    vocab: int
    tied_head: bool = False
    """The LM head is the embedding matrix."""
    rope_theta: float = 10000.0
    rope_scaling: Llama3Rope | float | None = None
    """A number divides all positions (rope_type linear)."""
    norm_eps: float = 1e-5
    qkv_bias: bool = False
    """Qwen2."""
    qk_norm: bool = False
    """Qwen3: queries and keys are normalised per head."""
    max_tokens: int | None = None
    """Context beyond which the model would do something we do not (a sliding window); None: no such limit."""

    def __post_init__(self) -> None:
        """Refuse what cannot be computed."""
        for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "width", "vocab"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.heads % self.kv_heads:
            raise ConfigError(f"heads={self.heads} must be a multiple of kv_heads={self.kv_heads}")
        if self.head_dim % 2:
            raise ConfigError(f"head_dim={self.head_dim} must be even: rotary positions turn pairs of values")

    @property
    def parameters(self) -> int:
        """All weights: embedding, head unless tied, layers, norms."""
        qkv = (self.heads + 2 * self.kv_heads) * self.head_dim
        layer = self.hidden * (qkv + self.heads * self.head_dim + 3 * self.width + 2)
        layer += (qkv if self.qkv_bias else 0) + (2 * self.head_dim if self.qk_norm else 0)
        return self.layers * layer + self.hidden * (self.vocab * (1 if self.tied_head else 2) + 1)

    @property
    def kv_values_per_token(self) -> int:
        """Cached values per token over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    def sliced(self, layers: int) -> Shape:
        """The same model with fewer layers."""
        return replace(self, layers=layers)

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> Shape:
        """The shape that a parsed config.json describes. Raises ConfigError for anything but a dense Llama-style one."""
        config = config.get("text_config", config)
        if not isinstance(config, Mapping):
            raise ConfigError("text_config must be a mapping")
        family = config.get("model_type", "llama")
        if family not in FAMILIES:
            raise ConfigError(f"model_type={family!r} must be one of {', '.join(FAMILIES)}")
        activation = config.get("hidden_act", "silu")
        if activation != "silu":
            raise ConfigError(f"hidden_act={activation!r} must be 'silu'")
        hidden, heads = _count(config, "hidden_size"), _count(config, "num_attention_heads")
        windowed = config.get("sliding_window") is not None and config.get("use_sliding_window", family == "mistral")
        rope = config.get("rope_parameters") or {}
        theta = rope.get("rope_theta") or config.get("rope_theta") or 10000.0
        return Shape(
            layers=_count(config, "num_hidden_layers"),
            hidden=hidden,
            heads=heads,
            kv_heads=_count(config, "num_key_value_heads", heads),
            head_dim=_count(config, "head_dim", hidden // heads),
            width=_count(config, "intermediate_size"),
            vocab=_count(config, "vocab_size"),
            tied_head=bool(config.get("tie_word_embeddings", False)),
            rope_theta=float(theta),
            rope_scaling=_rope_scaling(config.get("rope_scaling") or rope),
            norm_eps=float(config.get("rms_norm_eps", 1e-5)),
            qkv_bias=bool(config.get("attention_bias", family == "qwen2")),
            qk_norm=family == "qwen3",
            max_tokens=_count(config, "sliding_window") if windowed else None,
        )


def _count(config: Mapping[str, Any], field: str, default: int | None = None) -> int:
    value = config.get(field)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{field}={value!r} must be a whole number of at least 1")
    return value


def _rope_scaling(scaling: Mapping[str, Any]) -> Llama3Rope | float | None:
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return float(scaling["factor"])
    if kind == "llama3":
        return Llama3Rope(
            factor=float(scaling["factor"]),
            low_freq_factor=float(scaling["low_freq_factor"]),
            high_freq_factor=float(scaling["high_freq_factor"]),
            original_max_position_embeddings=int(scaling["original_max_position_embeddings"]),
        )
    raise ConfigError(f"rope_scaling.rope_type={kind!r} must be default, linear or llama3")


_LLAMA_70B = Shape(80, 8192, 64, 8, 128, 28672, 128256, rope_theta=500000.0)

SHAPES: dict[str, Shape] = {
    # For pipelines, not for speed: seconds on any machine.
    "toy": Shape(2, 64, 4, 2, 16, 128, 256),
    "toy-draft": Shape(1, 32, 2, 1, 16, 64, 256),
    # Byte-level pairs that are trained before they are measured (see `pair`): for a CPU, and for a GPU.
    "bytes-500k": Shape(2, 128, 4, 2, 32, 384, 256),
    "bytes-80k": Shape(1, 64, 2, 1, 32, 192, 256),
    "bytes-24m": Shape(8, 512, 8, 2, 64, 1536, 256),
    "bytes-2m": Shape(2, 256, 4, 1, 64, 768, 256),
    # Usable targets on one CPU thread; large enough that weights stream from memory. The vocabulary is small, so that
    # layers and not the head dominate, as in models of billions.
    "cpu-6m": Shape(2, 320, 5, 1, 64, 960, 8192, tied_head=True),
    "cpu-20m": Shape(4, 512, 8, 4, 64, 1536, 8192, tied_head=True),
    "cpu-82m": Shape(10, 768, 12, 4, 64, 2560, 8192, tied_head=True),
    "cpu-150m": Shape(12, 1024, 16, 4, 64, 3072, 8192, tied_head=True),
    "cpu-250m": Shape(14, 1280, 20, 4, 64, 3584, 8192, tied_head=True),
    # The shapes people serve: the layers of JackFram/llama-68m with Llama 3's vocabulary, Llama-3.2-1B, Llama-3.1-8B,
    # and as many layers of Llama-3.1-70B as leave room for KV.
    "llama-68m": Shape(2, 768, 12, 12, 64, 3072, 128256, tied_head=True),
    "llama-1b": Shape(16, 2048, 32, 8, 64, 8192, 128256, tied_head=True, rope_theta=500000.0),
    "llama-8b": Shape(32, 4096, 32, 8, 128, 14336, 128256, rope_theta=500000.0),
    "llama-70b-slice": _LLAMA_70B.sliced(8),
}  # fmt: skip
"""Built in, so that measuring needs no file."""
