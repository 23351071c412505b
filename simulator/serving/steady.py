"""Runs of steps in which nothing happens but decoding: no prompt, no admission, no preemption, nobody new.

Nearly all steps are of this kind. Their sequences advance together, so that a step costs a handful of additions, however many
sequences run: what they hold is known from sums, and who finishes or needs a block is known beforehand. With drafts each
sequence draws its own luck, in one pass over the line. Results are those of `replica.step`, to the last bit.
"""

from __future__ import annotations

import math
from typing import Any

from simulator.cost.forward import DECODE_QUERY_LIMIT
from simulator.serving.batching import fits
from simulator.serving.compiled import compiled
from simulator.serving.drafting import add_cached, tree_extra, waited_s
from simulator.serving.kv_cache import blocks_for, enter_full, free_blocks, take
from simulator.serving.line import first_fresh, stack_goes_first
from simulator.serving.luck import kept_drafts, shape_for, stretch_at
from simulator.serving.passes import (
    KV_TOKENS,
    PAIRS,
    PREFILL_KV_TOKENS,
    PREFILL_PAIRS,
    WINDOW,
    attention_alike,
    attention_equal,
    attention_seldom,
    attention_step,
    has_window,
    intake_step,
    launches_s,
    linear_step,
    micro_batches,
    part,
)
from simulator.serving.record import count_gaps, note, series_add, step_s
from simulator.serving.state import COLUMN, DEPTH, EMITTED, MODEL_DRAFTER, NO_DRAFTER, NODES, PASSES
from simulator.speculation.policies import BY_TABLE


@compiled
def can_run_steadily(
    config: Any, plan: Any, replica: Any, requests: Any, links: Any, slots: Any, stack: Any, target: Any, draft: Any,
    luck: Any,
) -> bool:  # fmt: skip
    """Whether the next step is one of decoding alone, after which the same may be asked again without looking at the line."""
    if (
        replica.prompts + replica.held > 0
        or replica.running == 0
        or config.window_tokens > 0
        or config.prefill_only == 1
    ):
        return False
    shape = slots[0].shape
    if config.drafter != NO_DRAFTER and not alike_rounds(config, plan, replica, slots, target, draft, luck):
        return False
    nodes = plan.shapes[shape, NODES] if config.drafter != NO_DRAFTER else 0
    if replica.running * (nodes + 1) > config.max_batched_tokens:
        return False
    if replica.fresh + replica.stacked > 0 and replica.running < config.max_sequences:
        # Nobody can join as long as the first in the line does not fit: free blocks only become fewer.
        if config.shares == 1:
            return False
        fresh = first_fresh(config, replica, requests, links)
        index = fresh
        if stack_goes_first(replica, requests, links, stack, fresh):
            index = stack[replica.stacked - 1].request
        if fits(config, replica, requests[index].prompt_tokens + requests[index].generated_tokens, 0, 0):
            return False
    for i in range(replica.running):  # noqa: SIM110 (a generator does not compile)
        if slots[i].last_token_s != replica.clock_s:
            return False
    return True


@compiled
def alike_rounds(config: Any, plan: Any, replica: Any, slots: Any, target: Any, draft: Any, luck: Any) -> bool:
    """Whether all sequences have rounds of one shape, whose drafts a model made for certain at the end of the step before."""
    certain = config.match_probability >= 1.0 and config.replays == 0 and config.policy == BY_TABLE
    if config.drafter != MODEL_DRAFTER or config.draft_first == 1 or config.draft_reads == 0 or not certain:
        return False
    if has_window(target.kinds) or has_window(draft.kinds):
        return False
    for state in range(luck.proposes.shape[0]):
        if luck.proposes[state] == 0:
            return False
    off = plan.shapes[slots[0].shape, NODES] == 0 and config.draft_keeps_up == 0
    if plan.shapes[slots[0].shape, DEPTH] >= DECODE_QUERY_LIMIT:
        return False
    for i in range(replica.running):
        slot = slots[i]
        if slot.shape != slots[0].shape or (slot.lag_tokens > 0 and not off):
            return False
        if off and slot.blocks * config.block_tokens - slot.computed_tokens >= config.block_tokens:
            return False  # look-ahead slots of earlier drafts: a plain step knows only who needs a block within one
    return True


@compiled
def run_steadily(
    horizon_s: float, pool: Any, config: Any, plan: Any, replica: Any, requests: Any, slots: Any, blocks: Any,
    pieces: Any, target: Any, draft: Any, luck: Any, record: Any, scratch: Any, most_steps: int,
) -> int:  # fmt: skip
    """Steps made before `horizon_s`, up to the first in which somebody finishes or blocks run out."""
    off = plan.shapes[slots[0].shape, NODES] == 0 and config.draft_keeps_up == 0
    if config.drafter == NO_DRAFTER or off:
        return int(
            run_plain(
                horizon_s, pool, config, plan, replica, requests, slots, blocks, pieces, target, record, scratch,
                most_steps,
            )
        )  # fmt: skip
    return int(
        run_rounds(
            horizon_s, pool, config, plan, replica, requests, slots, blocks, pieces, target, draft, luck, record,
            scratch, most_steps,
        )
    )  # fmt: skip


@compiled
def finish_step(
    pool: Any, config: Any, replica: Any, record: Any, gpu_s: float, host_s: float, emitted: int, measured: int
) -> float:
    """Time passes for a step in which every sequence got a chunk. Returns its length, s."""
    hidden_s = config.host_hidden_step_s + config.host_hidden_per_sequence_s * replica.running
    seconds = step_s(config, replica, gpu_s, host_s, hidden_s)
    start_s = replica.clock_s
    end_s = start_s + seconds
    replica.steps += 1
    pool.steps += 1
    replica.busy_s += seconds
    replica.host_s += seconds - gpu_s
    series_add(
        replica, record.series, start_s, seconds, replica.running, replica.fresh + replica.stacked,
        replica.used_blocks, emitted, 0,
    )  # fmt: skip
    gap_s = end_s - start_s
    if measured > 0:
        count_gaps(replica, record, gap_s, measured)
    replica.emitted_tokens += emitted
    replica.step_started_s = start_s
    replica.clock_s = end_s
    replica.in_flight = 1
    return gap_s


@compiled
def run_plain(
    horizon_s: float, pool: Any, config: Any, plan: Any, replica: Any, requests: Any, slots: Any, blocks: Any,
    pieces: Any, target: Any, record: Any, scratch: Any, most_steps: int,
) -> int:  # fmt: skip
    """A steady run of one token per sequence and step; with a drafter that is off, up to where somebody finishes or it is on."""
    counts, cached, growth, crossing = scratch[2], scratch[3], scratch[5], scratch[6]
    running, block_tokens = replica.running, config.block_tokens
    kinds = target.kinds
    cached[:] = 0.0
    growth[:] = 0.0
    measured = known = 0
    most = shortest = slots[0].left_tokens
    for i in range(running):
        slot = slots[i]
        shortest = min(shortest, slot.left_tokens)
        measured += slot.measured
        known += slot.computed_tokens + 2  # at the end of the next step
        crossing[slot.blocks * block_tokens - slot.computed_tokens] += 1  # steps until it needs a block
        for k in range(kinds.shape[0]):
            room = kinds[k, WINDOW] - 1.0 - slot.computed_tokens
            if room > 0.0:
                growth[k] += 1.0
                if math.isfinite(room):
                    most = min(most, int(room))
        add_cached(kinds, cached, slot.computed_tokens)
    off = config.drafter != NO_DRAFTER
    if off:
        shortest -= 1  # fewer may decide otherwise
    most = min(most, shortest)
    finishes = 1 if shortest == most and not off else 0
    host_s = config.host_step_s + config.host_per_sequence_s * running
    host_s += target.extra_host_s[0, part(running, micro_batches(target, running))]
    longest_s = 0.0
    steps = phase = 0
    while steps < most and replica.clock_s < horizon_s and pool.steps < most_steps:
        if off and plan.shapes[shape_for(plan, running, known + steps * running), NODES] > 0:
            break
        needed = crossing[phase]
        if needed > free_blocks(config, replica):
            break
        following = phase + 1 if phase + 1 < block_tokens else 0
        if config.shares == 0:
            replica.used_blocks += needed
        elif needed > 0 or crossing[following] > 0:
            for i in range(running):
                slot = slots[i]
                tokens = slot.computed_tokens + steps + 1
                take(config, replica, blocks, slot, blocks_for(config, tokens))
                enter_full(config, blocks, slot, requests[slot.request], pieces, tokens)
        gpu_s = linear_step(target, 0, running, running, running, replica)
        gpu_s += attention_alike(target, running, 1, cached, 0.0, counts, replica)
        longest_s = max(longest_s, finish_step(pool, config, replica, record, gpu_s, host_s, running, measured))
        for k in range(kinds.shape[0]):
            cached[k] += growth[k]
        steps += 1
        phase = following
        if record.events.shape[0] > 0 and not (finishes == 1 and steps == most):
            for i in range(running):
                note(record, replica, replica.clock_s, EMITTED, slots[i].request, 1)
    for i in range(running):
        slot = slots[i]
        place = slot.blocks * block_tokens - slot.computed_tokens
        if config.shares == 1:
            crossing[:] = 0
        else:
            crossing[place] = 0
        if steps == 0:
            continue
        slot.computed_tokens += steps
        slot.generated_tokens += steps
        slot.left_tokens -= steps
        slot.chunks += steps
        slot.decode_rounds += steps
        if off and config.draft_reads == 1:
            slot.lag_tokens += steps
        slot.last_token_s = replica.clock_s
        slot.longest_gap_s = max(slot.longest_gap_s, longest_s)
        slot.emitted_tokens = 1 if finishes == 1 and steps == most else 0
        slot.blocks = blocks_for(config, slot.computed_tokens)
    if steps > 0:
        replica.most_blocks = max(replica.most_blocks, replica.used_blocks)
        replica.most_running = max(replica.most_running, running)
        replica.most_waiting = max(replica.most_waiting, replica.fresh + replica.stacked)
        replica.left_last = 0
        replica.finishing = 1 if finishes == 1 and steps == most else 0
    return int(steps)


@compiled
def run_rounds(
    horizon_s: float, pool: Any, config: Any, plan: Any, replica: Any, requests: Any, slots: Any, blocks: Any,
    pieces: Any, target: Any, draft: Any, luck: Any, record: Any, scratch: Any, most_steps: int,
) -> int:  # fmt: skip
    """A steady run of rounds of one shape: every sequence verifies its drafts in each step, and then the drafter makes the next
    ones. It ends when the next ones have another shape."""
    loads, draft_loads, counts, cached, draft_cached = scratch[0], scratch[1], scratch[2], scratch[3], scratch[4]
    shape = following = slots[0].shape
    nodes, depth, column = plan.shapes[shape, NODES], plan.shapes[shape, DEPTH], plan.shapes[shape, COLUMN]
    rates, row_of, stretches = luck.rates, luck.row_of, luck.bounds.shape[0] > 1
    running, q, block_tokens = replica.running, nodes + 1, config.block_tokens
    tokens = running * q
    held = needed = measured = 0
    for i in range(running):
        slot = slots[i]
        held += slot.computed_tokens
        measured += slot.measured
        if slot.computed_tokens + q > slot.blocks * block_tokens:
            needed += blocks_for(config, slot.computed_tokens + q) - slot.blocks
    base_host_s = config.host_step_s + config.host_per_sequence_s * running
    base_host_s += target.extra_host_s[0, part(tokens, micro_batches(target, running))]
    if nodes > 0:
        base_host_s += config.host_speculative_round_s
    longest_s = 0.0
    steps = 0
    finished = False
    while not finished and following == shape and replica.clock_s < horizon_s and pool.steps < most_steps:
        if needed > free_blocks(config, replica):
            break
        if config.shares == 0:
            replica.used_blocks += needed
        else:
            for i in range(running):
                slot = slots[i]
                take(config, replica, blocks, slot, blocks_for(config, slot.computed_tokens + q))
                enter_full(config, blocks, slot, requests[slot.request], pieces, slot.computed_tokens + 1)
        flop_before = replica.flop
        cached[:] = held
        gpu_s = linear_step(target, 0, running, tokens, tokens, replica)
        if q <= DECODE_QUERY_LIMIT:
            attention_s = attention_alike(target, running, q, cached, 0.0, counts, replica)
        else:
            counts[:] = 0.0
            counts[2] = running
            counts[3] = tokens
            loads[:] = 0.0
            loads[:, PREFILL_KV_TOKENS] = held + tokens
            loads[:, PREFILL_PAIRS] = float(q) * held + tokens * (0.5 * (q + 1.0))
            attention_s = attention_seldom(target, loads, counts, replica)
        gpu_s += attention_s
        flop = replica.flop - flop_before

        accepted = emitted = held = needed = moved = 0
        drafting = new = 0
        kv_tokens = known = read_on = 0
        pairs = 0.0
        for i in range(running):
            slot = slots[i]
            context = slot.computed_tokens
            position = slot.generated_tokens
            state = stretch_at(config, luck, slot, position) if stretches else 0
            kept = kept_drafts(rates[row_of[slot.request], state], slot.luck, position, column, depth)
            used = min(kept, slot.left_tokens)
            gained = min(kept + 1, slot.left_tokens)
            accepted += used
            emitted += gained
            moved += gained - 1
            slot.accepted_tokens += used
            slot.emitted_tokens = gained
            slot.generated_tokens += gained
            slot.left_tokens -= gained
            slot.computed_tokens = context + gained
            room = slot.blocks * block_tokens
            if context + q > room:
                slot.blocks = blocks_for(config, context + q)
                room = slot.blocks * block_tokens
            if slot.left_tokens > 0:
                drafting += 1
                read = depth + 1 if config.draft_padded == 1 else gained
                new += read
                read_on += context
                kv_tokens += context + read
                pairs += read * (context + 0.5 * (read + 1.0))
                known += context + 1 + gained
                held += slot.computed_tokens
                if context + gained + q > room:
                    needed += blocks_for(config, context + gained + q) - slot.blocks
            else:
                finished = True
        if nodes > depth and config.tree_attention > 0.0:
            gpu_s += tree_extra(config, attention_s, float(running) * (float(q) * q), moved)
        drafted = running * nodes
        replica.wasted_flop += flop * (drafted - accepted) / tokens
        draft_s = 0.0
        if drafting > 0:
            following = shape_for(plan, drafting, known)
        drafts = plan.shapes[following, NODES] > 0
        lags = not drafts and config.draft_keeps_up == 0
        if drafting > 0 and not lags:
            draft_s = linear_step(draft, 0, drafting, new, drafting if drafts else 0, replica)
            draft_s += launches_s(config, draft, 0, drafting, new)
            draft_s += intake_step(draft, new, replica)
            if config.draft_padded == 1 and depth + 1 <= DECODE_QUERY_LIMIT:
                draft_cached[:] = read_on
                draft_s += attention_alike(draft, drafting, depth + 1, draft_cached, 0.0, counts, replica)
            else:
                counts[:] = 0.0
                counts[0] = drafting
                counts[1] = new
                draft_loads[:] = 0.0
                draft_loads[:, KV_TOKENS] = kv_tokens
                draft_loads[:, PAIRS] = pairs
                draft_s += attention_step(draft, draft_loads, counts, replica)
            made = 1
            if drafts:
                made = plan.shapes[following, PASSES]
                draft_cached[:] = known
                ahead = 0
                for p in range(1, made):
                    each = plan.pass_tokens[following, p]
                    draft_s += linear_step(draft, 0, drafting, drafting * each, drafting * each, replica)
                    draft_s += launches_s(config, draft, 0, drafting, drafting * each)
                    draft_s += attention_equal(
                        draft, drafting, each, draft_cached, float(ahead * drafting), draft_loads, counts, replica
                    )
                    ahead += each
            draft_s += config.host_draft_pass_s * made
        draft_s = waited_s(draft_s, gpu_s, config.draft_share)
        replica.draft_s += draft_s
        replica.drafted_tokens += drafted
        replica.accepted_tokens += accepted
        if nodes > 0:
            replica.sequence_rounds += running
        gpu_s += draft_s
        longest_s = max(longest_s, finish_step(pool, config, replica, record, gpu_s, base_host_s, emitted, measured))
        steps += 1
        if record.events.shape[0] > 0 and not finished:
            for i in range(running):
                note(record, replica, replica.clock_s, EMITTED, slots[i].request, slots[i].emitted_tokens)
    if steps > 0:
        for i in range(running):
            slot = slots[i]
            slot.chunks += steps
            slot.rounds += steps if nodes > 0 else 0
            slot.decode_rounds += steps
            slot.drafted_tokens += steps * nodes
            slot.last_token_s = replica.clock_s
            slot.longest_gap_s = max(slot.longest_gap_s, longest_s)
            if following != shape and slot.left_tokens > 0:
                slot.shape = following
                if plan.shapes[following, NODES] == 0 and config.draft_keeps_up == 0:
                    slot.lag_tokens = slot.emitted_tokens
            if not finished:
                slot.emitted_tokens = 0
        replica.most_blocks = max(replica.most_blocks, replica.used_blocks)
        replica.most_running = max(replica.most_running, running)
        replica.most_waiting = max(replica.most_waiting, replica.fresh + replica.stacked)
        replica.left_last = 0
        replica.finishing = 1 if finished else 0
    return steps
