"""How many drafts a sequence verifies in its next round, and how many of them the target keeps: drawn, or as recorded.

Either way the fate of a request depends on the request alone, never on who else is in the batch.

Draws are `randomness.uniform(seed, request, position, depth)`, bit for bit; the state after (seed, request) is kept with the
sequence and the one after the position serves all depths.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from simulator.serving.compiled import compiled
from simulator.serving.state import COLUMN, DEPTH, NODES
from simulator.speculation.policies import BY_ORACLE, BY_PAST
from simulator.speculation.shape import MAX_GAMMA
from simulator.speculation.stretches import STRETCH_BEGINS, STRETCH_STATE

_GAMMA, _MUL_1, _MUL_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # randomness.py


class Luck(NamedTuple):
    """What decides over drafts; the recorded rounds are empty where draws do."""

    rates: Any
    """Conditional acceptance [rows, states of a stretch, columns]."""
    row_of: Any
    """[requests]."""
    first_round: Any
    """First recorded round of each row, and the end of the last [rows + 1]."""
    rounds: Any
    """`state.RECORDED`, row after row."""
    bounds: Any
    """Upper ends of the states' shares of [0, 1) [states]."""
    renewal: Any
    """Probability that a position begins a new stretch, by the state of the one before [states]."""
    proposes: Any
    """Whether anything is drafted in a state [states]."""


@compiled
def absorbed(state: Any, word: int) -> Any:
    """State of the generator after one word more (one splitmix64 step)."""
    z = (np.uint64(state) ^ np.uint64(word)) + np.uint64(_GAMMA)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_MUL_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_MUL_2)
    return z ^ (z >> np.uint64(31))


@compiled
def number_of(state: Any) -> float:
    """The state as a number in [0, 1)."""
    return float(np.uint64(state) >> np.uint64(11)) * 2.0**-53


@compiled
def recorded_round(luck: Any, slot: Any) -> Any:
    """The recorded round that a sequence's next one repeats; after the last recorded round the first comes again."""
    row = luck.row_of[slot.request]
    first = luck.first_round
    return luck.rounds[first[row] + slot.decode_rounds % (first[row + 1] - first[row])]


@compiled
def stretch_at(config: Any, luck: Any, slot: Any, position: int) -> int:
    """State of the stretch of text in which output `position` lies; positions must not fall."""
    states = luck.bounds.shape[0]
    if states == 1:
        return 0
    while slot.looked_at <= position:
        here = absorbed(slot.luck, slot.looked_at)
        if slot.looked_at == 0 or number_of(absorbed(here, STRETCH_BEGINS)) < luck.renewal[slot.stretch]:
            drawn = number_of(absorbed(here, STRETCH_STATE))
            state = 0
            while state < states - 1 and drawn >= luck.bounds[state]:
                state += 1
            slot.stretch = state
        slot.looked_at += 1
    return int(slot.stretch)


@compiled
def proposes(config: Any, luck: Any, slot: Any, position: int) -> bool:
    """Whether the drafter finds anything to propose there."""
    if luck.proposes[stretch_at(config, luck, slot, position)] == 0:
        return False
    return bool(
        config.match_probability >= 1.0
        or number_of(absorbed(absorbed(slot.luck, position), 0)) < config.match_probability
    )


@compiled
def kept_drafts(rates: Any, luck: Any, position: int, column: int, depth: int) -> int:
    """How many of `depth` drafts after output `position` are kept at these rates [columns], drawn by the state `luck`."""
    here = absorbed(luck, position)
    for place in range(depth):
        if number_of(absorbed(here, place + 1)) >= rates[column + place]:
            return place
    return depth


@compiled
def accepted_drafts(config: Any, plan: Any, luck: Any, slot: Any, position: int, depth: int) -> int:
    """How many of up to `depth` drafts after output `position` the target keeps."""
    if config.replays == 1:
        # Of fewer drafts the target keeps those it kept of more: they are the first ones.
        recorded: int = recorded_round(luck, slot).accepted
        return min(depth, recorded)
    state = stretch_at(config, luck, slot, position)
    return int(
        kept_drafts(
            luck.rates[luck.row_of[slot.request], state], slot.luck, position, plan.shapes[slot.shape, COLUMN], depth
        )
    )


@compiled
def drafts_of(config: Any, plan: Any, luck: Any, slot: Any, position: int, left_tokens: int) -> tuple[int, int]:
    """(drafts verified, those that can be accepted) of the sequence in `slot` in the round at output `position`, with
    `left_tokens` of its answer left then."""
    nodes, depth = plan.shapes[slot.shape, NODES], plan.shapes[slot.shape, DEPTH]
    if config.replays == 1:
        recorded = recorded_round(luck, slot).drafted
        nodes, depth = min(nodes, recorded), min(depth, recorded)
    elif not proposes(config, luck, slot, position):
        return 0, 0
    if config.policy == BY_PAST:
        depth = min(depth, slot.own_gamma)
        nodes = depth
    elif config.policy == BY_ORACLE:
        depth = min(accepted_drafts(config, plan, luck, slot, position, depth), left_tokens - 1)
        nodes = depth
    return nodes, depth


@compiled
def learn(slot: Any, kept: int) -> None:
    """What a round of `slot.depth` drafts suggests for the next one."""
    slot.own_gamma = min(slot.depth + 2, MAX_GAMMA) if kept == slot.depth else max(slot.depth - 1, 1)


@compiled
def shape_for(plan: Any, sequences: int, tokens: int) -> int:
    """The plan's shape for a round of `sequences` that hold `tokens` together."""
    if plan.choice.size == 1:
        return int(plan.choice[0, 0])
    sequences = max(1, sequences)
    mean = tokens / sequences
    row = column = 0
    while row + 1 < plan.batches.shape[0] and plan.batches[row + 1] <= sequences:
        row += 1
    while column + 1 < plan.contexts.shape[0] and plan.contexts[column + 1] <= mean:
        column += 1
    return int(plan.choice[row, column])
