"""Attention of uniform batches is interpolated between knots: how far that is from the exact time.

Attention is a smooth function of context from some 512 tokens on. Below, it has kinks: where memory begins to outweigh the launch
(contexts of some 30 tokens in large batches), at 128 keys, and where splitting keys over blocks begins to pay (some 150 to 500
keys, small batches). So knots are a token apart there, and contexts that are whole numbers are exact.
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
MEANS = np.concatenate([np.arange(0.25, 600.0, 0.25), np.arange(600.0, 32_768.0, 7.3)])
"""Mean contexts, most of them no whole number."""

CASES = [
    ("h100-sxm", "llama-3.1-8b", 1), ("h100-sxm", "llama-3.1-8b", 5), ("h100-sxm", "llama-3.1-70b", 1),
    ("h100-sxm", "gpt-oss-20b", 1), ("h100-sxm", "deepseek-v2-lite", 1), ("h100-sxm", "deepseek-v2-lite", 5),
    ("rtx-4090", "llama-3.1-8b", 1), ("rtx-4090", "deepseek-v2-lite", 1), ("a100-sxm-80gb", "deepseek-v2-lite", 1),
    ("l40s", "llama-3.1-8b", 1),
]  # fmt: skip
"""GPU, model, new tokens of each sequence."""


def looped_tables(cost, new_tokens):
    """Tables of a pass as the loop reads them, knots not evaluated yet."""
    most = int(BATCHES[-1]) * new_tokens
    tables = cost.tables(most, most)
    rates = np.array([tuple(tables.decode_rates), tuple(tables.prefill_rates)], dtype=pool.RATES).view(np.recarray)
    knots = np.zeros((new_tokens, BATCHES[-1] + 1, passes.FINE_TOKENS + int(MEANS[-1] / passes.KNOT_TOKENS) + 3))
    return passes.Tables(
        tables.linear, tables.head, tables.extra_host_s, np.array([tuple(k) for k in tables.kinds]), rates, knots,
        np.array([tables.pipeline, most, 1]), np.zeros((3, 2)),
    )  # fmt: skip


@numba.njit
def both(tables, new_tokens, batches, contexts, replica):
    """Seconds of one layer's attention without window, interpolated and exact, at these mean contexts [2, batches, contexts]."""
    kinds = len(tables.kinds)
    seconds = np.zeros((2, len(batches), len(contexts)))
    loads, counts, cached = np.zeros((kinds, 4)), np.zeros(4), np.zeros(kinds)
    layers = 0.0
    for k in range(kinds):
        tables.kinds[k, passes.WINDOW] = np.inf
        layers += tables.kinds[k, passes.LAYERS]
    q = float(new_tokens)
    for i, sequences in enumerate(batches):
        for j, context in enumerate(contexts):
            cached[:] = sequences * context
            seconds[0, i, j] = (
                passes.attention_alike(tables, sequences, new_tokens, cached, 0.0, counts, replica) / layers
            )
            loads[:] = 0.0
            loads[:, passes.KV_TOKENS] = sequences * (context + q)
            loads[:, passes.PAIRS] = sequences * q * (context + 0.5 * (q + 1.0))
            counts[:] = 0.0
            counts[0] = sequences
            counts[1] = sequences * q
            seconds[1, i, j] = passes.attention_step(tables, loads, counts, replica) / layers
    return seconds


@pytest.mark.parametrize("case", CASES, ids=["-".join(map(str, case)) for case in CASES])
def test_interpolated_attention_is_close(case):
    gpu, model, new_tokens = case
    tables = looped_tables(ForwardCost(load_decoder(model), load_gpu(gpu)), new_tokens)
    fast_s, exact_s = both(tables, new_tokens, BATCHES, MEANS, state.records(state.REPLICA, 1)[0])
    error = np.abs(fast_s / exact_s - 1.0)
    assert error.max() < 0.0025  # between two whole numbers with a kink between them; 0.001 but on one GPU
    assert error.mean() < 0.0001


def test_at_knots_it_is_exact():
    tables = looped_tables(ForwardCost(load_decoder("llama-3.1-8b"), load_gpu("h100-sxm")), 1)
    fine = np.arange(passes.FINE_TOKENS + 1.0)
    knots = np.concatenate([fine, np.arange(passes.FINE_TOKENS, 32_768.0, passes.KNOT_TOKENS)])
    fast_s, exact_s = both(tables, 1, BATCHES, knots, state.records(state.REPLICA, 1)[0])
    np.testing.assert_allclose(fast_s, exact_s, rtol=1e-12)
