"""One engine instance: continuous batching, paged KV, chunked prompts and speculative rounds as a compiled step loop.

`advance` runs every step that starts before `until_s`. It touches arrays only (`state`), so it compiles as it stands and
also runs as plain Python (``advance.py_func``), with the same results to the last bit. Between two calls the replica's
future is fixed by what has been submitted, so it does not matter how time is cut into calls.

A step, in this order (`batching` for the first three; with `prefill_first` a step does either 1 or 2 and 3):
1. decode    every running sequence past its prompt gets 1 + γ tokens (γ drafts to verify) and KV blocks for all of them
             (look-ahead slots); if blocks run out the youngest sequence is preempted and later recomputed;
2. prefill   a prompt that has begun continues, as far as token budget and blocks reach;
3. admit     waiting requests join, preempted ones first, then in order of arrival, while sequences, budget and KV allow;
4. time      target pass + sampling + drafter (`drafting`) + host time of the engine;
5. emit      the accepted drafts and the target's own token, all at the end of the step; rejected KV is rolled back.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from simulator.serving.batching import blocks_for, schedule
from simulator.serving.compiled import compiled
from simulator.serving.drafting import draft_after, draft_before
from simulator.serving.luck import accepted_drafts
from simulator.serving.passes import add_load, attention_step, linear_step
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
    draft: Any, luck: Any, gaps: Any, series: Any, scratch: Any,
) -> int:  # fmt: skip
    """One engine step from schedule to emission; returns how many requests finished in it."""
    loads, draft_loads, counts, values = scratch
    linear, head, kinds, decode_rates, prefill_rates = target
    schedule(config, replica, requests, slots, queue, stack, luck)

    loads[:] = 0.0
    counts[:] = 0.0
    tokens = rows = sequences = emitted = prompt_tokens = 0
    drafted = accepted = rounds = decoding = 0
    for i in range(replica.running):
        slot = slots[i]
        q = slot.step_tokens
        slot.emitted_tokens = 0
        if q == 0:
            continue
        tokens += q
        sequences += 1
        request = requests[slot.request]
        add_load(kinds, loads, counts, q, slot.computed_tokens)
        if slot.computed_tokens >= slot.goal_tokens:
            decoding += 1
            rows += q
            left = request.output_tokens - request.generated_tokens
            kept = 0
            if q > 1:
                kept = accepted_drafts(config, luck, slot, request.generated_tokens, q - 1)
                used = min(kept, left)
                request.rounds += 1
                request.drafted_tokens += q - 1
                request.accepted_tokens += used
                rounds += 1
                drafted += q - 1
                accepted += used
            slot.rounds += 1
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
        host_s += config.host_ngram_per_sequence_s * (decoding if config.draft_first == 1 else sequences)
    draft_s = 0.0
    if config.drafter == MODEL_DRAFTER:
        if config.draft_first == 1:
            draft_s = draft_before(config, replica, slots, draft, draft_loads, counts)
        else:
            draft_s = draft_after(config, replica, slots, requests, draft, draft_loads, counts)
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
    stack: Any, done: Any, target: Any, draft: Any, luck: Any, gaps: Any, series: Any, scratch: Any,
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
            config, replica, requests, slots, queue, stack, done, target, draft, luck, gaps, series, scratch
        )  # fmt: skip
        finished += left
        if left > 0 and stop_on_finish:
            return finished


def scratch_for(kinds: int, draft_kinds: int) -> tuple[Any, Any, Any, Any]:
    """Working arrays of one replica: attention loads of target and drafter, counts, and a row of the time series."""
    return np.zeros((kinds, 4)), np.zeros((draft_kinds, 4)), np.zeros(4), np.zeros(7)
