"""How many drafts a sequence verifies in its next round, and how many of them the target keeps: drawn, or as recorded.

`luck` is (rates [rows, γ], row of each request [requests], first recorded round of each row [rows + 1], recorded rounds);
the last two are empty where draws decide. Either way the fate of a request depends on the request alone, never on who else
is in the batch.
"""

from __future__ import annotations

from typing import Any

from simulator import randomness
from simulator.serving.compiled import compiled

uniform = compiled(randomness.uniform)


@compiled
def recorded_round(luck: Any, slot: Any) -> Any:
    """The recorded round that a sequence's next one repeats; after the last recorded round the first comes again."""
    _, row_of, first, rounds = luck
    row = row_of[slot.request]
    return rounds[first[row] + slot.rounds % (first[row + 1] - first[row])]


@compiled
def drafts_of(config: Any, luck: Any, slot: Any, position: int) -> int:
    """Drafts that the sequence in `slot`, past its prompt and at output `position`, verifies in its next round."""
    drafts: int = config.gamma
    if config.replays == 1:
        drafts = min(drafts, recorded_round(luck, slot).drafted)
    elif config.match_probability < 1.0 and uniform(config.seed, slot.request, position, 0) >= config.match_probability:
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
    for depth in range(drafts):
        if uniform(config.seed, slot.request, position, depth + 1) >= rates[row, depth]:
            return depth
    return drafts
