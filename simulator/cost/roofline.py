"""One operator on one GPU: bytes and FLOP → seconds, with calibrated efficiencies.

Every time has the form t0 + (t_memory^p + t_compute^p)^(1/p): the desk is filled from HBM while the workers empty it,
so the slower of the two sets the pace, and p says how sharply. p → ∞ is the classical roofline.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from simulator.cost.efficiency import AttentionEfficiency, ElementwiseEfficiency, MatmulEfficiency
from simulator.hardware import Gpu

# Rows × columns of output that one thread block holds; the libraries pick the fastest, and so do we.
TILES = ((16, 64), (64, 64), (64, 128), (128, 128), (128, 256))
SPLITS = (1, 2, 4, 8, 16)


class OperatorTime(NamedTuple):
    """Seconds, floats or arrays [points]; total_s = overhead_s + (memory_s**p + compute_s**p)**(1/p)."""

    total_s: Any
    memory_s: Any
    compute_s: Any
    overhead_s: Any


class AttentionRates(NamedTuple):
    """What `attention_time` needs of a GPU and a model's attention shape; floats only, so that numba accepts it."""

    t0_s: float
    bytes_per_s: float
    flop_per_s: float
    wave_s: float
    blocks_per_wave: float
    kv_heads: float
    group: float
    query_tile: float
    power: float


def effective_bytes_per_s(gpu: Gpu, fraction: float, desk_bytes: float | None = None) -> float:
    """HBM bandwidth that is reached with `desk_bytes` in flight, bytes/s.

    BW_eff = min(η·BW, D / L), with η = `fraction`, BW = HBM bandwidth [bytes/s], D = `desk_bytes` [bytes, default all
    shared memory], L = HBM latency [s]. Source: Little's law (J. D. C. Little, Operations Research 9, 1961).
    """
    desk = gpu.desk_bytes if desk_bytes is None else desk_bytes
    return min(fraction * gpu.hbm_bytes_per_s, desk / gpu.hbm_latency_s)


def matmul_time(
    m: Any,
    n: int,
    k: int,
    weight_bytes: float,
    activation_bytes: Any,
    dtype: str,
    gpu: Gpu,
    e: MatmulEfficiency,
    *,
    resident_bytes: Any = 0.0,
    count: Any = 1.0,
) -> OperatorTime:
    """Time of [m, k] × [k, n], `count` times in one grouped kernel; m, bytes and count may be arrays [points]."""
    m, count = np.asarray(m, float), np.asarray(count, float)
    hbm = effective_bytes_per_s(gpu, e.bandwidth)
    total_bytes = count * weight_bytes + activation_bytes
    resident = np.minimum(resident_bytes, total_bytes)
    memory = (total_bytes - resident) / hbm + resident / (e.l2_speedup * hbm)
    best_total, best_compute = np.full(np.shape(memory), np.inf), np.full(np.shape(memory), np.inf)
    sm_rate = gpu.peak_flop_per_s(dtype) / gpu.sm_count
    for rows, columns in TILES:
        intensity = rows * columns / (rows + columns)
        rate = sm_rate * e.compute * intensity / (intensity + e.tile_half)
        tiles = count * np.ceil(m / rows) * math.ceil(n / columns)
        for split in SPLITS:
            waves = np.ceil(tiles * split / gpu.sm_count)
            compute = waves * (k / split + e.k_extra) * 2 * rows * columns / rate
            total = _join(memory, compute, e.power)
            better = total < best_total
            best_total, best_compute = np.where(better, total, best_total), np.where(better, compute, best_compute)
    return OperatorTime(e.t0_s + best_total, memory, best_compute, np.full(np.shape(memory), e.t0_s))


def elementwise_time(bytes_: Any, kernels: Any, gpu: Gpu, e: ElementwiseEfficiency) -> OperatorTime:
    """Norms, rotary, activations, residuals: t = kernels·t0 + bytes/(η·BW), s."""
    memory = np.asarray(bytes_, float) / effective_bytes_per_s(gpu, e.bandwidth)
    overhead = np.asarray(kernels, float) * e.t0_s
    return OperatorTime(overhead + memory, memory, np.zeros_like(memory), overhead)


def attention_rates(
    gpu: Gpu, e: AttentionEfficiency, *, dtype: str, kv_heads: float, heads: float, head_dim: int
) -> AttentionRates:
    """The numbers `attention_time` needs, for one GPU's share of the heads."""
    return AttentionRates(
        t0_s=e.t0_s,
        bytes_per_s=effective_bytes_per_s(gpu, e.bandwidth),
        flop_per_s=e.compute * gpu.peak_flop_per_s(dtype),
        wave_s=e.wave_s,
        blocks_per_wave=e.blocks_per_sm * gpu.sm_count,
        kv_heads=float(kv_heads),
        group=float(heads) / float(kv_heads),
        query_tile=e.query_tile,
        power=e.power,
    )


def attention_time(
    sequences: float, query_tokens: float, kv_bytes: float, flop: float, rates: AttentionRates
) -> tuple[float, float, float, float]:
    """(total_s, memory_s, compute_s, overhead_s) of one layer's attention kernel for a group of sequences."""
    if sequences <= 0.0 or query_tokens <= 0.0:
        return 0.0, 0.0, 0.0, 0.0
    rows = query_tokens / sequences * rates.group
    tiles = math.ceil(rows / rates.query_tile)
    waves = sequences * rates.kv_heads * tiles / rates.blocks_per_wave
    memory = kv_bytes / rates.bytes_per_s
    compute = flop * tiles * rates.query_tile / rows / rates.flop_per_s
    overhead = rates.t0_s + rates.wave_s * waves
    slower = max(memory, compute)
    if slower <= 0.0:
        return overhead, memory, compute, overhead
    faster = min(memory, compute)
    joined = slower * (1.0 + (faster / slower) ** rates.power) ** (1.0 / rates.power)
    return overhead + joined, memory, compute, overhead


def _join(a: Any, b: Any, power: float) -> Any:
    # (a^p + b^p)^(1/p) with the larger taken out, so that microseconds to a high power do not underflow.
    high, low = np.maximum(a, b), np.minimum(a, b)
    ratio = np.divide(low, high, out=np.zeros_like(high), where=high > 0)
    return high * (1.0 + ratio**power) ** (1.0 / power)
