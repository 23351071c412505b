"""How many drafts a sequence verifies in its next round, and how many of them the target keeps: drawn, or as recorded.

`luck` is (rates [rows, γ], row of each request [requests], first recorded round of each row [rows + 1], recorded rounds);
the last two are empty where draws decide. Either way the fate of a request depends on the request alone, never on who else
is in the batch.

Draws are `randomness.uniform(seed, request, position, depth)`, bit for bit; the state after (seed, request) is kept with the
sequence and the one after the position serves all depths.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from simulator.serving.compiled import compiled

_GAMMA, _MUL_1, _MUL_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # randomness.py


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
    _, row_of, first, rounds = luck
    row = row_of[slot.request]
    return rounds[first[row] + slot.decode_rounds % (first[row + 1] - first[row])]


@compiled
def drafts_of(config: Any, luck: Any, slot: Any, position: int) -> int:
    """Drafts that the sequence in `slot`, past its prompt and at output `position`, verifies in its next round."""
    drafts: int = config.gamma
    if config.replays == 1:
        drafts = min(drafts, recorded_round(luck, slot).drafted)
    elif (
        config.match_probability < 1.0
        and number_of(absorbed(absorbed(slot.luck, position), 0)) >= config.match_probability
    ):
        drafts = 0
    return drafts


@compiled
def accepted_drafts(config: Any, luck: Any, slot: Any, position: int, drafts: int) -> int:
    """How many of `drafts` tokens after output `position` the target keeps."""
    if config.replays == 1:
        # Of fewer drafts the target keeps those it kept of more: they are the first ones.
        recorded: int = recorded_round(luck, slot).accepted
        return min(drafts, recorded)
    rates, row_of = luck[0], luck[1]
    row = row_of[slot.request]
    here = absorbed(slot.luck, position)
    for depth in range(drafts):
        if number_of(absorbed(here, depth + 1)) >= rates[row, depth]:
            return depth
    return drafts
