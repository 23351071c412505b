"""Which requests run in the next step: decode first, then prompts in chunks, then admission, under a paged KV cache.

Compiled with the step loop that calls it (`replica`); arrays are those of `state`.
"""

from __future__ import annotations

from typing import Any

from simulator import randomness
from simulator.serving.compiled import compiled
from simulator.serving.state import NO_DRAFTER, RUNNING

uniform = compiled(randomness.uniform)


@compiled
def blocks_for(tokens: int, block_tokens: int) -> int:
    """KV blocks that hold `tokens`."""
    return (tokens + block_tokens - 1) // block_tokens


@compiled
def preempt_youngest(replica: Any, requests: Any, slots: Any, stack: Any) -> None:
    """Takes the last running sequence off the GPU; its KV is lost and it resumes before anything new is admitted."""
    last = replica.running - 1
    slot = slots[last]
    request = requests[slot.request]
    request.preemptions += 1
    request.recomputed_tokens += slot.computed_tokens
    replica.preemptions += 1
    replica.used_blocks -= slot.blocks
    stack[replica.stacked] = slot.request
    replica.stacked += 1
    replica.running = last


@compiled
def schedule_decode(config: Any, replica: Any, requests: Any, slots: Any, stack: Any) -> int:
    """Step 1; returns the token budget that is left."""
    budget = config.max_batched_tokens
    i = 0
    while i < replica.running:
        slot = slots[i]
        slot.step_tokens = 0
        if slot.computed_tokens < slot.goal_tokens:
            i += 1
            continue
        tokens = 1
        if config.drafter != NO_DRAFTER:
            request = requests[slot.request]
            if config.match_probability >= 1.0 or (
                uniform(config.seed, slot.request, request.generated_tokens, 0) < config.match_probability
            ):
                tokens = 1 + config.gamma
        if tokens > budget:
            i += 1
            continue
        needed = blocks_for(slot.computed_tokens + tokens, config.block_tokens) - slot.blocks
        while needed > config.total_blocks - replica.used_blocks and replica.running > i + 1:
            preempt_youngest(replica, requests, slots, stack)
        if needed > config.total_blocks - replica.used_blocks:
            preempt_youngest(replica, requests, slots, stack)
            break
        if needed > 0:
            slot.blocks += needed
            replica.used_blocks += needed
        slot.step_tokens = tokens
        budget -= tokens
        i += 1
    return budget


@compiled
def schedule_prefill(replica: Any, slots: Any, budget: int) -> int:
    """Step 2; returns the budget that is left."""
    for i in range(replica.running):
        slot = slots[i]
        if slot.computed_tokens < slot.goal_tokens and budget > 0:
            slot.step_tokens = min(slot.goal_tokens - slot.computed_tokens, budget)
            budget -= slot.step_tokens
    return budget


@compiled
def admit(config: Any, replica: Any, requests: Any, slots: Any, queue: Any, stack: Any, budget: int) -> None:
    """Step 3."""
    while budget > 0 and replica.running < config.max_sequences:
        if replica.stacked > 0:
            index = stack[replica.stacked - 1]
        elif replica.admitted < replica.arrived:
            index = queue[replica.admitted]
        else:
            return
        request = requests[index]
        goal = request.prompt_tokens + request.generated_tokens
        blocks = blocks_for(goal, config.block_tokens)
        spare = config.watermark_blocks if replica.running > 0 else 0
        if blocks + spare > config.total_blocks - replica.used_blocks:
            return
        if replica.stacked > 0:
            replica.stacked -= 1
        else:
            replica.admitted += 1
            request.scheduled_s = replica.clock_s
        request.status = RUNNING
        slot = slots[replica.running]
        slot.request = index
        slot.computed_tokens = 0
        slot.goal_tokens = goal
        slot.blocks = blocks
        slot.step_tokens = min(goal, budget)
        slot.emitted_tokens = 0
        budget -= slot.step_tokens
        replica.used_blocks += blocks
        replica.running += 1
