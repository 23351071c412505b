"""How far a speed-up is off where one number is all that is known of acceptance: the same grid under the laws of its doubt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from simulator.planning.crossover import SpeculateResult, speculate
from simulator.speculation.acceptance import Acceptance


class SpeedupDoubt(NamedTuple):
    """What the laws that agree with one number say at one batch."""

    batch: int
    """Sequences."""
    gamma: int
    """The γ that the typical law has as best, or that which loses least."""
    speedup: float
    """Its speed-up by the typical law."""
    least: float
    """Least speed-up of this γ by any of the laws."""
    most: float
    """Most."""
    best_gammas: tuple[int, ...]
    """Best γ by each law, in the order given; 0 where none pays."""


def speedup_doubt(result: SpeculateResult, laws: Sequence[Acceptance]) -> list[SpeedupDoubt]:
    """One entry per batch of `result`, whose own law is the typical one; `laws` are `typical.acceptance_interval`'s."""
    others = [
        speculate(
            result.deployment, law, gammas=result.gammas, batches=result.batches, context_tokens=result.context_tokens
        )
        for law in laws
    ]
    doubts = []
    for batch in result.batches:
        gamma = result.shown_gamma(batch)
        speedup = result.cells[gamma, batch].speedup
        all_speedups = [speedup, *(other.cells[gamma, batch].speedup for other in others)]
        best = tuple(other.best_gamma(batch) for other in others)
        doubts.append(SpeedupDoubt(batch, gamma, speedup, min(all_speedups), max(all_speedups), best))
    return doubts
