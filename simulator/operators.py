"""One forward pass as operators on one tensor-parallel rank: bytes by kind, FLOP, launches.

Everything that depends only on how many tokens pass through is a function of an array ``tokens`` [points], so one call
describes a whole table of batch sizes. Attention depends on who has how much context and is described by
`AttentionLoad`. Formulas: DESIGN §2; a matrix K→N moves K·N·b_w bytes of weights and does 2·T·K·N FLOP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from simulator.architecture import Decoder, LayerKind, Mla, Mlp, Moe
from simulator.errors import InputError
from simulator.quantization import Formats

FloatArray = NDArray[np.float64]
Kind = Literal["matmul", "elementwise", "all_reduce", "all_gather"]


@dataclass(frozen=True)
class Operator:
    """One operator of the pass; arrays are [points], one entry per batch size asked for."""

    name: str
    kind: Kind
    flop: FloatArray
    weight_bytes: FloatArray
    """All matrices that are touched."""
    activation_bytes: FloatArray
    m: FloatArray
    """Rows of one matrix product (tokens, or tokens per expert)."""
    n: int = 0
    k: int = 0
    matrices: FloatArray | None = None
    """Matrices touched by a grouped product (experts); None means one."""
    dtype: str = "bf16"
    """Format the product is computed in."""
    message_bytes: FloatArray | None = None
    """What an all-reduce sums, or what every rank holds after an all-gather."""


@dataclass(frozen=True)
class AttentionShape:
    """What attention over one token's context costs, per layer and rank."""

    heads: float
    kv_heads: float
    head_dim: int
    kv_bytes_per_token: float
    decode_flop_per_pair: float
    """FLOP for one query token and one cached token, few queries per sequence."""
    prefill_flop_per_pair: float
    """The same for a long chunk of queries (MLA then uses its expanded form)."""
    prefill_kv_heads: float
    """KV heads that a long chunk works on: `kv_heads`, or every head of expanded MLA."""
    prefill_head_dim: int
    """Its head_dim; the mean of key and value for expanded MLA."""


@dataclass(frozen=True)
class AttentionLoad:
    """Sums over a group of sequences for layers with one window: what one attention kernel has to do."""

    sequences: float
    query_tokens: float
    kv_tokens: float
    """Cached and new tokens whose K and V are read once, Σ (min(c, w−1) + q)."""
    pairs: float
    """Query-key pairs, Σ over queries of the keys each attends to."""


def attention_pairs(query_tokens: float, cached_tokens: float, window_tokens: float) -> float:
    """Query-key pairs of one causal sequence: Σ_{t=1..q} min(c + t, w); without a window q·(c + (q+1)/2).

    Plain arithmetic, so that the serving loop compiles it as it is.
    """
    if cached_tokens + query_tokens <= window_tokens:
        return query_tokens * (cached_tokens + 0.5 * (query_tokens + 1.0))
    if cached_tokens >= window_tokens:
        return query_tokens * window_tokens
    ramp = window_tokens - cached_tokens
    return ramp * (cached_tokens + 0.5 * (ramp + 1.0)) + (query_tokens - ramp) * window_tokens


def kv_tokens_read(query_tokens: float, cached_tokens: float, window_tokens: float) -> float:
    """Tokens whose keys and values one sequence reads: min(c, w − 1) + q. Compiled by the serving loop as it is."""
    return min(cached_tokens, window_tokens - 1.0) + query_tokens


def attention_load(
    new_tokens: Sequence[int] | NDArray[np.int64], cached_tokens: Sequence[int] | NDArray[np.int64], window: int | None
) -> AttentionLoad:
    """The sums of one group of sequences, lists of q_i and c_i."""
    w = float(window) if window is not None else float("inf")
    pairs = [(float(q), float(c)) for q, c in zip(new_tokens, cached_tokens, strict=True)]
    return AttentionLoad(
        sequences=float(len(pairs)),
        query_tokens=sum(q for q, _ in pairs),
        kv_tokens=sum(kv_tokens_read(q, c, w) for q, c in pairs),
        pairs=sum(attention_pairs(q, c, w) for q, c in pairs),
    )


def check_tensor_parallel(decoder: Decoder, tp: int) -> None:
    """Raises InputError unless `tp` ranks can share the model's heads and its MLP's columns evenly."""
    if tp < 1:
        raise InputError("tp", tp, "be at least 1")
    if decoder.attention.heads % tp:
        fits = [d for d in range(1, decoder.attention.heads + 1) if decoder.attention.heads % d == 0]
        better = min(fits, key=lambda d: abs(d - tp))
        raise InputError(
            "tp", tp, f"divide the {decoder.attention.heads} attention heads of {decoder.name}", suggestion=str(better)
        )
    for kind in decoder.layer_kinds:
        for width in (kind.mlp.width, getattr(kind.mlp, "shared_width", 0)):
            if width % tp:
                raise InputError("tp", tp, f"divide the MLP width {width} of {decoder.name}")
    kv = decoder.attention.kv_heads
    # Fewer KV heads than ranks are copied, which is even only when every head goes to equally many ranks.
    if decoder.attention.mla is None and max(kv, tp) % min(kv, tp):
        raise InputError("tp", tp, f"divide the {kv} KV heads of {decoder.name}, or be a multiple of them")


def attention_shape(decoder: Decoder, formats: Formats, tp: int) -> AttentionShape:
    """Per-layer, per-rank attention shape. KV heads fewer than TP are replicated; MLA's latent is on every rank."""
    a = decoder.attention
    if a.mla is not None:
        return _mla_shape(a.mla, a.heads / tp, formats)
    kv_heads = max(1.0, a.kv_heads / tp)
    return AttentionShape(
        heads=a.heads / tp,
        kv_heads=kv_heads,
        head_dim=a.head_dim,
        kv_bytes_per_token=2 * kv_heads * a.head_dim * formats.kv_bytes,
        decode_flop_per_pair=4.0 * a.heads / tp * a.head_dim,
        prefill_flop_per_pair=4.0 * a.heads / tp * a.head_dim,
        prefill_kv_heads=kv_heads,
        prefill_head_dim=a.head_dim,
    )


def _mla_shape(mla: Mla, heads: float, formats: Formats) -> AttentionShape:
    # Decode absorbs W_UK into the query and W_UV into the output, so every head works on the latent itself (DeepSeek-V2,
    # arXiv:2405.04434 §2.1): 2·(r + d_rope) FLOP for the score and 2·r for the value. Prefill expands K and V per head.
    latent = mla.kv_lora_rank + mla.qk_rope_head_dim
    expanded = mla.qk_nope_head_dim + mla.qk_rope_head_dim + mla.v_head_dim
    return AttentionShape(
        heads=heads,
        kv_heads=1.0,
        head_dim=latent,
        kv_bytes_per_token=latent * formats.kv_bytes,
        decode_flop_per_pair=heads * 2.0 * (latent + mla.kv_lora_rank),
        prefill_flop_per_pair=heads * 2.0 * expanded,
        prefill_kv_heads=heads,
        prefill_head_dim=expanded // 2,
    )


def layer_operators(decoder: Decoder, kind: LayerKind, formats: Formats, tp: int, tokens: FloatArray) -> list[Operator]:
    """The operators of one layer of `kind` in order, attention itself left out (it stands after ``rotary``)."""
    build = _Builder(decoder.hidden_size, formats, tokens)
    a, h = decoder.attention, decoder.hidden_size
    operators = [build.elementwise("input_norm", 4 * h)]
    if a.mla is not None:
        operators += _mla_projections(build, a.mla, a.heads // tp, h)
    else:
        kv_columns = max(1, a.kv_heads // tp) * a.head_dim
        columns = a.heads // tp * a.head_dim + 2 * kv_columns
        operators += [
            build.matmul("qkv_proj", h, columns, formats.attention_weight_bytes),
            # Queries and keys in and out; writing K and V to the cache is timed with the attention kernel.
            build.elementwise("rotary", 2 * (columns - kv_columns)),
            build.matmul("o_proj", a.heads // tp * a.head_dim, h, formats.attention_weight_bytes),
        ]
    if tp > 1:
        operators.append(build.all_reduce("attention_all_reduce"))
    operators.append(build.elementwise("post_norm", 4 * h))
    operators += _moe(build, kind.mlp, h, tp) if isinstance(kind.mlp, Moe) else _mlp(build, kind.mlp, h, tp)
    if tp > 1:
        operators.append(build.all_reduce("mlp_all_reduce"))
    return operators


def edge_operators(decoder: Decoder, formats: Formats, tokens: FloatArray, tp: int = 1) -> list[Operator]:
    """What happens once per pass for every token: embedding rows, an EAGLE head's input projection, the final norm.

    The vocabulary is split over the ranks: a token's row is on one of them and is summed with the others' zeros.
    """
    build = _Builder(decoder.hidden_size, formats, tokens)
    operators = [build.elementwise("embedding", 2 * decoder.hidden_size)]
    if tp > 1:
        operators.append(build.all_reduce("embedding_all_reduce"))
    if decoder.extra_input_size:
        operators.append(build.matmul("input_fc", decoder.extra_input_size, decoder.hidden_size, formats.weight_bytes))
    operators.append(build.elementwise("final_norm", 4 * decoder.hidden_size))
    return operators


def head_operators(decoder: Decoder, formats: Formats, tp: int, rows: FloatArray) -> list[Operator]:
    """LM head and sampling for the `rows` [points] whose logits are needed.

    The vocabulary is split over the ranks; its logits are gathered, for every rank samples from all of them.
    """
    build = _Builder(decoder.hidden_size, formats, rows)
    columns = -(-decoder.vocab_size // tp)
    operators = [build.matmul("lm_head", decoder.hidden_size, columns, formats.head_bytes, dtype_of="head")]
    if tp > 1:
        operators.append(build.all_gather("logits_all_gather", decoder.vocab_size))
    # Logits are read once more by the sampler, in fp32.
    return [*operators, build.elementwise("sampler", 2 * decoder.vocab_size * 4 / formats.model_bytes)]


def experts_touched(tokens: FloatArray, experts: int, per_token: int) -> FloatArray:
    """Expected distinct experts that `tokens` wake up under uniform routing: E·(1 − (1 − k/E)^T) (DESIGN §2)."""
    return np.asarray(experts * (1.0 - (1.0 - per_token / experts) ** tokens))


def embedding_weight_bytes(decoder: Decoder, formats: Formats, tp: int) -> float:
    """Bytes of one rank's rows of the embedding, and of learned positions, which every rank has."""
    positions = decoder.embedding_parameters - decoder.vocab_size * decoder.hidden_size
    return (-(-decoder.vocab_size // tp) * decoder.hidden_size + positions) * formats.embedding_bytes


def head_weight_bytes(decoder: Decoder, formats: Formats, tp: int) -> float:
    """Bytes of one rank's columns of the LM head; 0 where it is the embedding itself, in the embedding's own format."""
    if decoder.tied_head and formats.head_bytes == formats.embedding_bytes:
        return 0.0
    return -(-decoder.vocab_size // tp) * decoder.hidden_size * formats.head_bytes


def stored_weight_bytes(decoder: Decoder, formats: Formats, tp: int) -> float:
    """Bytes of weights that one rank keeps in HBM: all experts, embedding and LM head included."""
    one = np.ones(1)
    total = 0.0
    for kind in decoder.layer_kinds:
        operators = layer_operators(decoder, kind, formats, tp, one)
        layer = sum(float(o.weight_bytes[0]) for o in operators if not o.name.startswith("experts_"))
        if isinstance(kind.mlp, Moe):
            matrices = 3 if kind.mlp.gated else 2
            layer += kind.mlp.experts * matrices * decoder.hidden_size * kind.mlp.width / tp * formats.weight_bytes
        total += kind.count * layer
    total += sum(float(o.weight_bytes[0]) for o in edge_operators(decoder, formats, one))
    return total + embedding_weight_bytes(decoder, formats, tp) + head_weight_bytes(decoder, formats, tp)


class _Builder:
    """Makes operators for one array of token counts."""

    def __init__(self, hidden_size: int, formats: Formats, tokens: FloatArray):
        self.hidden_size, self.formats, self.tokens = hidden_size, formats, np.asarray(tokens, dtype=np.float64)
        self.zero = np.zeros_like(self.tokens)

    def matmul(self, name: str, k: int, n: int, weight_bytes_per_value: float, dtype_of: str = "layer") -> Operator:
        f, tokens = self.formats, self.tokens
        quantised = weight_bytes_per_value == f.weight_bytes and dtype_of == "layer"
        return Operator(
            name=name,
            kind="matmul",
            flop=2.0 * tokens * k * n,
            weight_bytes=np.where(tokens > 0, k * n * weight_bytes_per_value, 0.0),
            activation_bytes=tokens * (k * (f.activation_bytes if quantised else f.model_bytes) + n * f.model_bytes),
            m=tokens,
            n=n,
            k=k,
            dtype=f.activations if quantised else _sixteen_bit(f),
        )

    def grouped(self, name: str, moe: Moe, k: int, n: int) -> Operator:
        f = self.formats
        touched = experts_touched(self.tokens, moe.experts, moe.experts_per_token)
        rows = self.tokens * moe.experts_per_token
        return Operator(
            name=name,
            kind="matmul",
            flop=2.0 * rows * k * n,
            weight_bytes=touched * k * n * f.weight_bytes,
            activation_bytes=rows * (k * f.activation_bytes + n * f.model_bytes),
            m=np.divide(rows, touched, out=np.zeros_like(rows), where=touched > 0),
            n=n,
            k=k,
            matrices=touched,
            dtype=f.activations,
        )

    def elementwise(self, name: str, values_per_token: float) -> Operator:
        moved = self.tokens * values_per_token * self.formats.model_bytes
        return Operator(name, "elementwise", self.zero, self.zero, moved, self.tokens)

    def all_reduce(self, name: str) -> Operator:
        return self._collective(name, "all_reduce", self.hidden_size)

    def all_gather(self, name: str, values_per_token: int) -> Operator:
        return self._collective(name, "all_gather", values_per_token)

    def _collective(self, name: str, kind: Kind, values_per_token: int) -> Operator:
        message = self.tokens * values_per_token * self.formats.model_bytes
        return Operator(name, kind, self.zero, self.zero, self.zero, self.tokens, message_bytes=message)


def _sixteen_bit(formats: Formats) -> str:
    return {4.0: "fp32"}.get(formats.model_bytes, "bf16")


def _mlp(build: _Builder, mlp: Mlp, h: int, tp: int, name: str = "") -> list[Operator]:
    width, up = mlp.width // tp, 2 if mlp.gated else 1
    return [
        build.matmul(
            f"{name}gate_up_proj" if mlp.gated else f"{name}up_proj", h, up * width, build.formats.weight_bytes
        ),
        build.elementwise(f"{name}activation", (up + 1) * width),
        build.matmul(f"{name}down_proj", width, h, build.formats.weight_bytes),
    ]


def _moe(build: _Builder, moe: Moe, h: int, tp: int) -> list[Operator]:
    width, up = moe.width // tp, 2 if moe.gated else 1
    operators = [
        build.matmul("router", h, moe.experts, build.formats.router_weight_bytes),
        build.grouped("experts_gate_up", moe, h, up * width),
        build.elementwise("experts_activation", moe.experts_per_token * (up + 1) * width),
        build.grouped("experts_down", moe, width, h),
    ]
    if moe.shared_width:
        operators += _mlp(build, Mlp(moe.shared_width, moe.gated, moe.bias), h, tp, name="shared_")
    return operators


def _mla_projections(build: _Builder, mla: Mla, heads: int, h: int) -> list[Operator]:
    b, rope, nope = build.formats.attention_weight_bytes, mla.qk_rope_head_dim, mla.qk_nope_head_dim
    queries = heads * (nope + rope)
    operators = [build.matmul("kv_down_proj", h, mla.kv_lora_rank + rope, b)]
    if mla.q_lora_rank is not None:
        operators += [
            build.matmul("q_down_proj", h, mla.q_lora_rank, b),
            build.matmul("q_up_proj", mla.q_lora_rank, queries, b),
        ]
    else:
        operators.append(build.matmul("q_proj", h, queries, b))
    return [
        *operators,
        build.elementwise("rotary", 2 * (heads * rope + rope)),
        # W_UK and W_UV: the same weights and FLOP whether they are absorbed (decode) or expand K and V (prefill).
        build.matmul("k_up_proj", mla.kv_lora_rank, heads * nope, b),
        build.matmul("v_up_proj", mla.kv_lora_rank, heads * mla.v_head_dim, b),
        build.matmul("o_proj", heads * mla.v_head_dim, h, b),
    ]
