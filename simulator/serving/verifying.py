"""How a round of drafts ends, and what verifying costs beside a step's passes: the widest round, and trees.

Compiled with the step loop that calls it (`replica`); rules: docs/engine-rules.md.
"""

from __future__ import annotations

from typing import Any

from simulator.serving.compiled import compiled, compiled_apart
from simulator.serving.drafting import add_cached, tree_extra
from simulator.serving.luck import accepted_drafts, learn, shape_for
from simulator.serving.passes import add_load, attention_seldom, attention_wide, has_window
from simulator.serving.state import DEPTH, NODES
from simulator.speculation.policies import BY_TABLE


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
        attention_s = attention_wide(target, sequences, width, cached, 0.0, loads, counts, replica)
    else:
        attention_s = attention_seldom(target, loads, counts, replica)
    replica.hbm_bytes, replica.flop = bytes_before, flop_before  # the same bytes and FLOP, slower
    return float(tree_extra(config, attention_s, pairs, kept))
