"""One operator on one GPU: bytes and FLOP → seconds, with calibrated efficiencies.

Every time has the form t0 + (t_memory^p + t_compute^p)^(1/p): the desk is filled from HBM while the workers empty it,
so the slower of the two sets the pace, and p says how sharply. p → ∞ is the classical roofline (Williams, Waterman and
Patterson, CACM 52, 2009).
"""

from __future__ import annotations

import math
from functools import reduce
from typing import Any, NamedTuple

import numpy as np

from simulator.cost.efficiency import AttentionEfficiency, ElementwiseEfficiency, MatmulEfficiency
from simulator.hardware import Gpu

TILES = ((16, 64), (64, 64), (64, 128), (128, 128), (128, 256))
"""Rows × columns of output that one thread block holds; libraries choose per shape, so the fastest is taken."""
SPLITS = (1, 2, 4, 8, 16)
"""Thread blocks that share the k of one tile."""
KV_TILE = 128.0
"""Keys of the first inner step of an attention block; their time is in the block's fixed time."""
BLOCKS_PER_SM = 2.0
"""Thread blocks that attention kernels aim to have on one SM when they split keys."""
HEAD_DIM = 128.0
"""The head_dim at which attention parameters are stated."""
L2_SHARPNESS = 6
"""How sharply hits in L2 end once a working set exceeds its capacity."""


class OperatorTime(NamedTuple):
    """Seconds, floats or arrays [points]; total_s = overhead_s + (memory_s**p + compute_s**p)**(1/p)."""

    total_s: Any
    memory_s: Any
    compute_s: Any
    overhead_s: Any


class AttentionRates(NamedTuple):
    """What `attention_time` needs of a GPU and a model's attention shape; floats only, so that numba accepts it."""

    t0_s: float
    copy_s: float
    bytes_per_s: float
    query_bytes: float
    flop_per_s: float
    flop_per_pair: float
    wave_s: float
    sm_count: float
    heads_of_blocks: float
    rows_per_token: float
    query_tile: float
    kv_step_s: float
    split_s: float
    combine_s: float
    splits: float
    power: float
    takes_decode: float
    sequence_s: float

    def slowed(self, factor: float) -> AttentionRates:
        """The same kernel with every time multiplied by `factor`."""
        times = ("t0_s", "copy_s", "wave_s", "kv_step_s", "split_s", "combine_s", "sequence_s")
        rates = ("bytes_per_s", "flop_per_s")
        return self._replace(
            **{n: getattr(self, n) * factor for n in times}, **{n: getattr(self, n) / factor for n in rates}
        )


def l2_share(working_set_bytes: Any, gpu: Gpu) -> Any:
    """Share of `working_set_bytes` [bytes] found in L2 when it was touched just before: 1/(1 + (bytes/L2)^6), a smooth
    step at the capacity. Source: DESIGN §3, tried out on kernel tables."""
    return 1.0 / (1.0 + (np.asarray(working_set_bytes, float) / gpu.l2_bytes) ** L2_SHARPNESS)


def effective_bytes_per_s(gpu: Gpu, fraction: float, desk_bytes: float | None = None) -> float:
    """HBM bandwidth that is reached with `desk_bytes` in flight, bytes/s.

    BW_eff = min(η·BW, D / L), with η = `fraction`, BW = HBM bandwidth [bytes/s], D = `desk_bytes` [bytes, default all
    shared memory], L = HBM latency [s]. Source: Little's law (J. D. C. Little, Operations Research 9, 1961).
    """
    desk = gpu.desk_bytes if desk_bytes is None else desk_bytes
    return min(fraction * gpu.hbm_bytes_per_s, desk / gpu.hbm_latency_s)


def matmul_time(
    m: Any,
    n: Any,
    k: Any,
    weight_bytes: Any,
    activation_bytes: Any,
    dtype: str,
    gpu: Gpu,
    e: MatmulEfficiency,
    *,
    resident_bytes: Any = 0.0,
    count: Any = 1.0,
) -> OperatorTime:
    """Time of [m, k] × [k, n], `count` equal matrices in one grouped kernel, s; any argument may be an array [points].

    t = t0 + min over tiles (tm, tn) and splits s of [(t_m^p + t_c^p)^(1/p) + split_s·(s > 1)], where
    t_m = (bytes − R)/BW_eff + R/(l2_speedup·BW_eff), bytes = count·weight_bytes + activation_bytes,
    t_c = (t_f^p + t_k^p)^(1/p), t_f = ⌈T·s/SMs⌉·(k/s + k_extra)·2·tm·tn / r, T = count·⌈m/tm⌉·⌈n/tn⌉,
    r = e_c·(peak/SMs)·I/(I + tile_half), I = tm·tn/(tm + tn), and t_k = k_step_s·k/s, the serial loop of one tile. With
    `row_tile` set there is one tile shape, row_tile × 64.

    m [tokens; per matrix when grouped], n, k [values], weight_bytes of ONE matrix (quantised weights: fewer than 2·n·k),
    activation_bytes of the whole kernel, R = `resident_bytes` of these found in L2 (0 when a large model streams through).
    Source: DESIGN §3, forms tried out on kernel tables; parameters from the GPU's calibration file.
    """
    m, n, k = np.asarray(m, float), np.asarray(n, float), np.asarray(k, float)
    hbm = effective_bytes_per_s(gpu, e.bandwidth)
    all_bytes = np.asarray(count, float) * weight_bytes + activation_bytes
    resident = np.minimum(resident_bytes, all_bytes)
    m, n, k, memory = np.broadcast_arrays(m, n, k, (all_bytes - resident + resident / e.l2_speedup) / hbm)
    sm_rate = e.compute * gpu.peak_flop_per_s(dtype) / gpu.sm_count
    shapes = []
    for rows, columns in TILES if e.row_tile == 0.0 else ((e.row_tile, 64),):
        intensity = rows * columns / (rows + columns)
        rate = sm_rate * intensity / (intensity + e.tile_half)
        shapes.append((count * np.ceil(m / rows) * np.ceil(n / columns), 2.0 * rows * columns / rate))
    # More work or more compute never takes less in all, so each minimum is taken as early as it can be.
    whole = parted = np.full(m.shape, np.inf)
    for split in SPLITS:
        deep = k / split + e.k_extra
        works = (np.ceil(tiles * split / gpu.sm_count) * deep * step_s for tiles, step_s in shapes)
        compute = _join(reduce(np.minimum, works), e.k_step_s * k / split, e.power)
        if split == 1:
            whole = compute
        else:
            parted = np.minimum(parted, compute)
    whole_s, parted_s = e.t0_s + _join(memory, whole, e.power), e.t0_s + e.split_s + _join(memory, parted, e.power)
    better = parted_s < whole_s
    total, compute = np.where(better, parted_s, whole_s), np.where(better, parted, whole)
    overhead = np.where(better, e.t0_s + e.split_s, e.t0_s)
    # No tokens or no matrices: the kernel is not launched.
    idle = (m <= 0) | (np.asarray(count, float) <= 0)
    return OperatorTime(*(np.where(idle, 0.0, x)[()] for x in (total, memory, compute, overhead)))


def elementwise_time(bytes_: Any, kernels: Any, gpu: Gpu, e: ElementwiseEfficiency) -> OperatorTime:
    """Norms, rotary, activations, residuals, s: t = kernels·t0 + bytes·(1 − f + f/l2_speedup)/BW_eff.

    bytes_ [bytes moved by one kernel], kernels [fused launches], BW_eff of `effective_bytes_per_s`, f of `l2_share`: what
    the kernel reads was written just before. FLOP are free beside the bytes.
    Source: DESIGN §3; parameters from the calibration file, fitted where layer timings isolate these kernels.
    """
    moved = np.asarray(bytes_, float)
    saved = moved * l2_share(moved, gpu) * (1.0 - 1.0 / e.l2_speedup)
    memory = (moved - saved) / effective_bytes_per_s(gpu, e.bandwidth)
    overhead = np.asarray(kernels, float) * e.t0_s
    return OperatorTime((overhead + memory)[()], memory[()], np.zeros_like(memory)[()], overhead[()])


def attention_rates(
    gpu: Gpu,
    e: AttentionEfficiency,
    *,
    dtype: str,
    kv_heads: float,
    heads: float,
    head_dim: int,
    flop_per_pair: float | None = None,
) -> AttentionRates:
    """What `attention_time` needs for one GPU's share of the heads.

    `flop_per_pair` [FLOP of one query token and one key, all heads] is 4·heads·head_dim unless given (MLA differs).
    Query bytes per new token: queries in and output out, 2·2·heads·head_dim, and keys and values read and written to the
    cache, 2·2·2·kv_heads·head_dim; the kernel tables time the cache write with the attention.
    """
    relative = min(head_dim, 2 * HEAD_DIM) / HEAD_DIM  # nothing wider was fitted
    group = heads / kv_heads
    packed = e.packs_group > 0
    several = group > 1 and kv_heads > 1
    return AttentionRates(
        t0_s=e.t0_s,
        copy_s=e.copy_s if several else 0.0,
        bytes_per_s=effective_bytes_per_s(gpu, e.bandwidth),
        query_bytes=4.0 * heads * head_dim + 8.0 * kv_heads * head_dim,
        flop_per_s=e.compute * gpu.peak_flop_per_s(dtype) / (1.0 + e.narrow_head * (1.0 / relative - 1.0)),
        flop_per_pair=float(flop_per_pair or 4.0 * heads * head_dim),
        wave_s=e.wave_s * (1.0 + e.wide_head * (relative - 1.0)),
        sm_count=float(gpu.sm_count),
        heads_of_blocks=float(kv_heads if packed else heads),
        rows_per_token=float(group if packed else 1.0),
        query_tile=e.query_tile,
        kv_step_s=e.kv_step_s * head_dim / HEAD_DIM,
        split_s=e.split_s,
        combine_s=e.combine_s,
        splits=1.0 if group >= e.split_from_group else 0.0,
        power=e.power,
        takes_decode=e.takes_decode,
        sequence_s=e.sequence_s,
    )


def one_kernel(
    decode_sequences: float, decode_tokens: float, prefill_sequences: float, prefill_rates: AttentionRates
) -> bool:
    """Whether the prefill kernel also does the short runs (decoding, verification) of a batch.

    FlashAttention-2's decode path (queries of a group in one tile, keys split over blocks) needs exactly one new token in
    every sequence; any other batch is one launch of the ordinary kernel. Compiled by the serving loop as it is.
    """
    return prefill_rates.takes_decode > 0.0 and (prefill_sequences > 0.0 or decode_tokens > decode_sequences)


def attention_time(
    sequences: float, query_tokens: float, kv_bytes: float, flop: float, rates: AttentionRates
) -> tuple[float, float, float, float]:
    """(total_s, memory_s, compute_s, overhead_s) of one layer's attention on one GPU for a group of sequences.

    t = t0 + copy + (t_m^p + t_c^p)^(1/p), t_m = (kv_bytes + query_tokens·query_bytes)/BW_eff,
    t_c = ((t_f + W·wave_s + S·sequence_s)^p + t_s^p)^(1/p): t_f = padded FLOP / rate, W = ⌈blocks/SMs⌉ waves, S = sequences
    times KV heads over SMs, and t_s the longest block,
    x = kv_step_s·(keys − 128), or where keys are split over s blocks min(x, split_s + x/s + combine_s·s) at the best s.

    sequences, query_tokens = Σ new tokens, kv_bytes = Σ KV bytes read [bytes], flop = Σ FLOP without padding.
    Rows per block are padded to query_tile; all sequences count as their mean. 0 for no sequences.
    Plain scalar arithmetic: `numba.njit` compiles it as it is, hence no helpers. Non-decreasing in kv_bytes and flop.
    Source: DESIGN §3, forms tried out on kernel tables; parameters from the GPU's calibration file.
    """
    if sequences <= 0.0 or query_tokens <= 0.0:
        return 0.0, 0.0, 0.0, 0.0
    p = rates.power
    per_sequence = query_tokens / sequences
    rows = per_sequence * rates.rows_per_token
    tiles = math.ceil(rows / rates.query_tile)
    blocks = sequences * rates.heads_of_blocks * tiles
    keys = flop / (rates.flop_per_pair * query_tokens)

    # Rows are padded to whole tiles, and the triangle below the diagonal to whole squares.
    padding = tiles * rates.query_tile / rows
    triangle = 0.0
    if per_sequence > 1.0:
        square = (tiles * rates.query_tile - rows + rates.query_tile) / (2.0 * rates.rows_per_token)
        triangle = square * (1.0 - 1.0 / per_sequence)
    padded = (flop + rates.flop_per_pair * query_tokens * triangle) * padding
    work = padded / rates.flop_per_s + math.ceil(blocks / rates.sm_count) * rates.wave_s
    if rates.sequence_s > 0.0:
        work += sequences * rates.heads_of_blocks / rates.sm_count * rates.sequence_s

    serial = rates.kv_step_s * max(0.0, keys + 0.5 * (per_sequence - 1.0) - KV_TILE)
    most = math.floor(BLOCKS_PER_SM * rates.sm_count / blocks)
    if rates.splits > 0.0 and most > 1.0 and serial > 0.0:
        split = most * 1.0
        if rates.combine_s > 0.0:
            split = min(most * 1.0, max(1.0, math.sqrt(serial / rates.combine_s)))
        serial = min(serial, rates.split_s + serial / split + rates.combine_s * split)

    # (a^p + b^p + c^p)^(1/p) with the largest taken out, so that microseconds to a high power do not underflow.
    memory = (kv_bytes + query_tokens * rates.query_bytes) / rates.bytes_per_s
    inverse = 1.0 / p
    high, low = max(work, serial), min(work, serial)
    compute = high * (1.0 + (low / high) ** p) ** inverse if high > 0.0 else 0.0
    joined = 0.0
    if memory >= high and memory > 0.0:
        joined = memory * (1.0 + (high / memory) ** p + (low / memory) ** p) ** inverse
    elif high > 0.0:
        joined = high * (1.0 + (low / high) ** p + (memory / high) ** p) ** inverse
    overhead = rates.t0_s + (rates.copy_s if sequences > 1.0 else 0.0)
    return overhead + joined, memory, compute, overhead


def _join(a: Any, b: Any, power: float) -> Any:
    # (a^p + b^p)^(1/p) with the larger taken out, so that microseconds to a high power do not underflow.
    high, low = np.maximum(a, b), np.minimum(a, b)
    ratio = np.divide(low, high, out=np.zeros_like(high), where=high > 0)
    return high * (1.0 + ratio**power) ** (1.0 / power)
