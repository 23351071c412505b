"""Seconds that a model drafter adds to a step: the passes in which it reads what is new to it, and those that draft.

Drafts are made either at the end of a step, for the next one, or in the round that verifies them. A round of either order
runs the same passes, but the first order charges a request's first drafts to the step that ends its prompt.
"""

from __future__ import annotations

from typing import Any

from simulator.cost.forward import DECODE_QUERY_LIMIT
from simulator.serving.compiled import compiled, compiled_apart
from simulator.serving.luck import drafts_of, shape_for
from simulator.serving.passes import (
    WINDOW,
    add_load,
    attention_alike,
    attention_equal,
    attention_step,
    has_window,
    intake_step,
    launches_s,
    linear_step,
)
from simulator.serving.state import DEPTH, PASSES
from simulator.speculation.policies import BY_TABLE
from simulator.speculation.round import waited_draft_s


@compiled
def add_cached(kinds: Any, cached: Any, context: int) -> None:
    """Adds one sequence's Σ min(context, window − 1) by kind."""
    for k in range(kinds.shape[0]):
        cached[k] += min(float(context), kinds[k, WINDOW] - 1.0)


@compiled
def known_after(slot: Any) -> int:
    """Tokens of prompt and answer that are known at the end of the step, of a sequence that gets some in it."""
    if slot.computed_tokens < slot.goal_tokens:
        return int(slot.goal_tokens + slot.emitted_tokens)
    return int(slot.computed_tokens + 1 + slot.emitted_tokens)


@compiled
def goes_on(slot: Any) -> bool:
    """Whether a sequence gets tokens in the step and more after it."""
    return bool(slot.step_tokens > 0 and 0 < slot.emitted_tokens < slot.left_tokens)


@compiled
def deepest(config: Any, plan: Any, slot: Any) -> int:
    """Drafts in a row of the present round, as many as the shape has where the policy is a table."""
    return int(plan.shapes[slot.shape, DEPTH] if config.policy == BY_TABLE else slot.depth)


waited_s = compiled(waited_draft_s)


@compiled
def tree_extra(config: Any, attention_s: float, pairs: float, kept: int) -> float:
    """Seconds that trees take beyond chains whose attention takes `attention_s`, with `pairs` of tokens in their masks and `kept`
    accepted drafts (`speculation.tree_cost`)."""
    return float(
        config.tree_attention * attention_s
        + (config.tree_step_s + (config.tree_mask_s * pairs + config.tree_move_s * kept))
    )


@compiled
def draft_after(
    config: Any, plan: Any, luck: Any, replica: Any, slots: Any, draft: Any, loads: Any, counts: Any, cached: Any,
    levels: Any, level_cached: Any,
) -> float:  # fmt: skip
    """The drafter catches up on prompts and accepted tokens and then drafts for the next step.

    `left_tokens` is from before this step, `computed_tokens` too.
    """
    going_on = known = 0
    for i in range(replica.running):
        if goes_on(slots[i]):
            going_on += 1
            known += known_after(slots[i])
    shape = shape_for(plan, going_on, known)
    drafts = plan.shapes[shape, DEPTH] > 0
    now = config.draft_reads == 1 and (drafts or config.draft_keeps_up == 1)
    loads[:] = 0.0
    counts[:] = 0.0
    cached[:] = 0.0
    tokens = mode = sequences = width = 0
    alike = True
    for i in range(replica.running):
        slot = slots[i]
        if slot.step_tokens == 0 or config.draft_reads == 0:
            continue
        if slot.computed_tokens < slot.goal_tokens:
            new = slot.step_tokens
            mode = 1 if now else mode
        elif slot.emitted_tokens == slot.left_tokens:
            continue
        elif now and config.draft_padded == 1:
            new = 1 + deepest(config, plan, slot)
        else:
            new = slot.emitted_tokens
        if not now:
            slot.lag_tokens += new
            continue
        new += slot.lag_tokens
        sequences += 1
        tokens += new
        alike = alike and width in (0, new)
        width = new
        context = slot.computed_tokens - slot.lag_tokens
        add_load(draft.kinds, loads, counts, new, context)
        add_cached(draft.kinds, cached, context)
        slot.lag_tokens = 0
    levels[:] = 0
    level_cached[:] = 0.0
    for i in range(replica.running):
        slot = slots[i]
        if not goes_on(slot):
            continue
        slot.shape = shape
        if not drafts:
            continue
        depth = plan.shapes[shape, DEPTH]
        if config.policy != BY_TABLE:
            position, left = slot.generated_tokens + slot.emitted_tokens, slot.left_tokens - slot.emitted_tokens
            _, depth = drafts_of(config, plan, luck, slot, position, left)
        add_level(draft.kinds, levels, level_cached, depth, known_after(slot))
        if config.draft_reads == 0 and depth > 0:
            sequences += 1
            tokens += 1
            alike = False
            add_load(draft.kinds, loads, counts, 1, known_after(slot) - 1)
    if not drafts and tokens == 0:
        return 0.0
    alike = alike and config.draft_padded == 1 and mode == 0 and width <= DECODE_QUERY_LIMIT
    return float(
        passes_s(
            config, plan, replica, draft, loads, counts, cached, levels, level_cached, shape, tokens, sequences, mode,
            width if alike else 0,
        )
    )  # fmt: skip


@compiled_apart
def draft_before(
    config: Any, plan: Any, replica: Any, slots: Any, draft: Any, loads: Any, counts: Any, cached: Any, levels: Any,
    level_cached: Any,
) -> float:  # fmt: skip
    """The drafter drafts for this very round; prompts in the step are read in its first pass, and nothing is drafted yet.

    The first pass takes two tokens of every sequence: the last one in the cache, which was this drafter's own deepest
    draft and never went through it if all were accepted, and the one after it; and its lag, but no more than there are.
    """
    shape = -1
    for i in range(replica.running):
        slot = slots[i]
        if slot.step_tokens > 0 and slot.computed_tokens >= slot.goal_tokens:
            shape = slot.shape
            break
    if shape < 0:
        shape = shape_for(plan, 0, 0)
    drafts = plan.shapes[shape, DEPTH] > 0
    loads[:] = 0.0
    counts[:] = 0.0
    cached[:] = 0.0
    levels[:] = 0
    level_cached[:] = 0.0
    tokens = mode = sequences = 0
    for i in range(replica.running):
        slot = slots[i]
        if slot.step_tokens == 0:
            continue
        new = 0
        context = slot.computed_tokens
        if slot.computed_tokens < slot.goal_tokens:
            if config.draft_reads == 1 and drafts:
                mode = 1
                new = slot.step_tokens
            elif config.draft_reads == 1:
                slot.lag_tokens += slot.step_tokens
        elif slot.step_tokens > 1:
            new = 1
            if config.draft_reads == 1:
                context = max(slot.lag_tokens, context - 1)  # no more is read than there is
                new = slot.computed_tokens + 1 - context
            add_level(draft.kinds, levels, level_cached, deepest(config, plan, slot), slot.computed_tokens + 1)
        elif config.draft_reads == 1:
            slot.lag_tokens += slot.emitted_tokens
        if new > 0:
            if config.draft_reads == 1:
                new += slot.lag_tokens
                context -= slot.lag_tokens
                slot.lag_tokens = 0
            sequences += 1
            tokens += new
            add_load(draft.kinds, loads, counts, new, context)
    if tokens == 0:
        return 0.0
    return float(
        passes_s(
            config, plan, replica, draft, loads, counts, cached, levels, level_cached, shape, tokens, sequences, mode, 0
        )
    )  # fmt: skip


@compiled
def add_level(kinds: Any, levels: Any, level_cached: Any, depth: int, context: int) -> None:
    """Counts a sequence that holds `context` tokens when the second pass begins and drafts `depth` in a row."""
    levels[depth] += 1
    for k in range(kinds.shape[0]):
        level_cached[depth, k] += min(float(context), kinds[k, WINDOW] - 1.0)


@compiled_apart
def passes_s(
    config: Any, plan: Any, replica: Any, draft: Any, loads: Any, counts: Any, cached: Any, levels: Any,
    level_cached: Any, shape: int, tokens: int, sequences: int, mode: int, width: int,
) -> float:  # fmt: skip
    """The first pass, of `tokens` of `sequences` (each of them `width`, where that is not 0), and one more for each level of drafts.

    `levels` counts the sequences by how deep they draft, 0 for not at all.
    """
    drafting = deep = 0
    for depth in range(1, levels.shape[0]):
        if levels[depth] > 0:
            drafting += levels[depth]
            deep = depth
    if tokens == 0 and drafting == 0:
        return 0.0
    seconds = 0.0
    if tokens > 0:
        seconds += linear_step(draft, mode, sequences, tokens, drafting, replica)
        seconds += launches_s(config, draft, mode, sequences, tokens)
        seconds += intake_step(draft, tokens, replica)
        if width > 0 and not has_window(draft.kinds):
            seconds += attention_alike(draft, sequences, width, cached, 0.0, counts, replica)
        else:
            seconds += attention_step(draft, loads, counts, replica)
    if drafting == 0:
        return seconds + config.host_draft_pass_s
    passes = plan.shapes[shape, PASSES]
    made = passes if config.policy == BY_TABLE else min(passes, deep)
    for k in range(draft.kinds.shape[0]):
        cached[k] = 0.0
        for depth in range(1, levels.shape[0]):
            cached[k] += level_cached[depth, k]
    here = drafting
    drafted = 0
    for i in range(1, made):
        here -= levels[i]
        for k in range(draft.kinds.shape[0]):
            cached[k] -= level_cached[i, k]
        each = plan.pass_tokens[shape, i]
        seconds += linear_step(draft, 0, here, here * each, here * each, replica)
        seconds += launches_s(config, draft, 0, here, here * each)
        # Each pass sees the drafts of those before it (a full window stays as long).
        seconds += attention_equal(draft, here, each, cached, float(drafted * here), loads, counts, replica)
        drafted += each
    return seconds + config.host_draft_pass_s * made
