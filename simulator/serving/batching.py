"""Which requests run in the next step, under a paged KV cache: vLLM V1's rules, or prompts first.

Compiled with the step loop that calls it (`replica`); rules: docs/engine-rules.md, in this order.
"""

from __future__ import annotations

from typing import Any

from simulator.serving.compiled import compiled, compiled_apart
from simulator.serving.kv_cache import (
    blocks_for,
    blocks_left,
    enter_full,
    found_blocks,
    free_blocks,
    give_back,
    hold_found,
    take,
)
from simulator.serving.line import first_fresh, place_on_stack, stack_goes_first, start_fresh
from simulator.serving.luck import absorbed, drafts_of, shape_for
from simulator.serving.record import load_slot, note, store_slot
from simulator.serving.state import ADMITTED, MODEL_DRAFTER, NO_DRAFTER, PREEMPTED_, RUNNING
from simulator.speculation.shape import MAX_GAMMA


@compiled_apart
def preempt_last(
    config: Any, replica: Any, requests: Any, slots: Any, stack: Any, blocks: Any, pieces: Any, record: Any
) -> int:
    """Takes the last running sequence off the GPU; returns the tokens that its step would have had.

    Its blocks join the end of the queue of free ones, the start of the sequence last, so that it is overwritten last.
    """
    last = replica.running - 1
    slot = slots[last]
    request = requests[slot.request]
    tokens = slot.step_tokens
    replica.step_preempted = 1
    if slot.held > 0:
        give_back(config, replica, blocks, slot, request, pieces)
        replica.held -= 1
        replica.running = last
        return 0
    store_slot(slot, request)
    request.preemptions += 1
    replica.preemptions += 1
    if slot.computed_tokens < slot.goal_tokens:
        replica.prompts -= 1
    held = blocks_for(config, slot.computed_tokens)
    swaps = slot.computed_tokens > 0 and replica.swapped_blocks + held <= config.swap_blocks
    preempted = place_on_stack(replica, stack, slot.order, slot.rank)
    preempted.request = slot.request
    preempted.order = slot.order
    preempted.rank = slot.rank
    preempted.full_blocks = 0
    preempted.swapped_tokens = 0
    preempted.lag_tokens = slot.lag_tokens
    give_back(config, replica, blocks, slot, request, pieces)
    preempted.freed_blocks = replica.freed_blocks
    if swaps:
        preempted.swapped_tokens = slot.computed_tokens
        replica.swapped_blocks += held
        replica.swaps += 1
        replica.step_swap_tokens += slot.computed_tokens
    else:
        request.recomputed_tokens += slot.computed_tokens
        if config.prefix_caching == 1 and config.shares == 0:
            preempted.full_blocks = slot.computed_tokens // config.block_tokens
    note(record, replica, replica.clock_s, PREEMPTED_, slot.request, 1 if swaps else 0)
    slot.step_tokens = 0
    replica.running = last
    return int(tokens)


@compiled
def makes_room(
    config: Any, replica: Any, requests: Any, slots: Any, stack: Any, blocks: Any, pieces: Any, record: Any, i: int,
    wanted: int,
) -> int:  # fmt: skip
    """Preempts from the end of the line until sequence `i` can have `wanted` blocks, itself in the end; returns the tokens
    that those had in this step."""
    given_up = 0
    while wanted - slots[i].blocks > free_blocks(config, replica):
        given_up += preempt_last(config, replica, requests, slots, stack, blocks, pieces, record)
        if replica.running == i:
            break
    return given_up


@compiled
def schedule(
    config: Any, plan: Any, replica: Any, requests: Any, slots: Any, links: Any, stack: Any, blocks: Any, pieces: Any,
    luck: Any, record: Any,
) -> None:  # fmt: skip
    """Gives every running sequence its tokens of the next step (maybe none), after preemption and admission."""
    replica.step_preempted = 0
    replica.budget = config.max_batched_tokens
    replica.step_swap_tokens = replica.step_prompts = 0
    if config.prefill_first == 0:
        schedule_decode(config, plan, replica, requests, slots, stack, blocks, pieces, luck, record)
    if replica.prompts > 0:
        schedule_prompts(config, replica, requests, slots, stack, blocks, pieces, record)
    if replica.step_preempted == 0:  # nobody joins in the step that just made room the hard way
        admit(config, replica, requests, slots, links, stack, blocks, pieces, record)
    if config.prefill_first == 1 and replica.budget == config.max_batched_tokens:
        schedule_decode(config, plan, replica, requests, slots, stack, blocks, pieces, luck, record)


@compiled
def schedule_decode(
    config: Any, plan: Any, replica: Any, requests: Any, slots: Any, stack: Any, blocks: Any, pieces: Any, luck: Any,
    record: Any,
) -> None:  # fmt: skip
    """a: sequences past their prompts, each with its round."""
    if config.drafter != NO_DRAFTER and (config.drafter != MODEL_DRAFTER or config.draft_first == 1):
        decide_shape(plan, replica, slots)
    i = 0
    while i < replica.running:
        slot = slots[i]
        i += 1
        if slot.computed_tokens < slot.goal_tokens or slot.held > 0:
            continue
        tokens = 1
        if config.drafter != NO_DRAFTER:
            nodes, slot.depth = drafts_of(config, plan, luck, slot, slot.generated_tokens, slot.left_tokens)
            tokens += nodes
        if tokens > replica.budget:
            continue
        wanted = blocks_for(config, slot.computed_tokens + tokens)
        if wanted > slot.blocks:
            replica.budget += makes_room(config, replica, requests, slots, stack, blocks, pieces, record, i - 1, wanted)
            if replica.running == i - 1:
                break
            take(config, replica, blocks, slot, wanted)
        enter_full(config, blocks, slot, requests[slot.request], pieces, slot.computed_tokens + 1)
        slot.step_tokens = tokens
        replica.budget -= tokens


@compiled
def decide_shape(plan: Any, replica: Any, slots: Any) -> None:
    """Where drafts are not made ahead, the round's shape follows from who decodes now."""
    sequences = tokens = 0
    for i in range(replica.running):
        if slots[i].computed_tokens >= slots[i].goal_tokens and slots[i].held == 0:
            sequences += 1
            tokens += slots[i].computed_tokens
    shape = shape_for(plan, sequences, tokens)
    for i in range(replica.running):
        if slots[i].computed_tokens >= slots[i].goal_tokens and slots[i].held == 0:
            slots[i].shape = shape


@compiled
def schedule_prompts(
    config: Any, replica: Any, requests: Any, slots: Any, stack: Any, blocks: Any, pieces: Any, record: Any
) -> None:
    """b: prompts that have begun, each with its next chunk."""
    prompts = i = 0
    while i < replica.running and replica.budget > 0 and prompts < config.prompts_per_pass:
        slot = slots[i]
        i += 1
        if slot.computed_tokens >= slot.goal_tokens:
            continue
        tokens = min(slot.goal_tokens - slot.computed_tokens, replica.budget, config.prefill_chunk_tokens)
        wanted = blocks_for(config, slot.computed_tokens + tokens)
        replica.budget += makes_room(config, replica, requests, slots, stack, blocks, pieces, record, i - 1, wanted)
        if replica.running == i - 1:
            break
        take(config, replica, blocks, slot, wanted)
        enter_full(config, blocks, slot, requests[slot.request], pieces, slot.computed_tokens + tokens)
        slot.step_tokens = tokens
        replica.budget -= tokens
        prompts += 1
    replica.step_prompts = prompts


@compiled
def fits(config: Any, replica: Any, goal: int, found: int, idle: int) -> bool:
    """Whether all of a request's tokens would fit the free blocks, `found` of them there already, `idle` of these free."""
    spare = config.watermark_blocks if replica.running > 0 else 0
    return bool(blocks_for(config, goal) - found + idle + spare <= free_blocks(config, replica))


@compiled
def admit(
    config: Any, replica: Any, requests: Any, slots: Any, links: Any, stack: Any, blocks: Any, pieces: Any, record: Any
) -> None:
    """c: who waits joins, while budget, prompts, sequences and blocks allow. All of a prompt must fit the free blocks, though
    only those of its first chunk are taken now."""
    while (
        replica.budget > 0
        and replica.step_prompts < config.prompts_per_pass
        and replica.running < config.max_sequences
        and replica.fresh + replica.stacked > 0
    ):
        fresh = first_fresh(config, replica, requests, links)
        resumes = stack_goes_first(replica, requests, links, stack, fresh)
        index = stack[replica.stacked - 1].request if resumes else fresh
        request = requests[index]
        goal = request.prompt_tokens + request.generated_tokens
        computed = stack[replica.stacked - 1].swapped_tokens if resumes else request.carried_tokens
        found = idle = 0
        if computed == 0 and config.shares == 1:
            found, idle = found_blocks(config, blocks, request, pieces, goal)
        elif computed == 0 and resumes:
            found = blocks_left(config, replica, stack[replica.stacked - 1])
            idle = found
        if not fits(config, replica, goal, found, idle):
            break
        place = place_of(replica, slots, requests, links, index)
        slot = slots[place]
        begin(config, replica, blocks, slot, request, links, index, goal)
        if config.shares == 1:
            hold_found(config, replica, blocks, slot, request, pieces, found)
        elif found > 0:
            leave_queue(replica, stack, found)
            replica.used_blocks += found
            slot.blocks = found
        computed = max(computed, found * config.block_tokens)
        if resumes:
            if stack[replica.stacked - 1].swapped_tokens > 0:
                slot.lag_tokens = stack[replica.stacked - 1].lag_tokens
            resume(config, replica, stack, request, found)
        else:
            start_fresh(config, replica, requests, links)
            if request.scheduled_s < 0.0 or (request.retries == 0 and request.carried_tokens == 0):
                request.scheduled_s = replica.clock_s
                request.cached_tokens = computed
                replica.cached_tokens += computed
            request.carried_tokens = 0
        slot.computed_tokens = computed
        slot.step_tokens = min(goal - computed, replica.budget, config.prefill_chunk_tokens)
        take(config, replica, blocks, slot, blocks_for(config, computed + slot.step_tokens))
        enter_full(config, blocks, slot, request, pieces, computed + slot.step_tokens)
        replica.budget -= slot.step_tokens
        replica.step_prompts += 1
        note(record, replica, replica.clock_s, ADMITTED, index, computed)


@compiled
def place_of(replica: Any, slots: Any, requests: Any, links: Any, index: int) -> int:
    """Makes room among the running sequences at the place of request `index` in the order; returns the place."""
    rank, order = requests[index].rank, links.order[index]
    place = replica.running
    while place > 0 and (
        slots[place - 1].rank > rank or (slots[place - 1].rank == rank and slots[place - 1].order > order)
    ):
        slots[place] = slots[place - 1]
        place -= 1
    replica.running += 1
    return int(place)


@compiled
def begin(config: Any, replica: Any, blocks: Any, slot: Any, request: Any, links: Any, index: int, goal: int) -> None:
    """A sequence without blocks yet for request `index`."""
    request.status = RUNNING
    load_slot(slot, request)
    slot.request = index
    slot.order = links.order[index]
    slot.rank = request.rank
    slot.goal_tokens = goal
    slot.emitted_tokens = slot.held = 0
    slot.blocks = 0
    slot.keyed = 0
    if config.drafter != NO_DRAFTER:
        slot.luck = absorbed(absorbed(0, config.seed), request.number)
        slot.shape = slot.depth = slot.lag_tokens = slot.looked_at = slot.stretch = 0
        slot.own_gamma = MAX_GAMMA
    if config.shares == 1:
        replica.free_rows -= 1
        slot.row = blocks.rows[replica.free_rows]
    replica.prompts += 1


@compiled
def leave_queue(replica: Any, stack: Any, found: int) -> None:
    """The top of the stack finds `found` blocks again: they leave the queue of free ones, and what stood behind moves up."""
    freed = stack[replica.stacked - 1].freed_blocks
    replica.freed_blocks -= found
    for i in range(replica.stacked - 1):
        if stack[i].freed_blocks > freed:
            stack[i].freed_blocks -= found


@compiled
def resume(config: Any, replica: Any, stack: Any, request: Any, found: int) -> None:
    """The top of the stack runs again."""
    replica.stacked -= 1
    swapped = stack[replica.stacked].swapped_tokens
    if swapped > 0:
        replica.swapped_blocks -= blocks_for(config, swapped)
        replica.step_swap_tokens += swapped
    else:
        request.recomputed_tokens -= found * config.block_tokens
