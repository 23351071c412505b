"""What is true of a replica after every step, by name; and the error that says what was not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

from simulator.serving.plain.balance import Numbers, causality
from simulator.serving.plain.blocks import blocks_for

if TYPE_CHECKING:
    from simulator.serving.plain.replica import Replica


class InvariantViolation(Exception):
    """A rule of the engine is broken: a bug, not a user's mistake."""

    def __init__(self, name: str, numbers: Numbers, replica: int):
        self.name, self.numbers, self.replica = name, numbers, replica
        super().__init__(name, numbers, replica)

    def __str__(self) -> str:
        shown = ", ".join(f"{key}={value:g}" for key, value in self.numbers.items())
        return f"{self.name} does not hold at replica {self.replica}: {shown}"


INVARIANTS: dict[str, Callable[[Replica], Numbers]] = {}
"""By name, in the order in which they are checked."""


def invariant(check: Callable[[Replica], Numbers]) -> Callable[[Replica], Numbers]:
    """Registers a check, which returns the numbers that contradict it."""
    INVARIANTS[check.__name__.replace("_", " ")] = check
    return check


def check(replica: Replica) -> None:
    """Raises InvariantViolation at the first invariant that does not hold."""
    for name, holds in INVARIANTS.items():
        numbers = holds(replica)
        if numbers:
            raise InvariantViolation(name, numbers, replica.number)


@invariant
def every_request_is_in_one_place(replica: Replica) -> Numbers:
    """Submitted = unheard + waiting + running + left, and nobody is in two of them."""
    running = [sequence for sequence in replica.running if not sequence.held]
    places = [replica.line.unheard, replica.line.waiting, running, replica.left]
    everybody = [sequence.index for place in places for sequence in place]
    if len(everybody) == len(set(everybody)) == replica.counters.submitted:
        return {}
    return {"submitted": replica.counters.submitted, "found": len(everybody), "different": len(set(everybody))}


@invariant
def every_block_is_free_or_used(replica: Replica) -> Numbers:
    """Free + used = total: a block is in the queue exactly if no running sequence holds it; its users are those that do."""
    holders = Counter(block for sequence in replica.running for block in sequence.blocks)
    for block, users in enumerate(replica.pool.users):
        if users != holders[block] or (users == 0) != (block in replica.pool.queue):
            queued = block in replica.pool.queue
            return {"block": block, "users": users, "holders": holders[block], "queued": queued}
    return {}


@invariant
def the_table_reads_both_ways(replica: Replica) -> Numbers:
    """Every entry of the prefix cache is found by its content, and no block is entered twice."""
    pool = replica.pool
    for block, key in pool.key_of.items():
        if pool.block_of.get(key) != block:
            return {"block": block}
    return {} if len(pool.key_of) == len(pool.block_of) else {"blocks": len(pool.key_of), "keys": len(pool.block_of)}


@invariant
def every_sequence_has_its_blocks(replica: Replica) -> Numbers:
    """A running sequence holds at least ⌈computed/block⌉ blocks; one that does not run holds none."""
    for sequence in replica.running:
        needed = blocks_for(replica.settings, sequence.computed_tokens)
        if len(sequence.blocks) < needed:
            return {"request": sequence.index, "blocks": len(sequence.blocks), "needed": needed}
    for sequence in [*replica.line.unheard, *replica.line.waiting, *replica.left]:
        if sequence.blocks and not sequence.held:
            return {"request": sequence.index, "blocks": len(sequence.blocks)}
    return {}


@invariant
def swap_space_is_conserved(replica: Replica) -> Numbers:
    """Swap space in use is what waiting sequences left there, and no more than there is."""
    held = sum(blocks_for(replica.settings, sequence.swapped_tokens) for sequence in replica.line.waiting)
    if replica.swapped_blocks == held <= replica.settings.swap_blocks:
        return {}
    return {"swapped": replica.swapped_blocks, "held": held, "space": replica.settings.swap_blocks}


@invariant
def lines_are_in_order(replica: Replica) -> Numbers:
    """Both lines are in the order (rank, number of submission)."""
    for line in (replica.running, replica.line.waiting):
        for one, other in pairwise(line):
            if one.place >= other.place:
                return {"request": one.index, "before": other.index}
    return {}


@invariant
def the_clock_goes_forward(replica: Replica) -> Numbers:
    """A step begins at or after the end of the one before, and the clock is at its end or later; events are in order of time."""
    steps_s = [time_s for step in replica.steps for time_s in (step.start_s, step.start_s + step.seconds)]
    events_s = [event.time_s for event in replica.events]
    for times in ([*steps_s, replica.clock_s], events_s):
        for earlier, later in pairwise(times):
            if later < earlier:
                return {"earlier_s": earlier, "later_s": later}
    return {}


@invariant
def cause_comes_before_effect(replica: Replica) -> Numbers:
    """arrival ≤ ready, arrival ≤ scheduled ≤ first token ≤ last token = finish; nobody is cancelled before giving up."""
    for sequence in replica.left:
        numbers = causality(sequence)
        if numbers:
            return {"request": sequence.index, **numbers}
    return {}


@invariant
def budget_is_never_exceeded(replica: Replica) -> Numbers:
    """Tokens of a step ≤ max_batched_tokens."""
    most = replica.settings.max_batched_tokens
    tokens = replica.steps[-1].tokens if replica.steps else 0
    return {"tokens": tokens, "budget": most} if tokens > most else {}


@invariant
def sequences_are_limited(replica: Replica) -> Numbers:
    """Running sequences ≤ max_sequences."""
    most, running = replica.settings.max_sequences, replica.counters.most_running
    return {"running": running, "limit": most} if running > most else {}


@invariant
def tokens_balance(replica: Replica) -> Numbers:
    """Nobody gets more than its answer; what the replica emitted is what its requests have."""
    running = [sequence for sequence in replica.running if not sequence.held]
    everybody = [*replica.line.unheard, *replica.line.waiting, *running, *replica.left]
    for sequence in everybody:
        if sequence.generated_tokens > sequence.output_tokens:
            return {"request": sequence.index, "generated": sequence.generated_tokens, "output": sequence.output_tokens}
    generated = sum(sequence.generated_tokens - sequence.arrived_with_tokens for sequence in everybody)
    emitted = replica.counters.emitted_tokens
    return {} if generated == emitted else {"generated": generated, "emitted": emitted}
