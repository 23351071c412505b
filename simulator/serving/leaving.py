"""What the end of a step brings: tokens to their users, and departures, with whatever they give back.

Compiled with the step loop that calls it (`replica`); rules: docs/engine-rules.md.
"""

from __future__ import annotations

from typing import Any

from simulator.serving.compiled import compiled, compiled_apart
from simulator.serving.kv_cache import blocks_for, give_back
from simulator.serving.record import count_gaps, leave, note, store_slot
from simulator.serving.state import CANCELLED, EMITTED, FINISHED, HANDED_OVER, LEFT, WAITING


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
