"""One forward pass as operators on one tensor-parallel rank: bytes by kind, FLOP, launches.

Everything that depends only on how many tokens pass through is a function of an array ``tokens`` [points], so one call
describes a whole table of batch sizes. Attention depends on who has how much context and is described by
`AttentionLoad`. Formulas: DESIGN §2; a matrix K→N moves K·N·b_w bytes of weights and does 2·T·K·N FLOP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from simulator.architecture import Decoder, LayerKind, Mla, Mlp, Moe
from simulator.attention import (
    AttentionLoad,
    AttentionShape,
    attention_load,
    attention_pairs,
    attention_shape,
    kv_tokens_read,
)
from simulator.errors import InputError
from simulator.experts import SPLIT_EVENLY, ExpertPlacement
from simulator.pipeline import PipelineStage
from simulator.quantization import Formats

__all__ = [
    "AttentionLoad",
    "AttentionShape",
    "FloatArray",
    "Operator",
    "attention_load",
    "attention_pairs",
    "attention_shape",
    "check_tensor_parallel",
    "edge_operators",
    "embedding_weight_bytes",
    "feature_operators",
    "head_operators",
    "head_weight_bytes",
    "kv_tokens_read",
    "layer_operators",
    "medusa_operators",
    "send_operators",
    "stored_weight_bytes",
]

FloatArray = NDArray[np.float64]
Kind = Literal["matmul", "elementwise", "all_reduce", "all_gather", "all_to_all", "point_to_point"]
COLLECTIVES = ("all_reduce", "all_gather", "all_to_all", "point_to_point")


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
    """What an all-reduce sums, what every rank holds after an all-gather, or what one rank sends."""


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


def layer_operators(
    decoder: Decoder,
    kind: LayerKind,
    formats: Formats,
    tp: int,
    tokens: FloatArray,
    experts: ExpertPlacement = SPLIT_EVENLY,
) -> list[Operator]:
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
            build.matmul("qkv_proj", decoder.attention_input_size or h, columns, formats.attention_weight_bytes),
            # Queries and keys in and out; writing K and V to the cache is timed with the attention kernel.
            build.elementwise("rotary", 2 * (columns - kv_columns)),
            build.matmul("o_proj", a.heads // tp * a.head_dim, h, formats.attention_weight_bytes),
        ]
    if tp > 1:
        operators.append(build.all_reduce("attention_all_reduce"))
    operators.append(build.elementwise("post_norm", 4 * h))
    if isinstance(kind.mlp, Moe) and experts.ep > 1:
        return operators + _spread_moe(build, kind.mlp, tp, experts)
    operators += _moe(build, kind.mlp, h, tp, experts) if isinstance(kind.mlp, Moe) else _mlp(build, kind.mlp, h, tp)
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
        operators.append(
            build.matmul("input_fc", decoder.extra_input_size, decoder.hidden_size, formats.input_weight_bytes)
        )
    operators.append(build.elementwise("final_norm", 4 * decoder.hidden_size))
    return operators


def feature_operators(decoder: Decoder, formats: Formats, tokens: FloatArray) -> list[Operator]:
    """EAGLE-3: the matrix that brings the features of several target layers to one hidden width, once per token of the target
    (arXiv:2503.01840 §3.1); none for other models. Every rank has all of it."""
    if not decoder.feature_size:
        return []
    build = _Builder(decoder.hidden_size, formats, tokens)
    return [build.matmul("feature_fc", decoder.feature_size, decoder.hidden_size, formats.weight_bytes)]


def medusa_operators(decoder: Decoder, formats: Formats, rows: FloatArray) -> list[Operator]:
    """One residual block of a Medusa head on `rows` hidden states: x + SiLU(W·x), W of hidden × hidden (arXiv:2401.10774
    eq. 1). Every rank has all of it (vLLM: `ResidualBlock`)."""
    build, h = _Builder(decoder.hidden_size, formats, rows), decoder.hidden_size
    return [build.matmul("medusa_block", h, h, formats.model_bytes), build.elementwise("medusa_skip", 3 * h)]


def send_operators(decoder: Decoder, formats: Formats, tokens: FloatArray, tp: int) -> list[Operator]:
    """What one stage of a pipeline hands to the next for every token: hidden state and residual, two vectors.

    Every rank of the group sends its share, which the next group gathers. Source: vLLM, IntermediateTensors of the model and
    `GroupCoordinator.send_tensor_dict`.
    """
    build = _Builder(decoder.hidden_size, formats, tokens)
    values = 2 * decoder.hidden_size
    operators = [build.collective("stage_send", "point_to_point", values / tp)]
    if tp > 1:
        operators.append(build.collective("stage_all_gather", "all_gather", values))
    return operators


def head_operators(decoder: Decoder, formats: Formats, tp: int, rows: FloatArray) -> list[Operator]:
    """LM head and sampling for the `rows` [points] whose logits are needed.

    The vocabulary is split over the ranks; its logits are gathered, for every rank samples from all of them.
    """
    build = _Builder(decoder.hidden_size, formats, rows)
    columns = -(-decoder.head_vocab_size // tp)
    operators = [build.matmul("lm_head", decoder.hidden_size, columns, formats.head_bytes, dtype_of="head")]
    if tp > 1:
        operators.append(build.all_gather("logits_all_gather", decoder.head_vocab_size))
    # Logits are read once more by the sampler, in fp32.
    return [*operators, build.elementwise("sampler", 2 * decoder.head_vocab_size * 4 / formats.model_bytes)]


def embedding_weight_bytes(decoder: Decoder, formats: Formats, tp: int) -> float:
    """Bytes of one rank's rows of the embedding, and of learned positions, which every rank has."""
    positions = decoder.embedding_parameters - decoder.vocab_size * decoder.hidden_size
    return (-(-decoder.vocab_size // tp) * decoder.hidden_size + positions) * formats.embedding_bytes


def head_weight_bytes(decoder: Decoder, formats: Formats, tp: int) -> float:
    """Bytes of one rank's columns of the LM head; 0 where it is the embedding itself, in the embedding's own format."""
    if decoder.tied_head and formats.head_bytes == formats.embedding_bytes:
        return 0.0
    return _head_matrix_bytes(decoder, formats, tp)


def _head_matrix_bytes(decoder: Decoder, formats: Formats, tp: int) -> float:
    return -(-decoder.head_vocab_size // tp) * decoder.hidden_size * formats.head_bytes


def stored_weight_bytes(
    decoder: Decoder,
    formats: Formats,
    tp: int,
    experts: ExpertPlacement = SPLIT_EVENLY,
    stage: PipelineStage | None = None,
) -> float:
    """Bytes of weights that one rank keeps in HBM: its experts, embedding and LM head included; of the whole model or a stage.

    A last stage that has no embedding keeps its own LM head even where the two are one matrix.
    """
    one = np.ones(1)
    total = 0.0
    counts = stage.counts if stage else tuple(kind.count for kind in decoder.layer_kinds)
    for kind, count in zip(decoder.layer_kinds, counts, strict=True):
        operators = layer_operators(decoder, kind, formats, tp, one, experts)
        layer = sum(float(o.weight_bytes[0]) for o in operators if not o.name.startswith("experts_"))
        if isinstance(kind.mlp, Moe):
            matrices = 3 if kind.mlp.gated else 2
            split = tp if experts.ep == 1 else 1
            layer += (
                experts.on_one(kind.mlp)
                * matrices
                * decoder.hidden_size
                * kind.mlp.width
                / split
                * formats.weight_bytes
            )
        total += count * layer
    if stage is None or stage.first:
        once = [*edge_operators(decoder, formats, one), *feature_operators(decoder, formats, one)]
        total += sum(float(o.weight_bytes[0]) for o in once)
        total += embedding_weight_bytes(decoder, formats, tp)
    if stage is None or stage.last:
        alone = stage is not None and not stage.first
        total += _head_matrix_bytes(decoder, formats, tp) if alone else head_weight_bytes(decoder, formats, tp)
    return total


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

    def grouped(self, name: str, touched: FloatArray, rows: FloatArray, k: int, n: int) -> Operator:
        """One product per touched expert, `rows` of them together."""
        f = self.formats
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
        return self.collective(name, "all_reduce", self.hidden_size)

    def all_gather(self, name: str, values_per_token: int) -> Operator:
        return self.collective(name, "all_gather", values_per_token)

    def collective(self, name: str, kind: Kind, values_per_token: float) -> Operator:
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


def _moe(build: _Builder, moe: Moe, h: int, tp: int, experts: ExpertPlacement) -> list[Operator]:
    operators = [
        build.matmul("router", h, moe.experts, build.formats.router_weight_bytes),
        *_experts(build, moe, moe.width // tp, experts, build.tokens),
    ]
    if moe.shared_width:
        operators += _mlp(build, Mlp(moe.shared_width, moe.gated, moe.bias), h, tp, name="shared_")
    return operators


def _experts(build: _Builder, moe: Moe, width: int, experts: ExpertPlacement, tokens: FloatArray) -> list[Operator]:
    touched, rows = experts.touched(tokens, moe), experts.rows(tokens, moe)
    up, h = 2 if moe.gated else 1, build.hidden_size
    return [
        build.grouped("experts_gate_up", touched, rows, h, up * width),
        _Builder(h, build.formats, rows).elementwise("experts_activation", (up + 1) * width),
        build.grouped("experts_down", touched, rows, width, h),
    ]


def _spread_moe(build: _Builder, moe: Moe, tp: int, experts: ExpertPlacement) -> list[Operator]:
    """Whole experts on `ep` GPUs: each rank routes ⌈T/tp⌉ tokens of its own, and has the shared experts to itself.

    Dispatch sends a copy of the token to each of its k experts in the format they compute in, combine brings as many results
    back in the model's own; the busiest GPU takes part with `skew` times the mean.
    """
    h, f = build.hidden_size, build.formats
    own = _Builder(h, f, np.ceil(build.tokens / tp))
    copies = moe.experts_per_token * experts.skew
    operators = [
        own.matmul("router", h, moe.experts, f.router_weight_bytes),
        own.collective("experts_all_to_all", "all_to_all", copies * h * f.activation_bytes / f.model_bytes),
        *_experts(own, moe, moe.width, experts, build.tokens * (experts.ep / tp)),
        own.collective("combine_all_to_all", "all_to_all", copies * h),
    ]
    if moe.shared_width:
        operators += _mlp(own, Mlp(moe.shared_width, moe.gated, moe.bias), h, 1, name="shared_")
    if tp > 1:
        operators.append(build.collective("mlp_all_gather", "all_gather", h))
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
