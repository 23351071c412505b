"""Fit of laws whose figures have no closed form at the lengths that answers have: by simulated moments.

Statistics s of the recorded rounds, each with its standard error e from drawing the requests again (bootstrap), are met by those
of rounds drawn from the law for answers of the recorded lengths, in least squares of (s(θ) − s) / e. The draws have the same
luck for every θ, so the sum is a function of θ alone.

Reference: D. McFadden, "A method of simulated moments for estimation of discrete response models without numerical
integration", Econometrica 57 (1989).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from simulator.speculation.ladder.rounds import FloatArray, Rounds
from simulator.speculation.ladder.statistics import Statistics, Sums

BOOTSTRAP = 200
"""Draws of the requests for standard errors: known to 5 %."""
_INSIDE = 1e-3
_LEAST_REFUSALS = 1.0


@dataclass(frozen=True)
class Parameter:
    """One unknown: bounds and start of what is fitted, and the steps of its derivative are shares of the scale 1."""

    start: float
    low: float
    high: float


def log_odds(rates: FloatArray) -> FloatArray:
    """ln(a / (1 − a)), rates taken 0.001 inside."""
    inside = np.clip(rates, _INSIDE, 1.0 - _INSIDE)
    return np.asarray(np.log(inside / (1.0 - inside)))


def from_log_odds(value: FloatArray) -> FloatArray:
    """The rates again."""
    return np.asarray(1.0 / (1.0 + np.exp(-value)))


def moments(statistics: Statistics, names: Sequence[str]) -> FloatArray:
    """Log-odds of the conditional rates by depth, then these statistics [γ + names]; ratios and means as logarithms."""
    kept, refused = statistics.sums.kept.sum(axis=0), statistics.sums.refused.sum(axis=0)
    # Half a round more on either side (Haldane): no depth is certain because few rounds got there.
    odds = np.log((kept + 0.5) / (refused + 0.5))
    values = [getattr(statistics, name) for name in names]
    plain = ("lag_1", "lag_1_within", "proposed", "proposed_lag_1")
    return np.concatenate(
        [odds, [v if name in plain else np.log(max(v, 1e-6)) for name, v in zip(names, values, strict=True)]]
    )


def standard_errors(rounds: Rounds, gamma: int, names: Sequence[str], seed: int) -> FloatArray:
    """Those of `moments`, from drawing the requests again."""
    sums, random = Sums.of(rounds, gamma), np.random.default_rng(seed)
    drawn = [
        moments(Statistics(sums.drawn(random.integers(0, len(rounds), len(rounds)))), names) for _ in range(BOOTSTRAP)
    ]
    return np.asarray(np.nanstd(drawn, axis=0))


def fitted(
    rounds: Rounds,
    gamma: int,
    names: Sequence[str],
    parameters: Sequence[Parameter],
    draw: Callable[[FloatArray], Rounds],
    seed: int,
) -> FloatArray:
    """Parameters θ [log-odds of the rates by depth, then `parameters`] whose drawn rounds have the moments of `rounds`.

    draw: rounds of the law with these θ, for the recorded answers as often as is wanted, always with the same luck.
    """
    from scipy.optimize import least_squares

    recorded = Statistics.of(rounds, gamma)
    usable = [name for name in names if np.isfinite(getattr(recorded, name))]
    wanted, errors = moments(recorded, usable), standard_errors(rounds, gamma, usable, seed)
    errors = np.maximum(errors, 1e-3)  # where every request is alike

    def misses(theta: FloatArray) -> FloatArray:
        return (moments(Statistics.of(draw(theta), gamma), usable) - wanted) / errors

    start = np.concatenate([wanted[:gamma], [p.start for p in parameters]])
    low = np.concatenate([wanted[:gamma] - 3.0, [p.low for p in parameters]])
    high = np.concatenate([wanted[:gamma] + 3.0, [p.high for p in parameters]])
    found = least_squares(
        misses, start, bounds=(low, high), diff_step=0.02, x_scale=0.3, max_nfev=25, xtol=1e-3, ftol=1e-4
    )
    return np.asarray(found.x)
