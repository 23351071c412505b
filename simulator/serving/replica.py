"""One engine instance: continuous batching, paged KV, chunked prompts and speculative rounds as a compiled step loop.

`advance` runs every step that starts before `until_s`. It touches arrays only (`state`), so it compiles as it stands and
also runs as plain Python (``advance.py_func``), with the same results to the last bit. Between two calls the replica's
future is fixed by what has been submitted, so it does not matter how time is cut into calls.

A step, in this order:
1. decode    every running sequence past its prompt gets 1 + γ tokens (γ drafts to verify) and KV blocks for all of them
             (look-ahead slots); if blocks run out the youngest sequence is preempted and later recomputed;
2. prefill   a prompt that has begun (the youngest sequence's) continues, as far as token budget and blocks reach;
3. admit     waiting requests join, preempted ones first, then in order of arrival, while sequences, budget and KV allow;
4. time      target pass + sampling + (drafter catches up on what was accepted, then drafts γ) + host time of the engine;
5. emit      the accepted drafts and the target's own token, all at the end of the step; rejected KV is rolled back.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from simulator.cost import roofline
from simulator.cost.forward import DECODE_QUERY_LIMIT
from simulator.operators import attention_pairs, kv_tokens_read
from simulator.serving.batching import admit, blocks_for, schedule_running, uniform
from simulator.serving.compiled import compiled
from simulator.serving.state import (
    BUCKETS,
    FINISHED,
    GAP_BINS,
    GAP_BINS_PER_E,
    GAP_SHORTEST_S,
    MODEL_DRAFTER,
    NGRAM_DRAFTER,
    NO_DRAFTER,
)

attention_time = compiled(roofline.attention_time)
one_kernel = compiled(roofline.one_kernel)
pairs_of = compiled(attention_pairs)
kv_read = compiled(kv_tokens_read)

# Columns of `kinds`, one row per group of layers with the same window (cost.forward.AttentionKind).
LAYERS, WINDOW, KV_BYTES, DECODE_FLOP, PREFILL_FLOP = 0, 1, 2, 3, 4
# Columns of `loads`: what the attention kernels of one kind have to do in this step.
KV_TOKENS, PAIRS, PREFILL_KV_TOKENS, PREFILL_PAIRS = 0, 1, 2, 3


@compiled
def accepted_drafts(config: Any, rates: Any, index: int, position: int, drafts: int) -> int:
    """How many of `drafts` tokens after output `position` of request `index` the target keeps."""
    for depth in range(drafts):
        if uniform(config.seed, index, position, depth + 1) >= rates[depth]:
            return depth
    return drafts


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
    return linear[0, tokens] + head[0, rows]


@compiled
def draft_step(config: Any, replica: Any, slots: Any, requests: Any, draft: Any, loads: Any, counts: Any) -> float:
    """Seconds in which the drafter catches up on prompts and accepted tokens and then drafts γ for the next step."""
    linear, head, kinds, decode_rates, prefill_rates = draft
    loads[:] = 0.0
    counts[:] = 0.0
    tokens = 0
    drafting = 0
    for i in range(replica.running):
        slot = slots[i]
        if slot.step_tokens == 0:
            continue
        request = requests[slot.request]
        # `computed_tokens` is from before this step.
        if slot.computed_tokens < slot.goal_tokens:
            tokens += slot.step_tokens
            add_load(kinds, loads, counts, slot.step_tokens, slot.computed_tokens)
            if slot.emitted_tokens == 0:
                continue
        else:
            if request.generated_tokens >= request.output_tokens:
                continue
            tokens += slot.emitted_tokens
            add_load(kinds, loads, counts, slot.emitted_tokens, slot.computed_tokens)
        if request.generated_tokens < request.output_tokens:
            drafting += 1
    if tokens == 0:
        return 0.0
    seconds = linear_step(linear, head, tokens, drafting, replica)
    seconds += attention_step(kinds, loads, counts, decode_rates, prefill_rates, replica)
    if drafting == 0:
        return seconds
    if config.gamma > 1:
        loads[:] = 0.0
        counts[:] = 0.0
        for i in range(replica.running):
            slot = slots[i]
            request = requests[slot.request]
            if slot.emitted_tokens > 0 and request.generated_tokens < request.output_tokens:
                cached = request.prompt_tokens + request.generated_tokens
                add_load(kinds, loads, counts, 1, cached)
        for _ in range(config.gamma - 1):
            seconds += linear_step(linear, head, drafting, drafting, replica)
            seconds += attention_step(kinds, loads, counts, decode_rates, prefill_rates, replica)
            # Each further pass sees one more token of every sequence (a full window stays as long).
            for k in range(kinds.shape[0]):
                if not math.isfinite(kinds[k, WINDOW]):
                    loads[k, KV_TOKENS] += drafting
                    loads[k, PAIRS] += drafting
    return seconds + config.host_draft_pass_s * config.gamma


@compiled
def series_add(replica: Any, series: Any, start_s: float, values: Any) -> None:
    """Adds a step's figures to the bucket in which it began; when time outgrows the buckets they double in width."""
    while start_s >= replica.bucket_s * BUCKETS:
        for row in range(series.shape[0]):
            for b in range(BUCKETS // 2):
                series[row, b] = series[row, 2 * b] + series[row, 2 * b + 1]
            series[row, BUCKETS // 2 :] = 0.0
        replica.bucket_s *= 2.0
    bucket = int(start_s / replica.bucket_s)
    for row in range(series.shape[0]):
        series[row, bucket] += values[row]


@compiled
def gap_bin(gap_s: float) -> int:
    """Bin of the gap histogram."""
    if gap_s <= GAP_SHORTEST_S:
        return 0
    return min(GAP_BINS - 1, int(math.log(gap_s / GAP_SHORTEST_S) * GAP_BINS_PER_E))


@compiled
def emit(config: Any, replica: Any, requests: Any, slots: Any, done: Any, gaps: Any, end_s: float) -> int:
    """Step 5: tokens reach their users, rejected KV is rolled back, finished sequences leave. Returns how many finished."""
    kept = 0
    finished = 0
    for i in range(replica.running):
        slot = slots[i]
        request = requests[slot.request]
        if slot.computed_tokens < slot.goal_tokens:
            slot.computed_tokens += slot.step_tokens
        else:
            slot.computed_tokens += slot.emitted_tokens
            # Rolled back to what is valid; the next step asks for its look-ahead slots anew.
            blocks = blocks_for(slot.computed_tokens, config.block_tokens)
            replica.used_blocks -= slot.blocks - blocks
            slot.blocks = blocks
        if slot.emitted_tokens > 0:
            replica.emitted_tokens += slot.emitted_tokens
            if request.generated_tokens == slot.emitted_tokens:
                request.first_token_s = end_s
            else:
                gap_s = end_s - request.last_token_s
                request.chunks += 1
                request.longest_gap_s = max(request.longest_gap_s, gap_s)
                if request.measured == 1:
                    gaps[gap_bin(gap_s)] += 1
            request.last_token_s = end_s
            slot.emitted_tokens = 0
        slot.step_tokens = 0
        if request.generated_tokens >= request.output_tokens:
            request.finish_s = end_s
            request.status = FINISHED
            replica.used_blocks -= slot.blocks
            replica.freed_blocks += slot.blocks
            done[replica.finished + finished] = slot.request
            finished += 1
        else:
            if kept < i:
                slots[kept] = slots[i]
            kept += 1
    replica.running = kept
    replica.finished += finished
    return finished


@compiled
def step(
    config: Any, replica: Any, requests: Any, slots: Any, queue: Any, stack: Any, done: Any, target: Any,
    draft: Any, acceptance: Any, row_of: Any, gaps: Any, series: Any, scratch: Any,
) -> int:  # fmt: skip
    """One engine step from schedule to emission; returns how many requests finished in it."""
    loads, draft_loads, counts, values = scratch
    linear, head, kinds, decode_rates, prefill_rates = target
    preemptions = replica.preemptions
    budget = schedule_running(config, replica, requests, slots, stack)
    if replica.preemptions == preemptions:  # nobody joins in the step that just made room the hard way
        admit(config, replica, requests, slots, queue, stack, budget)

    loads[:] = 0.0
    counts[:] = 0.0
    tokens = rows = sequences = emitted = prompt_tokens = 0
    drafted = accepted = rounds = 0
    for i in range(replica.running):
        slot = slots[i]
        q = slot.step_tokens
        slot.emitted_tokens = 0
        if q == 0:
            continue
        tokens += q
        sequences += 1
        request = requests[slot.request]
        decoding = slot.computed_tokens >= slot.goal_tokens
        add_load(kinds, loads, counts, q, slot.computed_tokens)
        if decoding:
            rows += q
            left = request.output_tokens - request.generated_tokens
            kept = 0
            if q > 1:
                kept = accepted_drafts(
                    config, acceptance[row_of[slot.request]], slot.request, request.generated_tokens, q - 1
                )
                used = min(kept, left)
                request.rounds += 1
                request.drafted_tokens += q - 1
                request.accepted_tokens += used
                rounds += 1
                drafted += q - 1
                accepted += used
            slot.emitted_tokens = min(kept + 1, left)
        else:
            prompt_tokens += q
            if slot.computed_tokens + q == slot.goal_tokens:
                rows += 1
                slot.emitted_tokens = 1
        request.generated_tokens += slot.emitted_tokens
        emitted += slot.emitted_tokens

    flop_before = replica.flop
    seconds = linear_step(linear, head, tokens, rows, replica)
    seconds += attention_step(kinds, loads, counts, decode_rates, prefill_rates, replica)
    if rows > 0:
        # Rejected drafts' share of the pass: their part of its FLOP.
        replica.wasted_flop += (replica.flop - flop_before) * (drafted - accepted) / tokens
    host_s = config.host_step_s + config.host_per_sequence_s * sequences
    if config.drafter != NO_DRAFTER and rounds > 0:
        host_s += config.host_speculative_round_s
    if config.drafter == NGRAM_DRAFTER:
        host_s += config.host_ngram_per_sequence_s * sequences
    draft_s = 0.0
    if config.drafter == MODEL_DRAFTER:
        draft_s = draft_step(config, replica, slots, requests, draft, draft_loads, counts)
    start_s = replica.clock_s
    seconds += host_s + draft_s
    end_s = start_s + seconds

    replica.steps += 1
    replica.busy_s += seconds
    replica.draft_s += draft_s
    replica.host_s += host_s
    replica.prefill_tokens += prompt_tokens
    replica.drafted_tokens += drafted
    replica.accepted_tokens += accepted
    replica.sequence_rounds += rounds
    replica.most_blocks = max(replica.most_blocks, replica.used_blocks)
    replica.most_running = max(replica.most_running, replica.running)
    values[0] = seconds
    values[1] = replica.running * seconds
    values[2] = (replica.arrived - replica.admitted + replica.stacked) * seconds
    values[3] = replica.used_blocks * seconds
    values[4] = emitted
    values[5] = prompt_tokens
    values[6] = 1.0
    series_add(replica, series, start_s, values)
    replica.clock_s = end_s
    return emit(config, replica, requests, slots, done, gaps, end_s)


@compiled
def advance(
    until_s: float, stop_on_finish: bool, config_row: Any, replica_row: Any, requests: Any, slots: Any, queue: Any,
    stack: Any, done: Any, target: Any, draft: Any, acceptance: Any, row_of: Any, gaps: Any, series: Any, scratch: Any,
) -> int:  # fmt: skip
    """Runs every step that starts before `until_s`, or up to the first in which a request finishes when asked to.

    Returns how many requests finished. On return the replica's clock is at the end of its last step, or at `until_s`
    when it ran out of work before.
    """
    config = config_row[0]
    replica = replica_row[0]
    finished = 0
    while True:
        while replica.arrived < replica.submitted and requests[queue[replica.arrived]].arrival_s <= replica.clock_s:
            replica.arrived += 1
        if replica.running == 0 and replica.stacked == 0 and replica.admitted == replica.arrived:
            if replica.arrived == replica.submitted:
                if math.isfinite(until_s):
                    replica.clock_s = max(replica.clock_s, until_s)
                return finished
            next_s = requests[queue[replica.arrived]].arrival_s
            if next_s >= until_s:
                replica.clock_s = max(replica.clock_s, until_s)
                return finished
            replica.clock_s = next_s
            continue
        if replica.clock_s >= until_s:
            return finished
        left = step(
            config,
            replica,
            requests,
            slots,
            queue,
            stack,
            done,
            target,
            draft,
            acceptance,
            row_of,
            gaps,
            series,
            scratch,
        )
        finished += left
        if left > 0 and stop_on_finish:
            return finished


def scratch_for(kinds: int, draft_kinds: int) -> tuple[Any, Any, Any, Any]:
    """Working arrays of one replica: attention loads of target and drafter, counts, and a row of the time series."""
    return np.zeros((kinds, 4)), np.zeros((draft_kinds, 4)), np.zeros(4), np.zeros(7)
