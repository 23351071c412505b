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
from simulator.serving.drafting import add_cached, draft_after, draft_before, tree_extra, waited_s
from simulator.serving.kv_cache import blocks_for, give_back
from simulator.serving.line import join, next_cancelled, next_overdue, next_ready_s
from simulator.serving.luck import accepted_drafts, learn, shape_for
from simulator.serving.passes import (
    add_load,
    attention_alike,
    attention_equal,
    attention_step,
    has_window,
    linear_step,
    micro_batches,
    part,
)
from simulator.serving.record import count_gaps, leave, note, series_add, step_s, store_slot
from simulator.serving.state import (
    CANCELLED,
    DEPTH,
    EMITTED,
    FINISHED,
    HANDED_OVER,
    LEFT,
    MODEL_DRAFTER,
    NGRAM_DRAFTER,
    NO_DRAFTER,
    NODES,
    REFUSED,
    TIMED_OUT,
    WAITING,
)
from simulator.serving.steady import can_run_steadily, run_steadily
from simulator.speculation.policies import BY_TABLE


@compiled
def emit(
    pool: Any, config: Any, replica: Any, requests: Any, links: Any, followers: Any, slots: Any, blocks: Any, pieces: Any,
    record: Any,
) -> None:  # fmt: skip
    """Tokens of the step that ended reach their users, rejected KV is rolled back, who is done leaves."""
    kept = 0
    end_s = replica.clock_s
    running = replica.running
    left_before = replica.left
    for i in range(running):
        slot = slots[i]
        if slot.computed_tokens < slot.goal_tokens:
            slot.computed_tokens += slot.step_tokens
            if slot.computed_tokens >= slot.goal_tokens:
                replica.prompts -= 1
        else:
            slot.computed_tokens += slot.emitted_tokens
        emitted = slot.emitted_tokens
        slot.step_tokens = slot.emitted_tokens = 0
        status = WAITING
        if emitted > 0:
            request = requests[slot.request]
            slot.left_tokens -= emitted
            slot.generated_tokens += emitted
            replica.emitted_tokens += emitted
            if slot.generated_tokens == emitted:
                request.first_token_s = end_s
            else:
                gap_s = end_s - slot.last_token_s
                slot.chunks += 1
                slot.longest_gap_s = max(slot.longest_gap_s, gap_s)
                if slot.measured == 1:
                    count_gaps(replica, record, gap_s, 1)
            slot.last_token_s = end_s
            note(record, replica, end_s, EMITTED, slot.request, emitted)
            if slot.left_tokens == 0:
                status = FINISHED
            elif config.prefill_only == 1:
                status = HANDED_OVER
        if status == FINISHED and config.overlap == 1:
            finish_held(pool, replica, requests, links, followers, slot, record)
            status = WAITING
        if status == WAITING:
            if kept < i:
                slots[kept] = slots[i]
            kept += 1
        else:
            depart(pool, config, replica, requests, links, followers, slot, blocks, pieces, record, status)
    replica.running = kept
    replica.left_last = replica.left - left_before


@compiled
def leave_finished(
    pool: Any, config: Any, replica: Any, requests: Any, links: Any, followers: Any, slots: Any, blocks: Any, pieces: Any,
    record: Any,
) -> None:  # fmt: skip
    """After a steady run: whoever has the whole answer leaves."""
    kept = 0
    left_before = replica.left
    for i in range(replica.running):
        slot = slots[i]
        note(record, replica, replica.clock_s, EMITTED, slot.request, slot.emitted_tokens)
        slot.emitted_tokens = 0
        if slot.left_tokens == 0 and config.overlap == 0:
            depart(pool, config, replica, requests, links, followers, slot, blocks, pieces, record, FINISHED)
        else:
            if slot.left_tokens == 0:
                finish_held(pool, replica, requests, links, followers, slot, record)
            if kept < i:
                slots[kept] = slots[i]
            kept += 1
    replica.running = kept
    replica.left_last = replica.left - left_before
    replica.finishing = 0


@compiled
def finish_held(pool: Any, replica: Any, requests: Any, links: Any, followers: Any, slot: Any, record: Any) -> None:
    """A sequence has its whole answer; the next schedule has been made already, so its blocks and its place stay for that."""
    slot.held = 1
    replica.held += 1
    say_goodbye(pool, replica, requests, links, followers, slot, record, FINISHED)


@compiled_apart
def let_go(config: Any, replica: Any, requests: Any, slots: Any, blocks: Any, pieces: Any, everybody: bool) -> None:
    """Finished sequences give back their blocks, if they were held for a schedule, or `everybody` is meant; others are held now."""
    kept = 0
    for i in range(replica.running):
        slot = slots[i]
        if slot.held == 2 or (slot.held == 1 and everybody):
            give_back(config, replica, blocks, slot, requests[slot.request], pieces)
            replica.held -= 1
        else:
            if slot.held == 1:
                slot.held = 2
            if kept < i:
                slots[kept] = slots[i]
            kept += 1
    replica.running = kept


@compiled
def depart(
    pool: Any, config: Any, replica: Any, requests: Any, links: Any, followers: Any, slot: Any, blocks: Any, pieces: Any,
    record: Any, status: int,
) -> None:  # fmt: skip
    """A running sequence gives back its blocks and leaves with `status`."""
    give_back(config, replica, blocks, slot, requests[slot.request], pieces)
    say_goodbye(pool, replica, requests, links, followers, slot, record, status)


@compiled
def say_goodbye(
    pool: Any, replica: Any, requests: Any, links: Any, followers: Any, slot: Any, record: Any, status: int
) -> None:
    """A running sequence's request has left with `status`."""
    store_slot(slot, requests[slot.request])
    note(record, replica, replica.clock_s, LEFT, slot.request, status)
    leave(pool, replica, requests, links, followers, slot.request, status, replica.clock_s)


@compiled_apart
def cancel(
    pool: Any, config: Any, replica: Any, requests: Any, links: Any, followers: Any, slots: Any, stack: Any, blocks: Any,
    pieces: Any, record: Any, index: int,
) -> None:  # fmt: skip
    """A request whose user has given up leaves from wherever it is."""
    if requests[index].status == WAITING:
        replica.fresh -= 1
        note(record, replica, replica.clock_s, LEFT, index, CANCELLED)
        leave(pool, replica, requests, links, followers, index, CANCELLED, replica.clock_s)
        return
    for i in range(replica.running):
        if slots[i].request == index:
            if slots[i].computed_tokens < slots[i].goal_tokens:
                replica.prompts -= 1
            depart(pool, config, replica, requests, links, followers, slots[i], blocks, pieces, record, CANCELLED)
            for j in range(i + 1, replica.running):
                slots[j - 1] = slots[j]
            replica.running -= 1
            return
    for i in range(replica.stacked):
        if stack[i].request == index:
            if stack[i].swapped_tokens > 0:
                replica.swapped_blocks -= blocks_for(config, stack[i].swapped_tokens)
            for j in range(i + 1, replica.stacked):
                stack[j - 1] = stack[j]
            replica.stacked -= 1
            break
    note(record, replica, replica.clock_s, LEFT, index, CANCELLED)
    leave(pool, replica, requests, links, followers, index, CANCELLED, replica.clock_s)


@compiled
def draw(config: Any, plan: Any, replica: Any, slots: Any, luck: Any) -> tuple[int, int, int]:
    """What every sequence will have at the end of the step: `slot.emitted_tokens`, and what its drafts came to.

    Returns (drafted, accepted, sequences that verified drafts).
    """
    drafted = accepted = rounds = 0
    for i in range(replica.running):
        slot = slots[i]
        q = slot.step_tokens
        slot.emitted_tokens = 0
        if q == 0:
            continue
        if slot.computed_tokens < slot.goal_tokens:
            slot.emitted_tokens = 1 if slot.computed_tokens + q == slot.goal_tokens else 0
            continue
        kept = 0
        if q > 1:
            kept = accepted_drafts(config, plan, luck, slot, slot.generated_tokens, slot.depth)
            learn(slot, kept)
            used = min(kept, slot.left_tokens)
            slot.rounds += 1
            slot.drafted_tokens += q - 1
            slot.accepted_tokens += used
            rounds += 1
            drafted += q - 1
            accepted += used
        slot.decode_rounds += 1
        slot.emitted_tokens = min(kept + 1, slot.left_tokens)
    return drafted, accepted, rounds


@compiled
def widest_round(config: Any, plan: Any, replica: Any, slots: Any) -> int:
    """Tokens of the widest round in a step: all that its shape has, under a policy by sequence those that there are."""
    widest = 1
    for i in range(replica.running):
        slot = slots[i]
        if slot.step_tokens > 0 and slot.computed_tokens >= slot.goal_tokens:
            if config.policy == BY_TABLE:
                widest = max(widest, 1 + plan.shapes[slot.shape, NODES])
            else:
                widest = max(widest, slot.step_tokens)
    return int(widest)


@compiled
def looks_up(plan: Any, replica: Any, slots: Any) -> bool:
    """Whether the step's shape, which is that of all who decode, has drafts that somebody has to find."""
    for i in range(replica.running):
        slot = slots[i]
        if slot.step_tokens > 0 and slot.computed_tokens >= slot.goal_tokens:
            return bool(plan.shapes[slot.shape, NODES] > 0)
    return bool(plan.shapes[shape_for(plan, 0, 0), NODES] > 0)


@compiled
def has_tree(config: Any, plan: Any, slot: Any) -> bool:
    """Whether a sequence verifies a tree in this step."""
    if slot.step_tokens <= 1 or config.policy != BY_TABLE or slot.computed_tokens < slot.goal_tokens:
        return False
    return bool(plan.shapes[slot.shape, NODES] > plan.shapes[slot.shape, DEPTH])


@compiled_apart
def tree_s(
    config: Any, plan: Any, replica: Any, slots: Any, target: Any, loads: Any, counts: Any, cached: Any
) -> float:
    """Seconds by which the sequences that verify a tree make a step longer than if it were a chain; 0 where none does."""
    counts[:] = 0.0
    loads[:] = 0.0
    cached[:] = 0.0
    sequences = kept = width = 0
    pairs = 0.0
    alike = True
    for i in range(replica.running):
        slot = slots[i]
        if has_tree(config, plan, slot):
            q = slot.step_tokens
            sequences += 1
            kept += slot.emitted_tokens - 1
            pairs += float(q) * q
            alike = alike and width in (0, q)
            width = q
            add_cached(target.kinds, cached, slot.computed_tokens)
            add_load(target.kinds, loads, counts, q, slot.computed_tokens)
    if sequences == 0:
        return 0.0
    bytes_before, flop_before = replica.hbm_bytes, replica.flop
    if alike and not has_window(target.kinds):
        attention_s = attention_equal(target, sequences, width, cached, 0.0, loads, counts, replica)
    else:
        attention_s = attention_step(target, loads, counts, replica)
    replica.hbm_bytes, replica.flop = bytes_before, flop_before  # the same bytes and FLOP, slower
    return float(tree_extra(config, attention_s, pairs, kept))


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
