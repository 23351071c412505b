"""Attention of uniform batches is interpolated between contexts 64 tokens apart: how far that is from the exact time.

Attention is a smooth function of context from some 512 tokens on, where it is off by less than 0.1 %. Below, it has kinks: where
memory begins to outweigh the launch (contexts of some 30 tokens in large batches), at 128 keys, and where splitting keys over
blocks begins to pay (some 150 to 500 keys, small batches). There single steps are off by more, but attention is little of them.
"""

from __future__ import annotations

import numba
import numpy as np
import pytest

from simulator.architecture import load_decoder
from simulator.cost.forward import ForwardCost
from simulator.hardware import load_gpu
from simulator.serving import passes, pool, state

BATCHES = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256])
CONTEXTS = np.concatenate([np.arange(1, 4096), np.arange(4096, 32_768, 7)])
SMOOTH_TOKENS = 512

CASES = {
    ("h100-sxm", "llama-3.1-8b", 1): (0.012, 0.003),
    ("h100-sxm", "llama-3.1-8b", 5): (0.007, 0.001),
    ("h100-sxm", "llama-3.1-70b", 1): (0.011, 0.001),
    ("h100-sxm", "gpt-oss-20b", 1): (0.006, 0.002),
    ("h100-sxm", "deepseek-v2-lite", 1): (0.005, 0.001),
    ("h100-sxm", "deepseek-v2-lite", 5): (0.003, 0.001),
    ("rtx-4090", "llama-3.1-8b", 1): (0.034, 0.004),
}
"""GPU, model, new tokens of each sequence → largest error of attention, and of the whole pass, at any context."""


def looped_tables(cost, new_tokens):
    """Tables of a pass as the loop reads them, knots not evaluated yet."""
    most = int(BATCHES[-1]) * new_tokens
    tables = cost.tables(most, most)
    rates = np.array([tuple(tables.decode_rates), tuple(tables.prefill_rates)], dtype=pool.RATES).view(np.recarray)
    knots = np.zeros((new_tokens, BATCHES[-1] + 1, int(CONTEXTS[-1] / passes.KNOT_TOKENS) + 3))
    return passes.Tables(
        tables.linear, tables.head, tables.extra_host_s, np.array([tuple(k) for k in tables.kinds]), rates, knots,
        np.array([tables.pipeline]),
    )  # fmt: skip


@numba.njit
def both(tables, new_tokens, batches, contexts, replica):
    """Seconds of attention, interpolated and exact [2, batches, contexts]."""
    kinds = len(tables.kinds)
    seconds = np.zeros((2, len(batches), len(contexts)))
    loads, counts, cached = np.zeros((kinds, 4)), np.zeros(4), np.zeros(kinds)
    for i, sequences in enumerate(batches):
        for j, context in enumerate(contexts):
            for k in range(kinds):
                cached[k] = sequences * min(float(context), tables.kinds[k, passes.WINDOW] - 1.0)
            seconds[0, i, j] = passes.attention_alike(tables, sequences, new_tokens, cached, 0.0, counts, replica)
            loads[:] = 0.0
            counts[:] = 0.0
            passes.add_load(tables.kinds, loads, counts, new_tokens, context)
            loads *= sequences
            counts *= sequences
            seconds[1, i, j] = passes.attention_step(tables, loads, counts, replica)
    return seconds


@pytest.mark.parametrize(("case", "most"), CASES.items(), ids=["-".join(map(str, case)) for case in CASES])
def test_interpolated_attention_is_close(case, most):
    gpu, model, new_tokens = case
    tables = looped_tables(ForwardCost(load_decoder(model), load_gpu(gpu)), new_tokens)
    fast_s, exact_s = both(tables, new_tokens, BATCHES, CONTEXTS, state.records(state.REPLICA, 1)[0])
    rest_s = tables.linear[0, 0, BATCHES * new_tokens] + tables.head[0, BATCHES * new_tokens]
    error = np.abs(fast_s / exact_s - 1.0)
    of_attention, of_pass = most
    assert error[:, CONTEXTS >= SMOOTH_TOKENS].max() < 0.001
    assert error.mean() < 0.0005
    assert error.max() < of_attention
    assert (np.abs(fast_s - exact_s) / (exact_s + rest_s[:, None])).max() < of_pass


def test_at_knots_it_is_exact():
    tables = looped_tables(ForwardCost(load_decoder("llama-3.1-8b"), load_gpu("h100-sxm")), 1)
    knots = np.arange(0, 32_768, int(passes.KNOT_TOKENS))
    fast_s, exact_s = both(tables, 1, BATCHES, knots, state.records(state.REPLICA, 1)[0])
    np.testing.assert_allclose(fast_s, exact_s, rtol=1e-12)
