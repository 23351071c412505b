"""Which requests run in the next step, under a paged KV cache; blocks, admission and preemption are vLLM V1's.

Batches are mixed (vLLM V1): those running, in order, each with its round or its prompt's next chunk, then admission. Or
prompts go first (vLLM V0, SGLang, the reference decoder): as long as there is a prompt to compute and room for it, a step
computes prompts only, then one step is a round of all that decode.

Compiled with the step loop that calls it (`replica`); arrays are those of `state`.
"""

from __future__ import annotations

from typing import Any

from simulator.serving.compiled import compiled
from simulator.serving.luck import drafts_of
from simulator.serving.state import NO_DRAFTER, RUNNING


@compiled
def blocks_for(tokens: int, block_tokens: int) -> int:
    """KV blocks that hold `tokens`."""
    return (tokens + block_tokens - 1) // block_tokens


@compiled
def preempt_youngest(config: Any, replica: Any, requests: Any, slots: Any, stack: Any) -> None:
    """Takes the last running sequence off the GPU; it resumes before anything new is admitted.

    Its blocks join the end of the queue of free ones, the start of the sequence last, so that it is overwritten last.
    """
    last = replica.running - 1
    slot = slots[last]
    request = requests[slot.request]
    request.preemptions += 1
    request.recomputed_tokens += slot.computed_tokens
    replica.preemptions += 1
    replica.used_blocks -= slot.blocks
    replica.freed_blocks += slot.blocks
    preempted = stack[replica.stacked]
    preempted.request = slot.request
    preempted.full_blocks = slot.computed_tokens // config.block_tokens if config.prefix_caching else 0
    preempted.freed_blocks = replica.freed_blocks
    preempted.rounds = slot.rounds
    replica.stacked += 1
    replica.running = last


@compiled
def blocks_left(config: Any, replica: Any, preempted: Any) -> int:
    """Blocks of a preempted sequence that nobody has overwritten since.

    Free blocks are taken first in, first out. `freed_blocks` counts those that ever joined that queue; all but the last
    total − used of them were taken again.
    """
    taken = replica.freed_blocks - (config.total_blocks - replica.used_blocks)
    return min(preempted.full_blocks, max(0, preempted.freed_blocks - taken))


@compiled
def schedule(config: Any, replica: Any, requests: Any, slots: Any, queue: Any, stack: Any, luck: Any) -> None:
    """Gives every running sequence its tokens of the next step (maybe none), after preemption and admission."""
    preemptions = replica.preemptions
    mixed = config.prefill_first == 0
    budget, prompts = schedule_running(config, replica, requests, slots, stack, luck, True, mixed)
    if replica.preemptions == preemptions:  # nobody joins in the step that just made room the hard way
        budget = admit(config, replica, requests, slots, queue, stack, budget, config.prompts_per_pass - prompts)
    if not mixed and budget == config.max_batched_tokens:
        schedule_running(config, replica, requests, slots, stack, luck, False, True)


@compiled
def schedule_running(
    config: Any, replica: Any, requests: Any, slots: Any, stack: Any, luck: Any, with_prompts: bool, with_rounds: bool
) -> tuple[int, int]:
    """Steps 1 and 2: running sequences in the order in which they joined, those inside their prompts, those past them, or
    both; returns the token budget that is left and how many prompts take part.
    """
    budget = config.max_batched_tokens
    prompts = 0
    i = 0
    while i < replica.running:
        slot = slots[i]
        slot.step_tokens = 0
        tokens = 0
        inside = slot.computed_tokens < slot.goal_tokens
        if inside:
            if with_prompts:
                tokens = min(slot.goal_tokens - slot.computed_tokens, budget, config.prefill_chunk_tokens)
        elif with_rounds:
            tokens = 1
            if config.drafter != NO_DRAFTER:
                tokens += drafts_of(config, luck, slot, requests[slot.request].generated_tokens)
        if tokens == 0 or tokens > budget:
            i += 1
            continue
        needed = blocks_for(slot.computed_tokens + tokens, config.block_tokens) - slot.blocks
        while needed > config.total_blocks - replica.used_blocks and replica.running > i + 1:
            preempt_youngest(config, replica, requests, slots, stack)
        if needed > config.total_blocks - replica.used_blocks:
            preempt_youngest(config, replica, requests, slots, stack)
            break
        if needed > 0:
            slot.blocks += needed
            replica.used_blocks += needed
        slot.step_tokens = tokens
        budget -= tokens
        prompts += 1 if inside else 0
        i += 1
    return budget, prompts


@compiled
def admit(
    config: Any, replica: Any, requests: Any, slots: Any, queue: Any, stack: Any, budget: int, prompts: int
) -> int:
    """Step 3, up to `prompts` of them; returns the budget that is left. All of a prompt must fit the free blocks, though
    only those of its first chunk are taken now.
    """
    while budget > 0 and prompts > 0 and replica.running < config.max_sequences:
        if replica.stacked > 0:
            index = stack[replica.stacked - 1].request
        elif replica.admitted < replica.arrived:
            index = queue[replica.admitted]
        else:
            break
        request = requests[index]
        goal = request.prompt_tokens + request.generated_tokens
        spare = config.watermark_blocks if replica.running > 0 else 0
        if blocks_for(goal, config.block_tokens) + spare > config.total_blocks - replica.used_blocks:
            break
        found = rounds = 0
        if replica.stacked > 0:
            found = blocks_left(config, replica, stack[replica.stacked - 1])
            rounds = stack[replica.stacked - 1].rounds
            # They leave the queue of free blocks. Whoever else is stacked was preempted before, so stands further ahead in
            # that queue and keeps its place.
            replica.freed_blocks -= found
            request.recomputed_tokens -= found * config.block_tokens
            replica.stacked -= 1
        else:
            replica.admitted += 1
            request.scheduled_s = replica.clock_s
        request.status = RUNNING
        slot = slots[replica.running]
        slot.request = index
        slot.computed_tokens = found * config.block_tokens
        slot.goal_tokens = goal
        slot.step_tokens = min(goal - slot.computed_tokens, budget, config.prefill_chunk_tokens)
        slot.blocks = blocks_for(slot.computed_tokens + slot.step_tokens, config.block_tokens)
        slot.emitted_tokens = 0
        slot.rounds = rounds
        budget -= slot.step_tokens
        prompts -= 1
        replica.used_blocks += slot.blocks
        replica.running += 1
    return budget
