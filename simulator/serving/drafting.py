"""Seconds that a model drafter adds to a step: the passes in which it reads what is new to it, and those that draft.

Drafts are made either at the end of a step, for the next one, or in the round that verifies them. A round of either order
runs γ passes, but the first order charges a request's first drafts to the step that ends its prompt.
"""

from __future__ import annotations

import math
from typing import Any

from simulator.serving.compiled import compiled
from simulator.serving.passes import KV_TOKENS, PAIRS, WINDOW, add_load, attention_step, linear_step


@compiled
def draft_after(config: Any, replica: Any, slots: Any, requests: Any, draft: Any, loads: Any, counts: Any) -> float:
    """The drafter catches up on prompts and accepted tokens and then drafts γ for the next step."""
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
    seconds: float = linear_step(linear, head, tokens, drafting, replica)
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
        seconds = further_passes(seconds, config, replica, draft, loads, counts, drafting)
    seconds += config.host_draft_pass_s * config.gamma
    return seconds


@compiled
def draft_before(config: Any, replica: Any, slots: Any, draft: Any, loads: Any, counts: Any) -> float:
    """The drafter drafts γ for this very round; prompts in the step are read in its first pass, and nothing is drafted yet.

    The first pass takes two tokens of every sequence: the last one in the cache, which was this drafter's own deepest
    draft and never went through it if all were accepted, and the one after it.
    """
    linear, head, kinds, decode_rates, prefill_rates = draft
    loads[:] = 0.0
    counts[:] = 0.0
    tokens = rows = drafting = 0
    for i in range(replica.running):
        slot = slots[i]
        if slot.computed_tokens < slot.goal_tokens:
            if slot.step_tokens > 0:
                tokens += slot.step_tokens
                add_load(kinds, loads, counts, slot.step_tokens, slot.computed_tokens)
                rows += 1 if slot.emitted_tokens > 0 else 0
        elif slot.step_tokens > 1:
            tokens += 2
            add_load(kinds, loads, counts, 2, slot.computed_tokens - 1)
            rows += 1
            drafting += 1
    if tokens == 0:
        return 0.0
    seconds: float = linear_step(linear, head, tokens, rows, replica)
    seconds += attention_step(kinds, loads, counts, decode_rates, prefill_rates, replica)
    if drafting == 0:
        seconds += config.host_draft_pass_s
        return seconds
    if config.gamma > 1:
        loads[:] = 0.0
        counts[:] = 0.0
        for i in range(replica.running):
            slot = slots[i]
            if slot.computed_tokens >= slot.goal_tokens and slot.step_tokens > 1:
                add_load(kinds, loads, counts, 1, slot.computed_tokens + 1)
        seconds = further_passes(seconds, config, replica, draft, loads, counts, drafting)
    seconds += config.host_draft_pass_s * config.gamma
    return seconds


@compiled
def further_passes(
    seconds: float, config: Any, replica: Any, draft: Any, loads: Any, counts: Any, drafting: int
) -> float:
    """`seconds` and the γ − 1 passes after the first, one token of each of `drafting` sequences; `loads` are the first's."""
    linear, head, kinds, decode_rates, prefill_rates = draft
    for _ in range(config.gamma - 1):
        seconds += linear_step(linear, head, drafting, drafting, replica)
        seconds += attention_step(kinds, loads, counts, decode_rates, prefill_rates, replica)
        # Each further pass sees one more token of every sequence (a full window stays as long).
        for k in range(kinds.shape[0]):
            if not math.isfinite(kinds[k, WINDOW]):
                loads[k, KV_TOKENS] += drafting
                loads[k, PAIRS] += drafting
    return seconds
