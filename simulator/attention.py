"""What attention asks of one rank: its shape by model and number format, and the sums over the sequences of a pass.

Formulas: DESIGN §2; a windowed layer attends to the last w tokens, the query's own included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.architecture import Decoder, Mla
from simulator.quantization import Formats


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
    new_tokens: Sequence[int] | NDArray[np.int64],
    cached_tokens: Sequence[int] | NDArray[np.int64],
    window: float | None,
    counts: Sequence[int] | None = None,
) -> AttentionLoad:
    """The sums of one group of sequences, lists of q_i and c_i; of `counts` [as they] sequences like each where given."""
    w = float(window) if window is not None else float("inf")
    many = counts if counts is not None else (1,) * len(new_tokens)
    runs = [(float(q), float(c), float(n)) for q, c, n in zip(new_tokens, cached_tokens, many, strict=True)]
    return AttentionLoad(
        sequences=float(sum(n for _, _, n in runs)),
        query_tokens=sum(n * q for q, _, n in runs),
        kv_tokens=sum(n * kv_tokens_read(q, c, w) for q, c, n in runs),
        pairs=sum(n * attention_pairs(q, c, w) for q, c, n in runs),
    )


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
