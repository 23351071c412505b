"""A scenario simulated several times with other luck: how far its figures depend on the draw.

Every replication has its own seed, and both of its variants have the same requests and the same luck. So the ratio of a figure with
speculation to without is compared pair by pair, and what both have in common cancels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from simulator.errors import InputError
from simulator.scenario import Scenario
from simulator.serving.confidence import student
from simulator.serving.intervals import RATIO, figures_of
from simulator.uncertainty import LEVEL

MOST_REPLICATIONS = 1000

Figures = Mapping[tuple[str, str], float]
"""By variant and figure, of one replication."""


@dataclass(frozen=True)
class Replicated:
    """Mean of a figure over replications, and ± with 90 % (`uncertainty.LEVEL`), both in the figure's unit."""

    mean: float
    half_width: float


@dataclass(frozen=True)
class Replications:
    """By variant (and `intervals.RATIO`) and figure."""

    n: int
    of: Mapping[tuple[str, str], Replicated]

    def get(self, variant: str, figure: str) -> Replicated | None:
        """None where some replication has no such figure."""
        return self.of.get((variant, figure))


def replicate(scenario: Scenario, n: int, progress: Callable[[str, int, int], None] | None = None) -> Replications:
    """`scenario` simulated `n` times, with its own seed and the n − 1 that follow it.

    A trace's requests stay what they are; only what is drawn differs. `progress` is told how many are done. Raises MemwallError.
    """
    from simulator.serving.simulation import simulate

    if not 2 <= n <= MOST_REPLICATIONS:
        raise InputError("replications", n, f"be between 2 and {MOST_REPLICATIONS}")
    found = []
    for k in range(n):
        seed = (scenario.seed + k) % 2**63
        found.append(figures_of(simulate(scenario.model_copy(update={"seed": seed}))))
        if progress is not None:
            progress("replications", k + 1, n)
    return across(found)


def across(replications: Sequence[Figures], level: float = LEVEL) -> Replications:
    """Mean and half-width t·s/√n of every figure that all of them have; for ratios those of the ratio of means.

    The ratio R = Σx/Σy has the half-width t·s(x − R·y)/(√n·mean y), from paired differences (Cochran, Sampling Techniques,
    3rd ed., §6.3).
    """
    n = len(replications)
    factor = student(n - 1, level) / math.sqrt(n)
    values = {key: np.array([r.get(key, math.nan) for r in replications]) for key in replications[0]}
    values = {key: v for key, v in values.items() if np.isfinite(v).all()}
    found = {k: Replicated(float(v.mean()), factor * float(v.std(ddof=1))) for k, v in values.items() if k[0] != RATIO}
    variants = list(dict.fromkeys(variant for variant, _ in found))
    if len(variants) == 2:
        ours, plain = variants
        for figure in [figure for variant, figure in found if variant == ours and (plain, figure) in found]:
            x, y = values[ours, figure], values[plain, figure]
            if y.mean() != 0.0:
                ratio = float(x.mean() / y.mean())
                width = factor * float((x - ratio * y).std(ddof=1)) / abs(float(y.mean()))
                found[RATIO, figure] = Replicated(ratio, width)
    return Replications(n, found)
