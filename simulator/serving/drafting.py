"""Seconds that a model drafter adds to a step: the passes in which it reads what is new to it, and those that draft.

Drafts are made either at the end of a step, for the next one, or in the round that verifies them. A round of either order
runs γ passes, but the first order charges a request's first drafts to the step that ends its prompt.
"""

from __future__ import annotations

import math
from typing import Any

from simulator.cost.forward import DECODE_QUERY_LIMIT
from simulator.serving.compiled import compiled
from simulator.serving.passes import WINDOW, add_load, attention_alike, attention_step, linear_step


@compiled
def add_cached(kinds: Any, cached: Any, context: int) -> None:
    """Adds one sequence's Σ min(context, window − 1) by kind."""
    for k in range(kinds.shape[0]):
        cached[k] += min(float(context), kinds[k, WINDOW] - 1.0)


@compiled
def draft_after(
    config: Any, replica: Any, slots: Any, draft: Any, loads: Any, counts: Any, cached: Any, first: Any
) -> float:
    """The drafter catches up on prompts and accepted tokens and then drafts γ for the next step.

    `left_tokens` is from before this step, `computed_tokens` too.
    """
    loads[:] = 0.0
    counts[:] = 0.0
    cached[:] = 0.0
    tokens = drafting = mode = sequences = read_on = 0
    for i in range(replica.running):
        slot = slots[i]
        if slot.step_tokens == 0:
            continue
        goes_on = slot.emitted_tokens < slot.left_tokens
        if slot.computed_tokens < slot.goal_tokens:
            mode = 1
            sequences += 1
            tokens += slot.step_tokens
            add_load(draft.kinds, loads, counts, slot.step_tokens, slot.computed_tokens)
            if slot.emitted_tokens == 0:
                continue
        else:
            if not goes_on:
                continue
            new = config.gamma + 1 if config.draft_padded == 1 else slot.emitted_tokens
            sequences += 1
            tokens += new
            read_on += slot.computed_tokens
            add_load(draft.kinds, loads, counts, new, slot.computed_tokens)
        if goes_on:
            drafting += 1
            known = slot.goal_tokens if slot.computed_tokens < slot.goal_tokens else slot.computed_tokens + 1
            add_cached(draft.kinds, cached, known + slot.emitted_tokens)
    if tokens == 0:
        return 0.0
    seconds: float = linear_step(draft, mode, sequences, tokens, drafting, replica)
    q = config.gamma + 1
    if config.draft_padded == 1 and mode == 0 and q <= DECODE_QUERY_LIMIT and not has_window(draft.kinds):
        first[:] = read_on
        seconds += attention_alike(draft, sequences, q, first, 0.0, counts, replica)
    else:
        seconds += attention_step(draft, loads, counts, replica)
    if drafting == 0:
        return seconds
    seconds = further_passes(seconds, config, replica, draft, counts, cached, drafting)
    seconds += config.host_draft_pass_s * config.gamma
    return seconds


@compiled
def draft_before(config: Any, replica: Any, slots: Any, draft: Any, loads: Any, counts: Any, cached: Any) -> float:
    """The drafter drafts γ for this very round; prompts in the step are read in its first pass, and nothing is drafted yet.

    The first pass takes two tokens of every sequence: the last one in the cache, which was this drafter's own deepest
    draft and never went through it if all were accepted, and the one after it.
    """
    loads[:] = 0.0
    counts[:] = 0.0
    cached[:] = 0.0
    tokens = rows = drafting = mode = sequences = 0
    for i in range(replica.running):
        slot = slots[i]
        if slot.computed_tokens < slot.goal_tokens:
            if slot.step_tokens > 0:
                mode = 1
                sequences += 1
                tokens += slot.step_tokens
                add_load(draft.kinds, loads, counts, slot.step_tokens, slot.computed_tokens)
                rows += 1 if slot.emitted_tokens > 0 else 0
        elif slot.step_tokens > 1:
            sequences += 1
            tokens += 2
            add_load(draft.kinds, loads, counts, 2, slot.computed_tokens - 1)
            rows += 1
            drafting += 1
            add_cached(draft.kinds, cached, slot.computed_tokens + 1)
    if tokens == 0:
        return 0.0
    seconds: float = linear_step(draft, mode, sequences, tokens, rows, replica)
    seconds += attention_step(draft, loads, counts, replica)
    if drafting == 0:
        seconds += config.host_draft_pass_s
        return seconds
    seconds = further_passes(seconds, config, replica, draft, counts, cached, drafting)
    seconds += config.host_draft_pass_s * config.gamma
    return seconds


@compiled
def further_passes(
    seconds: float, config: Any, replica: Any, draft: Any, counts: Any, cached: Any, drafting: int
) -> float:
    """`seconds` and the γ − 1 passes after the first, one token of each of `drafting` sequences on top of `cached`."""
    for i in range(config.gamma - 1):
        seconds += linear_step(draft, 0, drafting, drafting, drafting, replica)
        # Each further pass sees one more token of every sequence (a full window stays as long).
        seconds += attention_alike(draft, drafting, 1, cached, float(i * drafting), counts, replica)
    return seconds


@compiled
def has_window(kinds: Any) -> bool:
    """Whether any layer sees only a window."""
    for k in range(kinds.shape[0]):  # noqa: SIM110 (a generator does not compile)
        if math.isfinite(kinds[k, WINDOW]):
            return True
    return False
