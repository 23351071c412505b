"""One pass priced inside the step loop: tables by token count for everything but attention, whose kernels are timed by the
function the analysis uses, on the sum of what the sequences ask of them.
"""

from __future__ import annotations

from typing import Any

from simulator.cost import roofline
from simulator.cost.forward import DECODE_QUERY_LIMIT
from simulator.operators import attention_pairs, kv_tokens_read
from simulator.serving.compiled import compiled

attention_time = compiled(roofline.attention_time)
one_kernel = compiled(roofline.one_kernel)
pairs_of = compiled(attention_pairs)
kv_read = compiled(kv_tokens_read)

# Columns of `kinds`, one row per group of layers with the same window (cost.forward.AttentionKind).
LAYERS, WINDOW, KV_BYTES, DECODE_FLOP, PREFILL_FLOP = 0, 1, 2, 3, 4
# Columns of `loads`: what the attention kernels of one kind have to do in this step.
KV_TOKENS, PAIRS, PREFILL_KV_TOKENS, PREFILL_PAIRS = 0, 1, 2, 3


@compiled
def attention_step(kinds: Any, loads: Any, counts: Any, rates: Any, prefill_rates: Any, replica: Any) -> float:
    """Seconds of all attention kernels of a pass; adds their bytes and FLOP to the replica's."""
    seconds = 0.0
    together = one_kernel(counts[0], counts[1], counts[2], prefill_rates)
    short_rates = prefill_rates if together else rates
    # What shares a launch pays for it once.
    saved_s = prefill_rates.t0_s if together and counts[2] > 0.0 else 0.0
    for k in range(kinds.shape[0]):
        layers = kinds[k, LAYERS]
        if counts[0] > 0.0:
            kv_bytes = loads[k, KV_TOKENS] * kinds[k, KV_BYTES]
            flop = loads[k, PAIRS] * kinds[k, DECODE_FLOP]
            seconds += layers * (attention_time(counts[0], counts[1], kv_bytes, flop, short_rates)[0] - saved_s)
            replica.hbm_bytes += layers * kv_bytes
            replica.flop += layers * flop
        if counts[2] > 0.0:
            kv_bytes = loads[k, PREFILL_KV_TOKENS] * kinds[k, KV_BYTES]
            flop = loads[k, PREFILL_PAIRS] * kinds[k, PREFILL_FLOP]
            seconds += layers * attention_time(counts[2], counts[3], kv_bytes, flop, prefill_rates)[0]
            replica.hbm_bytes += layers * kv_bytes
            replica.flop += layers * flop
    return seconds


@compiled
def add_load(kinds: Any, loads: Any, counts: Any, tokens: int, cached: int) -> None:
    """One sequence's attention, `tokens` new on top of `cached`, added to the step's decode or prefill kernel."""
    first = 0 if tokens <= DECODE_QUERY_LIMIT else 2
    counts[first] += 1.0
    counts[first + 1] += tokens
    for k in range(kinds.shape[0]):
        loads[k, first] += kv_read(float(tokens), float(cached), kinds[k, WINDOW])
        loads[k, first + 1] += pairs_of(float(tokens), float(cached), kinds[k, WINDOW])


@compiled
def linear_step(linear: Any, head: Any, tokens: int, rows: int, replica: Any) -> float:
    """Seconds of everything but attention for `tokens` tokens and `rows` of logits."""
    replica.hbm_bytes += linear[1, tokens] + head[1, rows]
    replica.flop += linear[2, tokens] + head[2, rows]
    seconds: float = linear[0, tokens] + head[0, rows]
    return seconds
