"""One pass priced inside the step loop: tables by token count for everything but attention.

Attention kernels are timed by the function that the analysis uses, on the sum of what the sequences ask of them. Where all of
them have the same number of new tokens, that function is evaluated once per batch size and whole number of tokens of mean
context (beyond `FINE_TOKENS`, where it is nearly straight, every `KNOT_TOKENS`), and interpolated between: one division instead of a dozen and four powers.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from simulator.cost import roofline
from simulator.cost.forward import DECODE_QUERY_LIMIT
from simulator.operators import attention_pairs, kv_tokens_read
from simulator.serving.compiled import compiled, compiled_apart

attention_time = compiled(roofline.attention_time)
one_kernel = compiled(roofline.one_kernel)
pairs_of = compiled(attention_pairs)
kv_read = compiled(kv_tokens_read)

# Columns of `kinds`, one row per group of layers with the same window (cost.forward.AttentionKind).
LAYERS, WINDOW, KV_BYTES, DECODE_FLOP, PREFILL_FLOP = 0, 1, 2, 3, 4
# Columns of `loads`: what the attention kernels of one kind have to do in this step.
KV_TOKENS, PAIRS, PREFILL_KV_TOKENS, PREFILL_PAIRS = 0, 1, 2, 3
# Rows of `counts`: sequences and tokens of the decode kernel, then of the prefill kernel.
FINE_TOKENS = 512
KNOT_TOKENS = 64.0


class Tables(NamedTuple):
    """`cost.forward.FastTables` of one model as the loop reads them."""

    linear: Any
    """Seconds, bytes, FLOP of all but attention and LM head: [without prompts, with; 3; tokens]."""
    head: Any
    """[3, rows]."""
    extra_host_s: Any
    """[without prompts, with; tokens]."""
    kinds: Any
    """[kinds, 5]."""
    rates: Any
    """Decode and prefill kernel, records of `AttentionRates`' fields [2]."""
    knots: Any
    """Seconds of one layer's attention by new tokens − 1, sequences and knots; 0 where not evaluated yet [γ + 1, sequences + 1,
    knots]."""
    pipeline: Any
    """Stages, and the most tokens of `linear` and of `intake` [3]."""
    intake: Any
    """Of a drafter's first pass in a round, beside `linear` [3, tokens]."""


@compiled
def micro_batches(tables: Any, sequences: int) -> int:
    """Parts into which a pipeline cuts a pass of `sequences`."""
    return int(min(tables.pipeline[0], max(1, sequences)))


@compiled
def part(amount: int, parts: int) -> int:
    """Tokens of the largest part."""
    return int((amount + parts - 1) // parts)


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
def one_layer(
    kind: Any, kv_tokens: float, pairs: float, prefill_kv_tokens: float, prefill_pairs: float, counts: Any, rates: Any,
    parts: float,
) -> float:  # fmt: skip
    """Seconds of the attention of one layer in one of `parts` micro-batches."""
    seconds = 0.0
    prefill_rates = rates[1]
    together = one_kernel(counts[0], counts[1], counts[2], prefill_rates)
    if counts[0] > 0.0:
        # What shares a launch pays for it once.
        saved_s = prefill_rates.t0_s if together and counts[2] > 0.0 else 0.0
        short = rates[1] if together else rates[0]
        kv_bytes = kv_tokens * kind[KV_BYTES] / parts
        flop = pairs * kind[DECODE_FLOP] / parts
        seconds += attention_time(counts[0] / parts, counts[1] / parts, kv_bytes, flop, short)[0] - saved_s
    if counts[2] > 0.0:
        kv_bytes = prefill_kv_tokens * kind[KV_BYTES] / parts
        flop = prefill_pairs * kind[PREFILL_FLOP] / parts
        seconds += attention_time(counts[2] / parts, counts[3] / parts, kv_bytes, flop, prefill_rates)[0]
    return seconds


@compiled
def attention_step(tables: Any, loads: Any, counts: Any, replica: Any) -> float:
    """Seconds of all attention kernels of a pass on any batch; adds their bytes and FLOP to the replica's."""
    seconds = 0.0
    kinds = tables.kinds
    parts = float(micro_batches(tables, int(counts[0] + counts[2])))
    share = 1.0 / tables.pipeline[0]
    for k in range(kinds.shape[0]):
        kind = kinds[k]
        seconds += kind[LAYERS] * one_layer(
            kind, loads[k, KV_TOKENS], loads[k, PAIRS], loads[k, PREFILL_KV_TOKENS], loads[k, PREFILL_PAIRS], counts,
            tables.rates, parts,
        )  # fmt: skip
        kv_tokens = loads[k, KV_TOKENS] + loads[k, PREFILL_KV_TOKENS]
        flop = loads[k, PAIRS] * kind[DECODE_FLOP] + loads[k, PREFILL_PAIRS] * kind[PREFILL_FLOP]
        replica.hbm_bytes += share * kind[LAYERS] * kv_tokens * kind[KV_BYTES]
        replica.flop += share * kind[LAYERS] * flop
    return seconds


@compiled_apart
def attention_seldom(tables: Any, loads: Any, counts: Any, replica: Any) -> float:
    """As `attention_step`, for places where speed matters less than the time to compile it once more."""
    return float(attention_step(tables, loads, counts, replica))


@compiled_apart
def evaluate_knot(tables: Any, which: int, sequences: int, new_tokens: int, place: int, counts: Any) -> float:
    """Fills one knot: `sequences` with `new_tokens` each on top of the cached ones of knot `place`, no window."""
    counts[:] = 0.0
    counts[0] = sequences
    counts[1] = sequences * new_tokens
    cached = float(min(place, FINE_TOKENS)) + max(0, place - FINE_TOKENS) * KNOT_TOKENS
    kv_tokens = sequences * kv_read(float(new_tokens), cached, math.inf)
    pairs = sequences * pairs_of(float(new_tokens), cached, math.inf)
    parts = float(micro_batches(tables, sequences))
    seconds = one_layer(tables.kinds[0], kv_tokens, pairs, 0.0, 0.0, counts, tables.rates, parts)
    tables.knots[which, sequences, place] = seconds
    return float(seconds)


@compiled
def attention_alike(
    tables: Any, sequences: int, new_tokens: int, cached: Any, ahead: float, counts: Any, replica: Any
) -> float:
    """Seconds of all attention kernels of a pass in which every sequence has `new_tokens`; adds bytes and FLOP.

    `cached` holds Σ min(context, window − 1) by kind [kinds]; where there is no window `ahead` is added.
    """
    seconds = 0.0
    kinds = tables.kinds
    which = new_tokens - 1
    share = 1.0 / tables.pipeline[0]
    for k in range(kinds.shape[0]):
        kind = kinds[k]
        context = cached[k] + (ahead if not math.isfinite(kind[WINDOW]) else 0.0)
        x = context / sequences
        if x >= FINE_TOKENS:
            x = FINE_TOKENS + (x - FINE_TOKENS) / KNOT_TOKENS
        place = int(x)
        low, high = tables.knots[which, sequences, place], tables.knots[which, sequences, place + 1]
        if low == 0.0:
            low = evaluate_knot(tables, which, sequences, new_tokens, place, counts)
        if high == 0.0:
            high = evaluate_knot(tables, which, sequences, new_tokens, place + 1, counts)
        seconds += kind[LAYERS] * (low + (high - low) * (x - place))
        q = float(new_tokens)
        kv_tokens = context + sequences * q
        pairs = q * context + sequences * q * (0.5 * (q + 1.0))
        replica.hbm_bytes += share * kind[LAYERS] * kv_tokens * kind[KV_BYTES]
        replica.flop += share * kind[LAYERS] * pairs * kind[DECODE_FLOP]
    return seconds


@compiled
def intake_step(tables: Any, tokens: int, replica: Any) -> float:
    """What a drafter's first pass of a round costs beyond its others, with `tokens` that are new to it; adds bytes and FLOP."""
    intake = tables.intake
    at_once = tables.pipeline[2]
    seconds = 0.0
    if at_once == 0:
        return seconds
    while tokens > at_once:
        replica.hbm_bytes += intake[1, at_once]
        replica.flop += intake[2, at_once]
        seconds += intake[0, at_once]
        tokens -= at_once
    replica.hbm_bytes += intake[1, tokens]
    replica.flop += intake[2, tokens]
    seconds += intake[0, tokens]
    return seconds


@compiled
def launches_s(config: Any, tables: Any, mode: int, sequences: int, tokens: int) -> float:
    """Seconds that a pass of the drafter waits for its launches because no captured graph covers it."""
    extra_host_s = tables.extra_host_s[mode]
    at_once = tables.pipeline[1]
    waits_s = extra_host_s[min(tokens, at_once)]
    if config.graphs_of_sequences == 1:  # the more tokens, the less is left to wait for
        waits_s = min(waits_s, extra_host_s[min(sequences, at_once)])
    return float(waits_s)


@compiled
def attention_equal(
    tables: Any, sequences: int, new_tokens: int, cached: Any, ahead: float, loads: Any, counts: Any, replica: Any
) -> float:
    """As `attention_alike`, for any number of new tokens."""
    if new_tokens == 1:
        return float(attention_alike(tables, sequences, 1, cached, ahead, counts, replica))
    return float(attention_wide(tables, sequences, new_tokens, cached, ahead, loads, counts, replica))


@compiled_apart
def attention_wide(
    tables: Any, sequences: int, new_tokens: int, cached: Any, ahead: float, loads: Any, counts: Any, replica: Any
) -> float:
    """The same for several tokens; where there are no knots for so many, from the sums over the batch."""
    kinds = tables.kinds
    decodes = new_tokens <= DECODE_QUERY_LIMIT
    if decodes and not has_window(kinds):
        return float(attention_alike(tables, sequences, new_tokens, cached, ahead, counts, replica))
    q, n = float(new_tokens), float(sequences)
    first = 0 if decodes else 2
    counts[:] = 0.0
    counts[first] = n
    counts[first + 1] = n * q
    loads[:] = 0.0
    for k in range(kinds.shape[0]):
        context = cached[k] + (ahead if not math.isfinite(kinds[k, WINDOW]) else 0.0)
        loads[k, first] = context + n * q
        loads[k, first + 1] = q * context + n * q * (0.5 * (q + 1.0))
    return float(attention_seldom(tables, loads, counts, replica))


@compiled
def has_window(kinds: Any) -> bool:
    """Whether any layer sees only a window."""
    for k in range(kinds.shape[0]):  # noqa: SIM110 (a generator does not compile)
        if math.isfinite(kinds[k, WINDOW]):
            return True
    return False


@compiled
def linear_step(tables: Any, mode: int, sequences: int, tokens: int, rows: int, replica: Any) -> float:
    """Seconds of everything but attention for `tokens` tokens and `rows` of logits; adds bytes and FLOP."""
    parts = micro_batches(tables, sequences)
    tokens, rows = part(tokens, parts), part(rows, parts)
    share = parts / tables.pipeline[0]
    linear, head = tables.linear[mode], tables.head
    at_once = tables.pipeline[1]
    seconds = 0.0
    while tokens > at_once:  # a drafter that has much to read reads it in pieces
        replica.hbm_bytes += share * linear[1, at_once]
        replica.flop += share * linear[2, at_once]
        seconds += linear[0, at_once]
        tokens -= at_once
    replica.hbm_bytes += share * (linear[1, tokens] + head[1, rows])
    replica.flop += share * (linear[2, tokens] + head[2, rows])
    seconds += linear[0, tokens] + head[0, rows]
    return seconds
