"""Decoder: a model's shape, and how many weights that shape has. Sizes are counts (values, tokens, layers), never bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator import catalog
from simulator.model_families import FAMILIES, Family
from simulator.records import read_mapping


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
    layer_order: tuple[int, ...]
    """Which of `layer_kinds` each layer is, from the embedding to the head."""
    tied_head: bool
    """Whether the LM head is the embedding matrix."""
    dtype: str
    """bf16, fp16 or fp32: format of everything that is not quantised."""
    quantization: WeightQuantization | None
    extra_input_size: int = 0
    """EAGLE heads: columns of the matrix extra_input_size → hidden_size before the layers; 0 for ordinary models."""
    feature_size: int = 0
    """EAGLE-3 heads: columns of the matrix feature_size → hidden_size that each token's target features pass through once."""
    attention_input_size: int = 0
    """EAGLE-3 heads: width of what attention reads, embedding beside feature; 0: the hidden size."""
    draft_vocab_size: int = 0
    """Rows of the LM head where it knows fewer tokens than the embedding; 0: as many."""
    mtp_modules: int = 0
    """Multi-token-prediction modules that the checkpoint carries beside the layers."""

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
        offset = FAMILIES[self.model_type].learned_positions
        positions = 0 if offset is None else (self.max_context_tokens or 0) + offset
        return (self.vocab_size + positions) * self.hidden_size

    @property
    def head_vocab_size(self) -> int:
        """Tokens that the LM head tells apart."""
        return self.draft_vocab_size or self.vocab_size

    @property
    def head_parameters(self) -> int:
        """vocab · hidden, 0 when the head is the embedding matrix."""
        return 0 if self.tied_head else self.head_vocab_size * self.hidden_size

    @property
    def parameters(self) -> int:
        """All weights: embedding, head, layers, norms, biases. Multi-token-prediction modules are not counted."""
        return self._parameters(all_experts=True)

    @property
    def active_parameters(self) -> int:
        """`parameters` less the routed experts that a token does not visit (embedding and head count whole)."""
        return self._parameters(all_experts=False)

    def _parameters(self, *, all_experts: bool) -> int:
        h, family = self.hidden_size, FAMILIES[self.model_type]
        attention = _attention_parameters(self.attention, h, family)
        if self.attention_input_size:
            a = self.attention
            attention += (self.attention_input_size - h) * (a.heads + 2 * a.kv_heads) * a.head_dim
        total = self.embedding_parameters + self.head_parameters
        total += (self.extra_input_size + self.feature_size) * h + family.norm_vectors * h
        for kind in self.layer_kinds:
            mlp = _mlp_parameters(kind.mlp, h, family, all_experts=all_experts)
            total += kind.count * (attention + mlp + family.layer_norms * family.norm_vectors * h)
        return total


def _attention_parameters(a: Attention, h: int, family: Family) -> int:
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


def _mlp_parameters(mlp: Mlp | Moe, h: int, family: Family, *, all_experts: bool) -> int:
    up = 2 if mlp.gated else 1

    def dense(width: int) -> int:
        return (up + 1) * h * width + (up * width + h if mlp.bias else 0)

    if isinstance(mlp, Mlp):
        return dense(mlp.width)
    experts = mlp.experts if all_experts else mlp.experts_per_token
    shared = dense(mlp.shared_width) + (h if family.shared_gate else 0) if mlp.shared_width else 0
    return h * mlp.experts + (mlp.experts if mlp.bias else 0) + experts * dense(mlp.width) + shared


def load_decoder(name: str, *, base: Path | None = None) -> Decoder:
    """The model of a bundled name, a config.json's path, or its folder's. Raises UnknownName or InputError."""
    path = catalog.locate("model", name, base=base)
    shown = path.resolve().parent.name if path.name == "config.json" else path.stem
    return parse_config(read_mapping(path), name=shown, where=str(path))


def parse_config(config: Mapping[str, Any], *, name: str, where: str) -> Decoder:
    """`config` (a parsed config.json) as a Decoder; `where` names the file in errors. Raises InputError.

    Our own keys: ``memwall_extra_input_size``, ``memwall_feature_size`` and ``memwall_attention_input_size`` (see `Decoder`), and
    ``memwall_source`` (provenance). ``draft_vocab_size`` is EAGLE-3's.
    """
    from simulator.config_json import decoder_from  # which builds these records, hence not at the top

    return decoder_from(config, name=name, where=where)
