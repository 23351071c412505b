"""Matmul, attention and elementwise times: hand-computed cases, limits, monotonicity, and compiled = interpreted."""

from __future__ import annotations

import dataclasses
import math

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.cost.efficiency import AttentionEfficiency, ElementwiseEfficiency, MatmulEfficiency, load_efficiency
from simulator.cost.roofline import (
    attention_rates,
    attention_time,
    effective_bytes_per_s,
    elementwise_time,
    matmul_time,
)
from simulator.hardware import Gpu, load_gpu

H100 = load_gpu("h100-sxm")
FITTED = load_efficiency(H100)
IDEAL_MATMUL = MatmulEfficiency(
    t0_s=0, bandwidth=1, compute=1, tile_half=0, k_extra=0, k_step_s=0, split_s=0, power=200, l2_speedup=4
)
IDEAL_ATTENTION = AttentionEfficiency(
    t0_s=0, bandwidth=1, compute=1, narrow_head=0, wave_s=0, wide_head=0, kv_step_s=0, split_s=0, combine_s=0,
    copy_s=0, query_tile=1, packs_group=1, split_from_group=1, power=200, l2_speedup=1,
)  # fmt: skip
COMPILED = numba.njit(attention_time)


def with_bandwidth(gpu: Gpu, factor: float) -> Gpu:
    return dataclasses.replace(
        gpu, hbm_bytes_per_s=gpu.hbm_bytes_per_s * factor, hbm_latency_s=gpu.hbm_latency_s / factor
    )


def with_compute(gpu: Gpu, factor: float) -> Gpu:
    return dataclasses.replace(gpu, dense_flop_per_s={d: r * factor for d, r in gpu.dense_flop_per_s.items()})


def weights(n: int, k: int) -> float:
    return 2.0 * n * k


# --- by hand -----------------------------------------------------------------------------------------------------------
def test_one_token_through_an_ideal_gpu_takes_its_bytes_over_bandwidth():
    # 8192 × 8192 in bf16: 134,217,728 bytes of weights and 32,768 of activations at 3.35 TB/s are 40.07 µs.
    time = matmul_time(1, 8192, 8192, weights(8192, 8192), 32_768, "bf16", H100, IDEAL_MATMUL)
    assert time.total_s == pytest.approx(134_250_496 / 3.35e12, rel=1e-3)
    assert time.overhead_s == 0


def test_a_large_product_on_an_ideal_gpu_takes_its_flop_over_peak():
    # 132 × 128 rows and 256 columns are exactly one wave of the largest tile: nothing is padded.
    m, n, k = 128 * 132, 256, 8192
    time = matmul_time(m, n, k, weights(n, k), 0, "bf16", H100, IDEAL_MATMUL)
    assert time.total_s == pytest.approx(2 * m * n * k / H100.peak_flop_per_s("bf16"), rel=1e-9)


def test_decode_attention_on_an_ideal_gpu_takes_its_kv_over_bandwidth():
    # 16 sequences × 4096 keys × 8 heads × 128 × 2 (K and V) × 2 B = 268,435,456 B; queries and cache write add 0.1 %.
    rates = attention_rates(H100, IDEAL_ATTENTION, dtype="bf16", kv_heads=8, heads=32, head_dim=128)
    kv_bytes, flop = 268_435_456.0, 4.0 * 32 * 128 * 16 * 4096
    total, memory, compute, overhead = attention_time(16.0, 16.0, kv_bytes, flop, rates)
    assert memory == pytest.approx((kv_bytes + 16 * (4 * 32 + 8 * 8) * 128) / 3.35e12)
    assert compute == pytest.approx(flop / H100.peak_flop_per_s("bf16"))
    assert (total, overhead) == (pytest.approx(memory), 0.0)


def test_elementwise_is_launches_plus_bytes():
    e = ElementwiseEfficiency(t0_s=2e-6, bandwidth=0.5)
    time = elementwise_time(np.array([0.0, 3.35e6]), np.array([1.0, 3.0]), H100, e)
    assert time.total_s == pytest.approx([2e-6, 6e-6 + 2e-6])


def test_total_is_overhead_plus_the_joined_parts():
    e = FITTED.matmul
    m = np.array([1.0, 64.0, 500.0, 8192.0])
    time = matmul_time(m, 4096, 4096, weights(4096, 4096), m * 16384, "bf16", H100, e)
    joined = (time.memory_s**e.power + time.compute_s**e.power) ** (1 / e.power)
    assert time.total_s == pytest.approx(time.overhead_s + joined, rel=1e-12)


# --- limits ------------------------------------------------------------------------------------------------------------
def test_infinite_bandwidth_leaves_compute_and_overhead():
    time = matmul_time(512, 4096, 4096, weights(4096, 4096), 1e7, "bf16", with_bandwidth(H100, 1e9), FITTED.matmul)
    assert time.total_s == pytest.approx(time.compute_s + time.overhead_s, rel=1e-6)


def test_infinite_compute_leaves_memory_overhead_and_the_serial_loop():
    e = FITTED.matmul._replace(k_step_s=0.0)
    time = matmul_time(512, 4096, 4096, weights(4096, 4096), 1e7, "bf16", with_compute(H100, 1e12), e)
    assert time.total_s == pytest.approx(time.memory_s + e.t0_s, rel=1e-6)


def test_attention_limits():
    shape = {"dtype": "bf16", "kv_heads": 8, "heads": 32, "head_dim": 128}
    e = FITTED.prefill_attention
    case = (4.0, 4096.0, 4 * 1024 * 4096.0, 4.0 * 32 * 128 * 4 * 1024 * 512.5)
    total, _, compute, overhead = attention_time(*case, attention_rates(with_bandwidth(H100, 1e12), e, **shape))
    assert total == pytest.approx(compute + overhead)
    fast = e._replace(wave_s=0.0, kv_step_s=0.0)
    total, memory, _, overhead = attention_time(*case, attention_rates(with_compute(H100, 1e12), fast, **shape))
    assert total == pytest.approx(memory + overhead)


def test_nothing_to_do_takes_no_time():
    rates = attention_rates(H100, FITTED.decode_attention, dtype="bf16", kv_heads=8, heads=32, head_dim=128)
    assert attention_time(0.0, 0.0, 0.0, 0.0, rates) == (0.0, 0.0, 0.0, 0.0)
    assert matmul_time(0, 4096, 4096, weights(4096, 4096), 0, "bf16", H100, FITTED.matmul).total_s == 0
    assert matmul_time(4, 4096, 4096, weights(4096, 4096), 0, "bf16", H100, FITTED.matmul, count=0).total_s == 0


# --- what the form is for ----------------------------------------------------------------------------------------------
def test_one_more_row_than_a_tile_holds_costs_another_tile():
    # 128 rows of 132 × 256 columns fill the GPU exactly; 113 rows are padded to as many, the 129th adds tiles.
    m = np.array([113.0, 128.0, 129.0])
    seconds = matmul_time(m, 132 * 256, 4096, 0.0, 0.0, "bf16", H100, FITTED.matmul).total_s
    assert seconds[0] == seconds[1]
    assert seconds[2] > 1.05 * seconds[1]
    # Where only large tiles are efficient, the 129th row costs a second wave of them.
    steep = FITTED.matmul._replace(tile_half=200.0)
    seconds = matmul_time(m, 132 * 256, 4096, 0.0, 0.0, "bf16", H100, steep).total_s
    assert seconds[2] > 1.15 * seconds[1]


def test_a_small_desk_lowers_bandwidth():
    # Little: full bandwidth needs BW × latency in flight (1 to 2 MB here); a tenth of that reaches a tenth of it.
    needed = H100.hbm_bytes_per_s * H100.hbm_latency_s
    assert effective_bytes_per_s(H100, 1.0) == H100.hbm_bytes_per_s
    assert effective_bytes_per_s(H100, 1.0, needed / 10) == pytest.approx(H100.hbm_bytes_per_s / 10)
    small = dataclasses.replace(H100, shared_memory_bytes_per_sm=needed / 10 / H100.sm_count)
    case = (1, 8192, 8192, weights(8192, 8192), 0, "bf16")
    slow, fast = matmul_time(*case, small, IDEAL_MATMUL), matmul_time(*case, H100, IDEAL_MATMUL)
    assert slow.memory_s == pytest.approx(10 * fast.memory_s)


def test_resident_weights_are_read_at_the_rate_of_l2():
    case = (1, 1024, 1024, weights(1024, 1024), 0, "bf16", H100, IDEAL_MATMUL)
    cold, warm = matmul_time(*case), matmul_time(*case, resident_bytes=weights(1024, 1024))
    assert warm.memory_s == pytest.approx(cold.memory_s / IDEAL_MATMUL.l2_speedup)


def test_a_grouped_kernel_launches_once_and_streams_every_expert():
    one = matmul_time(1, 2048, 2048, weights(2048, 2048), 0, "bf16", H100, FITTED.matmul)
    eight = matmul_time(1, 2048, 2048, weights(2048, 2048), 0, "bf16", H100, FITTED.matmul, count=8)
    assert eight.memory_s == pytest.approx(8 * one.memory_s)
    assert eight.total_s < 8 * one.total_s


def test_quantised_weights_are_fewer_bytes_of_the_same_product():
    half = matmul_time(1, 8192, 8192, weights(8192, 8192) / 4, 0, "bf16", H100, IDEAL_MATMUL)
    full = matmul_time(1, 8192, 8192, weights(8192, 8192), 0, "bf16", H100, IDEAL_MATMUL)
    assert half.memory_s == pytest.approx(full.memory_s / 4)


# --- properties --------------------------------------------------------------------------------------------------------
sizes = st.integers(1, 16384)


@given(m=st.integers(1, 8191), n=sizes, k=sizes)
def test_matmul_never_gets_cheaper_with_tokens_or_width(m, n, k):
    def seconds(m, n, k):
        return matmul_time(m, n, k, weights(n, k), 2.0 * m * (n + k), "bf16", H100, FITTED.matmul).total_s

    here = seconds(m, n, k)
    assert math.isfinite(here)
    assert here > 0
    assert seconds(m + 1, n, k) >= here * (1 - 1e-12)
    assert seconds(m, n + 1, k) >= here * (1 - 1e-12)
    assert seconds(m, n, k + 1) >= here * (1 - 1e-12)


def test_arrays_equal_their_elements():
    m = np.array([1.0, 17.0, 300.0])
    together = matmul_time(m, 4096, 1024, weights(4096, 1024), m * 100, "bf16", H100, FITTED.matmul, count=m)
    for i, rows in enumerate(m):
        alone = matmul_time(rows, 4096, 1024, weights(4096, 1024), rows * 100, "bf16", H100, FITTED.matmul, count=rows)
        assert [part[i] for part in together] == pytest.approx(list(alone), rel=1e-12)  # numpy's power by lanes


loads = st.tuples(
    st.integers(1, 512).map(float), st.floats(1, 64), st.floats(1, 131_072), st.sampled_from([(8, 32), (8, 8), (1, 16)])
)


@given(load=loads, more=st.floats(1.0, 3.0), prefill=st.booleans())
def test_attention_never_gets_cheaper_with_bytes_or_flop(load, more, prefill):
    sequences, new_tokens, keys, (kv_heads, heads) = load
    e = FITTED.prefill_attention if prefill else FITTED.decode_attention
    rates = attention_rates(H100, e, dtype="bf16", kv_heads=kv_heads, heads=heads, head_dim=128)
    tokens = sequences * new_tokens
    kv_bytes, flop = 4.0 * sequences * kv_heads * keys * 128, 4.0 * tokens * heads * keys * 128
    here = attention_time(sequences, tokens, kv_bytes, flop, rates)[0]
    assert attention_time(sequences, tokens, kv_bytes * more, flop, rates)[0] >= here
    assert attention_time(sequences, tokens, kv_bytes, flop * more, rates)[0] >= here * (1 - 1e-12)


@given(load=loads, prefill=st.booleans())
def test_compiled_attention_equals_itself_interpreted(load, prefill):
    sequences, new_tokens, keys, (kv_heads, heads) = load
    e = FITTED.prefill_attention if prefill else FITTED.decode_attention
    rates = attention_rates(H100, e, dtype="bf16", kv_heads=kv_heads, heads=heads, head_dim=128)
    tokens = sequences * new_tokens
    case = (sequences, tokens, 4.0 * sequences * kv_heads * keys * 128, 4.0 * tokens * heads * keys * 128, rates)
    assert COMPILED(*case) == attention_time(*case)
