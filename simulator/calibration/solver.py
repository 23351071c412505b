"""Bounded least squares on log residuals: rows to explain → parameters, and what a fit says of rows that it did not see.

Log residuals, so that a microsecond kernel weighs as much as a millisecond one. With a prior, the parameters of another
device are the centre from which a few rows pull them away (maximum a posteriori).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from simulator.calibration.kernel_tables import Columns

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Values = dict[str, float]
Bounds = Mapping[str, tuple[float, float, float]]
"""By parameter: start, lowest, highest."""

MAX_ROWS = 5000
"""Rows of one fit, drawn at random, so that it takes a second. All rows are scored."""


@dataclass(frozen=True)
class Problem:
    """Rows to explain: `predict(values, columns)` gives seconds, `group` names what is held out together."""

    columns: Columns
    group: NDArray[Any]
    bounds: Bounds
    fixed: Values
    predict: Callable[[Values, Columns], FloatArray]

    def where(self, chosen: NDArray[Any]) -> Problem:
        """The rows of a mask or of indices."""
        return replace(self, columns=rows(self.columns, chosen), group=self.group[chosen])


@dataclass(frozen=True)
class Prior:
    """Another device's parameters as a starting belief: ln(parameter) is normal around ln(centre)."""

    centre: Mapping[str, float]
    log_sd: float = 0.3
    """How far devices' parameters lie apart. Over the fits on three GPUs the standard deviation of ln(parameter) runs from
    0.09 (bandwidth) to 1.8 (tile_half); errors from a dozen rows hardly change between 0.2 and 0.5."""
    noise_log_sd: float = 0.12
    """ln(measured/predicted) of one row under the best parameters: what the forms miss on rows they saw."""


@dataclass(frozen=True)
class Fit:
    """Outcome of `solve`."""

    values: Values
    standard_errors: dict[str, float | None]
    """None for a parameter that is set, or that rests on a bound."""
    success: bool
    message: str


def solve(problem: Problem, seed: int = 0, max_rows: int = MAX_ROWS, *, prior: Prior | None = None) -> Fit:
    """Bounded least squares of log(predicted/measured) over log parameters.

    Minimises Σ (ln(predicted/measured)/σ)² + Σ ((ln θ − ln θ₀)/τ)², the second sum only with a `prior` (centre θ₀, τ =
    `log_sd`, σ = `noise_log_sd`), which then is also the start. Standard errors come from s²·(JᵀJ)⁻¹ (s = 1 with a prior)
    and treat rows as independent. Rows of one shape are not, so take them as lower bounds.
    """
    names = list(problem.bounds)
    columns = _sample(problem.columns, max_rows, seed)
    log_measured = np.log(columns["latency_s"])
    start, low, high = (np.log([problem.bounds[n][i] for n in names]) for i in range(3))
    centre = start
    if prior is not None:
        centre = np.log([max(prior.centre[n], 1e-30) for n in names])
        start = np.clip(centre, low + 1e-6, high - 1e-6)

    def values(logs: FloatArray) -> Values:
        return problem.fixed | dict(zip(names, np.exp(logs).tolist(), strict=True))

    def residuals(logs: FloatArray) -> FloatArray:
        errors: FloatArray = np.log(problem.predict(values(logs), columns)) - log_measured
        if prior is None:
            return errors
        return np.concatenate([errors / prior.noise_log_sd, (logs - centre) / prior.log_sd])

    result = least_squares(residuals, start, bounds=(low, high), diff_step=1e-3, max_nfev=150)
    free = (result.x - low > 1e-3) & (high - result.x > 1e-3)
    errors: dict[str, float | None] = dict.fromkeys(values(result.x), None)
    jacobian = result.jac[:, free]
    if free.any() and (prior is not None or len(log_measured) > free.sum()):
        degrees = len(log_measured) - int(free.sum())
        variance = 1.0 if prior is not None else float(np.sum(result.fun**2)) / degrees
        deviation = np.sqrt(np.clip(np.diag(np.linalg.pinv(jacobian.T @ jacobian)) * variance, 0.0, None))
        for name, log_error in zip(np.array(names)[free], deviation, strict=True):
            errors[str(name)] = float(log_error * values(result.x)[str(name)])
    return Fit(values(result.x), errors, bool(result.success), str(result.message))


@dataclass(frozen=True)
class HeldOut:
    """Every row predicted by a fit that saw none of its fold; arrays are [rows]."""

    measured_s: FloatArray
    predicted_s: FloatArray
    fold: IntArray

    @property
    def errors(self) -> FloatArray:
        """|predicted/measured − 1|."""
        return np.asarray(np.abs(self.predicted_s / self.measured_s - 1.0))

    @property
    def log_ratios(self) -> FloatArray:
        """ln(measured/predicted)."""
        return np.asarray(np.log(self.measured_s / self.predicted_s))

    def spread(self, chosen: NDArray[np.bool_] | None = None) -> float:
        """Root mean square of ln(measured/predicted), of all rows or of a mask."""
        ratios = self.log_ratios if chosen is None else self.log_ratios[chosen]
        return float(np.sqrt(np.mean(ratios**2)))

    def claimed_log_sd(self, *regimes: NDArray[np.bool_]) -> FloatArray:
        """The spread that each row's interval may claim without knowing its own fold: that of the other folds' rows,
        within each of `regimes` (masks that part the rows), or of all of them [rows]."""
        ratios = self.log_ratios
        claimed = np.empty(len(ratios))
        for regime in regimes or (np.ones(len(ratios), bool),):
            for i in np.unique(self.fold[regime]):
                others = regime & (self.fold != i)
                others = others if others.any() else self.fold != i
                claimed[regime & (self.fold == i)] = np.sqrt(np.mean(ratios[others] ** 2))
        return claimed


def folds_of(group: NDArray[Any], folds: int, seed: int = 0) -> IntArray:
    """A number from 0 to `folds` − 1 for each row; rows of one group share theirs, groups are dealt at random [rows]."""
    groups = np.unique(group)
    np.random.default_rng(seed).shuffle(groups)
    fold = np.empty(len(group), np.int64)
    for i, part in enumerate(np.array_split(groups, folds)):
        fold[np.isin(group, part)] = i
    return fold


def held_out(problem: Problem, folds: int = 2, seed: int = 0, max_rows: int = MAX_ROWS) -> HeldOut:
    """All rows of `problem`, predicted fold by fold."""
    fold = folds_of(problem.group, folds, seed)
    predicted = np.empty(len(fold))
    for i in np.unique(fold):
        unseen = fold == i
        values = solve(problem.where(~unseen), seed, max_rows).values
        predicted[unseen] = problem.predict(values, rows(problem.columns, unseen))
    return HeldOut(problem.columns["latency_s"], predicted, fold)


def rows(columns: Columns, chosen: NDArray[Any]) -> Columns:
    """The rows of a mask or of indices."""
    return {name: column[chosen] for name, column in columns.items()}


def _sample(columns: Columns, most: int, seed: int) -> Columns:
    total = len(columns["latency_s"])
    if total <= most:
        return columns
    return rows(columns, np.sort(np.random.default_rng(seed).choice(total, most, replace=False)))
