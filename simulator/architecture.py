"""Decoder: what a Hugging Face ``config.json`` says about a model's shape, and how many weights that shape has.

A config.json is not our file: keys we do not use are ignored, defaults are those of the model's family in transformers,
and what we do use is checked once, here. Sizes are counts (values, tokens, layers), never bytes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simulator import catalog
from simulator.errors import InputError, UnknownName
from simulator.records import read_mapping

MAX_LAYERS = 10**6
MAX_SIZE = 10**9


@dataclass(frozen=True)
class Mla:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434 §2.1): K and V live in one low-rank latent."""

    q_lora_rank: int | None
    """Rank of the query projection; None: one full matrix."""
    kv_lora_rank: int
    """Values of the latent that is cached per token."""
    qk_nope_head_dim: int
    """Query and key values per head without rotary position."""
    qk_rope_head_dim: int
    """Rotary key values; one set per token, shared by all heads and cached beside the latent."""
    v_head_dim: int
    """Value vector per head."""


@dataclass(frozen=True)
class Attention:
    """One layer's attention."""

    heads: int
    kv_heads: int
    """Heads whose K and V are stored (GQA); equals `heads` for multi-head attention and MLA."""
    head_dim: int
    """Query and key values per head."""
    bias: bool
    """Whether the projections have biases."""
    qk_norm: bool
    """Whether queries and keys are normalised per head."""
    mla: Mla | None

    @property
    def kv_values_per_token(self) -> int:
        """Values cached per token and layer: 2·kv_heads·head_dim, or kv_lora_rank + qk_rope_head_dim under MLA."""
        if self.mla is not None:
            return self.mla.kv_lora_rank + self.mla.qk_rope_head_dim
        return 2 * self.kv_heads * self.head_dim


@dataclass(frozen=True)
class Mlp:
    """A dense MLP: hidden → width → hidden; gated ones (SwiGLU, GeGLU) have two matrices on the way up."""

    width: int
    gated: bool
    bias: bool


@dataclass(frozen=True)
class Moe:
    """A mixture of experts behind a router hidden → experts."""

    experts: int
    """Routed experts."""
    experts_per_token: int
    """Routed experts each token visits."""
    width: int
    """Width of one routed expert."""
    gated: bool
    bias: bool
    """Whether router and experts have biases."""
    shared_width: int
    """Total width of the experts every token visits; 0 if there are none."""


@dataclass(frozen=True)
class LayerKind:
    """Layers that are alike, grouped."""

    count: int
    window_tokens: int | None
    """Tokens a query attends to, itself included; None: the whole context."""
    mlp: Mlp | Moe


@dataclass(frozen=True)
class WeightQuantization:
    """How a quantised checkpoint stores its matrices."""

    dtype: str
    """fp8, mxfp4, int4 or int8."""
    block: int
    """Values that share one scale."""
    scale_bytes: float
    """Bytes of one scale and its zero point."""
    unquantized: frozenset[str]
    """Which of attention, embedding, lm_head and router stay in the model's own dtype."""


@dataclass(frozen=True)
class Decoder:
    """A decoder-only language model; vision or audio towers around it are left out."""

    name: str
    model_type: str
    hidden_size: int
    vocab_size: int
    max_context_tokens: int | None
    attention: Attention
    layer_kinds: tuple[LayerKind, ...]
    tied_head: bool
    """Whether the LM head is the embedding matrix."""
    dtype: str
    """bf16, fp16 or fp32: format of everything that is not quantised."""
    quantization: WeightQuantization | None
    extra_input_size: int = 0
    """EAGLE heads: columns of the matrix extra_input_size → hidden_size before the layers; 0 for ordinary models."""

    @property
    def layers(self) -> int:
        """Number of layers."""
        return sum(kind.count for kind in self.layer_kinds)

    @property
    def kv_values_per_token(self) -> int:
        """Values cached per token over all layers; a window limits how many tokens are kept, not this number."""
        return self.layers * self.attention.kv_values_per_token

    @property
    def embedding_parameters(self) -> int:
        """vocab · hidden, and the learned positions of families that have them."""
        offset = _FAMILIES[self.model_type].learned_positions
        positions = 0 if offset is None else (self.max_context_tokens or 0) + offset
        return (self.vocab_size + positions) * self.hidden_size

    @property
    def head_parameters(self) -> int:
        """vocab · hidden, 0 when the head is the embedding matrix."""
        return 0 if self.tied_head else self.vocab_size * self.hidden_size

    @property
    def parameters(self) -> int:
        """All weights: embedding, head, layers, norms, biases. Multi-token-prediction modules are not counted."""
        return self._parameters(all_experts=True)

    @property
    def active_parameters(self) -> int:
        """`parameters` less the routed experts that a token does not visit (embedding and head count whole)."""
        return self._parameters(all_experts=False)

    def _parameters(self, *, all_experts: bool) -> int:
        h, family = self.hidden_size, _FAMILIES[self.model_type]
        attention = _attention_parameters(self.attention, h, family)
        total = self.embedding_parameters + self.head_parameters
        total += self.extra_input_size * h + family.norm_vectors * h
        for kind in self.layer_kinds:
            mlp = _mlp_parameters(kind.mlp, h, family, all_experts=all_experts)
            total += kind.count * (attention + mlp + family.layer_norms * family.norm_vectors * h)
        return total


def _attention_parameters(a: Attention, h: int, family: _Family) -> int:
    if a.mla is not None:
        m = a.mla
        queries = a.heads * (m.qk_nope_head_dim + m.qk_rope_head_dim)
        q = h * queries if m.q_lora_rank is None else m.q_lora_rank * (h + 1 + queries)
        down = h * (m.kv_lora_rank + m.qk_rope_head_dim) + m.kv_lora_rank
        up = m.kv_lora_rank * a.heads * (m.qk_nope_head_dim + m.v_head_dim)
        return q + down + up + a.heads * m.v_head_dim * h
    q, kv = a.heads * a.head_dim, a.kv_heads * a.head_dim
    total = h * (q + 2 * kv) + q * h
    if a.bias:
        total += q + 2 * kv + (h if family.output_bias else 0)
    return total + (2 * a.head_dim if a.qk_norm else 0) + (a.heads if family.attention_sinks else 0)


def _mlp_parameters(mlp: Mlp | Moe, h: int, family: _Family, *, all_experts: bool) -> int:
    up = 2 if mlp.gated else 1

    def dense(width: int) -> int:
        return (up + 1) * h * width + (up * width + h if mlp.bias else 0)

    if isinstance(mlp, Mlp):
        return dense(mlp.width)
    experts = mlp.experts if all_experts else mlp.experts_per_token
    shared = dense(mlp.shared_width) + (h if family.shared_gate else 0) if mlp.shared_width else 0
    return h * mlp.experts + (mlp.experts if mlp.bias else 0) + experts * dense(mlp.width) + shared


@dataclass(frozen=True)
class _Family:
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
_QWEN2 = _Family({"attention_bias": True, **_QWEN_WINDOW}, output_bias=False)
_QWEN3 = {"head_dim": 128, **_QWEN_WINDOW}
_GEMMA2 = {"head_dim": 256, "vocab_size": 256000, "max_position_embeddings": 8192,
           "sliding_window": 4096, "sliding_window_pattern": 2}  # fmt: skip
_GEMMA3 = {"head_dim": 256, "vocab_size": 262208, "max_position_embeddings": 131072,
           "sliding_window": 4096, "sliding_window_pattern": 6}  # fmt: skip

# Defaults as in transformers' configuration_<family>.py; the rest as in its modeling_<family>.py.
_FAMILIES: dict[str, _Family] = {
    "llama": _Family(),
    "granite": _Family(),
    "mistral": _Family({"sliding_window": 4096}),
    "mixtral": _Family(moe=True),
    "smollm3": _Family(tied=True),
    "phi3": _Family(),
    "qwen2": _QWEN2,
    "qwen2_vl": _QWEN2,
    "qwen2_5_vl": _QWEN2,
    "qwen2_moe": _Family(_QWEN2.defaults, output_bias=False, moe=True, shared_gate=True),
    "qwen3": _Family(_QWEN3, qk_norm=True),
    "qwen3_moe": _Family(_QWEN3, qk_norm=True, moe=True),
    "deepseek_v2": _Family(moe=True, mla=True),
    "deepseek_v3": _Family({"first_k_dense_replace": 3}, moe=True, mla=True),
    "kimi_k2": _Family(moe=True, mla=True),
    "glm4_moe": _Family({"first_k_dense_replace": 1}, output_bias=False, moe=True),
    "gpt_oss": _Family(
        {**_BIASED, "head_dim": 64, "sliding_window": 128, "sliding_window_pattern": 2}, moe=True, attention_sinks=True
    ),
    "gemma": _Family({"head_dim": 256}, tied=True),
    "gemma2": _Family(_GEMMA2, tied=True, layer_norms=4),
    "gemma3_text": _Family(_GEMMA3, tied=True, layer_norms=4, qk_norm=True),
    "cohere": _Family(tied=True, layer_norms=1),
    "cohere2": _Family({"sliding_window": 4096, "sliding_window_pattern": 4}, tied=True, layer_norms=1),
    "gpt_neox": _Family(_BIASED, gated=False, norm_vectors=2),
    "phi": _Family(_BIASED, gated=False, layer_norms=1, norm_vectors=2),
    "nemotron": _Family(gated=False, norm_vectors=2),
    "starcoder2": _Family(_BIASED, gated=False, tied=True, norm_vectors=2),
    "opt": _Family(_BIASED, gated=False, tied=True, norm_vectors=2, learned_positions=2),
    "gpt2": _Family(_BIASED, gated=False, tied=True, norm_vectors=2, learned_positions=0),
}
_NO_DECODERS = {"albert", "bart", "bert", "blip", "clip", "deberta", "deberta-v2", "distilbert", "electra", "longt5", "mamba",
                "mamba2", "marian", "mbart", "modernbert", "mt5", "pegasus", "roberta", "rwkv", "siglip", "t5", "umt5", "vit",
                "wav2vec2", "whisper", "xlm-roberta"}  # fmt: skip
_NESTED = ("text_config", "llm_config", "language_config")
_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "half": "fp16", "float": "fp32"}


def load_decoder(name: str, *, base: Path | None = None) -> Decoder:
    """The model of a bundled name, a config.json's path, or its folder's. Raises UnknownName or InputError."""
    path = catalog.locate("model", name, base=base)
    shown = path.resolve().parent.name if path.name == "config.json" else path.stem
    return parse_config(read_mapping(path), name=shown, where=str(path))


def parse_config(config: Mapping[str, Any], *, name: str, where: str) -> Decoder:
    """`config` (a parsed config.json) as a Decoder; `where` names the file in errors. Raises InputError.

    Our own keys: ``memwall_extra_input_size`` (see Decoder.extra_input_size) and ``memwall_source`` (provenance).
    """
    config, model_type = _text_model(config, where)
    family = _FAMILIES[model_type]
    given = _Fields({**family.defaults, **config}, where)
    hidden_size = given.count("hidden_size", "n_embd")
    layers = given.count("num_hidden_layers", "n_layer", at_most=MAX_LAYERS)
    context = given.optional("max_position_embeddings", "n_positions")
    if context is None and family.learned_positions is not None:
        raise given.error("max_position_embeddings", "(absent)", "be given: it is the length of the position table")
    windows = _windows(given, layers)
    mlps = _mlps(given, family, layers, hidden_size)
    kinds = Counter(zip(windows, mlps, strict=True))
    attention = _attention(given, family, hidden_size)
    projected = given.count("word_embed_proj_dim", default=hidden_size)
    if projected != hidden_size:
        raise given.error("word_embed_proj_dim", projected, f"equal hidden_size={hidden_size}")
    return Decoder(
        name=name,
        model_type=model_type,
        hidden_size=hidden_size,
        vocab_size=given.count("vocab_size"),
        max_context_tokens=context,
        attention=attention,
        layer_kinds=tuple(LayerKind(count, window, mlp) for (window, mlp), count in kinds.items()),
        tied_head=given.flag("tie_word_embeddings", default=family.tied),
        dtype=_dtype(given),
        quantization=_quantization(given, layers, hidden_size),
        extra_input_size=given.count("memwall_extra_input_size", default=0, at_least=0),
    )


class _Fields:
    """A config's fields, checked as they are read. `null` means the same as absent."""

    def __init__(self, data: Mapping[str, Any], where: str, prefix: str = ""):
        self.data, self.where, self.prefix = data, where, prefix

    def error(self, name: str, value: object, rule: str) -> InputError:
        return InputError(self.prefix + name, value, rule, where=self.where)

    def optional(self, *names: str, at_least: int = 1, at_most: int = MAX_SIZE) -> int | None:
        """The whole number under any of `names`, which must agree; None when none is given."""
        found = [(n, self._checked(n, at_least, at_most)) for n in names if self.data.get(n) is not None]
        for name, value in found[1:]:
            if value != found[0][1]:
                raise self.error(name, value, f"equal {found[0][0]}={found[0][1]}")
        return found[0][1] if found else None

    def count(self, *names: str, default: int | None = None, at_least: int = 1, at_most: int = MAX_SIZE) -> int:
        value = self.optional(*names, at_least=at_least, at_most=at_most)
        if value is None:
            value = default
        if value is None:
            raise self.error(names[0], "(absent)", "be given")
        return value

    def _checked(self, name: str, at_least: int, at_most: int) -> int:
        value = self.data[name]
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(name, value, "be a whole number")
        if not at_least <= value <= at_most:
            # Python refuses to print integers of thousands of digits.
            shown = value if value.bit_length() < 256 else "(huge)"
            raise self.error(name, shown, f"be between {at_least} and {at_most}")
        return value

    def flag(self, *names: str, default: bool) -> bool:
        for name in names:
            value = self.data.get(name)
            if value is not None:
                if not isinstance(value, bool):
                    raise self.error(name, value, "be true or false")
                return value
        return default

    def listed(self, name: str) -> list[Any]:
        value = self.data.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.error(name, value, "be a list")
        return value

    def nested(self, name: str) -> _Fields | None:
        value = self.data.get(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.error(name, value, "be a mapping of fields to values")
        return _Fields(value, self.where, f"{self.prefix}{name}.")


def _text_model(config: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], str]:
    """The language model's own fields and its model_type; a multimodal config keeps them one level down."""
    if not isinstance(config, Mapping):
        raise InputError("content", type(config).__name__, "be a mapping of fields to values", where=where)
    outer = _Fields(config, where)
    model_type = config.get("model_type")
    for inner in _NESTED:
        text = outer.nested(inner)
        if text is not None:
            # What the inner config leaves out (dtype, quantisation, tying) is said once, outside.
            config = {**config, **{k: v for k, v in text.data.items() if v is not None or k not in config}}
            if text.data.get("model_type") is None and f"{model_type}_text" in _FAMILIES:
                model_type = f"{model_type}_text"
            else:
                model_type = config.get("model_type")
            break
    if model_type is None:
        raise outer.error("model_type", "(absent)", "be given, e.g. 'llama'")
    if not isinstance(model_type, str):
        raise outer.error("model_type", model_type, "be a text such as 'llama'")
    if model_type in _NO_DECODERS or config.get("is_encoder_decoder") is True:
        raise outer.error("model_type", model_type, "be a decoder-only transformer language model")
    if model_type not in _FAMILIES:
        raise UnknownName("model_type", model_type, _FAMILIES, where=where, kind="decoder family")
    return config, model_type


def _attention(given: _Fields, family: _Family, hidden_size: int) -> Attention:
    heads = given.count("num_attention_heads", "n_head")
    bias = given.flag("attention_bias", "enable_bias", "use_bias", default=False)
    if family.mla or given.optional("kv_lora_rank") is not None:
        mla = Mla(
            q_lora_rank=given.optional("q_lora_rank"),
            kv_lora_rank=given.count("kv_lora_rank"),
            qk_nope_head_dim=given.count("qk_nope_head_dim"),
            qk_rope_head_dim=given.count("qk_rope_head_dim"),
            v_head_dim=given.count("v_head_dim"),
        )
        return Attention(heads, heads, mla.qk_nope_head_dim + mla.qk_rope_head_dim, bias, False, mla)
    kv_heads = given.count("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise given.error("num_key_value_heads", kv_heads, f"divide num_attention_heads={heads}")
    head_dim = given.optional("head_dim")
    if head_dim is None:
        if hidden_size % heads:
            raise given.error(
                "hidden_size", hidden_size, f"be a multiple of num_attention_heads={heads}, or head_dim given"
            )
        head_dim = hidden_size // heads
    return Attention(heads, kv_heads, head_dim, bias, given.flag("use_qk_norm", default=family.qk_norm), None)


def _windows(given: _Fields, layers: int) -> list[int | None]:
    """Window of each layer in tokens, None for full attention."""
    window = given.optional("sliding_window")
    if not given.flag("use_sliding_window", default=True):
        window = None
    types = given.listed("layer_types")
    counts = given.nested("layer_types_counts")
    if types and len(types) != layers:
        raise given.error("layer_types", f"{len(types)} entries", f"have num_hidden_layers={layers} entries")
    if not types and counts is not None:
        number = {kind: counts.count(kind, at_least=0, at_most=MAX_LAYERS) for kind in counts.data}
        if sum(number.values()) != layers:
            raise given.error("layer_types_counts", sum(number.values()), f"add up to num_hidden_layers={layers}")
        types = [kind for kind, n in number.items() for _ in range(n)]
    if types:
        return [_window(given, kind, window) for kind in types]
    # Every pattern-th layer sees everything, the others the window (Gemma 2 and 3, gpt-oss, Command R7B).
    pattern = given.optional("sliding_window_pattern", "_sliding_window_pattern")
    first = given.count("max_window_layers", default=0, at_least=0) if window else 0
    return [window if i >= first and not (pattern and (i + 1) % pattern == 0) else None for i in range(layers)]


def _window(given: _Fields, kind: object, window: int | None) -> int | None:
    if kind == "full_attention":
        return None
    if kind != "sliding_attention":
        raise given.error("layer_types", kind, "be full_attention or sliding_attention")
    if window is None:
        raise given.error(
            "sliding_window", window, "be given (and use_sliding_window not false) where layer_types has windows"
        )
    return window


def _mlps(given: _Fields, family: _Family, layers: int, hidden_size: int) -> list[Mlp | Moe]:
    """MLP or experts of each layer."""
    bias = given.flag("mlp_bias", "enable_bias", "use_bias", default=False)
    width = given.optional("intermediate_size", "ffn_dim", "n_inner")
    if width is None and family.learned_positions == 0:
        width = 4 * hidden_size  # GPT-2 leaves n_inner null
    experts = given.optional("num_experts", "num_local_experts", "n_routed_experts", at_least=1 if family.moe else 0)
    if experts is None and family.moe:
        raise given.error("num_experts", "(absent)", "be given (or num_local_experts, n_routed_experts)")
    if not experts:
        if width is None:
            raise given.error("intermediate_size", "(absent)", "be given")
        return [Mlp(width, family.gated, bias)] * layers
    per_token = given.count("num_experts_per_tok", "experts_per_token", "num_experts_per_token")
    if per_token > experts:
        raise given.error("num_experts_per_tok", per_token, f"be at most the {experts} experts")
    expert_width = given.count("moe_intermediate_size", default=width)
    shared = given.count("n_shared_experts", default=0, at_least=0) * expert_width
    shared = given.count("shared_expert_intermediate_size", default=shared, at_least=0)
    moe = Moe(experts, per_token, expert_width, family.gated, bias, shared)
    first = given.count("first_k_dense_replace", default=0, at_least=0)
    every = given.count("moe_layer_freq", default=1)
    step = given.count("decoder_sparse_step", default=1)
    dense = set()
    for i in given.listed("mlp_only_layers"):
        if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < layers:
            raise given.error("mlp_only_layers", i, f"name layers between 0 and {layers - 1}")
        dense.add(i)
    sparse = [i >= first and i % every == 0 and (i + 1) % step == 0 and i not in dense for i in range(layers)]
    if all(sparse):
        return [moe] * layers
    if width is None:
        raise given.error("intermediate_size", "(absent)", "be given for the layers without experts")
    return [moe if s else Mlp(width, family.gated, bias) for s in sparse]


def _dtype(given: _Fields) -> str:
    """Format of the unquantised weights; bf16 where the file does not say, as every recent checkpoint is."""
    found = {n: given.data[n] for n in ("dtype", "torch_dtype") if given.data.get(n) is not None}
    for name, value in found.items():
        if not isinstance(value, str) or value.removeprefix("torch.") not in _DTYPES:
            raise given.error(name, value, "be bfloat16, float16 or float32")
    formats = [_DTYPES[value.removeprefix("torch.")] for value in found.values()]
    if len(set(formats)) > 1:
        raise given.error("torch_dtype", found["torch_dtype"], f"equal dtype={found['dtype']}")
    return formats[0] if formats else "bf16"


def _quantization(given: _Fields, layers: int, hidden_size: int) -> WeightQuantization | None:
    q = given.nested("quantization_config")
    if q is None:
        return None
    method = q.data.get("quant_method")
    # One scale per output channel covers a column of about hidden_size values.
    dtype, block, scale_bytes = "", hidden_size, 4.0
    if method in ("fp8", "fbgemm_fp8"):
        dtype = "fp8"
        if q.listed("weight_block_size"):
            block = _area(q, "weight_block_size")
        elif method == "fp8":
            block = hidden_size**2  # one scale per matrix
    elif method == "mxfp4":
        dtype, block, scale_bytes = "mxfp4", 32, 1.0
    elif method in ("gptq", "awq"):
        bits = q.count("bits", "w_bit", at_most=64)
        dtype = _integer(q, "bits", bits)
        block = _group(q, ("group_size", "q_group_size"), hidden_size)
        scale_bytes = 2.0 + bits / 8  # fp16 scale and a packed zero point, stored even when symmetric
    elif method == "compressed-tensors":
        dtype, block, scale_bytes = _compressed(q, hidden_size)
    else:
        known = ["fp8", "fbgemm_fp8", "mxfp4", "gptq", "awq", "compressed-tensors"]
        raise UnknownName("quantization_config.quant_method", str(method), known, where=given.where, kind="method")
    return WeightQuantization(dtype, block, scale_bytes, _unquantized(q, str(method), layers))


def _compressed(q: _Fields, hidden_size: int) -> tuple[str, int, float]:
    groups = q.nested("config_groups")
    schemes = set()
    for name in groups.data if groups else ():
        group = groups.nested(name) if groups else None
        weights = group.nested("weights") if group else None
        if weights is not None:
            schemes.add(_compressed_scheme(weights, hidden_size))
    if len(schemes) != 1:
        raise q.error("config_groups", f"{len(schemes)} weight formats", "describe exactly one weight format")
    return schemes.pop()


def _compressed_scheme(w: _Fields, hidden_size: int) -> tuple[str, int, float]:
    bits, kind, strategy = w.count("num_bits", at_most=64), w.data.get("type"), w.data.get("strategy")
    if kind == "float":
        group = w.optional("group_size", at_least=-1)
        if bits == 4 and group == 32:
            return "mxfp4", 32, 1.0
        if bits != 8:
            raise w.error("num_bits", bits, "be 8 for float weights (or 4 in groups of 32)")
        dtype = "fp8"
    elif kind in (None, "int"):
        dtype = _integer(w, "num_bits", bits)
    else:
        raise w.error("type", kind, "be int or float")
    if strategy == "tensor":
        block = hidden_size**2
    elif strategy == "block":
        block = _area(w, "block_structure")
    else:
        block = _group(w, ("group_size",), hidden_size)
    return dtype, block, 2.0 + (0.0 if w.flag("symmetric", default=True) else bits / 8)


def _integer(q: _Fields, name: str, bits: int) -> str:
    if bits not in (4, 8):
        raise q.error(name, bits, "be 4 or 8")
    return f"int{bits}"


def _group(q: _Fields, names: tuple[str, ...], hidden_size: int) -> int:
    group = q.count(*names, default=-1, at_least=-1)
    if group == 0:
        raise q.error(names[0], group, "be at least 1, or -1 for one scale per channel")
    return hidden_size if group == -1 else group


def _area(q: _Fields, name: str) -> int:
    sides = q.listed(name)
    if len(sides) != 2 or not all(isinstance(s, int) and not isinstance(s, bool) and 0 < s <= MAX_SIZE for s in sides):
        raise q.error(name, sides, "be two whole numbers such as [128, 128]")
    return int(sides[0] * sides[1])


def _unquantized(q: _Fields, method: str, layers: int) -> frozenset[str]:
    """Parts kept in the model's dtype: those no engine quantises, and those that the exclusion list names."""
    parts = {"embedding", "router"}
    if not q.flag("lm_head", default=False):
        parts.add("lm_head")
    if method == "mxfp4":
        parts.add("attention")  # the method packs experts only
    exempt: set[int] = set()
    for key in ("modules_to_not_convert", "ignore", "ignored_layers"):
        for pattern in q.listed(key):
            if not isinstance(pattern, str):
                raise q.error(key, pattern, "be a list of module names")
            if re.search(r"attn|attention", pattern):
                index = re.search(r"(?:layers|h)\\?\.(\d{1,7})\\?\.", pattern)
                exempt.update([int(index[1])] if index else range(layers))
    # A list that exempts single layers (the first and last, say) leaves attention as a whole quantised.
    if 2 * len(exempt) > layers:
        parts.add("attention")
    return frozenset(parts)
