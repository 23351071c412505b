"""One engine instance: continuous batching, paged KV, chunked prompts and speculative rounds as a compiled step loop.

`advance` runs every step that starts before `until_s`. Between two calls the replica's future is fixed by what has been
submitted, so it does not matter how time is cut into calls. What a boundary and a step do, in which order, is said in
docs/engine-rules.md; `plain` is the same in readable Python and the specification of this.
"""

from __future__ import annotations

import math
from typing import Any

from simulator.cost.forward import DECODE_QUERY_LIMIT
from simulator.serving.arrays import one_of, plan_of, record_of, tables_of
from simulator.serving.batching import schedule
from simulator.serving.compiled import compiled, compiled_apart
from simulator.serving.drafting import add_cached, draft_after, draft_before, waited_s
from simulator.serving.leaving import cancel, emit, leave_finished, let_go
from simulator.serving.line import join, next_cancelled, next_overdue, next_ready_s
from simulator.serving.passes import (
    add_load,
    attention_alike,
    attention_step,
    has_window,
    linear_step,
    micro_batches,
    part,
)
from simulator.serving.record import leave, note, series_add, step_s
from simulator.serving.state import (
    LEFT,
    MODEL_DRAFTER,
    NGRAM_DRAFTER,
    NO_DRAFTER,
    REFUSED,
    TIMED_OUT,
)
from simulator.serving.steady import can_run_steadily, run_steadily
from simulator.serving.verifying import draw, looks_up, tree_s, widest_round


@compiled
def step(
    pool: Any, config: Any, plan: Any, replica: Any, requests: Any, links: Any, followers: Any, slots: Any, stack: Any,
    blocks: Any, pieces: Any, target: Any, draft: Any, luck: Any, record: Any, scratch: Any,
) -> None:  # fmt: skip
    """One engine step from schedule to emission."""
    loads, draft_loads, counts, cached, draft_cached = scratch[0], scratch[1], scratch[2], scratch[3], scratch[4]
    while True:
        schedule(config, plan, replica, requests, slots, links, stack, blocks, pieces, luck, record)
        if replica.held == 0 or replica.budget < config.max_batched_tokens:
            break
        let_go(
            config, replica, requests, slots, blocks, pieces, True
        )  # nothing fits beside them: the next schedule, then
    drafted, accepted, rounds = draw(config, plan, replica, slots, luck)

    loads[:] = 0.0
    counts[:] = 0.0
    cached[:] = 0.0
    padded = config.padded == 1 and rounds > 0
    widest = widest_round(config, plan, replica, slots) if padded else 0
    tokens = rows = sequences = emitted = prompt_tokens = decoding = 0
    alike = True
    width = 0
    for i in range(replica.running):
        slot = slots[i]
        q = slot.step_tokens
        if q == 0:
            continue
        sequences += 1
        emitted += slot.emitted_tokens
        if slot.computed_tokens < slot.goal_tokens:
            prompt_tokens += q
            rows += slot.emitted_tokens
            alike = False
        else:
            decoding += 1
            if padded:
                q = widest
            rows += q
            alike = alike and width in (0, q)
            width = q
            add_cached(target.kinds, cached, slot.computed_tokens)
        tokens += q
        add_load(target.kinds, loads, counts, q, slot.computed_tokens)

    mode = 1 if prompt_tokens > 0 else 0
    flop_before = replica.flop
    gpu_s = linear_step(target, mode, sequences, tokens, rows, replica)
    alike = alike and width <= DECODE_QUERY_LIMIT and (width == 1 or not has_window(target.kinds))
    if alike:
        gpu_s += attention_alike(target, sequences, width, cached, 0.0, counts, replica)
    else:
        gpu_s += attention_step(target, loads, counts, replica)
    if rounds > 0 and config.tree_attention > 0.0:
        gpu_s += tree_s(config, plan, replica, slots, target, loads, counts, cached)
    if rows > 0:
        # Rejected drafts' share of the pass: their part of its FLOP.
        replica.wasted_flop += (replica.flop - flop_before) * (drafted - accepted) / tokens
    host_s = config.host_step_s + config.host_per_sequence_s * sequences
    host_s += target.extra_host_s[mode, part(tokens, micro_batches(target, sequences))]
    if config.drafter != NO_DRAFTER and rounds > 0:
        host_s += config.host_speculative_round_s
    if config.drafter == NGRAM_DRAFTER and looks_up(plan, replica, slots):
        host_s += config.host_ngram_per_sequence_s * (decoding if config.draft_first == 1 else sequences)
    draft_s = 0.0
    if config.drafter == MODEL_DRAFTER:
        if config.draft_first == 1:
            draft_s = draft_before(
                config, plan, replica, slots, draft, draft_loads, counts, draft_cached, scratch[7], scratch[8]
            )
        else:
            draft_s = draft_after(
                config, plan, luck, replica, slots, draft, draft_loads, counts, draft_cached, scratch[7], scratch[8]
            )
        draft_s = waited_s(draft_s, gpu_s, config.draft_share)
    swap_s = config.swap_s_per_token * replica.step_swap_tokens
    gpu_s += draft_s
    gpu_s += swap_s
    hidden_s = config.host_hidden_step_s + config.host_hidden_per_sequence_s * sequences
    seconds = step_s(config, replica, gpu_s, host_s, hidden_s)
    start_s = replica.clock_s

    replica.steps += 1
    pool.steps += 1
    replica.busy_s += seconds
    replica.draft_s += draft_s
    replica.host_s += seconds - gpu_s
    replica.swap_s += swap_s
    replica.prefill_tokens += prompt_tokens
    replica.drafted_tokens += drafted
    replica.accepted_tokens += accepted
    replica.sequence_rounds += rounds
    replica.most_blocks = max(replica.most_blocks, replica.used_blocks)
    replica.most_running = max(replica.most_running, replica.running)
    replica.most_waiting = max(replica.most_waiting, replica.fresh + replica.stacked)
    series_add(
        replica, record.series, start_s, seconds, replica.running - replica.held, replica.fresh + replica.stacked,
        replica.used_blocks, emitted, prompt_tokens,
    )  # fmt: skip
    replica.step_started_s = start_s
    replica.clock_s = start_s + seconds
    replica.in_flight = 1
    emit(pool, config, replica, requests, links, followers, slots, blocks, pieces, record)


@compiled
def dismiss(
    pool: Any, config: Any, replica: Any, requests: Any, links: Any, followers: Any, slots: Any, stack: Any, blocks: Any,
    pieces: Any, record: Any,
) -> None:  # fmt: skip
    """1 to 3 of a boundary: requests join or are refused, users give up, time-outs strike."""
    heard_s = replica.clock_s
    if config.overlap == 1 and replica.in_flight == 1:
        heard_s = replica.step_started_s
    while True:
        refused = join(config, replica, requests, links, heard_s)
        if refused < 0:
            break
        note(record, replica, replica.clock_s, LEFT, refused, REFUSED)
        leave(pool, replica, requests, links, followers, refused, REFUSED, replica.clock_s)
    while True:
        index = next_cancelled(replica, replica.number, requests, links, replica.clock_s)
        if index < 0:
            break
        cancel(pool, config, replica, requests, links, followers, slots, stack, blocks, pieces, record, index)
    if math.isfinite(config.queue_timeout_s):
        while True:
            index = next_overdue(config, replica, requests, links)
            if index < 0 or requests[index].ready_s + config.queue_timeout_s > replica.clock_s:
                break
            replica.fresh -= 1
            note(record, replica, replica.clock_s, LEFT, index, TIMED_OUT)
            leave(pool, replica, requests, links, followers, index, TIMED_OUT, replica.clock_s)


@compiled
def next_event_s(config: Any, replica: Any, requests: Any, links: Any) -> float:
    """When 1 to 3 of a boundary will next have something to do, at the latest boundary before it."""
    event_s = next_ready_s(replica, requests)
    if replica.cancels >= 0:
        event_s = min(event_s, requests[replica.cancels].cancel_s)
    if math.isfinite(config.queue_timeout_s):
        overdue = next_overdue(config, replica, requests, links)
        if overdue >= 0:
            event_s = min(event_s, requests[overdue].ready_s + config.queue_timeout_s)
    return float(event_s)


@compiled_apart
def advance(until_s: float, a: Any, r: int, most_steps: int) -> None:
    """Replica `r` runs every step that starts before `until_s`, up to the first after which somebody has left where ends cause arrivals, or
    until the pool has made `most_steps`."""
    pool, replica, requests, links, followers = a.pool[0], a.replicas[r], a.requests, a.links, a.followers
    config, plan = a.configs[replica.model], plan_of(a.plans, replica.model)
    target, draft = tables_of(a.targets, replica.model), tables_of(a.drafts, replica.model)
    slots, stack, blocks, pieces, luck = a.slots[r], a.stacks[r], one_of(a.blocks, r), a.pieces, a.luck
    record, scratch = record_of(a.records, r), a.scratch
    left = replica.left
    while replica.clock_s < until_s and pool.steps < most_steps:
        event_s = next_event_s(config, replica, requests, links)
        if event_s <= replica.clock_s:
            dismiss(pool, config, replica, requests, links, followers, slots, stack, blocks, pieces, record)
            event_s = next_event_s(config, replica, requests, links)
        if replica.held > 0:
            let_go(config, replica, requests, slots, blocks, pieces, replica.fresh + replica.stacked == 0)
        if replica.running + replica.stacked + replica.fresh == 0:
            if pool.feedback == 1 and replica.left > left:
                return
            replica.in_flight = 0
            ready_s = next_ready_s(replica, requests)
            if ready_s >= until_s:
                return
            replica.clock_s = max(replica.clock_s, ready_s)
            continue
        steps = 0
        # Whose end at this boundary caused an arrival gets one step more: the arrival is to be routed after it.
        caused = pool.feedback == 1 and replica.left > left
        if (
            event_s > replica.clock_s
            and not caused
            and can_run_steadily(config, plan, replica, requests, links, slots, stack, target, draft, luck)
        ):
            steps = run_steadily(
                min(until_s, event_s), pool, config, plan, replica, requests, slots, blocks, pieces, target, draft, luck,
                record, scratch, most_steps,
            )  # fmt: skip
            if replica.finishing == 1:
                leave_finished(pool, config, replica, requests, links, followers, slots, blocks, pieces, record)
        if steps == 0:
            step(
                pool, config, plan, replica, requests, links, followers, slots, stack, blocks, pieces, target, draft, luck,
                record, scratch,
            )  # fmt: skip
        if pool.feedback == 1 and replica.left > left:
            return
