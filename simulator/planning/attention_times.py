"""Attention of many equal sequences beside some prompts, for every number of sequences at once.

The kernel's time is evaluated at a few numbers of sequences and interpolated between them, which its waves of thread blocks
make exact to about a percent; a map prices some hundred thousand steps.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from simulator.attention import attention_pairs, kv_tokens_read
from simulator.cost.forward import DECODE_QUERY_LIMIT
from simulator.cost.roofline import attention_time, one_kernel
from simulator.cost.tables import FastTables
from simulator.operators import FloatArray


@cache
def knots(most: int) -> FloatArray:
    """0 to 4, on in steps of a quarter octave up to 32, and of half an octave up to `most` sequences; not to be written to."""
    fine, coarse = 2.0 ** np.arange(2.0, 5.0, 0.25), 2.0 ** np.arange(5.0, max(5.0, math.log2(max(most, 1))), 0.5)
    steps = np.rint(np.concatenate([np.arange(4.0), fine, coarse]))
    found = np.unique(np.concatenate([steps[steps < most], [float(most)]]))
    found.setflags(write=False)
    return found


def alike_s(
    tables: FastTables, sequences: FloatArray, new_tokens: float, cached_tokens: float, *, beside_prompts: bool = False
) -> FloatArray:
    """Seconds [points] of all layers' attention for `sequences` [points] equal ones, each with `new_tokens` (a mean, where they
    differ) on top of `cached_tokens`. `beside_prompts`: prompts share the pass, and with them a launch where there is one
    kernel for both."""
    found = np.zeros(len(sequences))
    for i, n in enumerate(sequences.tolist()):
        if n <= 0.0 or new_tokens <= 0.0:
            continue
        parts = min(float(tables.pipeline), max(1.0, n))
        long = new_tokens > DECODE_QUERY_LIMIT
        rates = tables.decode_rates
        saved_s = 0.0
        if long or one_kernel(n, n * new_tokens, 1.0 if beside_prompts else 0.0, tables.prefill_rates):
            rates = tables.prefill_rates
            saved_s = rates.t0_s if beside_prompts and not long else 0.0
        for kind in tables.kinds:
            kv_bytes = n * kv_tokens_read(new_tokens, cached_tokens, kind.window_tokens) * kind.kv_bytes_per_token
            per_pair = kind.prefill_flop_per_pair if long else kind.decode_flop_per_pair
            flop = n * attention_pairs(new_tokens, cached_tokens, kind.window_tokens) * per_pair
            seconds = attention_time(n / parts, n * new_tokens / parts, kv_bytes / parts, flop / parts, rates)[0]
            found[i] += kind.layers * (seconds - saved_s)
    return found


def prompts_s(tables: FastTables, chunks: FloatArray, chunk_tokens: float, chunks_per_prompt: int) -> FloatArray:
    """Seconds [points] of all layers' attention for `chunks` [points] pieces of prompts, each of `chunk_tokens` on top of what
    its prompt has already: 0 to `chunks_per_prompt` − 1 such pieces, on average over them."""
    found = np.zeros(len(chunks))
    before = np.arange(chunks_per_prompt) * chunk_tokens
    short = chunk_tokens <= DECODE_QUERY_LIMIT
    rates = tables.decode_rates if short else tables.prefill_rates
    for kind in tables.kinds:
        per_pair = kind.decode_flop_per_pair if short else kind.prefill_flop_per_pair
        kv = float(np.mean([kv_tokens_read(chunk_tokens, b, kind.window_tokens) for b in before.tolist()]))
        pairs = float(np.mean([attention_pairs(chunk_tokens, b, kind.window_tokens) for b in before.tolist()]))
        for i, n in enumerate(chunks.tolist()):
            if n > 0.0:
                work = (n, n * chunk_tokens, n * kv * kind.kv_bytes_per_token, n * pairs * per_pair)
                found[i] += kind.layers * attention_time(*work, rates)[0]
    return found
