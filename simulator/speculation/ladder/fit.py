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
_STEP = 0.05
"""Step of derivatives: counts are whole, so smaller ones would see steps of the sum itself."""
_KNOTS = 3
"""Depths at which the rates by depth are moved against the recorded ones; between them, the shift is linear in ln j. What is
recorded deep comes from the luckiest requests, so it lies above the rates of an average one, and ever more so."""
_CORRECTIONS = 3
"""Rounds in which each depth's rate is then set right by itself."""


@dataclass(frozen=True)
class Parameter:
    """One unknown."""

    start: float
    low: float
    high: float
    more_starts: tuple[float, ...] = ()
    """Further starts, where the sum of squares has several hollows."""


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
    depths = np.arange(1, gamma + 1)
    knots = np.unique(np.geomspace(1, gamma, min(gamma, _KNOTS)).round())

    def unknowns(values: FloatArray) -> FloatArray:
        shift = np.interp(np.log(depths), np.log(knots), values[: len(knots)])
        return np.concatenate([wanted[:gamma] + shift, values[len(knots) :]])

    def misses(values: FloatArray) -> FloatArray:
        return (moments(Statistics.of(draw(unknowns(values)), gamma), usable) - wanted) / errors

    def slopes(values: FloatArray) -> FloatArray:
        here = misses(values)
        # Away from the nearer bound.
        steps = np.where(values + _STEP <= high, _STEP, -_STEP)
        return np.stack([(misses(values + step) - here) / step.sum() for step in np.diag(steps)], axis=1)

    low = np.concatenate([np.full(len(knots), -3.0), [p.low for p in parameters]])
    high = np.concatenate([np.full(len(knots), 3.0), [p.high for p in parameters]])
    found = [
        least_squares(
            misses, np.concatenate([np.zeros(len(knots)), start]), slopes, bounds=(low, high), x_scale=0.3, max_nfev=20,
            xtol=1e-3, ftol=1e-3,
        )
        for start in _starts(parameters)
    ]  # fmt: skip
    theta = unknowns(min(found, key=lambda result: float(result.cost)).x)
    for _ in range(_CORRECTIONS):
        theta[:gamma] += wanted[:gamma] - moments(Statistics.of(draw(theta), gamma), usable)[:gamma]
    return theta


def _starts(parameters: Sequence[Parameter]) -> list[list[float]]:
    # Each start of one parameter with the first ones of the others.
    first = [p.start for p in parameters]
    others = [
        [*first[:place], start, *first[place + 1 :]] for place, p in enumerate(parameters) for start in p.more_starts
    ]
    return [first, *others]
